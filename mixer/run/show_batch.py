"""The first images of a run as the model sees them, in one picture."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools

import jax
import numpy as np

from mixer import console, files
from mixer import input as inputs
from mixer.errors import InputError
from mixer.run import build
from mixer.training.augmentation import Augmentation
from mixer.visualize import plots

_NAMED = 3  # classes under an image
_LEAST_SHARE = 0.005  # of a label in a mixture that is named


def write(config: Mapping, output: str, count: int = 32) -> None:
  """Writes the first `count` training images with their labels as a PNG, and trains nothing.

  They are those of the first steps of a run with this config, after all augmentation on the host
  and on the device, with pixels back in 0..255. An input permutation, which is a part of the model,
  comes later and does not show.

  Args:
    config: the keys of `build.TrainConfig`, nested plain dicts.
    output: the file.
    count: images.

  Raises:
    InputError: the config or the data are wrong, or the file cannot be written.
  """
  path = files.absolute(output)
  if path.suffix.lower() != '.png':
    raise InputError(f'--show_batch={output} is to be a PNG; give a name that ends in .png.')
  files.check_writable(path)
  checked = build.check(config)
  data = inputs.build(**checked.train_input)
  program = build.build(checked, data, jax.devices())
  shown = itertools.islice(_examples(program, checked.seed, count), count)
  images, targets = zip(*shown, strict=True)
  captions = [caption(target, data.class_names) for target in targets]
  plots.images(images, captions, path, title=_title(program.augmentation, checked))
  console.print_line(f'{path}: {len(images)} images of the first steps, as the model sees them')


def _examples(
  program: build.Program, seed: int, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(image as uint8, its targets before label smoothing) of the rows of each batch."""
  shown = dataclasses.replace(program.augmentation, label_smoothing=0.0)

  @jax.jit
  def augmented(batch, step):
    begun, drawn = shown.begin(batch, jax.random.fold_in(program.step_key, step))
    images, _, targets = shown.finish(jax.tree.map(lambda x: x[:count], begun), drawn)
    return jax.numpy.clip(jax.numpy.round((images + 1.0) * 127.5), 0, 255), targets

  for step, batch in enumerate(program.data.train_batches(0, seed, 0, 1)):
    images, targets = augmented(batch, np.int32(step))
    yield from zip(np.asarray(images, np.uint8), np.asarray(targets), strict=True)


def caption(targets: np.ndarray, class_names: Sequence[str]) -> str:
  """The names of the classes of an image, with their shares where an image is a mixture."""
  order = np.argsort(-targets, kind='stable')
  named = [i for i in order if targets[i] >= _LEAST_SHARE]
  lines = [
    class_names[i] if targets[i] == 1 else f'{class_names[i]} {targets[i]:.2f}'
    for i in named[:_NAMED]
  ]
  more = [f'and {len(named) - _NAMED} more'] if len(named) > _NAMED else []
  return '\n'.join([*lines, *more]) or 'no label'


def _title(augmentation: Augmentation, config: build.TrainConfig) -> str:
  """What is done to the images, beside the crop."""
  erasing, layers = augmentation.random_erasing, config.train_input.get('randaugment_layers')
  parts = {
    'RandAugment layers': layers,
    'mixup': augmentation.mixup,
    'CutMix': augmentation.cutmix,
    'random erasing': erasing and erasing.probability,
    'label smoothing (not shown)': augmentation.label_smoothing,
  }
  on = [f'{name} {value:g}' for name, value in parts.items() if value]
  return ', '.join(on) or 'no mixing, no erasing'
