"""Bad images, which cannot be decoded: the error that names them, and their replacements."""

from collections.abc import Callable, Iterator, Mapping

from absl import logging
import numpy as np

from mixer.errors import InputError

CHOICES = ('fail', 'skip')  # stop with the paths; replace each bad image by another one

_SHARE, _ALWAYS = 0.01, 10  # of a data set, and images in any case, that are replaced at most
_NAMED = 10  # bad images of a batch in the message


def batch_error(faults: Mapping[str, str]) -> InputError:
  """The error of a batch with bad images: {path or place: what is wrong}."""
  named = [f'\n  {where}: {fault}' for where, fault in list(faults.items())[:_NAMED]]
  return InputError(
    f'{len(faults)} bad images in one batch; replace or remove them. '
    '(config.train_input.on_bad_image="skip" replaces them in training; an evaluation uses every '
    'image. python -m mixer.input.check --config=FILE, with the config of this run, lists all bad '
    'images.)' + ''.join(named)
  )


class BadImages:
  """The bad images that a training run has read; each is logged once."""

  def __init__(self, num_examples: int):
    self._num_examples = num_examples
    self._known: set[int] = set()

  def __len__(self) -> int:
    return len(self._known)

  def add(self, index: int, described: str, *, seen: int) -> None:
    """Records an image.

    Args:
      index: of the example.
      described: its place, and what is wrong with it.
      seen: training examples that this process has made since it started.

    Raises:
      InputError: too many of these are bad.
    """
    if index in self._known:
      return
    self._known.add(index)
    logging.warning('bad image %d, replaced by the next good one: %s', len(self), described)
    seen = min(seen, self._num_examples)
    if len(self) > max(_ALWAYS, _SHARE * seen):
      raise InputError(
        f'{len(self)} bad images among about the first {seen}, the last is {described}\n'
        f'on_bad_image="skip" replaces up to {_SHARE:.0%} of a data set, or {_ALWAYS} images. '
        'List all of them with "python -m mixer.input.check --config=FILE", and repair the data.'
      )


def fill(
  batches_from: Callable[[int], Iterator[dict[str, np.ndarray]]],
  positions: Callable[[int], np.ndarray],
  make: Callable[[int, int], dict[str, np.ndarray]],
  first_batch: int,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches with a row for each position, from batches in which some rows are missing.

  Args:
    batches_from: (number of a batch) -> batches of the rows from there on, of any length, with an
      ascending 'position' of each row. They may end anywhere, and are then started again.
    positions: (number of a batch) -> the ascending positions of its rows.
    make: (number of a batch, row) -> a missing row, without 'position'.
    first_batch: number of the first batch.
  """
  number, source, held = first_batch, None, None
  while True:
    source = source or batches_from(number)
    wanted = positions(number)
    while held is None or held['position'][-1] < wanted[-1]:
      more = next(source, None)
      if more is None:
        source = None
        break
      held = _joined(held, more)
    present, held = _cut(held, wanted[-1])
    yield _complete(present, wanted, lambda row, batch=number: make(batch, row))
    number += 1


def _joined(held: dict | None, more: dict) -> dict:
  return more if held is None else {key: np.concatenate([held[key], more[key]]) for key in more}


def _cut(held: dict | None, last: int) -> tuple[dict | None, dict | None]:
  """(the rows of positions up to `last`, the rows beyond); None for no rows."""
  if held is None:
    return None, None
  count = int(np.searchsorted(held['position'], last, side='right'))
  parts = (
    {key: column[part] for key, column in held.items()}
    for part in (slice(count), slice(count, None))
  )
  return tuple(part if len(part['position']) else None for part in parts)


def _complete(present: dict | None, wanted: np.ndarray, make: Callable) -> dict[str, np.ndarray]:
  """The rows of the positions `wanted`, without 'position'."""
  have = present['position'] if present else np.empty(0, wanted.dtype)
  missing = {int(row): make(int(row)) for row in np.flatnonzero(~np.isin(wanted, have))}
  if not missing:
    return {key: column for key, column in present.items() if key != 'position'}
  places = np.searchsorted(wanted, have)
  batch = {}
  for key, pattern in next(iter(missing.values())).items():
    batch[key] = np.empty((len(wanted), *pattern.shape), pattern.dtype)
    if present:
      batch[key][places] = present[key]
    for row, made in missing.items():
      batch[key][row] = made[key]
  return batch
