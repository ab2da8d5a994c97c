"""A small Mixer, ViT or BiT on Fashion-MNIST, in minutes on two CPU cores.

  apt-get install dataset-fashion-mnist      # or --config.train_input.path=FOLDER, see docs/data.md
  python train.py --config=configs/fashion_mnist.py --workdir=/tmp/fashion
  python -m mixer.sweep --config=configs/fashion_mnist.py:model=ViT --workdir=/tmp/fashion_vit \
      --learning_rates=0.0005,0.001,0.002,0.004

The argument is a list of KEY=VALUE:

  model       Mixer, ViT or BiT: 65.2, 66.9 and 64.6 million FLOPs per training image
  stage       final (train on all 60,000 images, report test), or dev (hold out the last 5,000 of
              them, and report these as val), on which a learning rate is chosen

Images keep their 28 x 28 pixels, in patches of 4: 49 tokens. Not a setting of the paper.
"""

from ml_collections import ConfigDict

from configs import common, digits

PATCH_SIZE = 4  # 49 tokens
_DIMENSIONS = {
  'Mixer': {
    'patch_size': PATCH_SIZE,
    'num_blocks': 6,
    'hidden_dim': 64,
    'tokens_mlp_dim': 32,
    'channels_mlp_dim': 256,
  },
  'ViT': {
    'patch_size': PATCH_SIZE, 'num_blocks': 4, 'hidden_dim': 64, 'mlp_dim': 256, 'num_heads': 2
  },
  'BiT': {'stage_sizes': (2, 2), 'width': 48, 'groups': 8},
}  # fmt: skip


def get_config(argument: str = '') -> ConfigDict:
  choices = {'model': sorted(_DIMENSIONS), 'stage': ['dev', 'final']}
  options = common.parse(argument, {'model': 'Mixer', 'stage': 'final'}, choices)
  family, is_dev = options['model'], options['stage'] == 'dev'
  config = digits.get_config(f'model={family}')
  config.model.update(_DIMENSIONS[family])

  idx = ConfigDict({'source': 'idx', 'path': '/usr/share/datasets/fashion-mnist'})
  config.train_input = ConfigDict({**idx, 'split': 'train[:55000]' if is_dev else 'train'})
  config.train_input.update({'batch_size': 128, 'image_size': 28, 'shift_pixels': 2, 'flip': True})
  held_out = ConfigDict({'source': 'idx', 'split': 'train[55000:]' if is_dev else 'test'})
  held_out.batch_size = 1000
  for key in ('path', 'image_size'):
    held_out[key] = config.train_input.get_ref(key)
  name = 'val' if is_dev else 'test'
  config.evals = ConfigDict({name: ConfigDict({'kind': 'classification', 'input': held_out})})

  config.optim.learning_rate = 2e-3
  config.optim.schedule.warmup_steps = 200
  config.total_epochs = 8.0
  config.every = ConfigDict({'log': 50, 'evaluate': 500, 'checkpoint': 500})
  config.checkpoints.keep_best = 'val/top1' if is_dev else None
  return config
