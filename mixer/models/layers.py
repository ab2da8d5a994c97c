"""Pieces that more than one architecture is made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mixer.errors import InputError
from mixer.sizes import Size, pair


def patch_grid(image_size: Size, patch_size: Size) -> tuple[int, int]:
  """Patches along (height, width); raises InputError where a side does not divide."""
  image, patch = pair(image_size), pair(patch_size)
  faults = []
  for side, length, step in zip(('height', 'width'), image, patch, strict=True):
    if length % step:
      below, above = length // step * step, -(-length // step) * step
      valid = f'{below} or {above}' if below else f'{above}'
      faults.append(f'{side} {length} is not a multiple of the patch {side} {step}: use {valid}')
  if faults:
    raise InputError(f'image size {image}, patch size {patch}: ' + '; '.join(faults) + '.')
  return image[0] // patch[0], image[1] // patch[1]


def split_examples(x: jax.Array) -> jax.Array:
  """x (n, ...) with n split over the whole mesh of `jax.set_mesh`; without one, x as it is.

  Left to itself, XLA splits a scan's carry as the sharded kernels in it are split, and gathers
  the batch (measured: the images of all devices on each one).
  """
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, P(mesh.axis_names))


def example_uniform(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """One float32 draw in [0, 1) of `shape` per example from `keys` (n,): (n, *shape)."""
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def fold(keys: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
  """A new key per example for the draw called `number`; None stays None."""
  return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
  """Zeroes each value of x (n, ...) with probability `rate` and rescales the others."""
  if keys is None or rate == 0.0:
    return x
  keep = example_uniform(keys, x.shape[1:]) >= rate
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_path(x: jax.Array, rate: jax.Array, keys: jax.Array | None, *, rescale: bool) -> jax.Array:
  """Zeroes whole examples of a residual branch x (n, ...) with probability `rate`."""
  if keys is None:
    return x
  keep = (example_uniform(keys, ()) >= rate).astype(x.dtype)
  if rescale:
    keep = keep / (1.0 - rate).astype(x.dtype)
  return x * keep.reshape(-1, *(1,) * (x.ndim - 1))


class MlpBlock(nn.Module):
  """Dense to `hidden_dim`, GELU (tanh form), Dense back: (n, a, b) -> (n, a, b).

  With `out_dim` the result is (n, a, out_dim); `dense` is the class of the two layers.
  """

  hidden_dim: int
  dropout_rate: float = 0.0
  dtype: jnp.dtype = jnp.float32
  out_dim: int | None = None
  dense: type[nn.Module] = nn.Dense

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    out_dim = self.out_dim or x.shape[-1]
    x = nn.gelu(self.dense(self.hidden_dim, dtype=self.dtype, name='Dense_0')(x))
    x = dropout(x, self.dropout_rate, fold(keys, 0))
    x = self.dense(out_dim, dtype=self.dtype, name='Dense_1')(x)
    return dropout(x, self.dropout_rate, fold(keys, 1))
