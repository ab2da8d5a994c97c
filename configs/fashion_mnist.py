"""A small Mixer, ViT or BiT on Fashion-MNIST, in minutes on two CPU cores.

  apt-get install dataset-fashion-mnist      # or --config.train_input.path=FOLDER, see docs/data.md
  python train.py --config=configs/fashion_mnist.py --workdir=/tmp/fashion
  python train.py --config=configs/fashion_mnist.py:model=ViT,size=S --workdir=/tmp/fashion_vit

The argument is a list of KEY=VALUE:

  model   Mixer, ViT or BiT
  size    M or S: about 44 and 12 million FLOPs per training image, within 5 % in all families
  stage   final (train on all 60,000 images, report test), or dev (hold out the last 5,000 of them,
          and report these as dev), on which a learning rate is chosen
  subset  a percentage of the first 55,000 images, for as many steps as with all of them; reports
          the last 5,000 as val, keeps the checkpoint that is best on them, and reports test
  kind    original, patch_pixel or global: permuted pixels as in configs/permutations.py

Images keep their 28 x 28 pixels, in patches of 4: 49 tokens. Not a setting of the paper.
docs/small_scale.md has the results, and how the learning rates were chosen.
"""

from ml_collections import ConfigDict

from configs import common, digits, permutations, upstream

PATCH_SIZE = 4  # 49 tokens
DIMENSIONS = {
  ('Mixer', 'S'): {'num_blocks': 4, 'hidden_dim': 32, 'tokens_mlp_dim': 32,
                   'channels_mlp_dim': 128},
  ('Mixer', 'M'): {'num_blocks': 4, 'hidden_dim': 64, 'tokens_mlp_dim': 32,
                   'channels_mlp_dim': 256},
  ('ViT', 'S'): {'num_blocks': 3, 'hidden_dim': 32, 'mlp_dim': 96, 'num_heads': 2},
  ('ViT', 'M'): {'num_blocks': 4, 'hidden_dim': 48, 'mlp_dim': 240, 'num_heads': 2},
  ('BiT', 'S'): {'stage_sizes': (2, 2), 'width': 20, 'groups': 4},
  ('BiT', 'M'): {'stage_sizes': (2, 2), 'width': 40, 'groups': 8},
}  # fmt: skip
LEARNING_RATES = {
  ('Mixer', 'S'): 0.032, ('Mixer', 'M'): 0.016, ('ViT', 'S'): 0.008, ('ViT', 'M'): 0.004,
  ('BiT', 'S'): 0.016, ('BiT', 'M'): 0.008,
}  # fmt: skip
_DEFAULTS = {'model': 'Mixer', 'size': 'M', 'stage': 'final', 'subset': '', 'kind': 'original'}
CHOICES = {
  'model': sorted({family for family, _ in DIMENSIONS}),
  'size': sorted({size for _, size in DIMENSIONS}),
  'stage': ['dev', 'final'],
  'kind': sorted(permutations.KINDS),
}  # fmt: skip


def get_config(argument: str = '') -> ConfigDict:
  options = common.parse(argument, _DEFAULTS, CHOICES)
  family, size, kind = options['model'], options['size'], options['kind']
  is_dev, subset = options['stage'] == 'dev', options['subset']
  if is_dev and subset:
    raise ValueError(f'stage=dev with subset={subset}: subset has a stage of its own; give one.')
  config = digits.get_config(f'model={family}')
  config.model.update(DIMENSIONS[family, size])
  if family != 'BiT':
    config.model.patch_size = PATCH_SIZE
  if kind != 'original':
    permutation = {'kind': permutations.KINDS[kind], 'seed': 0, 'patch_size': PATCH_SIZE}
    config.permutation = ConfigDict(permutation)

  split = 'train[:55000]' if is_dev or subset else 'train'
  config.train_input = ConfigDict(
    {'source': 'idx', 'path': '/usr/share/datasets/fashion-mnist', 'split': split,
     'batch_size': 128, 'image_size': 28, 'shift_pixels': 2, 'flip': True}
  )  # fmt: skip
  held_out = {'dev' if is_dev else 'val': 'train[55000:]', 'test': 'test'}
  names = ('dev',) if is_dev else ('val', 'test') if subset else ('test',)
  config.evals = ConfigDict({name: _evaluation(held_out[name], config) for name in names})

  config.optim.learning_rate = LEARNING_RATES[family, size]
  config.optim.schedule.warmup_steps = 200
  config.total_epochs = 12.0
  config.every = ConfigDict({'log': 50, 'evaluate': 400, 'checkpoint': 400})
  config.checkpoints.keep_best = None
  if subset:
    config.every.update({'evaluate': 200, 'checkpoint': 200})
    upstream.take_subset(config, subset)
  return config


def _evaluation(split: str, config: ConfigDict) -> ConfigDict:
  data = ConfigDict({'source': 'idx', 'split': split, 'batch_size': 1000})
  for key in ('path', 'image_size'):
    data[key] = config.train_input.get_ref(key)
  return ConfigDict({'kind': 'classification', 'input': data})
