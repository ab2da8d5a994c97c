"""Mixer-L/16, pre-trained as in the paper (section 3, table 4) at batch 4096 and 224 pixels.

  python train.py --config=configs/mixer_l16.py --workdir=DIR                 # ImageNet-21k
  python train.py --config=configs/mixer_l16.py:imagenet2012 --workdir=DIR
  python train.py --config=configs/mixer_l16.py:jft --workdir=DIR             # a private set

Needs the data set prepared by TFDS. Each device holds 2.75 GB of parameters and Adam's moments with
the 21,843-way head, besides gradients and activations. A run prints both when it starts;
config.microbatches, config.model.remat and config.mesh.fsdp reduce them.

| data         | ImageNet top-1 in paper | core-days   |
|--------------|-------------------------|-------------|
| imagenet21k  | 82.89 (ReaL 87.54)      | about 410   |
| imagenet2012 | 71.76 (ReaL 77.08)      | about 40    |
| jft          | 84.82 (ReaL 88.48)      | about 450   |

Accuracies are the paper's (table 3, 224 pixels), without fine-tuning for imagenet2012 and after
fine-tuning on ImageNet for the others. Core-days are the paper's, on TPU v3.

On JFT-300M the run has 14 epochs. After 7 (--config.total_epochs=7) the paper reports 84.05 for
about 230 core-days.
"""

from configs import upstream


def get_config(data: str = 'imagenet21k'):
  return upstream.get_config('Mixer-L/16', data)
