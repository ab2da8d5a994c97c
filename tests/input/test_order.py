from collections import Counter
import re

import numpy as np
import pytest

from mixer.errors import InputError
from mixer.input import order

MASK = 2**64 - 1


def philox(key, counter):
  """Philox4x64-10 (Salmon et al. 2011), four words per counter; numpy adds 1 to it first."""
  number = sum(word << (64 * i) for i, word in enumerate(counter)) + 1
  while True:
    c, (k0, k1) = [number >> (64 * i) & MASK for i in range(4)], key
    for _ in range(10):
      a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
      c = [(b >> 64) ^ c[1] ^ k0, b & MASK, (a >> 64) ^ c[3] ^ k1, a & MASK]
      k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    yield from c
    number += 1


@pytest.mark.parametrize('n', [1, 2, 3, 5, 16, 17, 65_537])  # 65,537 breaks TensorFlow's shuffle
def test_permutation_has_every_index_once(n):
  for seed, epoch in ((0, 0), (0, 1), (7, 123_456)):
    assert np.array_equal(np.sort(order.permutation(n, seed, epoch)), np.arange(n))


def test_permutation_never_changes():
  assert order.permutation(16, seed=3, epoch=2).tolist() == [
    11, 14, 8, 15, 12, 2, 4, 10, 13, 1, 3, 6, 5, 0, 7, 9
  ]  # fmt: skip


@pytest.mark.parametrize(('n', 'seed', 'epoch'), [(1, 0, 0), (17, 3, 2), (100, 2**62 + 5, 9)])
def test_permutation_sorts_philox_words_by_all_bits_but_those_of_the_index(n, seed, epoch):
  words = [word for word, _ in zip(philox((seed, epoch), (0, 0, 0, 0)), range(n))]
  bits = len(bin(max(n - 1, 1))) - 2
  expected = sorted(range(n), key=lambda i: (words[i] >> bits, i))
  assert order.permutation(n, seed, epoch).tolist() == expected


def test_permutations_of_other_epochs_and_seeds_are_uncorrelated():
  n = 50_000
  orders = [order.permutation(n, seed, epoch) for seed in (0, 1) for epoch in range(4)]
  r = np.corrcoef(orders) - np.eye(len(orders))
  assert np.abs(r).max() < 0.02  # 4.5 standard deviations
  neighbours = [np.corrcoef(p[:-1], p[1:])[0, 1] for p in orders]
  assert np.abs(neighbours).max() < 0.02


def test_permutations_are_uniform():
  runs = 6000
  counts = Counter(tuple(order.permutation(3, seed, epoch=1).tolist()) for seed in range(runs))
  assert len(counts) == 6
  chi2 = sum((count - runs / 6) ** 2 / (runs / 6) for count in counts.values())
  assert chi2 < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize(('n', 'batch'), [(1, 4), (3, 8), (10, 4), (10, 5), (10, 64)])
def test_examples_are_epoch_after_epoch(n, batch):
  epochs = 12
  run = np.concatenate([order.permutation(n, 5, epoch) for epoch in range(epochs)])
  for first in range(0, n * epochs - batch + 1, batch):
    positions = np.arange(first, first + batch)
    assert np.array_equal(order.examples(positions, n, seed=5), run[first : first + batch])


def test_examples_of_positions_with_gaps():
  run = np.concatenate([order.permutation(7, 1, epoch) for epoch in range(6)])
  positions = np.array([2, 6, 7, 20, 21, 41])
  assert np.array_equal(order.examples(positions, 7, seed=1), run[positions])


def test_examples_far_into_a_run():
  n, epoch = 10, 10**9
  found = order.examples(np.arange(n * epoch, n * (epoch + 1)), n, seed=0)
  assert sorted(found.tolist()) == list(range(n))


def test_draws_are_the_words_of_each_position():
  stream = philox((11, 0), (4, 0, 0, 1))
  expected = [[next(stream) for _ in range(4)] for _ in range(3)]
  assert order.draws(4, 3, seed=11).tolist() == expected


def test_draws_jump_to_any_position():
  assert np.array_equal(order.draws(0, 10, seed=2)[3:], order.draws(3, 7, seed=2))
  far = 10**12
  assert np.array_equal(order.draws(far, 9, seed=2)[8:], order.draws(far + 8, 1, seed=2))


def test_draws_share_no_words_with_each_other_or_with_the_shuffle():
  words = [order.draws(0, 500, seed).ravel() for seed in range(3)]
  shuffle = np.random.Philox(key=[0, 0], counter=[0, 0, 0, 0]).random_raw(2000)
  assert len(np.unique(np.concatenate([*words, shuffle]))) == 4 * 2000


# Beyond order.SORTED examples: the Feistel network


# Among them primes, and 4^k + 1.
@pytest.mark.parametrize('n', [1, 2, 3, 4, 5, 16, 17, 257, 1009, 65_537, 262_145])
def test_the_network_has_every_index_once(n):
  for seed, epoch in ((0, 0), (7, 123_456)):
    found = order.permuted(np.arange(n), n, seed, epoch)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(n))


def splitmix(word):
  """The finaliser of SplitMix64 in whole numbers."""
  word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
  word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
  return word ^ word >> 31


@pytest.mark.parametrize(
  ('n', 'seed', 'epoch'), [(1, 0, 0), (6, 3, 2), (300_000_000, 2**62 + 5, 9)]
)
def test_the_network_by_hand(n, seed, epoch):
  """Numbers one at a time: 16 times a half is changed by a hash of the other and a Philox word."""
  keys = [key for key, _ in zip(philox((seed, epoch), (0, 0, 0, 2)), range(16))]
  bits = max(len(bin(n - 1)) - 2, 2)
  low = bits // 2
  for index in {0, n // 3, n - 1}:
    expected = index
    while True:
      high_half, low_half = expected >> low, expected % 2**low
      for first, second in zip(keys[::2], keys[1::2]):
        high_half ^= splitmix(low_half ^ first) % 2 ** (bits - low)
        low_half ^= splitmix(high_half ^ second) % 2**low
      expected = high_half << low | low_half
      if expected < n:
        break
    assert order.permuted(np.array([index]), n, seed, epoch).tolist() == [expected]


def test_the_network_is_uniform():
  runs = 3600
  counts = Counter(
    tuple(order.permuted(np.arange(5), 5, seed, epoch=1).tolist()) for seed in range(runs)
  )
  assert len(counts) == 120
  chi2 = sum((count - runs / 120) ** 2 / (runs / 120) for count in counts.values())
  assert chi2 < 173.6  # 119 degrees of freedom, p = 0.001


def test_epochs_and_seeds_of_the_network_are_uncorrelated():
  n = 50_000
  orders = [order.permuted(np.arange(n), n, seed, e) for seed in (0, 1) for e in range(4)]
  r = np.corrcoef(orders) - np.eye(len(orders))
  assert np.abs(r).max() < 0.02  # 4.5 standard deviations
  neighbours = [np.corrcoef(p[:-1], p[1:])[0, 1] for p in orders]
  assert np.abs(neighbours).max() < 0.02


def test_the_number_of_examples_alone_decides_between_sort_and_network(monkeypatch):
  positions = np.array([4, 8, 9, 11, 13, 29])  # of epochs 0, 1 and 2
  monkeypatch.setattr(order, '_BLOCK', 4)
  monkeypatch.setattr(order, 'SORTED', 10)
  order._permuted_block.cache_clear()
  sort = np.concatenate([order.permutation(10, 3, epoch) for epoch in range(3)])
  assert order.examples(positions, 10, seed=3).tolist() == sort[positions].tolist()
  network = np.concatenate([order.permuted(np.arange(11), 11, 3, epoch) for epoch in range(3)])
  assert order.examples(positions, 11, seed=3).tolist() == network[positions].tolist()
  order._permuted_block.cache_clear()
  assert order.host_bytes(10) == 320 and order.host_bytes(11) == 0


def test_streams_keep_their_numbers():
  """Else a subset or a permutation of pixels would be another one than in earlier runs."""
  streams = (order.SHUFFLE, order.AUGMENT, order.NETWORK, order.PIXELS, order.SUBSET)
  assert streams == (0, 1, 2, 3, 4)


def test_the_bound_does_not_move():
  assert order.SORTED == 20_000_000  # another one would change the order of runs


def test_three_hundred_million_examples():
  n = 300_000_000
  found = order.examples(np.arange(3 * n - 500, 3 * n + 500), n, seed=0)
  assert len(set(found[:500])) == len(set(found[500:])) == 500
  assert found.min() >= 0 and n * 0.98 < found.max() < n
  assert found.mean() == pytest.approx(n / 2, rel=0.06)  # 3 standard deviations


@pytest.mark.parametrize('num_shards', [1, 2, 3, 4])
def test_rows_of_the_shards_make_up_the_batch_in_order(num_shards):
  for batch in (0, 5):
    parts = [order.rows(batch, 12, shard, num_shards) for shard in range(num_shards)]
    assert np.array_equal(np.concatenate(parts), np.arange(12 * batch, 12 * (batch + 1)))


@pytest.mark.parametrize('n', [1, 2, 7, 16, 203])
@pytest.mark.parametrize('num_shards', [1, 2, 3, 4])
@pytest.mark.parametrize('rows', [1, 5, 8])
def test_padded_batches_have_each_example_once(n, num_shards, rows):
  batch_size = rows * num_shards
  shards = [
    list(order.padded_batches(n, batch_size, shard, num_shards)) for shard in range(num_shards)
  ]
  assert {len(batches) for batches in shards} == {int(np.ceil(n / batch_size))}
  seen = []
  for batch in zip(*shards, strict=True):
    for index, mask in batch:
      assert index.shape == mask.shape == (rows,)
      assert index.min() >= 0 and index.max() < n
      seen += index[mask].tolist()
  assert seen == list(range(n))


def test_a_batch_that_does_not_divide_into_the_processes():
  text = 'a batch of 10 does not divide into 4 processes; use a multiple of 4.'
  for call in (order.rows, lambda *a: next(order.padded_batches(20, *a[1:]))):
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      call(0, 10, 1, 4)


@pytest.mark.parametrize(
  ('first', 'last', 'expected'),
  [
    (0, None, (0, 1000)),
    (10, None, (10, 1000)),
    (0, 10, (0, 10)),
    (0.0, 0.99, (0, 990)),
    (0.99, None, (990, 1000)),
    (0.25, 1.0, (250, 1000)),
    (1, 0.5, (1, 500)),
  ],
)
def test_parts(first, last, expected):
  assert order.part(1000, first, last, 'it') == expected


@pytest.mark.parametrize(
  ('first', 'last'), [(5, 5), (6, 5), (-1, 5), (0, 1001), (0.5, 0.4), (0.0, 1.5), (1000, None)]
)
def test_parts_that_there_are_not(first, last):
  text = (
    f'it: first={first} and last={last} are not a part of the 1000 examples; use counts such as '
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}'):
    order.part(1000, first, last, 'it')
