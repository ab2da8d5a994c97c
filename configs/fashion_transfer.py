"""Transfer from Fashion-MNIST to scikit-learn's digits: fine-tuning and few-shot evaluation.

  python train.py --config=configs/fashion_transfer.py:model=Mixer --workdir=/tmp/digits28 \
      --config.init.path=/tmp/fashion --config.init.head=reset
  python train.py --config=configs/fashion_transfer.py:model=Mixer --workdir=/tmp/scratch28
  python evaluate.py --config=configs/fashion_transfer.py:model=Mixer,task=fewshot \
      --checkpoint=/tmp/fashion

/tmp/fashion is the workdir of configs/fashion_mnist.py. The digits are resized from 8 x 8 to 28 x
28 pixels, and their ten classes need a new head. The argument is a list of KEY=VALUE:

  model   Mixer, ViT or BiT
  size    M or S, as in configs/fashion_mnist.py
  task    finetune, or fewshot: ridge regression on the frozen features of 1, 5, 10 and 25 images of
          each class
  stage   final (train on all 1,437 images, report test), or dev (hold out a sixth, and report it as
          dev)

Not a setting of the paper. docs/small_scale.md has the results.
"""

from ml_collections import ConfigDict

from configs import common, fashion_mnist, fewshot

_DEFAULTS = {'model': 'Mixer', 'size': 'M', 'task': 'finetune', 'stage': 'final'}
_CHOICES = {
  **{key: fashion_mnist.CHOICES[key] for key in ('model', 'size', 'stage')},
  'task': ['fewshot', 'finetune'],
}


def get_config(argument: str = '') -> ConfigDict:
  options = common.parse(argument, _DEFAULTS, _CHOICES)
  family, is_dev = options['model'], options['stage'] == 'dev'
  config = fashion_mnist.get_config(f'model={family},size={options["size"]}')
  images = {'source': 'digits', 'image_size': 28}
  if options['task'] == 'fewshot':
    section = fewshot.digits_section()
    for part in ('train_input', 'input'):
      section[part].update(images)
    config.evals = ConfigDict({'digits': section})
    return config
  split, held_out = ('train[:1197]', 'train[1197:]') if is_dev else ('train', 'test')
  config.train_input = ConfigDict({**images, 'split': split, 'batch_size': 64, 'shift_pixels': 2})
  data = {**images, 'split': held_out, 'batch_size': 360}
  name = 'dev' if is_dev else 'test'
  config.evals = ConfigDict({name: {'kind': 'classification', 'input': data}})
  config.optim.learning_rate = 1e-3
  config.optim.schedule.warmup_steps = 50
  config.total_epochs = 30.0
  config.checkpoints.keep_best = None
  return config
