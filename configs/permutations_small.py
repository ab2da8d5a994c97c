"""The input permutations of figure 4 on small data, in minutes on two CPU cores.

  python -m mixer.studies permutations --workdir=DIR           # all runs, the figure and the table
  python train.py --config=configs/permutations_small.py:model=resnet,kind=global --workdir=DIR

The argument is a list of KEY=VALUE: model (mixer, vit, resnet) and kind (original, patch_pixel,
global) as in configs/permutations.py. The images are scikit-learn's digits at random positions of a
black square, so that what a model learns at one position helps at others. Not a setting of the
paper. docs/studies.md has the results.
"""

from ml_collections import ConfigDict

from configs import digits, permutations

PATCH_SIZE = 8  # of 40 pixels: 25 tokens; a digit covers 4 to 9 of them
_MODELS = {
  'mixer': {
    'name': 'Mixer',
    'patch_size': PATCH_SIZE,
    'num_blocks': 2,
    'hidden_dim': 64,
    'tokens_mlp_dim': 32,
    'channels_mlp_dim': 128,
  },
  'vit': {
    'name': 'ViT',
    'patch_size': PATCH_SIZE,
    'num_blocks': 2,
    'hidden_dim': 64,
    'mlp_dim': 128,
    'num_heads': 4,
  },
  'resnet': {'name': 'BiT', 'stage_sizes': (1, 1), 'width': 16, 'groups': 8},
}


def get_config(argument: str = '') -> ConfigDict:
  model, kind = permutations.parse(argument, model='mixer')
  config = small(model)
  config.permutation = ConfigDict({'kind': kind, 'seed': 0, 'patch_size': PATCH_SIZE})
  return config


def small(model: str) -> ConfigDict:
  """The config of a small model on placed digits, without permutation."""
  if model not in _MODELS:
    raise ValueError(f'model={model!r}; use one of {sorted(_MODELS)}.')
  config = digits.get_config()
  placed = {'source': 'placed_digits', 'side': 40, 'magnify': 2, 'stride': 4}
  config.train_input = ConfigDict({**placed, 'split': 'train', 'copies': 20, 'batch_size': 64})
  config.evals = ConfigDict()
  for name, copies in (('val', 2), ('test', 4)):
    data = {**placed, 'split': name, 'copies': copies, 'batch_size': 480}
    config.evals[name] = ConfigDict({'kind': 'classification', 'input': data})
  config.model = ConfigDict({**_MODELS[model], 'head_bias': 0.0, 'dtype': 'float32'})
  config.mixup = 0.0
  config.total_epochs = 0.0
  config.total_steps = 800
  config.every = ConfigDict({'log': 20, 'evaluate': 100, 'checkpoint': 100})
  config.checkpoints.keep_best = 'val/top1'
  return config
