"""Class numbers of files that may count from 1."""

from collections.abc import Iterable

from absl import logging
import numpy as np

_SAMPLE = 256  # examples that are looked at
_PER_CLASS = 10  # examples of a class, on average, among which one is certain to be


def outside(label: int, num_classes: int, label_offset: int) -> str:
  """What to say of a label that is no class."""
  text = f'which is not a class of {num_classes} counted from {label_offset}; see num_classes.'
  if label == num_classes and not label_offset:
    text += ' If the labels begin at 1, give label_offset=1.'
  return text


def sample(count: int, num_classes: int) -> Iterable[int]:
  """Numbers of some of `count` examples, in which class 0 occurs if it is no rare one.

  Without it, the others may begin at 1. Empty if there are too few examples for that.
  """
  taken = min(count, _SAMPLE)
  if taken < count and taken < _PER_CLASS * num_classes:
    return ()
  return np.unique(np.linspace(0, count - 1, taken).astype(int)).tolist()


def warn_of_offset(where: str, labels: Iterable[Iterable[int]], label_offset: int) -> None:
  """Warns if `labels`, of examples that `sample` chose, do not have the first class."""
  found = False
  for numbers in labels:
    if label_offset in numbers:
      return
    found = found or len(numbers) > 0
  if found:
    logging.warning(
      '%s: NO IMAGE HAS THE LABEL %d. If labels begin at %d, give label_offset=%d: without it, '
      'class names and outputs are shifted by one.',
      where, label_offset, label_offset + 1, label_offset + 1,
    )  # fmt: skip
