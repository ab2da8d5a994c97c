"""Evaluation on ImageNet, ImageNet-V2 and ReaL of a checkpoint with ImageNet's 1,000 classes.

  python evaluate.py --config=configs/imagenet.py:model=B/16 --checkpoint=imagenet1k/Mixer-B_16.npz

The argument is a list of KEY=VALUE:

  model       B/16 (a Mixer), ViT-B/16, BiT-R50x1 ..., the model of the checkpoint
  crop        resize_small (the paper's (ii), its table 3: shorter side to 256) or resize (its (i),
              its table 2: to 256 x 256), then the central 224 pixels
  resolution  224, or the size that the checkpoint was grown to (448), or HEIGHTxWIDTH
  loss        sigmoid, as the released files are trained with, or softmax, as after fine-tuning

Sets that are not on disk are skipped, and the command that prepares them is printed.
--config.data_dir=DIR is the directory of the TFDS sets.

For weights trained on ImageNet itself, the paper reports with resize_small 76.44 % top-1 and
82.36 % ReaL for B/16, 71.76 % and 77.08 % for L/16 (table 3).
"""

from ml_collections import ConfigDict, config_dict

from configs import common

# name -> (kind, TFDS set, split, label)
TESTS = {
  'val': ('classification', 'imagenet2012', 'validation', 'label'),
  'v2': ('classification', 'imagenet_v2/matched-frequency', 'test', 'label'),
  'real': ('real', 'imagenet2012_real', 'validation', 'real_label'),
}
_DEFAULTS = {'model': 'B/16', 'crop': 'resize_small', 'resolution': '224', 'loss': 'sigmoid'}
_CHOICES = {'crop': ('resize_small', 'resize'), 'loss': ('sigmoid', 'softmax')}


def get_config(argument: str = '') -> ConfigDict:
  options = common.parse(argument, _DEFAULTS, _CHOICES)
  size = common.image_size(options['resolution'])
  config = ConfigDict()
  config.data_dir = config_dict.placeholder(str)  # None for $TFDS_DATA_DIR
  config.batch_size = 256
  config.evals = ConfigDict()
  for name in TESTS:
    config.evals[name] = section(
      name, config, image_size=size, resize=common.resize(size), crop=options['crop']
    )
  config.model = common.model(options['model'], size)
  config.loss = options['loss']
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1})
  config.checkpoints = ConfigDict({'keep_last': 1, 'keep_best': config_dict.placeholder(str)})
  return config


def section(name: str, shared: ConfigDict, *, image_size, resize, crop: str) -> ConfigDict:
  """The `config.evals` section of one of TESTS; `data_dir` and `batch_size` refer to `shared`."""
  kind, tfds_name, split, label_key = TESTS[name]
  return ConfigDict(
    {
      'kind': kind,
      'input': {
        'source': 'tfds',
        'name': tfds_name,
        'split': split,
        'data_dir': shared.get_ref('data_dir'),
        'batch_size': shared.get_ref('batch_size'),
        'image_size': image_size,
        'crop': crop,
        'resize': resize,
        'label_key': label_key,
      },
    }
  )
