"""The device mesh, and how arrays are sharded over it."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Annotated, Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from mixer.errors import InputError
from mixer.values import Count, Where

Groups = Annotated[int, Where(lambda n: n == -1 or n > 0, 'a positive int, or -1 for the rest')]
BATCH_AXES = ('data', 'fsdp')
_MIN_SHARDED_SIZE = 2**18  # smaller leaves cost more to gather than they take


def make_mesh(*, data: Groups = -1, fsdp: Count = 1, devices: Sequence[jax.Device] = ()) -> Mesh:
  """A ('data', 'fsdp') mesh over `devices`, or all devices; the batch is split over both axes.

  `fsdp` devices share one copy of the large parameters and optimiser moments; `data` such
  groups hold the same copy. -1 for `data` means all remaining devices.
  """
  count = len(devices) or jax.device_count()
  if data == -1 and fsdp > 0 and count % fsdp == 0:
    data = count // fsdp
  if fsdp < 1 or data < 1 or data * fsdp != count:
    raise InputError(
      f'a mesh of data={data} x fsdp={fsdp} does not cover the {count} devices; '
      'set data=-1 and fsdp to a divisor of their number.'
    )
  if count > 1 and jax.config.jax_disable_jit:
    raise InputError(
      f'JAX_DISABLE_JIT is set, and there are {count} devices: single operations run on one device '
      'only. Unset it, or use one device.'
    )
  # Process by process, since `put` takes each process's rows in that order. `jax.make_mesh` would
  # scatter them over a TPU slice's torus, and refuse sizes of `fsdp` that split one of its sides.
  ordered = sorted(devices or jax.devices(), key=lambda device: device.process_index)
  # Linen's Dropout and Conv do not run under jax's default of explicit axis types.
  return Mesh(np.array(ordered).reshape(data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def batch(mesh: Mesh, *, microbatched: bool = False) -> NamedSharding:
  """Axis 0 (axis 1 of a stack of microbatches) split over all the devices."""
  return NamedSharding(mesh, P(None, BATCH_AXES) if microbatched else P(BATCH_AXES))


def state(shapes, mesh: Mesh):
  """A sharding per leaf: the largest dimension that `fsdp` divides is split over it.

  It depends on the shape alone, so a parameter and its optimiser moments are split alike. Leaves of
  under 2**18 elements are replicated.
  """
  size = mesh.shape['fsdp']

  def spec(leaf):
    shape = leaf.shape
    if size > 1 and math.prod(shape) >= _MIN_SHARDED_SIZE:
      for i in sorted(range(len(shape)), key=lambda i: (-shape[i], i)):
        if shape[i] % size == 0:
          return NamedSharding(mesh, P(*('fsdp' if j == i else None for j in range(len(shape)))))
    return replicated(mesh)

  return jax.tree.map(spec, shapes)


def spread(shapes, mesh: Mesh):
  """A tree of arrays or shapes as ShapeDtypeStructs with the shardings of `state`."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes, state(shapes, mesh),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SplitUpdate:
  """Weight-update sharding (Xu et al. 2020, arXiv:2004.13336): each device updates its own part.

  A step gathers the parameters, which `state` splits over `fsdp`, once, and sums each gradient only
  where its part of the state is. Otherwise XLA gathers each parameter where it is used.

  Attributes:
    mesh: the devices.
    cast: parameters -> the same, rounded as the model rounds them before use, which makes the
      gathered copy smaller.
  """

  mesh: Mesh
  cast: Callable[[Any], Any]

  def gather(self, params):
    """The parameters of the state -> those with which the model computes."""
    rounded = jax.lax.with_sharding_constraint(self.cast(params), state(params, self.mesh))
    return jax.lax.with_sharding_constraint(rounded, replicated(self.mesh))

  def shapes(self, params):
    """The result of `gather`, for arrays or shapes, as ShapeDtypeStructs with shardings."""
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(self.mesh)),
      jax.eval_shape(self.cast, params),
    )

  def scatter(self, gradient, params):
    """The gradient with respect to the result of `gather` -> that of the state's parameters."""
    gradient = jax.lax.with_sharding_constraint(gradient, state(params, self.mesh))
    return jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, params)


def put(host_batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch -> the global batch, split over the mesh."""
  where = batch(mesh)
  return {k: jax.make_array_from_process_local_data(where, v) for k, v in host_batch.items()}


def place(tree, like):
  """Whole host arrays -> arrays on the mesh, with the shardings of `like`'s leaves."""

  def place_one(x, target):
    return jax.make_array_from_callback(target.shape, target.sharding, lambda index: x[index])

  return jax.tree.map(place_one, tree, like)


def gather(tree):
  """The tree as whole numpy arrays, on every process."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(tree, tiled=True)
  return jax.device_get(tree)


def bytes_per_device(tree) -> int:
  """Bytes of one device for arrays or ShapeDtypeStructs with shardings."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
