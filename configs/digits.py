"""A small Mixer, ViT or BiT on scikit-learn's handwritten digits, which need no download.

  python train.py --config=configs/digits.py --workdir=/tmp/digits
  python train.py --config=configs/digits.py:model=ViT --workdir=/tmp/digits_vit

Takes about a minute on two CPU cores and reaches 98.6 % on the test split (98.6 and 98.3 % with
--config.seed=1 and 2). The argument is model=Mixer, ViT or BiT: docs/studies.md has the accuracy of
each. Not a setting of the paper.
"""

from ml_collections import ConfigDict, config_dict

from configs import common

PATCH_SIZE = 2  # 16 tokens
_DIMENSIONS = {
  'Mixer': {
    'patch_size': PATCH_SIZE,
    'num_blocks': 4,
    'hidden_dim': 64,
    'tokens_mlp_dim': 32,
    'channels_mlp_dim': 256,
  },
  'ViT': {
    'patch_size': PATCH_SIZE, 'num_blocks': 4, 'hidden_dim': 64, 'mlp_dim': 256, 'num_heads': 4
  },
  'BiT': {'stage_sizes': (1, 1), 'width': 32, 'groups': 8},
}  # fmt: skip


def get_config(argument: str = '') -> ConfigDict:
  family = common.parse(argument, {'model': 'Mixer'}, {'model': sorted(_DIMENSIONS)})['model']
  config = ConfigDict()
  config.seed = 0

  config.train_input = ConfigDict(
    {'source': 'digits', 'split': 'train', 'batch_size': 128, 'shift_pixels': 1}
  )
  config.evals = ConfigDict(
    {
      'test': {
        'kind': 'classification',
        'input': {'source': 'digits', 'split': 'test', 'batch_size': 360},
      }
    }
  )

  config.model = ConfigDict({'name': family, **_DIMENSIONS[family], 'head_bias': 0.0})
  config.model.update({'dtype': 'float32', 'remat': False})
  if family != 'BiT':
    config.model.update(
      {'stochastic_depth': 0.1, 'rescale_drop_path': False, 'dropout': 0.0, 'scan': False}
    )
  # If `path` is set, training starts from those weights; see configs/finetune.py.
  config.init = ConfigDict({'path': config_dict.placeholder(str), 'head': 'auto', 'from_size': ()})

  config.loss = 'softmax'
  config.mixup = 0.2 if family == 'Mixer' else 0.0

  config.optim = ConfigDict(
    {
      'optimizer': {'name': 'adam', 'b1': 0.9, 'b2': 0.999, 'moment_dtype': 'float32'},
      'learning_rate': 3e-3,
      'schedule': {'warmup_steps': 100, 'decay': 'cosine', 'linear_end': 0.0},
      'clip_norm': 1.0,
      'weight_decay': 0.1,
      'weight_decay_mode': 'adamw',
    }
  )
  config.total_epochs = 120.0 if family == 'ViT' else 60.0
  config.total_steps = config_dict.placeholder(int)
  config.microbatches = 1
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1})

  config.every = ConfigDict({'log': 50, 'evaluate': 200, 'checkpoint': 200})
  config.checkpoints = ConfigDict({'keep_last': 1, 'keep_best': 'test/top1'})
  return config
