"""The size of the training set, figure 2 (right), at a size that runs on two CPU cores in minutes.

  python -m mixer.studies data_size --workdir=DIR              # all the runs, figure and table
  python train.py --config=configs/data_size_small.py:model=mixer,subset=3 --workdir=DIR

The argument is a list of KEY=VALUE: model (mixer, resnet) and subset (percent of the training
images). Data and models are those of configs/permutations_small.py; every subset is trained on for
the same number of steps, and the checkpoint is kept that is best on 'val', whose digits are in
neither of the other splits.
"""

from ml_collections import ConfigDict

from configs import fewshot, permutations_small, upstream


def get_config(argument: str = '') -> ConfigDict:
  options = fewshot.parse(argument, {'model': 'mixer', 'subset': '100'}, {})
  config = permutations_small.small(options['model'])
  config.total_steps = 400
  upstream.take_subset(config, options['subset'])
  return config
