"""What happens to a batch on the device, against NumPy and scipy's Beta distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mixer.training import batch_ops


def test_normalize():
  """-1 + 2 x / 255 for every byte, exactly -1 and 1 at the ends."""
  pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  values = np.asarray(batch_ops.normalize(pixels))
  assert values.dtype == np.float32 and values.shape == pixels.shape
  assert values.flat[0] == -1.0 and values.flat[255] == 1.0
  np.testing.assert_allclose(values, (np.float64(pixels) - 127.5) / 127.5, atol=1e-7)


def test_label_vectors():
  vectors = batch_ops.label_vectors(jnp.asarray([2, 0]), 4)
  np.testing.assert_array_equal(vectors, [[0, 0, 1, 0], [1, 0, 0, 0]])
  multi_hot = np.uint8([[1, 0, 1, 1], [0, 0, 0, 0]])
  kept = batch_ops.label_vectors(multi_hot, 4)
  np.testing.assert_array_equal(kept, multi_hot)
  assert vectors.dtype == kept.dtype == np.float32


def test_partner_is_the_predecessor():
  batch = {
    'image': np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), dtype=np.uint8),
    'label': np.int32([10, 11, 12, 13, 14]),
  }
  both = batch_ops.with_partners(batch)
  assert set(both) == {'image', 'label', 'partner_image', 'partner_label'}
  np.testing.assert_array_equal(both['partner_label'], [14, 10, 11, 12, 13])
  for i in range(5):
    np.testing.assert_array_equal(both['image'][i], batch['image'][i])
    np.testing.assert_array_equal(both['partner_image'][i], batch['image'][(i - 1) % 5])


@pytest.mark.parametrize('p', [0.2, 0.5])
def test_mixup_weight_distribution(p):
  """Kolmogorov-Smirnov at the 0.1 % level: max(l, 1 - l) <= w just where 1 - w <= l <= w."""
  n = 20_000
  keys = jax.random.split(jax.random.key(0), n)
  weights = np.sort(jax.jit(jax.vmap(lambda key: batch_ops.mixup_weight(key, p)))(keys))
  assert weights[0] >= 0.5 and weights[-1] <= 1.0
  weights = np.float64(weights)
  wanted = scipy.special.betainc(p, p, weights) - scipy.special.betainc(p, p, 1 - weights)
  # Above and below each jump of the empirical distribution. The many draws that float32 rounds
  # to 1 make one jump, whose inside means nothing.
  ranks = np.arange(1, n + 1) / n
  inside = weights < 1.0
  largest = max((ranks - wanted)[inside].max(), (wanted - ranks + 1 / n)[inside].max())
  assert largest < 1.95 / np.sqrt(n)

  shares = np.random.default_rng(1).beta(p, p, n)
  by_numpy = np.maximum(shares, 1 - shares)
  error = 4.5 * by_numpy.std() * np.sqrt(2 / n)
  assert abs(weights.mean() - by_numpy.mean()) < error


def test_mix():
  own, partner = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6], [7, 8]])
  mixed = batch_ops.mix(own, partner, jnp.float32(0.75))
  np.testing.assert_array_equal(mixed, [[2, 3], [4, 5]])


@pytest.mark.parametrize('count', [1, 2, 3, 6])
def test_split_interleaves(count):
  batch = {'image': np.arange(12 * 4).reshape(12, 2, 2), 'label': np.arange(12)}
  parts = batch_ops.split(batch, count)
  assert parts['image'].shape == (count, 12 // count, 2, 2)
  for i in range(count):
    np.testing.assert_array_equal(parts['label'][i], np.arange(12)[i::count])
    np.testing.assert_array_equal(parts['image'][i], batch['image'][i::count])


def test_split_of_keys():
  """Keys go with their examples; a microbatch draws what the whole batch would have."""
  keys = jax.random.split(jax.random.key(0), 6)
  parts = batch_ops.split({'key': keys}, 3)['key']
  whole = jax.vmap(jax.random.uniform)(keys)
  np.testing.assert_array_equal(jax.vmap(jax.random.uniform)(parts[1]), whole[1::3])
