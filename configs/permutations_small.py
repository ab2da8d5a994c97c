"""The input permutations of figure 4 at a size that runs on two CPU cores in minutes.

  python -m mixer.studies permutations --workdir=DIR           # all six runs, figure and table
  python train.py --config=configs/permutations_small.py:model=resnet,kind=global --workdir=DIR
"""

from ml_collections import ConfigDict

from configs import digits

_MODELS = {
  'mixer': {
    'name': 'Mixer',
    'patch_size': 4,  # 64 tokens
    'num_blocks': 4,
    'hidden_dim': 64,
    'tokens_mlp_dim': 64,
    'channels_mlp_dim': 128,
    'dtype': 'float32',
  },
  'resnet': {
    'name': 'BiT',
    'stage_sizes': (2, 2),
    'width': 32,
    'groups': 8,
    'dtype': 'float32',
  },
}
_KINDS = {'original': 'none', 'patch_pixel': 'patch_pixel', 'global': 'global'}


def get_config(argument: str = 'model=mixer,kind=original') -> ConfigDict:
  options = dict(part.split('=') for part in argument.split(','))
  config = digits.get_config()
  source = {'source': 'placed_digits', 'side': 32, 'magnify': 2, 'copies': 20}
  with config.unlocked():
    config.train_input = ConfigDict({**source, 'split': 'train', 'batch_size': 64})
    config.evals = ConfigDict({})
    for name, copies in (('val', 2), ('test', 4)):
      config.evals[name] = ConfigDict({
        'kind': 'classification',
        'input': {**source, 'split': name, 'copies': copies, 'batch_size': 360}})
    config.model = ConfigDict(_MODELS[options['model']])
    config.permutation = ConfigDict(
      {'kind': _KINDS[options['kind']], 'seed': 0, 'patch_size': (4, 4)}
    )
  config.mixup = 0.0
  config.optim.learning_rate = 1e-3
  config.total_epochs = 0.0
  config.total_steps = 1000
  config.every.evaluate = 100
  config.every.checkpoint = 0
  config.checkpoints.keep_best = None
  return config
