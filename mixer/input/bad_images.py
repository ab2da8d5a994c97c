"""What training does with images that cannot be decoded, where it is not to stop at them."""

from collections.abc import Callable, Iterator, Mapping

from absl import logging
import numpy as np

from mixer.errors import InputError

CHOICES = ('fail', 'skip')  # stop with the paths; take another image in its place

_SHARE, _ALWAYS = 0.01, 10  # a set with more bad images than both is not worth training on
_NAMED = 10  # of the bad images in a batch


def in_one_batch(faults: Mapping[str, str]) -> InputError:
  """The error of a batch with these faults, by the places of their images."""
  told = [f'{where}: {reason}' for where, reason in list(faults.items())[:_NAMED]]
  return InputError(
    f'{len(faults)} bad images in one batch; replace or remove them. (Training goes on without '
    'them with config.train_input.on_bad_image="skip", an evaluation skips none; python -m '
    'mixer.input.check --config=FILE, with the config of this run, lists all.)'
    + ''.join(f'\n  {line}' for line in told)
  )


class BadImages:
  """The images that a training has met and could not decode; each is logged once."""

  def __init__(self, num_examples: int):
    self._num_examples = num_examples
    self._known: set[int] = set()

  def __len__(self) -> int:
    return len(self._known)

  def add(self, index: int, described: str, *, seen: int) -> None:
    """Notes an image.

    Args:
      index: of the example.
      described: where it is and what is wrong with it.
      seen: training examples that this process has made since it was started.

    Raises:
      InputError: too large a share of what was seen is bad.
    """
    if index in self._known:
      return
    self._known.add(index)
    logging.warning('bad image %d, replaced by the next good one: %s', len(self), described)
    seen = min(seen, self._num_examples)
    if len(self) > max(_ALWAYS, _SHARE * seen):
      raise InputError(
        f'{len(self)} bad images among the first {seen} or so, the last {described}\n'
        f'on_bad_image="skip" replaces up to {_SHARE:.0%} of a set, or {_ALWAYS} images. List them '
        'all with "python -m mixer.input.check --config=FILE", and mend the set.'
      )


def fill(
  batches_from: Callable[[int], Iterator[dict[str, np.ndarray]]],
  positions: Callable[[int], np.ndarray],
  make: Callable[[int, int], dict[str, np.ndarray]],
  first_batch: int,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches with a row for each position, from ones in which some rows are missing.

  Args:
    batches_from: batches of any rows from a batch's number on, with their 'position's, which
      ascend; they may end at any place, and are then begun anew.
    positions: those of the rows of a batch, ascending.
    make: (batch, number of a row in it) -> that row, without 'position'; for those missing.
    first_batch: number of the first one to yield.
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
    there, held = _cut(held, wanted[-1])
    yield _complete(there, wanted, lambda row, batch=number: make(batch, row))
    number += 1


def _joined(held: dict | None, more: dict) -> dict:
  return more if held is None else {key: np.concatenate([held[key], more[key]]) for key in more}


def _cut(held: dict | None, last: int) -> tuple[dict | None, dict | None]:
  """(the rows of positions up to `last`, those beyond it); None for no rows."""
  if held is None:
    return None, None
  count = int(np.searchsorted(held['position'], last, side='right'))
  parts = (
    {key: column[part] for key, column in held.items()}
    for part in (slice(count), slice(count, None))
  )
  return tuple(part if len(part['position']) else None for part in parts)


def _complete(there: dict | None, wanted: np.ndarray, make: Callable) -> dict[str, np.ndarray]:
  """The rows at the positions `wanted`, without 'position'."""
  have = there['position'] if there else np.empty(0, wanted.dtype)
  missing = {int(row): make(int(row)) for row in np.flatnonzero(~np.isin(wanted, have))}
  if not missing:
    return {key: column for key, column in there.items() if key != 'position'}
  places = np.searchsorted(wanted, have)
  batch = {}
  for key, pattern in next(iter(missing.values())).items():
    batch[key] = np.empty((len(wanted), *pattern.shape), pattern.dtype)
    if there:
      batch[key][places] = there[key]
    for row, made in missing.items():
      batch[key][row] = made[key]
  return batch
