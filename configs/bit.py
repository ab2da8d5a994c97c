"""The paper's ResNet baselines (BiT), pre-trained on JFT-300M or a similar TFDS set.

  python train.py --config=configs/bit.py:R50x1 --workdir=DIR
  python train.py --config=configs/bit.py:R152x2,subset=3 --workdir=DIR   # figure 2, right
  python train.py --config=configs/bit.py:R152x4,imagenet21k --workdir=DIR

The argument is a size, then the data if not jft, then what may follow in configs/upstream.py. The
recipes there are ViT's (its table 3), whose training runs the paper uses, and BiT's own for R152x4.

| model  | ImageNet top-1 in paper | epochs |
|--------|-------------------------|--------|
| R50x1  | 73.69 (ReaL 81.92)      | 7      |
| R50x2  | 78.92 (ReaL 86.06)      | 7      |
| R101x1 | not reported            |        |
| R152x1 | 79.12 (ReaL 86.12)      | 7      |
| R152x2 | 83.34 (ReaL 88.90)      | 14     |
| R200x3 | 84.73 (ReaL 89.58)      | 14     |
| R152x4 | 87.54 (ReaL 90.54)      | 40     |

Accuracies are after JFT-300M and fine-tuning on ImageNet at 224 pixels (table 3), of R152x4 at 480
(table 2, where it has 85.39 after ImageNet-21k).
"""

from configs import upstream


def get_config(argument: str = 'R50x1'):
  return upstream.of_size('BiT', argument)
