"""Input permutations (figure 4 of the paper): a Mixer and a ResNet on JFT-300M, pixels permuted.

  python train.py --config=configs/permutations.py:model=B/16,kind=patch_pixel --workdir=DIR
  python train.py --config=configs/permutations.py:model=R50x1,kind=global --workdir=DIR

The argument is a list of KEY=VALUE:

  model   B/16 (or another Mixer with a row in table 4), R50x1 (or another row of `upstream.BIT`)
  kind    original, patch_pixel (the order of the patches, and the pixels within each, the same way
          in all) or global (all pixels of an image)

A run is that of configs/upstream.py on jft, 7 epochs, with one fixed permutation of the pixels of
every image, in training and in every evaluation. The paper reports linear 5-shot ImageNet top-1 at
the end, read off its figure (+-0.5):

|       | original | patch_pixel | global |
|-------|----------|-------------|--------|
| B/16  | 61.4     | 61.4        | 34.7   |
| R50x1 | 52.1     | 30.6        | 13.1   |

configs/fashion_mnist.py:kind=patch_pixel runs without JFT-300M, on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import common, upstream

KINDS = {'original': 'none', 'patch_pixel': 'patch_pixel', 'global': 'global'}


def get_config(argument: str = '') -> ConfigDict:
  model, kind = parse(argument, model='B/16')
  config = upstream.get_config(common.model_name(model), 'jft')
  patch = model.partition('/')[2]
  config.permutation = ConfigDict({'kind': kind, 'seed': 0, 'patch_size': int(patch or 16)})
  return config


def parse(argument: str, model: str) -> tuple[str, str]:
  """(model, `config.permutation.kind`) of 'model=...,kind=...'; `model` is the default."""
  options = common.parse(argument, {'model': model, 'kind': 'original'}, {'kind': sorted(KINDS)})
  return options['model'], KINDS[options['kind']]
