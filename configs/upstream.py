"""Upstream pre-training of the paper: section 3, table 4 and appendix B, and of its baselines.

  python train.py --config=configs/mixer_b32.py:jft,subset=3 --workdir=DIR
  python evaluate.py --config=configs/mixer_b32.py:jft,subset=3 --checkpoint=DIR --which=best

The argument is the data set, optionally followed by a comma and one change:

  subset=P    a random P percent of the training images, for as many steps as with all of them;
              keeps the checkpoint that is best on the upstream validation set (figure 2, right, has
              3, 10, 30 and 100, with the steps of 7 epochs, also for L/16). A smaller subset is
              part of a larger one.
  synthetic   random images that take no time to load, and no evaluations: measures the accelerator

Sources of the values that the paper does not print: big_vision's `mlp_mixer_i1k.py` (published by
the authors for the 76 % B/16 run on ImageNet) and `vit_i21k.py`. `weight_decay` is the paper's, in
its AdamW convention; a run prints big_vision's equivalent when it starts.
"""

from ml_collections import ConfigDict, config_dict

from configs import fewshot, imagenet

# Table 4. Its rows depend on the size letter only, so /16 and /32 share a row. RandAugment has 2
# layers of the given magnitude; JFT-300M has no augmentation beyond the crop and flip.
TABLE_4 = {
  'imagenet2012': {
    'B': {'epochs': 300.0, 'learning_rate': 0.001, 'weight_decay': 0.1, 'randaugment': 15,
          'mixup': 0.5, 'stochastic_depth': 0.1},
    'L': {'epochs': 300.0, 'learning_rate': 0.001, 'weight_decay': 0.1, 'randaugment': 15,
          'mixup': 0.5, 'stochastic_depth': 0.1},
  },
  'imagenet21k': {
    'B': {'epochs': 300.0, 'learning_rate': 0.001, 'weight_decay': 0.1, 'randaugment': 10,
          'mixup': 0.2, 'stochastic_depth': 0.1},
    'L': {'epochs': 300.0, 'learning_rate': 0.001, 'weight_decay': 0.1, 'randaugment': 20,
          'mixup': 0.5, 'stochastic_depth': 0.1},
  },
  'jft': {
    'S': {'epochs': 5.0, 'learning_rate': 0.003, 'weight_decay': 0.03},
    'B': {'epochs': 7.0, 'learning_rate': 0.003, 'weight_decay': 0.03},
    'L': {'epochs': 14.0, 'learning_rate': 0.001, 'weight_decay': 0.03},
    'H': {'epochs': 14.0, 'learning_rate': 0.001, 'weight_decay': 0.03},
  },
}  # fmt: skip

# The ResNets and Vision Transformers that the paper compares with. Their settings are those of
# table 3 of the ViT paper (batch 4096, 10,000 steps of warm-up; gradients are clipped on ImageNet
# only). The ViTs of the Mixer paper on ImageNet and ImageNet-21k had more regularisation and 300
# epochs (its table 3), by settings that are not published: those of the ViT paper are used.
_JFT_BIT = {'epochs': 7.0, 'weight_decay': 0.1, 'clip_norm': None}
BIT = {
  'R50x1': {**_JFT_BIT, 'learning_rate': 1e-3},
  'R50x2': {**_JFT_BIT, 'learning_rate': 1e-3},
  'R101x1': {**_JFT_BIT, 'learning_rate': 8e-4},
  'R152x1': {**_JFT_BIT, 'learning_rate': 6e-4},
  # For the run of 14 epochs in table 3 of the Mixer paper: --config.total_epochs=14.
  'R152x2': {**_JFT_BIT, 'learning_rate': 6e-4},
  # Unconfirmed learning rate: that of R152x2. ViT's table has no row for it.
  'R200x3': {**_JFT_BIT, 'learning_rate': 6e-4, 'epochs': 14.0},
}
# R152x4 is BiT's own, trained with SGD and three or four drops of the learning rate (its section
# 3.3). BiT adds a decay of 1e-4 to the gradient; after a momentum of 0.9 that is 1e-3 times the
# learning rate. Unconfirmed: the loss, which is the same for all models here.
_SGD = {
  'optimizer': {'name': 'sgd', 'momentum': 0.9, 'accumulator_dtype': 'float32'},
  'learning_rate': 0.03 * 4096 / 256, 'weight_decay': 1e-4 / (1 - 0.9), 'clip_norm': None,
  'warmup_steps': 5_000, 'decay': 'step',
}  # fmt: skip
BIT_SGD = {
  ('R152x4', 'jft'): {
    **_SGD, 'epochs': 40.0, 'boundaries': (10 / 40, 23 / 40, 30 / 40, 37 / 40)
  },
  ('R152x4', 'imagenet21k'): {
    **_SGD, 'epochs': 90.0, 'boundaries': (30 / 90, 60 / 90, 80 / 90)
  },
}  # fmt: skip

_JFT_VIT = {'weight_decay': 0.1, 'clip_norm': None}
_21K_VIT = {'learning_rate': 1e-3, 'weight_decay': 0.03, 'dropout': 0.1, 'clip_norm': None}
_IMAGENET_VIT = {
  'epochs': 300.0, 'learning_rate': 3e-3, 'weight_decay': 0.3, 'dropout': 0.1, 'decay': 'cosine'
}  # fmt: skip
VIT = {
  'imagenet2012': {'B': _IMAGENET_VIT, 'L': _IMAGENET_VIT},
  'imagenet21k': {
    'B': {**_21K_VIT, 'epochs': 90.0},
    'L': {**_21K_VIT, 'epochs': 90.0},  # 30 or 90
  },
  'jft': {
    'B': {**_JFT_VIT, 'epochs': 7.0, 'learning_rate': 8e-4},
    'L/32': {**_JFT_VIT, 'epochs': 7.0, 'learning_rate': 6e-4},
    'L': {**_JFT_VIT, 'epochs': 14.0, 'learning_rate': 4e-4},  # 7 or 14
    'H': {**_JFT_VIT, 'epochs': 14.0, 'learning_rate': 3e-4},
  },
}

# A size without a row has that of the nearest: ViT-S, and Mixer-S and H other than on JFT-300M.
_NEAREST = {'S': 'B', 'H': 'L'}

# Table 4 has "7 or 14" for L on JFT-300M; table 3 reports L/32 only after 7.
_EPOCHS = {('Mixer-L/32', 'jft'): 7.0}
# Epochs on the whole set to which the subsets of figure 2 (right) correspond, if not the table's.
_SUBSET_EPOCHS = {('Mixer-L/16', 'jft'): 7.0}

# `evals` are splits of the training set; `tests` are names in configs/imagenet.py. The initial bias
# of the head is about -ln(number of classes), so that the sigmoid loss starts near that of random
# guessing. The bias for JFT-300M is not published; that of ImageNet-21k is used.
_DATA = {
  'imagenet2012': {
    'train': {'name': 'imagenet2012', 'split': 'train[:99%]'},
    'evals': {'minival': 'train[99%:]', 'val': 'validation'},
    'tests': ('v2', 'real'),
    'head_bias': -6.9,
    'synthetic': {'num_classes': 1000, 'num_examples': 1_268_355, 'multi_label': False},
  },
  'imagenet21k': {
    'train': {'name': 'imagenet21k', 'split': 'full[51200:]'},
    'evals': {'val': 'full[25600:51200]'},
    'tests': (),
    'head_bias': -10.0,
    'synthetic': {'num_classes': 21_843, 'num_examples': 14_145_922, 'multi_label': False},
  },
  # Private to Google: prepare another set under this name, or set config.train_input.name.
  'jft': {
    'train': {'name': 'jft_300m', 'split': 'train'},
    'evals': {'val': 'validation'},
    'tests': (),
    'head_bias': -10.0,
    'synthetic': {'num_classes': 18_291, 'num_examples': 303_000_000, 'multi_label': True},
  },
}

# The same as record files of tf.train.Example; config.train_input.files is their glob. The first
# examples are held out, as many as for ImageNet-21k. JFT-300M has 18,291 classes.
JFT_SHARDS = 'jft_shards'
_HELD_OUT = 51_200

IMAGE_SIZE = 224


def get_config(model: str, argument: str) -> ConfigDict:
  """The config for pre-training 'Mixer-B/16', 'BiT-R50x1' and so on.

  The argument begins with a key of TABLE_4, or JFT_SHARDS.
  """
  data, *changes = argument.split(',')
  known = [change for change in changes if change == 'synthetic' or change.startswith('subset=')]
  if data not in (*TABLE_4, JFT_SHARDS) or changes != known[:1]:
    raise ValueError(
      f'unknown data {argument!r}; use one of {sorted([*TABLE_4, JFT_SHARDS])}, with '
      '",subset=PERCENT" after it for a part, or ",synthetic" for random images.'
    )
  shards = data == JFT_SHARDS
  data = 'jft' if shards else data
  row, facts = _row(model, data), _DATA[data]

  config = ConfigDict()
  config.seed = 0

  config.train_input = _shards() if shards else _tfds(**facts['train'])
  shared = [*config.train_input, 'batch_size', 'image_size']  # with the evaluations
  config.train_input.batch_size = 4096
  config.train_input.image_size = IMAGE_SIZE
  config.train_input.crop = 'inception'
  config.train_input.randaugment_layers = 2 if 'randaugment' in row else 0
  config.train_input.randaugment_magnitude = row.get('randaugment', 0)
  config.train_input.randaugment_on = 'host'  # or 'device', within the train step
  config.train_input.on_bad_image = 'fail'  # or 'skip', see docs/data.md

  config.evals = ConfigDict()
  for name, split in facts['evals'].items():
    part = {'first': 0, 'last': config.train_input.get_ref('first')} if shards else {'split': split}
    section = {key: config.train_input.get_ref(key) for key in shared if key not in part}
    section |= {'crop': 'resize_small', 'resize': IMAGE_SIZE * 8 // 7, **part}  # 256
    config.evals[name] = ConfigDict({'kind': 'classification', 'input': section})

  # Its `data_dir` is the directory of the TFDS sets for evaluation.
  tfds = ConfigDict({'data_dir': config_dict.placeholder(str)}) if shards else config.train_input
  sides = {'image_size': config.train_input.get_ref('image_size'), 'resize': IMAGE_SIZE * 8 // 7}
  for name in facts['tests']:
    config.evals[name] = imagenet.section(name, tfds, crop='resize_small', **sides)
  # ImageNet 5-shot, which the paper reports during training (figure 4).
  config.evals.fewshot_imagenet = fewshot.section('imagenet', tfds, shots=(5,), **sides)
  config.evals.fewshot_imagenet.every = 25_000

  config.model = ConfigDict()
  config.model.name = model
  config.model.head_bias = facts['head_bias']
  config.model.dtype = 'float32'  # as released; 'bfloat16' halves the activations
  config.model.remat = False
  if not model.startswith('BiT'):
    config.model.stochastic_depth = row.get('stochastic_depth', 0.0)
    config.model.rescale_drop_path = False  # as in big_vision
    config.model.dropout = row.get('dropout', 0.0)
    config.model.scan = False

  # If `path` is set, training starts from those weights; see configs/finetune.py.
  config.init = ConfigDict({'path': config_dict.placeholder(str), 'head': 'auto', 'from_size': ()})

  config.loss = 'sigmoid'
  config.mixup = row.get('mixup', 0.0)

  config.optim = ConfigDict()
  adam = {'name': 'adam', 'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'moment_dtype': 'float32'}
  config.optim.optimizer = ConfigDict(row.get('optimizer', adam))
  config.optim.learning_rate = row['learning_rate']
  config.optim.schedule = ConfigDict(
    {'warmup_steps': row.get('warmup_steps', 10_000), 'decay': row.get('decay', 'linear')}
  )
  if 'boundaries' in row:
    config.optim.schedule.boundaries = row['boundaries']
  else:
    config.optim.schedule.linear_end = 1e-5
  config.optim.clip_norm = row.get('clip_norm', 1.0)
  config.optim.weight_decay = row['weight_decay']
  config.optim.weight_decay_mode = 'adamw'

  config.total_epochs = _EPOCHS.get((model, data), row['epochs'])
  config.total_steps = config_dict.placeholder(int)  # if set, it comes before total_epochs
  config.microbatches = 1
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1})

  config.every = ConfigDict({'log': 50, 'evaluate': 5_000, 'checkpoint': 1_000})
  config.checkpoints = ConfigDict({'keep_last': 2, 'keep_best': config_dict.placeholder(str)})
  if changes == ['synthetic']:
    _use_random_images(config, facts['synthetic'])
  elif changes:
    config.total_epochs = _SUBSET_EPOCHS.get((model, data), config.total_epochs)
    take_subset(config, changes[0].removeprefix('subset='))
  return config


def of_size(family: str, argument: str) -> ConfigDict:
  """The config of 'SIZE[,DATA][,CHANGE]' of a family of models; the data are jft by default."""
  size, *parts = argument.split(',')
  if not (parts and parts[0] in (*TABLE_4, JFT_SHARDS)):
    parts = ['jft', *parts]
  return get_config(f'{family}-{size}', ','.join(parts))


def take_subset(config: ConfigDict, percent: str) -> None:
  """Trains on `percent` of the images for the same number of steps."""
  try:
    fraction = float(percent) / 100
  except ValueError:
    fraction = 0.0
  if not 0 < fraction <= 1:
    raise ValueError(f'subset={percent}: write percent above 0 and up to 100, as in subset=3.')
  config.train_input.subset_fraction = fraction
  config.train_input.subset_seed = 0
  config.total_epochs /= fraction
  # ImageNet's 'val' is the test set.
  validation = 'minival' if 'minival' in config.evals else 'val'
  config.checkpoints.keep_best = f'{validation}/top1'


def _use_random_images(config: ConfigDict, facts: dict) -> None:
  size = {'batch_size': 4096, 'image_size': IMAGE_SIZE, 'channels': 3}
  config.train_input = ConfigDict({'source': 'synthetic', **size, **facts})
  config.evals = ConfigDict()


def _row(model: str, data: str) -> dict:
  """The row of a table for 'Mixer-B/16', 'ViT-B/16' or 'BiT-R50x1'."""
  family, _, size = model.partition('-')
  if family in ('Mixer', 'ViT') and size[:1] in ('S', 'B', 'L', 'H') and '/' in size:
    rows = {'Mixer': TABLE_4, 'ViT': VIT}[family][data]
    names = (size, size[0], _NEAREST.get(size[0]))
    return next(rows[name] for name in names if name in rows)
  bit = {**{(size, 'jft'): row for size, row in BIT.items()}, **BIT_SGD}
  if family != 'BiT' or (size, data) not in bit:
    known = ', '.join(f'BiT-{size} on {data}' for size, data in bit)
    raise ValueError(
      f'no recipe for {model!r} on {data!r}; there are those of Mixer-S/32 to H/14, ViT-S/32 to '
      f'H/14, {known}.'
    )
  return bit[size, data]


def _tfds(name: str, split: str) -> ConfigDict:
  section = ConfigDict({'source': 'tfds', 'name': name, 'split': split})
  # The directory of the TFDS sets; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
  section.data_dir = config_dict.placeholder(str)
  section.image_key, section.label_key = 'image', 'label'
  return section


def _shards() -> ConfigDict:
  section = ConfigDict({'source': 'shards', 'num_classes': 18_291, 'multi_label': True})
  section.files = config_dict.placeholder(str)
  section.image_key, section.label_key = 'image/encoded', 'image/class/label'
  section.class_names = config_dict.placeholder(str)
  section.first, section.last = _HELD_OUT, config_dict.placeholder(int)
  return section
