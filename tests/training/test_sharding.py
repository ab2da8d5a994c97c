"""Where arrays lie on a mesh of eight CPU devices."""

import re
import types

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from mixer import models
from mixer.errors import InputError
from mixer.training import sharding


def shape_of(*shape, dtype=np.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
  'given,wanted',
  [({}, (8, 1)), ({'fsdp': 4}, (2, 4)), ({'fsdp': 8}, (1, 8)), ({'data': 4, 'fsdp': 2}, (4, 2))],
)
def test_make_mesh(given, wanted):
  mesh = sharding.make_mesh(**given)
  assert mesh.axis_names == ('data', 'fsdp')
  assert tuple(mesh.shape.values()) == wanted
  assert set(mesh.devices.flat) == set(jax.devices())
  assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize('data,fsdp', [(3, 1), (-1, 3), (2, 2), (8, 0), (-1, -1), (0, 8), (-2, -4)])
def test_meshes_that_do_not_cover_the_devices(data, fsdp):
  text = (
    f'a mesh of data={data} x fsdp={fsdp} does not cover the 8 devices; '
    'set data=-1 and fsdp to a divisor of their number.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    sharding.make_mesh(data=data, fsdp=fsdp)


# shape -> the dimension that fsdp=4 splits, or None where the array is replicated.
RULE = {
  (): None,
  (1024,): None,  # small
  (2**18 - 4,): None,
  (2**18,): 0,
  (512, 512): 0,  # the first of equals
  (512, 1024): 1,  # the largest
  (1024, 512): 0,
  (2**18, 3): 0,
  (2**17, 6, 2): 0,
  (1026, 512): 1,  # 4 does not divide the largest
  (1023, 1025): None,  # nor any
  (16, 16, 3, 1024): 3,
  (24, 196, 384): 2,
  (24, 1022, 12): 0,
}


@pytest.mark.parametrize('shape', RULE)
def test_state_rule(shape):
  mesh = sharding.make_mesh(fsdp=4)
  axis = RULE[shape]
  wanted = P() if axis is None else P(*('fsdp' if i == axis else None for i in range(len(shape))))
  found = sharding.state({'a': shape_of(*shape)}, mesh)
  assert found == {'a': NamedSharding(mesh, wanted)}


def test_state_is_replicated_without_fsdp():
  mesh = sharding.make_mesh()
  found = sharding.state({'a': shape_of(2048, 2048), 'b': shape_of(8)}, mesh)
  assert found == {'a': NamedSharding(mesh, P()), 'b': NamedSharding(mesh, P())}


def test_share_of_a_large_model():
  """Of Mixer-L/16 all but the token biases, LayerNorms and the like is split over eight."""
  shapes = jax.eval_shape(
    lambda key: models.init(models.build('Mixer-L/16', 1000), key, 224), jax.random.key(0)
  )
  mesh = sharding.make_mesh(fsdp=8)
  placed = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    sharding.state(shapes, mesh),
  )
  large = sum(x.size for x in jax.tree.leaves(shapes) if x.size >= 2**18)
  small = sum(x.size for x in jax.tree.leaves(shapes) if x.size < 2**18)
  assert large + small == 208_196_168
  assert sharding.bytes_per_device(placed) == 4 * (large // 8 + small)


def test_bytes_per_device():
  mesh = sharding.make_mesh(fsdp=4)

  def placed(shape, spec, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

  tree = {
    'replicated': placed((3, 5), P(), np.float32),  # 60 bytes
    'split': placed((8, 6), P(None, 'data'), np.int16),  # 48 bytes
    'by all': placed((16, 2), P(('data', 'fsdp')), np.uint8),  # 4 bytes
  }
  assert sharding.bytes_per_device(tree) == 60 + 48 + 4
  arrays = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), tree)
  assert sharding.bytes_per_device(arrays) == 60 + 48 + 4
  assert sharding.bytes_per_device({}) == 0


@pytest.mark.parametrize('fsdp', [1, 4, 8])
def test_put(fsdp):
  """Row blocks in the order of the mesh, whatever its shape; values and dtypes as they came."""
  mesh = sharding.make_mesh(fsdp=fsdp)
  rng = np.random.default_rng(0)
  host = {
    'image': rng.integers(0, 256, (24, 2, 2, 3), dtype=np.uint8),
    'label': np.arange(24, dtype=np.int32),
    'mask': np.arange(24) < 20,
  }
  batch = sharding.put(host, mesh)
  assert set(batch) == set(host)
  for name, value in host.items():
    assert batch[name].dtype == value.dtype
    np.testing.assert_array_equal(batch[name], value)
    rows = {shard.device: np.asarray(shard.data) for shard in batch[name].addressable_shards}
    for i, device in enumerate(mesh.devices.flat):
      np.testing.assert_array_equal(rows[device], value[3 * i : 3 * i + 3])


def test_batch_and_replicated():
  mesh = sharding.make_mesh(fsdp=2)
  assert sharding.batch(mesh).spec == P(('data', 'fsdp'))
  assert sharding.batch(mesh, microbatched=True).spec == P(None, ('data', 'fsdp'))
  assert sharding.replicated(mesh).spec == P()
  assert sharding.batch(mesh, microbatched=True).shard_shape((4, 16, 5)) == (4, 2, 5)


def test_gather():
  mesh = sharding.make_mesh(fsdp=8)
  value = np.arange(64, dtype=np.float32).reshape(16, 4)
  placed = jax.device_put(value, NamedSharding(mesh, P('fsdp')))
  whole = sharding.gather({'a': {'b': placed}})
  assert isinstance(whole['a']['b'], np.ndarray)
  np.testing.assert_array_equal(whole['a']['b'], value)


def test_gather_of_several_processes(monkeypatch):
  """Asks for whole arrays rather than for a stack of each process's own."""
  calls = []
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    sharding,
    'multihost_utils',
    types.SimpleNamespace(process_allgather=lambda tree, tiled: calls.append((tree, tiled))),
  )
  sharding.gather('tree')
  assert calls == [('tree', True)]


def test_meshes_over_some_devices():
  """Nothing below `make_mesh` supposes that the mesh has all the devices."""
  mesh = Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ('data', 'fsdp'))
  batch = sharding.put({'label': np.arange(4)}, mesh)
  assert {shard.device for shard in batch['label'].addressable_shards} == set(jax.devices()[:2])
