"""Losses of whole label vectors: summed over classes, one float32 value per image."""

import jax
import jax.numpy as jnp


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Binary cross-entropy summed over classes: two (n, classes) -> (n,). Upstream's loss."""
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
  return -jnp.sum(
    labels * jax.nn.log_sigmoid(logits) + (1.0 - labels) * jax.nn.log_sigmoid(-logits), axis=-1
  )


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy against a distribution over classes: two (n, classes) -> (n,)."""
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
  return -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)


LOSSES = {'sigmoid': sigmoid_cross_entropy, 'softmax': softmax_cross_entropy}
# Logits -> the probabilities that a loss trains; those of sigmoid do not add up to one.
PROBABILITIES = {'sigmoid': jax.nn.sigmoid, 'softmax': jax.nn.softmax}
