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


def cutmix_mask(key: jax.Array, p: float, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
  """(1 for an image's own pixels and 0 for its partner's (height, width, 1), the share of ones).

  timm's rule: l ~ Beta(p, p), a box of sqrt(1 - l) of each side, rounded down, about a uniform
  centre; what lies outside the image is cut off, and the share is that of the pixels that remain.
  """
  draw, row_key, column_key = jax.random.split(key, 3)
  side = jnp.sqrt(1.0 - jax.random.beta(draw, p, p))
  reach = [(length * side).astype(jnp.int32) // 2 for length in size]
  row, column = (
    jax.random.randint(k, (), 0, length)
    for k, length in zip((row_key, column_key), size, strict=True)
  )
  partner = box(size, row - reach[0], row + reach[0], column - reach[1], column + reach[1])
  mask = 1.0 - partner.astype(jnp.float32)
  return mask, jnp.mean(mask)


def box(size: tuple[int, int], top, bottom, left, right) -> jax.Array:
  """Whether a pixel is in the box, which may reach beyond the image: bool (height, width, 1)."""
  row, column = jnp.arange(size[0])[:, None, None], jnp.arange(size[1])[None, :, None]
  return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def mix(own: jax.Array, partner: jax.Array, weight: jax.Array) -> jax.Array:
  """weight * own + (1 - weight) * partner."""
  return weight * own + (1.0 - weight) * partner


def split(batch: dict, count: int) -> dict:
  """(n, ...) -> (count, n / count, ...): microbatch i has the examples i, i + count, ...

  Interleaved, so that every device's examples stay on that device: a contiguous split would
  gather the whole batch (measured: four times the FLOPs per device on eight devices).
  """
  return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
