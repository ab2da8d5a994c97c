"""What happens to a batch on the device, between the input pipeline and the model."""

import jax
import jax.numpy as jnp


def normalize(images: jax.Array) -> jax.Array:
  """uint8 [0, 255] -> float32 [-1, 1], the range every released Mixer was trained on."""
  return images.astype(jnp.float32) * (2.0 / 255.0) - 1.0


def label_vectors(labels: jax.Array, num_classes: int) -> jax.Array:
  """Class numbers (n,) or multi-hot vectors (n, classes) -> float32 (n, classes)."""
  if labels.ndim == 1:
    return jax.nn.one_hot(labels, num_classes)
  return labels.astype(jnp.float32)


def with_partners(batch: dict) -> dict:
  """Adds each example's mixup partner, its predecessor in the batch, under 'partner_*'."""
  return {**batch, **{f'partner_{k}': jnp.roll(v, 1, axis=0) for k, v in batch.items()}}


def mixup_weight(key: jax.Array, p: float) -> jax.Array:
  """The share of an example in its mixture: max(l, 1 - l) with l ~ Beta(p, p), in [0.5, 1].

  One draw per step for the whole batch (appendix B gives p; the maximum, the single draw and
  the neighbour as partner are big_vision's).
  """
  weight = jax.random.beta(key, p, p)
  return jnp.maximum(weight, 1.0 - weight)


def mix(own: jax.Array, partner: jax.Array, weight: jax.Array) -> jax.Array:
  """weight * own + (1 - weight) * partner."""
  return weight * own + (1.0 - weight) * partner


def split(batch: dict, count: int) -> dict:
  """(n, ...) -> (count, n / count, ...): microbatch i has the examples i, i + count, ...

  Interleaved, so that every device's examples stay on that device: a contiguous split would
  gather the whole batch (measured: four times the FLOPs per device on eight devices).
  """
  return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
