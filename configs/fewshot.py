"""Few-shot linear evaluation of frozen features: ridge regression on a few images of each class.

  python evaluate.py --config=configs/fewshot.py:model=B/16 --checkpoint=MODEL.npz
  python evaluate.py --config=configs/fewshot.py:model=B/16,data=imagenet --checkpoint=MODEL.npz
  python evaluate.py --config=configs/fewshot.py:data=digits --checkpoint=/tmp/digits

The rules and their sources are in docs/evaluation.md. The argument is a list of KEY=VALUE:

  model       S/32 ... H/14, as of the checkpoint
  data        all (big_vision's six sets and ImageNet), one of caltech, cars, cifar100, dtd,
              imagenet, pets, uc_merced, or digits: a run of configs/digits.py
  resolution  224, or the size that the checkpoint was grown to (448), or HEIGHTxWIDTH
  sweep       no, or yes: also try l2 = 2^-10 ... 2^20, and report the best for the test images

Sets that are not on disk are left out and named, with what prepares them. A set takes the forward
passes of all its images; --config.cache_dir=DIR keeps the features of a checkpoint.
--config.data_dir=DIR is where the TFDS sets lie.

The paper reports ImageNet with 5 shots (figures 2 and 4): 72.0 % for L/16 and 54.3 % for B/32 after
JFT-300M, read from its figure to 0.3 points. With which samples and l2, it does not say.
"""

from ml_collections import ConfigDict, config_dict

from configs import digits

# name -> (TFDS set, where the few images are drawn from, test split)
DATA = {
  'caltech': ('caltech101', 'train', 'test'),
  'cars': ('cars196:2.1.0', 'train', 'test'),
  'cifar100': ('cifar100', 'train', 'test'),
  'dtd': ('dtd', 'train', 'test'),
  # The first 65,000 images have 30 and more of each class.
  'imagenet': ('imagenet2012', 'train[:65000]', 'validation'),
  'pets': ('oxford_iiit_pet', 'train', 'test'),
  'uc_merced': ('uc_merced', 'train[:1000]', 'train[1000:]'),
}
BASE_SIZE = 224  # pixels that the released files were trained at
SHOTS = (1, 5, 10, 25)
_DEFAULTS = {'model': 'B/16', 'data': 'all', 'resolution': '224', 'sweep': 'no'}


def get_config(argument: str = '') -> ConfigDict:
  options = parse(argument, _DEFAULTS, {'data': ('all', 'digits', *DATA), 'sweep': ('no', 'yes')})
  config = ConfigDict()
  config.data_dir = config_dict.placeholder(str)  # None for $TFDS_DATA_DIR
  config.cache_dir = config_dict.placeholder(str)
  if options['data'] == 'digits':
    config.model = digits.get_config().model
    config.evals = ConfigDict({'digits': _digits()})
  else:
    size = sides(options['resolution'])
    config.model = model(options['model'], size)
    sizes = {'image_size': size, 'resize': resized(size)}
    names = DATA if options['data'] == 'all' else (options['data'],)
    config.evals = ConfigDict({name: section(name, config, **sizes) for name in names})
  for each in config.evals.values():
    each.l2_sweep = tuple(2.0**k for k in range(-10, 21)) if options['sweep'] == 'yes' else ()
    each.cache_dir = config.get_ref('cache_dir')
  config.loss = 'sigmoid'  # nothing here looks at it
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1})
  config.checkpoints = ConfigDict({'keep_last': 1, 'keep_best': config_dict.placeholder(str)})
  return config


def section(name: str, shared: ConfigDict, *, image_size, resize, shots=SHOTS) -> ConfigDict:
  """The evaluation of a set of DATA, for `config.evals`; `data_dir` refers to that of `shared`."""
  tfds_name, pool, test = DATA[name]
  images = {
    'source': 'tfds',
    'name': tfds_name,
    'data_dir': shared.get_ref('data_dir'),
    'image_size': image_size,
    'crop': 'resize',
    'resize': resize,
  }
  return ConfigDict(
    {
      **_RULES,
      'input': {**images, 'split': test},
      'train_input': {**images, 'split': pool},
      'shots': shots,
    }
  )


def parse(argument: str, defaults: dict[str, str], choices: dict) -> dict[str, str]:
  """The options of 'KEY=VALUE,...' over the defaults; `choices` has the allowed values of some."""
  options = dict(defaults)
  for part in filter(None, argument.split(',')):
    key, equals, value = part.partition('=')
    if key not in options or not equals:
      raise ValueError(f'{part!r} is not KEY=VALUE with a key of {sorted(options)}.')
    if key in choices and value not in choices[key]:
      raise ValueError(f'{key}={value!r}; use one of {choices[key]}.')
    options[key] = value
  return options


def sides(resolution: str) -> tuple[int, int]:
  """'224' or 'HEIGHTxWIDTH' -> (height, width)."""
  height, width = (resolution.split('x') * 2)[:2]
  return int(height), int(width)


def resized(image_size: tuple[int, int]) -> tuple[int, int]:
  """What images are resized to before the centre crop: 256 for 224, 512 for 448."""
  return tuple(side * 8 // 7 for side in image_size)


def model(size: str, image_size: tuple[int, int]) -> ConfigDict:
  """A Mixer as it was trained at 224 pixels, or grown to more."""
  return ConfigDict({'name': f'Mixer-{size}', 'tiles': tiles(image_size), 'dtype': 'float32'})


def tiles(image_size: tuple[int, int]) -> tuple[int, int]:
  """How many times the size that the released files were trained at: (2, 2) for 448."""
  return tuple(max(side // BASE_SIZE, 1) for side in image_size)


# big_vision's, besides the number of images, which changes the features' last bits at most.
_RULES = {'kind': 'fewshot', 'seeds': (0, 1, 2), 'l2': 2.0**10, 'images_per_device': 64}


def _digits() -> ConfigDict:
  return ConfigDict(
    {
      **_RULES,
      'input': {'source': 'digits', 'split': 'test'},
      'train_input': {'source': 'digits', 'split': 'train'},
      'shots': SHOTS,
    }
  )
