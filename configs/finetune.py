"""Fine-tuning as in section 3 and appendix C of the paper, or on a folder or table of images.

  python train.py --config=configs/finetune.py:model=B/16,data=cifar10 \
      --config.init.path=Mixer-B_16.npz --workdir=DIR
  python train.py --config=configs/finetune.py:model=B/16,data=/path/to/folder \
      --config.init.path=Mixer-B_16.npz --workdir=DIR

The argument is a list of KEY=VALUE:

  model       B/16 (a Mixer), ViT-B/16, BiT-R50x1 ..., the model of the file
  data        imagenet2012, cifar10, cifar100, oxford_iiit_pet, oxford_flowers102 (prepared by
              TFDS), or a folder of class folders, or of the splits train, val and test with class
              folders in them, or a table of images and labels (.csv, .tsv, .jsonl)
  resolution  224, or a multiple that the token-mixing MLPs grow to (448), or HEIGHTxWIDTH; of a
              ViT any multiple of its patches, of a BiT any size
  resample    False, or True: token mixing is resampled for any other resolution, such as 256, 384
              or 160; an approximation, see docs/finetuning.md
  stage       final (train on all training images, report test) or dev (hold out the part on which
              the paper chooses its learning rate, and report that); `python -m mixer.sweep` runs
              dev for each learning rate and then final. A folder's val and test are reported under
              these names; dev is its val if it has a test as well, else a tenth of its train
  crop        of the evaluation: resize_small (ii, the paper's table 3) or resize (i, its table 2)
  train       all, or head: a linear probe. All but the head is frozen, so that the features stay
              those of the file; a step costs a third and the optimizer's state is that of the head.
              Learning rate and steps are those of fine-tuning; docs/finetuning.md has notes on them
  recipe      paper, or vision_transformer: that repository's for CIFAR-10, which reports 96.72 %
              (B/16) and 96.59 % (L/16) from the ImageNet files, 96.82 % and 98.34 % from those of
              ImageNet-21k

A run has 500 to 20,000 steps of 512 images. The paper reports at 224 pixels, averaged over its five
sets, 88.33 % for B/16 from ImageNet and 92.50 % from ImageNet-21k. It does not say which learning
rate won on which set.
"""

from ml_collections import ConfigDict, config_dict

from configs import common

# Steps and held-out parts are from ViT, which the paper follows; the warm-up is big_vision's.
DATA = {
  'imagenet2012': {'steps': 20_000, 'warmup': 500, 'dev': 99, 'test': 'validation'},
  'cifar10': {'steps': 10_000, 'warmup': 500, 'dev': 98, 'test': 'test'},
  'cifar100': {'steps': 10_000, 'warmup': 500, 'dev': 98, 'test': 'test'},
  'oxford_iiit_pet': {'steps': 500, 'warmup': 100, 'dev': 90, 'test': 'test'},
  'oxford_flowers102': {'steps': 500, 'warmup': 100, 'dev': 90, 'test': 'test'},
}

_CHOICES = {
  'resample': ('False', 'True'),
  'stage': ('final', 'dev'),
  'crop': ('resize_small', 'resize'),
  'train': ('all', 'head'),
  'recipe': ('paper', 'vision_transformer'),
}
_DEFAULTS = {
  'model': 'B/16',
  'data': 'cifar10',
  'resolution': '224',
  'resample': 'False',
  'stage': 'final',
  'crop': 'resize_small',
  'train': 'all',
  'recipe': 'paper',
}


def get_config(argument: str = '') -> ConfigDict:
  options = common.parse(argument, _DEFAULTS, _CHOICES)
  _check_data(options['data'])
  size = common.image_size(options['resolution'])
  facts = DATA.get(options['data'], {'steps': 500, 'warmup': 100})
  theirs = options['recipe'] == 'vision_transformer'

  config = ConfigDict()
  config.seed = 0

  config.train_input = _input(options)
  train_split, held_out = _splits(options, facts)
  config.train_input.split = train_split
  config.train_input.batch_size = 512
  config.train_input.image_size = size
  config.train_input.crop = 'inception' if theirs else 'resize_random'
  if not theirs:
    config.train_input.resize = common.resize(size)
  config.train_input.on_bad_image = 'fail'  # or 'skip', see docs/data.md

  config.evals = ConfigDict()
  for name, split in held_out.items():
    test = _input(options, config.train_input)
    test.split = split
    test.batch_size = config.train_input.get_ref('batch_size')
    test.image_size = config.train_input.get_ref('image_size')
    test.crop = 'direct' if theirs else options['crop']
    if not theirs:
      test.resize = common.resize(size)
    config.evals[name] = ConfigDict({'kind': 'classification', 'input': test})

  config.init = ConfigDict()
  config.init.path = config_dict.placeholder(str)
  config.init.head = 'auto'  # keep it if the number of classes agrees, else reset it to zeros
  config.init.from_size = ()  # (height, width) that the file is trained at, if not a square

  config.model = common.model(
    options['model'],
    size,
    head_bias=0.0,
    stochastic_depth=0.0,
    dropout=0.0,
    remat=False,
    scan=False,
  )
  if options['resample'] == 'True':
    config.init.resample = True
    if any(side % common.RELEASED_SIZE for side in size) and config.model.name.startswith('Mixer'):
      config.model.tiles = (1, 1)  # no growth
  config.loss = 'softmax'
  config.mixup = 0.0

  config.optim = ConfigDict(
    {
      'optimizer': {
        'name': 'sgd',
        'momentum': 0.9,
        'accumulator_dtype': 'bfloat16' if theirs else 'float32',
      },
      'learning_rate': 0.03,  # vision_transformer's; mixer.sweep has the paper's grid
      'schedule': {'warmup_steps': facts['warmup'], 'decay': 'cosine', 'linear_end': 0.0},
      'clip_norm': 1.0,
      'weight_decay': 0.0,
      'weight_decay_mode': 'independent',
    }
  )
  if options['train'] == 'head':
    config.optim.freeze = ('(?!head).*',)  # all names but those that begin with 'head'
  config.total_epochs = 0.0
  config.total_steps = facts['steps']
  config.microbatches = 8 if theirs else 1
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1})

  config.every = ConfigDict({'log': 20, 'evaluate': 500, 'checkpoint': 500})
  config.checkpoints = ConfigDict({'keep_last': 1, 'keep_best': config_dict.placeholder(str)})
  return config


def _check_data(data: str) -> None:
  if data not in DATA and not common.is_own(data):
    raise ValueError(
      f'data={data!r} is none of {sorted(DATA)}, and there is no such folder here; '
      'write a folder as a path, with a "/"; a table ends with .csv, .tsv, .jsonl or .ndjson.'
    )


def _is_own(options: dict) -> bool:
  return options['data'] not in DATA


def _input(options: dict, train: ConfigDict | None = None) -> ConfigDict:
  """The data source; that of an evaluation refers to the training input `train`."""
  if _is_own(options):
    return common.images(options['data'], train)
  own = ConfigDict()
  own.source = 'tfds'
  own.name = train.get_ref('name') if train else options['data']
  own.data_dir = train.get_ref('data_dir') if train else config_dict.placeholder(str)
  return own


def _splits(options: dict, facts: dict) -> tuple[str, dict[str, str]]:
  """(training split, {name of an evaluation: its split})."""
  dev = options['stage'] == 'dev'
  if _is_own(options):
    own = common.held_out(options['data'])
    if dev and len(own) == 2:
      return 'train', {'dev': 'val'}
    return (
      ('train[:90%]', {'dev': 'train[90%:]'}) if dev else ('train', {name: name for name in own})
    )
  percent = 98 if options['recipe'] == 'vision_transformer' else facts['dev']
  if dev:
    return f'train[:{percent}%]', {'dev': f'train[{percent}%:]'}
  train = 'train[:98%]' if options['recipe'] == 'vision_transformer' else 'train'
  return train, {'test': facts['test']}
