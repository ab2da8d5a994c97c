"""The losses against their closed forms in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.training import losses


def softplus(x):
  return np.logaddexp(0.0, x)


def sigmoid_by_hand(logits, labels):
  """-log p where the label is 1, -log(1 - p) where it is 0; both are softplus of a logit."""
  return (labels * softplus(-logits) + (1 - labels) * softplus(logits)).sum(axis=-1)


def softmax_by_hand(logits, labels):
  largest = logits.max(axis=-1, keepdims=True)
  log_sum = largest + np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True))
  return (labels * (log_sum - logits)).sum(axis=-1)


BY_HAND = {'sigmoid': sigmoid_by_hand, 'softmax': softmax_by_hand}


def examples(scale=3.0):
  """Logits with label vectors that are one-hot, mixed (rows sum to 1) and multi-hot."""
  rng = np.random.default_rng(0)
  logits = np.float32(scale * rng.standard_normal((12, 7)))
  one_hot = np.eye(7)[rng.integers(0, 7, 4)]
  mixed = 0.7 * np.eye(7)[rng.integers(0, 7, 4)] + 0.3 * np.eye(7)[rng.integers(0, 7, 4)]
  multi_hot = rng.integers(0, 2, (4, 7))
  return logits, np.float32(np.concatenate([one_hot, mixed, multi_hot]))


def test_every_loss_is_tested():
  assert set(losses.LOSSES) == set(BY_HAND)


@pytest.mark.parametrize('name', BY_HAND)
def test_values(name):
  logits, labels = examples()
  value = losses.LOSSES[name](logits, labels)
  assert value.shape == (12,) and value.dtype == np.float32
  np.testing.assert_allclose(value, BY_HAND[name](np.float64(logits), labels), rtol=1e-6)


def test_sigmoid_of_two_classes():
  """-log 0.25 - log(1 - 0.9), digit for digit."""
  logits = np.float32([[np.log(1 / 3), np.log(9)]])
  value = losses.sigmoid_cross_entropy(logits, np.float32([[1, 0]]))
  np.testing.assert_allclose(value, [np.log(4) + np.log(10)], rtol=1e-6)


@pytest.mark.parametrize('name', BY_HAND)
def test_large_logits(name):
  """Neither the value nor the gradient overflows, and the value stays right."""
  logits, labels = examples(scale=1e5)
  value = losses.LOSSES[name](logits, labels)
  np.testing.assert_allclose(value, BY_HAND[name](np.float64(logits), labels), rtol=1e-6)
  gradient = jax.grad(lambda x: losses.LOSSES[name](x, labels).sum())(logits)
  assert np.isfinite(gradient).all()
  assert np.abs(gradient).max() <= labels.sum(axis=-1).max()


@pytest.mark.parametrize('name', BY_HAND)
def test_gradient(name):
  """p - y for the sigmoid; p * sum(y) - y for the softmax."""
  logits, labels = examples()
  gradient = jax.grad(lambda x: losses.LOSSES[name](x, labels).sum())(logits)
  exponentials = np.exp(np.float64(logits))
  wanted = {
    'sigmoid': exponentials / (1 + exponentials) - labels,
    'softmax': exponentials / exponentials.sum(-1, keepdims=True) * labels.sum(-1, keepdims=True)
    - labels,
  }
  np.testing.assert_allclose(gradient, wanted[name], atol=1e-6)


@pytest.mark.parametrize('name', BY_HAND)
def test_bfloat16_is_worked_out_in_float32(name):
  logits, labels = examples()
  logits, labels = jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels, jnp.bfloat16)
  value = losses.LOSSES[name](logits, labels)
  assert value.dtype == np.float32
  rounded = np.float64(np.float32(logits)), np.float64(np.float32(labels))
  np.testing.assert_allclose(value, BY_HAND[name](*rounded), rtol=1e-6)


@pytest.mark.parametrize('name', BY_HAND)
def test_examples_are_apart(name):
  """No sum over the batch: a row's loss is its own."""
  logits, labels = examples()
  whole = losses.LOSSES[name](logits, labels)
  rows = [losses.LOSSES[name](logits[i : i + 1], labels[i : i + 1])[0] for i in range(12)]
  np.testing.assert_allclose(whole, rows, rtol=1e-6)
