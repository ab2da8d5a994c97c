"""A small Mixer on CIFAR-10 from random parameters, for 10 epochs.

  python train.py --config=configs/cifar10_scratch.py --workdir=DIR

A first run on real color images. It is not a setting of the paper, and its accuracy is not
measured: the data set was not available. Needs cifar10 prepared by TFDS.
"""

from ml_collections import ConfigDict

from configs import digits, finetune


def get_config():
  config = digits.get_config()
  data = finetune.get_config('data=cifar10')
  with config.unlocked():
    config.train_input, config.evals = data.train_input, data.evals
    config.train_input.update({'batch_size': 128, 'image_size': (32, 32), 'crop': 'resize_random'})
    config.train_input.resize = (36, 36)  # a random 32 x 32 window, flipped with probability 1/2
    del config.evals.test.input['resize']
    config.evals.test.input.crop = 'direct'
    config.model = ConfigDict(
      {**config.model, 'patch_size': 4, 'num_blocks': 8, 'hidden_dim': 128}
      | {'tokens_mlp_dim': 64, 'channels_mlp_dim': 512}
    )
    config.total_epochs = 10.0
    config.every = ConfigDict({'log': 50, 'evaluate': 390, 'checkpoint': 390})
  config.optim.learning_rate = 1e-3
  config.optim.schedule.warmup_steps = 390
  return config
