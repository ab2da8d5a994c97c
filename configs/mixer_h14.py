"""Mixer-H/14, pre-trained as in the paper (section 3, table 4) at batch 4096 and 224 pixels.

  python train.py --config=configs/mixer_h14.py --workdir=DIR                 # ImageNet-21k
  python train.py --config=configs/mixer_h14.py:imagenet2012 --workdir=DIR
  python train.py --config=configs/mixer_h14.py:jft --workdir=DIR             # a private set

Needs the data set prepared by TFDS. Each device holds 5.51 GB of parameters and Adam's moments with
the 21,843-way head, besides gradients and activations. A run prints both when it starts;
config.microbatches, config.model.remat and config.mesh.fsdp reduce them.

| data         | ImageNet top-1 in paper | core-days   |
|--------------|-------------------------|-------------|
| imagenet21k  | not reported            | -           |
| imagenet2012 | not reported            | -           |
| jft          | 86.32 (ReaL 89.14)      | about 1010  |

Accuracies are the paper's (table 3, 224 pixels), without fine-tuning for imagenet2012 and after
fine-tuning on ImageNet for the others. Core-days are the paper's, on TPU v3.

Table 4 has no row of Mixer-H for imagenet21k and imagenet2012. The values of Mixer-L, the nearest
size with a row, are used.
"""

from configs import upstream


def get_config(data: str = 'imagenet21k'):
  return upstream.get_config('Mixer-H/14', data)
