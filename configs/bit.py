"""The paper's ResNet baselines (BiT), pre-trained on JFT-300M or a similar TFDS set.

  python train.py --config=configs/bit.py:R50x1 --workdir=DIR
  python train.py --config=configs/bit.py:R152x2,subset=3 --workdir=DIR   # figure 2, right

The argument is a row of `upstream.BIT`, followed by what may follow a data set in
configs/upstream.py. The recipe is ViT's (its table 3), whose training runs the paper uses.

| model  | ImageNet top-1 in paper |
|--------|-------------------------|
| R50x1  | 73.69 (ReaL 81.92)      |
| R50x2  | 78.92 (ReaL 86.06)      |
| R101x1 | not reported            |
| R152x1 | 79.12 (ReaL 86.12)      |
| R152x2 | about 82.3 (figure 3)   |

Accuracies are after 7 epochs and fine-tuning on ImageNet at 224 pixels (table 3).
"""

from configs import upstream


def get_config(argument: str = 'R50x1'):
  model, *parts = argument.split(',')
  return upstream.get_config(f'BiT-{model}', ','.join(['jft', *parts]))
