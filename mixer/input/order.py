"""Which example comes where: pure functions of (seed, epoch, position), without any state.

Position p counts the training examples of a run from 0; batch number s (from 0) of size B has
the positions s * B to s * B + B - 1, whatever the number of processes that share it.
"""

from collections.abc import Iterator
import functools

import numpy as np

from mixer.errors import InputError

SHUFFLE, AUGMENT, SUBSET, PIXELS = range(4)  # streams drawn from one seed


@functools.lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
  """The order of epoch `epoch` over `n` examples; see `shuffled`."""
  return shuffled(n, seed, epoch, SHUFFLE)


def shuffled(n: int, seed: int, number: int, stream: int) -> np.ndarray:
  """A uniform permutation of range(n), int64 (n,), that no library version can change.

  Sorts random words that carry the index in their low bits: Philox's raw words are frozen,
  and without ties every sort gives the same answer. 16 n bytes while sorting.

  Args:
    seed, number: of the permutation; two that differ in either are independent.
    stream: one of the streams above, so that what is drawn for one purpose tells nothing of what
      is drawn for another from the same seed.
  """
  bits = max(n - 1, 1).bit_length()
  words = np.random.Philox(key=[seed, number], counter=[0, 0, 0, stream]).random_raw(n)
  low = np.uint64((1 << bits) - 1)
  return (np.sort((words & ~low) | np.arange(n, dtype=np.uint64)) & low).astype(np.int64)


def subset(n: int, fraction: float, seed: int) -> np.ndarray:
  """A random `fraction` of range(n), ascending; what a smaller fraction has, a larger one has too.

  Raises:
    InputError: the fraction is not above 0 and at most 1, or leaves nothing.
  """
  if not 0 < fraction <= 1:
    raise InputError(f'subset_fraction is {fraction}; use a part above 0 and at most 1, as 0.03.')
  count = round(fraction * n)
  if not count:
    raise InputError(f'subset_fraction={fraction} of {n} examples is none; use a larger part.')
  return np.sort(shuffled(n, seed, 0, SUBSET)[:count])


def examples(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
  """The example at each of the ascending `positions` of a run over `n` examples."""
  result = np.empty_like(positions)
  for epoch in range(int(positions[0]) // n, int(positions[-1]) // n + 1):
    inside = positions // n == epoch
    result[inside] = permutation(n, seed, epoch)[positions[inside] % n]
  return result


def draws(first: int, count: int, seed: int) -> np.ndarray:
  """Four uint64 words for each of the positions `first`...: (count, 4).

  Philox is a counter-based generator, so any position is reached at once.
  """
  generator = np.random.Philox(key=[seed, 0], counter=[first, 0, 0, AUGMENT])
  return generator.random_raw(4 * count).reshape(count, 4)


def rows(batch: int, batch_size: int, shard: int, num_shards: int) -> np.ndarray:
  """Positions of the rows of batch number `batch` that process `shard` of `num_shards` makes."""
  local = batch_size // num_shards
  return batch * batch_size + shard * local + np.arange(local)


def padded_batches(
  n: int, batch_size: int, shard: int, num_shards: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(examples, mask) for each batch of an evaluation in which each example is unmasked once.

  Every process gets the same number of batches of the same shape; rows beyond the last example
  repeat example 0 under a False mask.
  """
  for batch in range(-(-n // batch_size)):
    positions = rows(batch, batch_size, shard, num_shards)
    mask = positions < n
    yield np.where(mask, positions, 0), mask
