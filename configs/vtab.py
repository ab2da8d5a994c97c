"""One task of VTAB-1k, as in section 3 and appendix C of the paper; see docs/vtab.md.

  python train.py --config=configs/vtab.py:task=pets,model=B/16 \
      --config.init.path=Mixer-B_16.npz --workdir=DIR

The argument is a list of KEY=VALUE:

  task        one of the nineteen of docs/vtab.md
  model       B/16 (a Mixer), ViT-B/16, BiT-R50x1 ..., the model of the file
  stage       final (train on all 1,000 images, report test) or dev (train on 800 and report the
              other 200, on which the learning rate is chosen)

`python -m mixer.vtab` runs dev for each learning rate and then final, for all tasks. A run has
2,500 steps of 512 images. The paper reports only means over the nineteen tasks: 74.95 % for L/16
from ImageNet-21k, 75.33 % for H/14 from JFT-300M.
"""

from ml_collections import ConfigDict, config_dict

from configs import common, finetune

# BiT's rules: images smaller than 96 x 96 pixels are resized to 224 pixels, all others to 448 (the
# paper says that it follows this rule). If mirroring or cropping changes the label, it is not used.
SMALL = ('cifar100', 'svhn', 'eurosat', 'dsprites_location', 'dsprites_orientation')
NO_FLIP = ('dsprites_location', 'dsprites_orientation', 'smallnorb_azimuth')
NO_RANDOM_CROP = (
  'clevr_count', 'clevr_distance', 'dmlab', 'kitti_distance', 'dsprites_location',
)  # fmt: skip

# (flip, random crop) -> the crops of training and of evaluation
_CROPS = {
  (True, True): ('resize_random', 'resize'),
  (False, True): ('resize_random_unflipped', 'resize'),
  (True, False): ('direct_flip', 'direct'),
  (False, False): ('direct', 'direct'),
}
_DEFAULTS = {'task': 'cifar100', 'model': 'B/16', 'stage': 'final'}
_CHOICES = {'stage': ('final', 'dev')}


def get_config(argument: str = '') -> ConfigDict:
  options = common.parse(argument, _DEFAULTS, _CHOICES)
  task, dev = options['task'], options['stage'] == 'dev'
  side = 224 if task in SMALL else 448
  config = finetune.get_config(f'model={options["model"]},resolution={side}')
  crops = _CROPS[task not in NO_FLIP, task not in NO_RANDOM_CROP]

  config.train_input = _input(task, crops[0], side)
  config.train_input.data_dir = config_dict.placeholder(str)
  config.train_input.split = 'train800' if dev else 'train800val200'
  config.train_input.batch_size = 512
  test = _input(task, crops[1], side)
  test.data_dir = config.train_input.get_ref('data_dir')
  test.split = 'val200' if dev else 'test'
  test.batch_size = config.train_input.get_ref('batch_size')
  test.image_size = config.train_input.get_ref('image_size')
  config.evals = ConfigDict({'dev' if dev else 'test': {'kind': 'classification', 'input': test}})

  config.init.head = 'reset'  # also if the file has the same number of classes
  config.total_steps = 2500  # as in ViT, which the paper follows
  config.optim.schedule.warmup_steps = 500  # as in vision_transformer
  config.every = ConfigDict({'log': 50, 'evaluate': 0, 'checkpoint': 500})
  return config


def _input(task: str, crop: str, side: int) -> ConfigDict:
  own = ConfigDict({'source': 'vtab', 'task': task, 'crop': crop, 'image_size': (side, side)})
  if not crop.startswith('direct'):
    own.resize = common.resize((side, side))
  return own
