"""The size of the training set (figure 2, right) on small data, in minutes on two CPU cores.

  python -m mixer.studies data_size --workdir=DIR              # all runs, the figure and the table
  python train.py --config=configs/data_size_small.py:model=mixer,subset=3 --workdir=DIR

The argument is a list of KEY=VALUE: model (mixer, vit, resnet) and subset (percent of the training
images). Data and models are those of configs/permutations_small.py. Every subset is trained on for
the same number of steps, and the checkpoint that is best on 'val' is kept. The digits of 'val' are
in neither of the other splits. docs/studies.md has the results.
"""

from ml_collections import ConfigDict

from configs import common, permutations_small, upstream


def get_config(argument: str = '') -> ConfigDict:
  options = common.parse(argument, {'model': 'mixer', 'subset': '100'}, {})
  config = permutations_small.small(options['model'])
  config.total_steps = 400
  upstream.take_subset(config, options['subset'])
  return config
