"""The benchmark beside the plain form: its oracle, its arithmetic, and tiny real measurements."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import compare, plain, throughput_workers
from benchmarks.throughput_table import Case
from mixer import models
from mixer.errors import InputError

SIZES = {'image_size': 8, 'num_classes': 10}
OURS = Case('Mixer-S/16', 'training', 'float32')
PLAIN = Case('Mixer-S/16', 'training', 'float32', 'plain')


def tiny(dtype='float32'):
  dims = dict(num_blocks=1, hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=64, patch_size=4)
  return models.mlp_mixer.MlpMixer(num_classes=10, dtype=dtype, **dims)


def test_the_plain_form_computes_the_same():
  found = plain.difference(tiny(), image_size=8)
  assert max(found.values()) < compare.TOLERANCES['float32']


def test_a_difference_is_seen(monkeypatch):
  """A plain form in bfloat16 is further from ours in float32 than allowed."""
  other = plain.of(tiny('bfloat16'))
  monkeypatch.setattr(plain, 'of', lambda model: other)
  found = plain.difference(tiny(), image_size=8)
  assert compare.TOLERANCES['float32'] < min(found.values())
  assert max(found.values()) < compare.TOLERANCES['bfloat16']


def test_the_plain_step_is_gradient_descent_on_the_papers_loss():
  model = tiny()
  params = jax.jit(lambda key: models.init(model, key, 8))(jax.random.key(0))
  images = jax.random.bits(jax.random.key(1), (4, 8, 8, 3), jnp.uint8)
  labels = jnp.array([3, 0, 9, 3])
  tx = optax.sgd(0.5)
  step = jax.jit(plain.make_step(plain.of(model), tx))
  after, _, loss = step(params, tx.init(params), images, labels)
  # The head's kernel starts at zero, so all logits are its bias, 0.
  np.testing.assert_allclose(loss, 10 * np.log(2), rtol=1e-6)
  counts = np.bincount(labels, minlength=10) / 4
  np.testing.assert_allclose(after['head']['bias'], -0.5 * (0.5 - counts), rtol=1e-5, atol=1e-7)


def test_forms_take_turns_and_ours_is_compared_in_each_round():
  asked = []

  def ask(runner, seconds):
    def answer(what, **request):
      assert (what, request['batch_size']) == ('model', 8)
      asked.append((runner, request['seconds']))
      time = seconds[len([1 for name, _ in asked if name == runner]) - 1]
      return {'seconds': time, 'cpu_seconds': time, 'memory': None, 'compiled_memory': 2**30}

    return answer

  workers = {'jax': ask('jax', [9.0, 1.0, 2.0, 1.0]), 'plain': ask('plain', [9.0, 1.5, 2.0, 4.0])}
  found = compare.measure([OURS, PLAIN], workers, SIZES, batch_size=8, rounds=3, seconds=0.5)
  assert asked == [('jax', 0.0), ('plain', 0.0), *[('jax', 0.5), ('plain', 0.5)] * 3]
  *_, ours, other = compare.table(found, 8).splitlines()
  assert ours == '| ours | 8 | 4 to 8 | 1.00 | 1.00 | 1.00 | 1.00, 1.00, 1.00 |'
  assert other == '| plain | 4 | 2 to 5.333 | 1.00 | 1.50 | 1.50 | 1.50, 1.00, 4.00 |'


def test_what_does_not_fit_ends_it():
  full = {'jax': lambda *_, **__: {'does_not_fit': 'no 1 GiB'}}
  with pytest.raises(InputError, match='does not fit beside the others: no 1 GiB. Use a smaller'):
    compare.measure([OURS], full, SIZES, batch_size=8, rounds=1, seconds=0.0)


def test_outputs_that_differ_end_it():
  def ask(what, **request):
    assert (what, request) == ('difference', {'model': 'Mixer-S/16', 'dtype': 'float32', **SIZES})
    return {'logits': 1e-7, 'gradient': value}

  value = 1e-6
  assert compare.check(OURS, ask, SIZES).endswith('plain form: logits 1e-07, gradient 1e-06')
  value = float('nan')
  with pytest.raises(RuntimeError, match=r'gradient nan; below 0.0001 was expected'):
    compare.check(OURS, ask, SIZES)


def test_cases(monkeypatch):
  groups, notes = compare.make_cases(['Mixer-S/16'], ['training'], ['float32'], timm=False)
  assert groups == [[OURS, PLAIN]] and notes == []
  monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
  groups, notes = compare.make_cases(
    ['Mixer-S/16', 'Mixer-H/14'], ['inference'], ['bfloat16'], timm=True
  )
  runners = [[case.runner for case in group] for group in groups]
  assert runners == [['jax', 'plain', 'timm', 'timm compiled'], ['jax', 'plain']]
  assert notes == ['timm has no Mixer-H/14.']
  with pytest.raises(InputError, match=r'--models=ViT-B/16: the plain form is that of Mixers'):
    compare.make_cases(['Mixer-S/16', 'ViT-B/16'], ['training'], ['float32'], timm=False)


def test_the_plain_worker_measures(monkeypatch):
  monkeypatch.setattr(models, 'build', lambda name, num_classes, dtype: tiny(dtype))
  worker = throughput_workers.PlainWorker()
  case = {'model': 'Mixer-S/16', 'dtype': 'float32', 'batch_size': 2, **SIZES}
  found = worker.model(mode='training', seconds=0.0, **case)
  assert found['seconds'] > 0 and found['compiled_memory'] > 3 * 4 * 2 * 32 * 64
