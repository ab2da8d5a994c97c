"""Vision Transformers, the paper's strongest baseline, pre-trained on JFT-300M or other data.

  python train.py --config=configs/vit.py:B/16,imagenet21k --workdir=DIR
  python train.py --config=configs/vit.py:L/32,jft,subset=3 --workdir=DIR   # figure 2, right

The argument is a size, S/32 to H/14, then the data if not jft, then what may follow in
configs/upstream.py. The recipes there are those of the ViT paper's table 3.

| model | data         | ImageNet top-1 in paper | images/s per core | core-days  |
|-------|--------------|-------------------------|-------------------|------------|
| B/16  | imagenet2012 | 79.67 (ReaL 84.97)      | 861               | about 20   |
| L/16  | imagenet2012 | 76.11 (ReaL 80.93)      | 280               | about 50   |
| B/16  | imagenet21k  | 84.59 (ReaL 88.93)      | 861               | about 180  |
| L/16  | imagenet21k  | 84.46 (ReaL 88.35)      | 280               | about 550  |
| L/16  | jft          | 85.63 (ReaL 89.16)      | 280               | about 650  |
| H/14  | jft          | 86.65 (ReaL 89.56)      | 87                | about 2300 |

Accuracies are the paper's (table 3, 224 pixels). Those of imagenet2012 and imagenet21k are the ViT
authors' and come from 300 epochs with settings that are not published.
"""

from configs import upstream


def get_config(argument: str = 'B/16'):
  return upstream.of_size('ViT', argument)
