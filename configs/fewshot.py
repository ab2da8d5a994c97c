"""Few-shot linear evaluation of frozen features: ridge regression on a few images per class.

  python evaluate.py --config=configs/fewshot.py:model=B/16 --checkpoint=MODEL.npz
  python evaluate.py --config=configs/fewshot.py:model=B/16,data=imagenet --checkpoint=MODEL.npz
  python evaluate.py --config=configs/fewshot.py:data=digits --checkpoint=/tmp/digits

docs/evaluation.md has the rules and their sources. The argument is a list of KEY=VALUE:

  model       B/16 (a Mixer), ViT-B/16, BiT-R50x1 ..., the model of the checkpoint
  data        all (big_vision's six sets and ImageNet), one of caltech, cars, cifar100, dtd,
              imagenet, pets, uc_merced; digits: a run of configs/digits.py; or a folder of class
              folders, or of train and test or val with class folders in them, or a table of images
              and labels (.csv, .tsv, .jsonl)
  resolution  224, or the size that the checkpoint was grown to (448), or HEIGHTxWIDTH
  sweep       no, or yes: also try l2 = 2^-10 ... 2^20, and report the best for the test images

Sets that are not on disk are skipped, and the command that prepares them is printed. A set takes
the forward passes of all its images; --config.cache_dir=DIR caches the features of a checkpoint.
--config.data_dir=DIR is the directory of the TFDS sets.

The paper reports ImageNet with 5 shots (figures 2 and 4): 72.0 % for L/16 and 54.3 % for B/32 after
JFT-300M, read off its figure to 0.3 points. It does not say with which samples and l2.
"""

from ml_collections import ConfigDict, config_dict

from configs import common, digits

# name -> (TFDS set, split that the samples are drawn from, test split)
DATA = {
  'caltech': ('caltech101', 'train', 'test'),
  'cars': ('cars196:2.1.0', 'train', 'test'),
  'cifar100': ('cifar100', 'train', 'test'),
  'dtd': ('dtd', 'train', 'test'),
  # The first 65,000 images have at least 30 of each class.
  'imagenet': ('imagenet2012', 'train[:65000]', 'validation'),
  'pets': ('oxford_iiit_pet', 'train', 'test'),
  'uc_merced': ('uc_merced', 'train[:1000]', 'train[1000:]'),
}
SHOTS = (1, 5, 10, 25)
_DEFAULTS = {'model': 'B/16', 'data': 'all', 'resolution': '224', 'sweep': 'no'}
_CHOICES = {'sweep': ('no', 'yes')}


def get_config(argument: str = '') -> ConfigDict:
  options = common.parse(argument, _DEFAULTS, _CHOICES)
  data, named = options['data'], ('all', 'digits', *DATA)
  if data not in named and not common.is_own(data):
    raise ValueError(
      f'data={data!r}; use one of {named}, or a folder: a path with a "/", or one that is here; '
      'or a table: a .csv, .tsv, .jsonl or .ndjson file.'
    )
  config = ConfigDict()
  config.data_dir = config_dict.placeholder(str)  # None for $TFDS_DATA_DIR
  config.cache_dir = config_dict.placeholder(str)
  if data == 'digits':
    config.model = digits.get_config().model
    config.evals = ConfigDict({'digits': digits_section()})
  else:
    size = common.image_size(options['resolution'])
    config.model = common.model(options['model'], size)
    sizes = {'image_size': size, 'resize': common.resize(size)}
    names = DATA if data == 'all' else (data,)
    if data in named:
      config.evals = ConfigDict({name: section(name, config, **sizes) for name in names})
    else:
      own = _own(data, **sizes)
      config.evals = ConfigDict({own.input.source: own})
  for each in config.evals.values():
    each.l2_sweep = tuple(2.0**k for k in range(-10, 21)) if options['sweep'] == 'yes' else ()
    each.cache_dir = config.get_ref('cache_dir')
  config.loss = 'sigmoid'  # not used by few-shot evaluations
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1})
  config.checkpoints = ConfigDict({'keep_last': 1, 'keep_best': config_dict.placeholder(str)})
  return config


def section(name: str, shared: ConfigDict, *, image_size, resize, shots=SHOTS) -> ConfigDict:
  """The `config.evals` section of a set of DATA; `data_dir` is a reference to that of `shared`."""
  tfds_name, support, test = DATA[name]
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
      'train_input': {**images, 'split': support},
      'shots': shots,
    }
  )


# big_vision's values, except the number of images, which affects only the last bits of features.
_RULES = {'kind': 'fewshot', 'seeds': (0, 1, 2), 'l2': 2.0**10, 'images_per_device': 64}


def _own(path: str, **sizes) -> ConfigDict:
  """The section of a folder or table: samples of train, tested on test, or else on val."""
  support = common.images(path)
  data = common.images(path, support)
  support.split, data.split = 'train', common.held_out(path)[-1]
  for images in (support, data):
    images.update(crop='resize', **sizes)
  return ConfigDict({**_RULES, 'train_input': support, 'input': data, 'shots': SHOTS})


def digits_section() -> ConfigDict:
  return ConfigDict(
    {
      **_RULES,
      'input': {'source': 'digits', 'split': 'test'},
      'train_input': {'source': 'digits', 'split': 'train'},
      'shots': SHOTS,
    }
  )
