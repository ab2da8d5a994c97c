"""Building blocks and checks that the architectures share."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mixer import settings, values
from mixer.errors import InputError
from mixer.sizes import Size, pair

Dtype = Annotated[str, values.OneOf(('float32', 'bfloat16'))]


def check_fields(model: nn.Module) -> None:
  """Raises InputError for fields that do not agree with their annotations."""
  found = [
    values.fault(field.name, field.type, getattr(model, field.name))
    for field in dataclasses.fields(model)
  ]
  settings.check([fault for fault in found if fault])


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


def embed_patches(
  images: jax.Array, patch_size: Size, hidden_dim: int, dtype: str, name: str
) -> jax.Array:
  """A linear map `name` of each patch: (n, height, width, c) -> (n, patches, C), row-major."""
  patch_grid(images.shape[1:3], patch_size)
  patch = pair(patch_size)
  x = nn.Conv(hidden_dim, patch, patch, 'VALID', dtype=dtype, name=name)(images)
  return x.reshape(x.shape[0], -1, hidden_dim)


def run_blocks(
  block: Callable[[int | None], nn.Module],
  x: jax.Array,
  drop_rates: jax.Array,
  keys: jax.Array | None,
  *,
  scan: bool,
) -> jax.Array:
  """Calls one block per drop rate as block(x, drop_rate, keys); returns the last one's output.

  `block(i)` makes block i. With `scan`, `block(None)` makes the block whose parameters are
  stacked along a leading axis.
  """
  if not scan:
    for i in range(len(drop_rates)):
      x = block(i)(x, drop_rates[i], fold_in(keys, i))
    return x

  def body(stacked, carry, i):
    return stacked(carry, drop_rates[i], fold_in(keys, i)), None

  scanned = nn.scan(
    body,
    variable_axes={'params': 0, 'intermediates': 0},
    split_rngs={'params': True},
    length=len(drop_rates),
  )
  x, _ = scanned(block(None), x, jnp.arange(len(drop_rates)))
  return x


def classify(model: nn.Module, features: jax.Array) -> jax.Array:
  """The linear head of `model`, which starts at zero; without classes, the features themselves."""
  model.sow('intermediates', 'features', features)
  if model.num_classes is None:
    return features
  return nn.Dense(
    model.num_classes,
    kernel_init=nn.initializers.zeros,
    bias_init=nn.initializers.constant(model.head_bias),
    name='head',
  )(features)


def shard_batch(x: jax.Array) -> jax.Array:
  """x (n, ...) with n split over the whole mesh of `jax.set_mesh`; x itself without a mesh.

  Without this constraint, XLA splits the carry of a scan as the sharded kernels in it are split,
  and gathers the batch: every device then holds the activations of all examples.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, P(mesh.axis_names))


def example_uniform(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """One float32 draw in [0, 1) of `shape` per example from `keys` (n,): (n, *shape)."""
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def fold_in(keys: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
  """`jax.random.fold_in` for each of `keys` (n,); None stays None."""
  return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
  """Zeroes each value of x (n, ...) with probability `rate` and divides the others by 1 - rate."""
  if keys is None or rate == 0.0:
    return x
  keep = example_uniform(keys, x.shape[1:]) >= rate
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_path(x: jax.Array, rate: jax.Array, keys: jax.Array | None, *, rescale: bool) -> jax.Array:
  """Zeroes whole examples of a residual branch x (n, ...) with probability `rate`.

  With `rescale`, the others are divided by 1 - rate.
  """
  if keys is None:
    return x
  keep = (example_uniform(keys, ()) >= rate).astype(x.dtype)
  if rescale:
    keep = keep / (1.0 - rate).astype(x.dtype)
  return x * keep.reshape(-1, *(1,) * (x.ndim - 1))


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _product_backward(
  kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = kept
  of_x = jax.lax.dot_general(gradient, kernel, (((x.ndim - 1,), (1,)), ((), ())))
  of_kernel = jax.lax.platform_dependent(
    x, gradient, cpu=_kernel_gradient_on_cpu, default=_kernel_gradient
  )
  return of_x, of_kernel.T


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """(b, a), of x (..., a) and the gradient (..., b) of its product with a kernel."""
  rows = tuple(range(x.ndim - 1))
  return jax.lax.dot_general(gradient, x, ((rows, rows), ((), ())))


def _kernel_gradient_on_cpu(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """The same, without copies of x and the gradient, and with the narrower of them first."""
  x, gradient = (value.reshape(-1, value.shape[-1]) for value in (x, gradient))
  result = _kernel_gradient(x, gradient)
  # Otherwise XLA swaps the operands, to save the transposition of the result.
  return jax.lax.optimization_barrier(result) if x.shape[1] > gradient.shape[1] else result


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


def dense_product(x: jax.Array, kernel: jax.Array, dimensions, precision=None) -> jax.Array:
  """What `nn.Dense` computes: x (..., a) times the kernel (a, b).

  The kernel's gradient is computed in another way on a CPU, for a faster train step
  (docs/performance.md).
  """
  del dimensions, precision  # Dense's own
  return _product(x, kernel)


class MlpBlock(nn.Module):
  """Dense to `hidden_dim`, GELU (tanh form), Dense back: (n, a, b) -> (n, a, b).

  With `out_dim` the result is (n, a, out_dim); `dense` makes the two layers.
  """

  hidden_dim: int
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  out_dim: int | None = None
  dense: Callable[..., nn.Module] = functools.partial(nn.Dense, dot_general=dense_product)

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    out_dim = self.out_dim or x.shape[-1]
    x = nn.gelu(self.dense(self.hidden_dim, dtype=self.dtype, name='Dense_0')(x))
    x = dropout(x, self.dropout_rate, fold_in(keys, 0))
    x = self.dense(out_dim, dtype=self.dtype, name='Dense_1')(x)
    return dropout(x, self.dropout_rate, fold_in(keys, 1))
