"""The order of the examples: pure functions of (seed, epoch, position), without any state.

Position p counts the training examples of a run from 0; batch number s (from 0) of size B has
the positions s * B to s * B + B - 1, whatever the number of processes that share it.

An epoch is a permutation of all the examples: up to `SORTED` of them a sort of random words, which
is uniform and needs memory; above, a Feistel network, which needs none. The choice depends on the
number of examples alone, so that a run keeps its order.
"""

from collections.abc import Iterator
import functools

import numpy as np

from mixer.errors import InputError

SORTED = 20_000_000  # examples; that takes 0.16 GB and, with every new epoch, seconds
# Streams drawn from one seed. Append new ones, because other numbers change existing runs.
SHUFFLE, AUGMENT, NETWORK, PIXELS, SUBSET = range(5)
_ROUNDS = 8  # of the network, in each of which both halves change
_BLOCK = 4096  # positions that go through the network together


@functools.lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
  """The order of epoch `epoch` over up to SORTED examples; see `shuffled`."""
  return shuffled(n, seed, epoch, SHUFFLE)


def shuffled(n: int, seed: int, number: int, stream: int) -> np.ndarray:
  """A uniform permutation of range(n), int64 (n,), that no library version can change.

  Sorts random words that carry the index in their low bits: Philox's raw words are frozen,
  and without ties every sort gives the same answer. 16 n bytes while sorting.

  Args:
    seed, number: of the permutation; two that differ in either are independent.
    stream: one of the streams above, so that draws for one purpose are independent of what
      is drawn for another from the same seed.
  """
  bits = max(n - 1, 1).bit_length()
  words = np.random.Philox(key=[seed, number], counter=[0, 0, 0, stream]).random_raw(n)
  low = np.uint64((1 << bits) - 1)
  words &= ~low
  words |= np.arange(n, dtype=np.uint64)
  words.sort()
  words &= low
  return words.view(np.int64)


def permuted(
  indices: np.ndarray, n: int, seed: int, epoch: int, stream: int = NETWORK
) -> np.ndarray:
  """Where a permutation of range(n) takes `indices`, int64, without the rest of it.

  A Feistel network over the next power of 2, which changes each half of a number in turn by a hash
  of the other half, with keys from Philox. Numbers of n and above go through it again.
  """
  bits = max((n - 1).bit_length(), 2)
  low_bits = np.uint64(bits // 2)
  masks = [np.uint64((1 << (bits - bits // 2)) - 1), np.uint64((1 << bits // 2) - 1)]
  generator = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream])
  keys = generator.random_raw(2 * _ROUNDS)
  result = indices.astype(np.uint64)
  away = np.arange(len(result))
  while len(away):
    halves = [result[away] >> low_bits, result[away] & masks[1]]
    for number, key in enumerate(keys):
      this, other = number % 2, 1 - number % 2
      halves[this] ^= _hash(halves[other] ^ key) & masks[this]
    result[away] = (halves[0] << low_bits) | halves[1]
    away = away[result[away] >= n]
  return result.astype(np.int64)


def _hash(words: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64 (Steele et al. 2014), a bijection of uint64."""
  words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return words ^ (words >> np.uint64(31))


def subset(n: int, fraction: float, seed: int) -> np.ndarray:
  """A random `fraction` of range(n), ascending; a larger fraction includes a smaller one.

  It is the beginning of a permutation, made as that of an epoch.

  Raises:
    InputError: the fraction is not above 0 and at most 1, or selects nothing.
  """
  if not 0 < fraction <= 1:
    raise InputError(f'subset_fraction is {fraction}; use one above 0 and at most 1, such as 0.03.')
  count = round(fraction * n)
  if not count:
    raise InputError(f'subset_fraction={fraction} selects none of {n} examples; use a larger one.')
  if n <= SORTED:
    return np.sort(shuffled(n, seed, 0, SUBSET)[:count])
  return np.sort(permuted(np.arange(count), n, seed, 0, SUBSET))


def examples(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
  """The example at each of the ascending `positions` of a run over `n` examples."""
  result = np.empty_like(positions)
  for epoch in range(int(positions[0]) // n, int(positions[-1]) // n + 1):
    inside = positions // n == epoch
    result[inside] = _within_epoch(positions[inside] % n, n, seed, epoch)
  return result


def _within_epoch(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
  if n <= SORTED:
    return permutation(n, seed, epoch)[indices]
  result = np.empty_like(indices)
  for block in range(int(indices[0]) // _BLOCK, int(indices[-1]) // _BLOCK + 1):
    inside = indices // _BLOCK == block
    result[inside] = _permuted_block(block, n, seed, epoch)[indices[inside] % _BLOCK]
  return result


@functools.lru_cache(maxsize=64)
def _permuted_block(block: int, n: int, seed: int, epoch: int) -> np.ndarray:
  return permuted(np.arange(block * _BLOCK, min((block + 1) * _BLOCK, n)), n, seed, epoch)


def host_bytes(n: int) -> int:
  """Peak memory of the order of `n` examples: two epochs, while a third is sorted."""
  return 4 * 8 * n if n <= SORTED else 0


def draws(first: int, count: int, seed: int) -> np.ndarray:
  """Four uint64 words for each of the positions `first`...: (count, 4).

  Philox is a counter-based generator, which computes any position directly.
  """
  generator = np.random.Philox(key=[seed, 0], counter=[first, 0, 0, AUGMENT])
  return generator.random_raw(4 * count).reshape(count, 4)


def rows(batch: int, batch_size: int, shard: int, num_shards: int) -> np.ndarray:
  """Positions of the rows of batch number `batch` that process `shard` of `num_shards` makes."""
  local = local_rows(batch_size, num_shards)
  return batch * batch_size + shard * local + np.arange(local)


def local_rows(batch_size: int, num_shards: int) -> int:
  """Rows of a batch per process; InputError if the batch does not divide evenly."""
  if batch_size % num_shards:
    raise InputError(
      f'a batch of {batch_size} does not divide into {num_shards} processes; use a multiple of '
      f'{num_shards}.'
    )
  return batch_size // num_shards


def part(n: int, first: float, last: float | None, what: str) -> tuple[int, int]:
  """The range of example numbers from `first` up to, but not including, `last`.

  Args:
    n: number of examples.
    first, last: ints count examples, floats are fractions of them; None is the end.
    what: the examples, for the error.

  Raises:
    InputError: the range is empty or not within the examples.
  """
  begin, end = (
    round(bound * n) if isinstance(bound, float) and 0 <= bound <= 1 else bound
    for bound in (first, n if last is None else last)
  )
  if isinstance(begin, float) or isinstance(end, float) or not 0 <= begin < end <= n:
    raise InputError(
      f'{what}: first={first} and last={last} are not a part of the {n} examples; use counts such '
      'as first=0, last=1000, or fractions such as first=0.0, last=0.99.'
    )
  return begin, end


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
