"""The average of the parameters against a loop in NumPy."""

import logging

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax
import pytest

from mixer.errors import InputError
from mixer.training import ema, losses, sharding, train_step
from mixer.training.augmentation import Augmentation

CLASSES, FEATURES = 2**15, 12  # so many that fsdp splits the kernel


def apply(params, images, keys=None):
  return images.reshape(len(images), -1) @ params['kernel'] + params['bias'][None]


def states(average, data, fsdp, count=6):
  """(states after each step as whole arrays, the first one too; their shardings)."""
  mesh = Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ('data', 'fsdp'))
  rng = np.random.default_rng(0)
  params = {
    'kernel': np.float32(rng.standard_normal((FEATURES, CLASSES))),
    'bias': np.zeros(CLASSES, np.float32),
  }
  tx = optax.sgd(50.0, momentum=0.9)
  make, like = train_step.init_state(
    lambda key: jax.tree.map(jnp.asarray, params), tx, jax.random.key(0), mesh,
    averaged=average is not None,
  )  # fmt: skip
  step = train_step.make_step(
    apply=apply, tx=tx, learning_rate=lambda step: 50.0, objective=losses.Objective(loss='softmax'),
    augmentation=Augmentation(num_classes=CLASSES), microbatches=1, key=jax.random.key(1),
    mesh=mesh,
  )  # fmt: skip
  step = average.follow(step, count) if average else step
  batches = [
    {
      'image': rng.integers(0, 256, (8, 2, 2, 3), dtype=np.uint8),
      'label': rng.integers(0, CLASSES, 8).astype(np.int32),
    }
    for _ in range(count)
  ]
  compiled = train_step.compile_step(step, like, sharding.put(batches[0], mesh), mesh)
  state = train_step.start_from(make(), params)
  found = [jax.device_get(state)]
  for batch in batches:
    state, _ = compiled(state, sharding.put(batch, mesh))
    found.append(jax.device_get(state))
  return found, like


@pytest.mark.parametrize(
  'average,mesh',
  [
    (ema.Ema(decay=0.6), (1, 1)),
    (ema.Ema(decay=0.6, start=2), (2, 4)),
    (ema.Ema(decay=0.9999, start=1, warmup=True), (1, 1)),
  ],
)
def test_the_average_of_every_step(average, mesh):
  found, like = states(average, *mesh)
  assert like.ema['kernel'].sharding == like.params['kernel'].sharding
  assert like.ema['kernel'].sharding.is_fully_replicated == (mesh == (1, 1))
  for name in ('kernel', 'bias'):
    wanted = np.float64(found[0].params[name])
    for number, state in enumerate(found):
      updates = number - average.start
      decay = (
        min(average.decay, (1 + updates) / (10 + updates)) if average.warmup else average.decay
      )
      if updates <= 0:
        wanted = np.float64(state.params[name])
        np.testing.assert_array_equal(state.ema[name], state.params[name])
      else:
        wanted = decay * wanted + (1 - decay) * state.params[name]
        np.testing.assert_allclose(state.ema[name], wanted, rtol=2e-6, atol=2e-6)
        assert np.abs(state.ema[name] - state.params[name]).max() > 1e-3
      assert state.ema[name].dtype == np.float32


@pytest.mark.parametrize('decay', [0.999, 0.9999, 0.99999])
def test_ten_thousand_updates(decay):
  """In float32 as in float64, to 3e-5 of the size of the parameters."""
  rng, average = np.random.default_rng(0), ema.Ema(decay=decay)
  first = np.float32(rng.standard_normal(200))
  params = np.float32(first + 0.1 * rng.standard_normal((10_000, 200)))
  found, _ = jax.lax.scan(lambda old, new: (average.update(old, new, 1), None), first, params)
  wanted = np.float64(first)
  for new in params:
    wanted = decay * wanted + (1 - decay) * new
  np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5)


def test_without_it_the_state_is_as_before():
  """Old checkpoints have this tree, and the parameters are the same with it and without."""
  plain, like = states(None, 1, 1, count=3)
  assert list(like.__dataclass_fields__) == ['step', 'params', 'opt_state']
  averaged, with_average = states(ema.Ema(decay=0.9), 1, 1, count=3)
  np.testing.assert_allclose(averaged[-1].params['kernel'], plain[-1].params['kernel'], rtol=1e-6)
  kernel = 4 * FEATURES * CLASSES
  more = train_step.state_bytes(with_average) - train_step.state_bytes(like)
  assert more == kernel + 4 * CLASSES
  batch = {'image': jax.ShapeDtypeStruct((8, 2, 2, 3), np.uint8, sharding=like.step.sharding)}
  assert 'averaged' not in train_step.describe_shapes(like, batch)
  assert '1.6 of averaged parameters, ' in train_step.describe_shapes(with_average, batch)


def test_an_average_of_nothing(caplog):
  with pytest.raises(InputError, match=r'config\.ema\.start=5 is not before the last step, 5: '):
    ema.Ema(decay=0.9, start=5).follow(None, 5)
  ema.Ema(decay=0.9999, warmup=True).follow(None, 100)
  ema.Ema(decay=0.9).follow(None, 100)
  assert not caplog.messages
  with caplog.at_level(logging.WARNING):
    ema.Ema(decay=0.999, start=20).follow(None, 120)
  assert caplog.messages == [
    'config.ema.decay=0.999 is high for 100 steps: the parameters of step 20 make 90 % of the '
    'average at the end. Lower it, or set config.ema.warmup.'
  ]
