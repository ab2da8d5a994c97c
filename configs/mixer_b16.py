"""Mixer-B/16, pre-trained as in the paper (section 3, table 4) at batch 4096 and 224 pixels.

  python train.py --config=configs/mixer_b16.py --workdir=DIR                 # ImageNet-21k
  python train.py --config=configs/mixer_b16.py:imagenet2012 --workdir=DIR
  python train.py --config=configs/mixer_b16.py:jft --workdir=DIR             # a private set
  python train.py --config=configs/mixer_b16.py:jft_shards --workdir=DIR \
      --config.train_input.files='/data/jft-*'                                # ... as record files

Needs the data set prepared by TFDS. Each device holds 0.91 GB of parameters and Adam's moments with
the 21,843-way head, besides gradients and activations. A run prints both when it starts;
config.microbatches, config.model.remat and config.mesh.fsdp reduce them.

| data         | ImageNet top-1 in paper | core-days   |
|--------------|-------------------------|-------------|
| imagenet21k  | 80.64 (ReaL 85.80)      | about 150   |
| imagenet2012 | 76.44 (ReaL 82.36)      | about 10    |
| jft          | 80.00 (ReaL 85.56)      | about 80    |

Accuracies are the paper's (table 3, 224 pixels), without fine-tuning for imagenet2012 and after
fine-tuning on ImageNet for the others. Core-days are the paper's, on TPU v3.
"""

from configs import upstream


def get_config(data: str = 'imagenet21k'):
  return upstream.get_config('Mixer-B/16', data)
