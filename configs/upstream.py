"""Upstream pre-training of the paper: section 3, table 4 and appendix B, for all seven sizes.

Sources of the values that the paper does not print: big_vision's `mlp_mixer_i1k.py` (published by
the authors for the 76 % B/16 run on ImageNet) and `vit_i21k.py`. `weight_decay` is the paper's, in
its AdamW convention; the start of a run prints big_vision's equivalent.
"""

from ml_collections import ConfigDict, config_dict

# Table 4. It has rows by size letter, none by patch size, so /16 and /32 share a row. RandAugment
# has 2 layers of the given magnitude; JFT-300M needs no augmentation beyond the crop and flip.
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

# The paper pre-trains S and H on JFT-300M only. Elsewhere S takes B's row and H takes L's: the
# nearest size that has one.
_NEAREST = {'S': 'B', 'H': 'L'}

# Table 4 has "7 or 14" for L on JFT-300M; table 3 reports L/32 after 7 only.
_EPOCHS = {('Mixer-L/32', 'jft'): 7.0}

# The bias of the zero-initialised head, about -ln(number of classes), so that the sigmoid loss
# starts near that of guessing. JFT-300M's is not published; 21k's is taken.
_DATA = {
  'imagenet2012': {
    'train': {'name': 'imagenet2012', 'split': 'train[:99%]'},
    'evals': {'minival': 'train[99%:]', 'val': 'validation'},
    'head_bias': -6.9,
  },
  'imagenet21k': {
    'train': {'name': 'imagenet21k', 'split': 'full[51200:]'},
    'evals': {'val': 'full[25600:51200]'},
    'head_bias': -10.0,
  },
  # Private to Google: put a set of your own under this name, or give another name.
  'jft': {
    'train': {'name': 'jft_300m', 'split': 'train'},
    'evals': {'val': 'validation'},
    'head_bias': -10.0,
  },
}

IMAGE_SIZE = 224


def get_config(model: str, data: str) -> ConfigDict:
  """The config of pre-training 'Mixer-B/16' and so on, on a key of TABLE_4."""
  data, _, mode = data.partition(',')
  if data not in TABLE_4:
    raise ValueError(f'unknown data {data!r}; use one of {sorted(TABLE_4)}.')
  size = model.split('-')[1][0]
  row = TABLE_4[data].get(size) or TABLE_4[data][_NEAREST[size]]
  facts = _DATA[data]

  config = ConfigDict()
  config.seed = 0
  # Where the TFDS sets lie; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
  data_dir = config_dict.placeholder(str)

  config.train_input = ConfigDict()
  config.train_input.source = 'tfds'
  config.train_input.name = facts['train']['name']
  config.train_input.split = facts['train']['split']
  config.train_input.data_dir = data_dir
  config.train_input.batch_size = 4096
  config.train_input.image_size = IMAGE_SIZE
  config.train_input.crop = 'inception'
  config.train_input.randaugment_layers = 2 if 'randaugment' in row else 0
  config.train_input.randaugment_magnitude = row.get('randaugment', 0)
  config.train_input.image_key = 'image'
  config.train_input.label_key = 'label'

  if mode == 'synthetic':
    config.train_input = ConfigDict(
      {
        'source': 'synthetic',
        'num_classes': {'jft': 18_291, 'imagenet21k': 21_843, 'imagenet2012': 1000}[data],
        'num_examples': {'jft': 303_000_000, 'imagenet21k': 14_145_922, 'imagenet2012': 1_268_355}[
          data
        ],
        'image_size': 224,
        'batch_size': 4096,
        'multi_label': data == 'jft',
      }
    )
  config.evals = ConfigDict()
  for name, split in facts['evals'].items() if mode != 'synthetic' else ():
    config.evals[name] = ConfigDict(
      {
        'kind': 'classification',
        'input': {
          'source': 'tfds',
          'name': config.train_input.get_ref('name'),
          'split': split,
          'data_dir': config.train_input.get_ref('data_dir'),
          'batch_size': config.train_input.get_ref('batch_size'),
          'image_size': config.train_input.get_ref('image_size'),
          'crop': 'resize_small',
          'resize': IMAGE_SIZE * 8 // 7,  # 256
          'image_key': config.train_input.get_ref('image_key'),
          'label_key': config.train_input.get_ref('label_key'),
        },
      }
    )

  config.model = ConfigDict()
  config.model.name = model
  config.model.head_bias = facts['head_bias']
  config.model.stochastic_depth = row.get('stochastic_depth', 0.0)
  config.model.rescale_drop_path = False  # big_vision's way
  config.model.dropout = 0.0
  config.model.dtype = 'float32'  # as released; 'bfloat16' halves the activations
  config.model.remat = False
  config.model.scan = False

  # Trained weights to start from, if there is a path; see configs/finetune.py.
  config.init = ConfigDict({'path': config_dict.placeholder(str), 'head': 'auto', 'from_size': ()})

  config.loss = 'sigmoid'
  config.mixup = row.get('mixup', 0.0)

  config.optim = ConfigDict()
  config.optim.optimizer = ConfigDict(
    {'name': 'adam', 'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'moment_dtype': 'float32'}
  )
  config.optim.learning_rate = row['learning_rate']
  config.optim.schedule = ConfigDict(
    {'warmup_steps': 10_000, 'decay': 'linear', 'linear_end': 1e-5}
  )
  config.optim.clip_norm = 1.0
  config.optim.weight_decay = row['weight_decay']
  config.optim.weight_decay_mode = 'adamw'

  config.total_epochs = _EPOCHS.get((model, data), row['epochs'])
  config.total_steps = config_dict.placeholder(int)  # if set, it counts instead of the epochs
  config.microbatches = 1
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1})

  config.every = ConfigDict({'log': 50, 'evaluate': 5_000, 'checkpoint': 1_000})
  config.checkpoints = ConfigDict({'keep_last': 2, 'keep_best': config_dict.placeholder(str)})
  return config
