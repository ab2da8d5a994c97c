"""Mixer-L/32, pre-trained as in the paper (section 3, table 4) at batch 4096 and 224 pixels.

  python train.py --config=configs/mixer_l32.py --workdir=DIR                 # ImageNet-21k
  python train.py --config=configs/mixer_l32.py:imagenet2012 --workdir=DIR
  python train.py --config=configs/mixer_l32.py:jft --workdir=DIR             # a private set

Needs the data set prepared by TFDS. Each device holds 2.74 GB of parameters and Adam's moments with
the 21,843-way head, besides gradients and activations. A run prints both when it starts;
config.microbatches, config.model.remat and config.mesh.fsdp reduce them.

| data         | ImageNet top-1 in paper | core-days   |
|--------------|-------------------------|-------------|
| imagenet21k  | not reported            | -           |
| imagenet2012 | not reported            | -           |
| jft          | 80.67 (ReaL 85.62)      | about 120   |

Accuracies are the paper's (table 3, 224 pixels), without fine-tuning for imagenet2012 and after
fine-tuning on ImageNet for the others. Core-days are the paper's, on TPU v3.

The paper reports no Mixer-L/32 on imagenet21k and imagenet2012. The row of table 4 for Mixer-L does
not depend on the patch size, and is used. On JFT-300M table 4 has 7 or 14 epochs for Mixer-L; table
3 has this model after 7.
"""

from configs import upstream


def get_config(data: str = 'imagenet21k'):
  return upstream.get_config('Mixer-L/32', data)
