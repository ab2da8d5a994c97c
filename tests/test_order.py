from collections import Counter

import numpy as np
import pytest

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
