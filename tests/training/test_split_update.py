"""The update in parts, with parameters gathered once, against the update of a whole state."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer.checkpoints import manager
from mixer.cost import hlo
from mixer.training import ema, losses, optimizers, param_groups, sharding, train_step
from mixer.training.augmentation import Augmentation

STEPS = 3


@pytest.fixture(autouse=True)
def even_small_leaves(monkeypatch):
  monkeypatch.setattr(sharding, '_MIN_SHARDED_SIZE', 64)


def apply(params, images, keys=None, *, dtype):
  """A network of three layers, of which the first two compute in `dtype`."""
  x = images.reshape(len(images), -1)
  for name in ('stem', 'hidden'):
    x = jnp.tanh(x.astype(dtype) @ params[name]['kernel'].astype(dtype))
  x = x.astype(jnp.float32) + params['hidden']['bias'][None]
  return x @ params['head']['kernel']


def rounding(params, *, dtype):
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.astype(dtype) if path[0].key != 'head' and x.ndim > 1 else x, params
  )


def first_params():
  rng = np.random.default_rng(0)
  shapes = {'stem': (48, 32), 'hidden': (32, 64), 'head': (64, 5)}
  params = {
    name: {'kernel': np.float32(rng.standard_normal(shape) / 8)} for name, shape in shapes.items()
  }
  params['hidden']['bias'] = np.float32(rng.standard_normal(64))
  return params


def build(split, fsdp=8, devices=8, optimizer='adam', microbatches=1, frozen=(), dtype='bfloat16'):
  """(the compiled step, a function that makes the first state, its shapes, the mesh)."""
  mesh = sharding.make_mesh(fsdp=fsdp if split else 1, devices=jax.devices()[:devices])
  layout = param_groups.Layout(matrices={('hidden', 'kernel'): ((0,), (1,))})
  tx, rate = optimizers.make(
    optimizer={'name': optimizer}, learning_rate=0.01, total_steps=STEPS, clip_norm=0.5,
    schedule={'warmup_steps': 0, 'decay': 'cosine'}, weight_decay=0.1, weight_decay_mode='adamw',
    groups=param_groups.Groups(layout, frozenset(frozen)),
  )  # fmt: skip
  initial, like = train_step.init_state(
    lambda key: first_params(), tx, jax.random.key(0), mesh, frozen, averaged=True
  )  # fmt: skip
  step = train_step.make_step(
    apply=functools.partial(apply, dtype=dtype), tx=tx, learning_rate=rate,
    objective=losses.Objective(loss='sigmoid'),
    augmentation=Augmentation(num_classes=5), microbatches=microbatches, key=jax.random.key(1),
    mesh=mesh, frozen=frozen,
    split_update=sharding.SplitUpdate(mesh, functools.partial(rounding, dtype=dtype))
    if split
    else None,
  )  # fmt: skip
  step = ema.Ema(decay=0.5, warmup=True).follow(step, STEPS)
  return train_step.compile_step(step, like, batch_of(0, mesh), mesh), initial, like, mesh


def batch_of(seed, mesh):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
  return sharding.put({'image': images, 'label': rng.integers(0, 5, 16).astype(np.int32)}, mesh)


def run(step, state, mesh, steps=range(STEPS)):
  """(the state after the last step, the metrics of each step)."""
  history = []
  for seed in steps:
    state, metrics = step(state, batch_of(seed, mesh))
    history.append({name: float(value) for name, value in metrics.items()})
  return state, history


def assert_near(found, wanted):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    *map(jax.device_get, (found, wanted)),
  )


CASES = {
  'adam, a frozen layer': dict(frozen=[('stem', 'kernel')]),
  'lamb, microbatches': dict(optimizer='lamb', microbatches=2, fsdp=4, dtype='float32'),
  'muon': dict(optimizer='muon', dtype='float32'),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_whole_update(case):
  """Losses, norms, parameters, their average and the optimizer's state, after three steps."""
  (step, initial, like, mesh), whole = (build(split, **CASES[case]) for split in (True, False))
  parts = mesh.shape['fsdp']
  state, history = run(step, initial(), mesh)
  wanted, expected = run(whole[0], whole[1](), whole[3])
  for found, row in zip(history, expected, strict=True):
    assert found == pytest.approx(row, rel=1e-5)
  assert_near(state, wanted)

  large = [x for x in jax.tree.leaves(like) if math.prod(x.shape) >= 64]
  assert len(large) >= 8
  for leaf in large:
    assert math.prod(leaf.sharding.shard_shape(leaf.shape)) * parts == math.prod(leaf.shape)


def test_parameters_are_gathered_once():
  """Three kernels and a bias, before the microbatches, not in each of them."""
  step, *_ = build(True, microbatches=2)
  gathers = [one for one in hlo.collectives(step.as_text()) if one.kind == 'all-gather']
  assert sum(one.times for one in gathers) <= 4


@pytest.mark.parametrize('split', [False, True])
def test_checkpoints_fit_both_forms_and_other_devices(tmp_path, split):
  """Saved by one form after a step, continued by the other on four devices."""
  step, initial, _, mesh = build(split, dtype='float32')
  state, _ = run(step, initial(), mesh, range(1))
  with manager.Checkpoints(tmp_path, keep_last=1, keep_best=None) as saved:
    saved.save(1, state)
    saved.wait()
    wanted, _ = run(step, state, mesh, range(1, STEPS))
    other, _, like, smaller = build(not split, devices=4, fsdp=2, dtype='float32')
    restored = saved.restore(1, like)
  assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, like)
  found, _ = run(other, restored, smaller, range(1, STEPS))
  assert_near(found, wanted)


@pytest.mark.parametrize('name', ['Mixer', 'ViT', 'BiT'])
def test_rounding_changes_no_bit(name):
  """Of the logits in bfloat16. The gradients are rounded too, which XLA leaves out on CPUs."""
  sizes = {
    'Mixer': dict(hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24, patch_size=4, num_blocks=1),
    'ViT': dict(hidden_dim=16, mlp_dim=24, num_heads=2, patch_size=4, num_blocks=1),
    'BiT': dict(width=8, stage_sizes=(1,), groups=4),
  }
  model = models.build(name, num_classes=5, dtype='bfloat16', **sizes[name])
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), models.shapes(model, 8)
  )
  images = np.float32(rng.standard_normal((2, 8, 8, 3)))
  rounded = models.rounding(model)
  types = {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(rounded, params))}
  assert types == ({'float32'} if name == 'BiT' else {'bfloat16', 'float32'})

  @jax.jit
  def value_and_grad(params):
    return jax.value_and_grad(lambda p: jnp.sum(model.apply({'params': p}, images) ** 2))(params)

  value, gradient = value_and_grad(params)
  other_value, other = value_and_grad(rounded(params))
  assert value == other_value
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(b.dtype), b), gradient, other)
