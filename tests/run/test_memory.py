"""The estimated memory of a step, beside the compiler's, and what is said where it is too much."""

import importlib

import jax
import pytest

from mixer import hardware, settings
from mixer import input as inputs
from mixer.cost import dry_run
from mixer.errors import InputError
from mixer.run import build, memory
from mixer.training import train_step
import runs

GIB = 2**30
IMAGES = {'source': 'synthetic', 'num_classes': 10, 'num_examples': 1000, 'image_size': 224}


def program(name='finetune', argument='model=S/32,data=cifar10', devices=1, **changes):
  """(the config, its program); images are synthetic, unless they are the digits."""
  module = importlib.import_module(f'configs.{name}')
  values = module.get_config(*([argument] if argument else []))
  values.update_from_flattened_dict(changes)
  values = values.to_dict()
  if name != 'digits':
    values['train_input'] = {**IMAGES, 'batch_size': values['train_input']['batch_size']}
  config = settings.call('config', build.TrainConfig, values)
  data = inputs.build(**config.train_input)
  return config, build.build(config, data, jax.devices()[:devices])


def estimate(*arguments, **changes):
  return memory.estimate(*program(*arguments, **changes))


@pytest.fixture
def optimised():
  """Compiles as a run does: without fusion, other values would be kept."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


SMALL = {'train_input.batch_size': 8}


@pytest.mark.parametrize(
  ('arguments', 'changes'),
  [
    (('digits', ''), {'model.num_blocks': 1}),
    pytest.param(('digits', ''), {}, marks=pytest.mark.slow),
    ((), SMALL),
    pytest.param((), {**SMALL, 'model.scan': True, 'model.remat': True}, marks=pytest.mark.slow),
    pytest.param(
      (),
      {'train_input.batch_size': 32, 'microbatches': 4, 'model.dtype': 'bfloat16'},
      marks=pytest.mark.slow,
    ),
    pytest.param(('digits', 'model=BiT'), {}, marks=pytest.mark.slow),
  ],
)
def test_estimates_are_near_what_the_compiler_reports(optimised, arguments, changes):
  config, built = program(*arguments, **changes)
  batch = dry_run.abstract_batch(built.data, built.mesh)
  compiled = train_step.compile_step(built.step_fn, built.like, batch, built.mesh)
  found = memory.estimate(config, built).total / train_step.compiled_bytes(compiled)
  assert 1 / 1.5 < found < 1.5


def test_what_the_shipped_fine_tuning_needs():
  """The compiler reports 15.6 GiB."""
  whole = estimate()
  assert 15 * GIB < whole.total < 16 * GIB
  parts = estimate(microbatches=32)  # as README says for a laptop
  assert max(parts.total, estimate(**{'train_input.batch_size': 16}).total) < 0.8 * GIB
  assert parts.activations == pytest.approx(whole.activations, rel=0.02)
  assert estimate(devices=8).total < whole.total / 7


def test_rematerialisation_and_bfloat16_save_memory_of_accelerators(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  plain = estimate(**SMALL).activations
  assert estimate(**SMALL, **{'model.dtype': 'bfloat16'}).activations < 0.6 * plain
  assert estimate(**SMALL, **{'model.remat': True}).activations < 0.5 * plain


def check(monkeypatch, needed, memory_gib, swap_gib=0, devices=1):
  monkeypatch.setattr(hardware, 'host_memory', lambda: int(memory_gib * GIB))
  monkeypatch.setattr(hardware, 'host_swap', lambda: int(swap_gib * GIB))
  monkeypatch.setattr(jax, 'local_device_count', lambda: devices)
  _, built = program(**SMALL)
  return memory.check(needed, built)


def test_what_does_not_fit(monkeypatch, caplog):
  """Estimated at 15.1 GiB: an error on 8 GiB, a warning on 12, and a line on 23."""
  needed = estimate()
  assert check(monkeypatch, needed, 23) == 'a step needs about 15.1 GiB, and this machine has 23.0'
  assert not caplog.text
  check(monkeypatch, needed, 12)
  text = (
    'a step needs about 15.1 GiB, and this machine has 12.0. Use --config.microbatches=2 (the same '
    'updates, each in 2 parts) or --config.train_input.batch_size=256 (other, smaller updates); '
    'docs/training.md, "Memory", has more.'
  )
  assert f'THE MEMORY MAY BE TOO SMALL: {text}' in caplog.text
  with pytest.raises(InputError) as caught:
    check(monkeypatch, needed, 8)
  assert '8.0. Use --config.microbatches=4 (' in str(caught.value)
  assert '--config.train_input.batch_size=128 (' in str(caught.value)
  check(monkeypatch, needed, 8, swap_gib=8)  # slow, but it fits
  with pytest.raises(InputError, match='about 30.2 GiB, and this machine has 20'):
    check(monkeypatch, needed, 20, devices=2)


def test_the_values_that_are_named_fit():
  needed = memory.Estimate(state=100, image=1, activations=10, batch=48, microbatches=2)
  assert needed.total == 100 + 48 + 240
  assert memory._what_fits(needed, 3, 230).startswith(
    'Use --config.microbatches=6 (the same updates, each in 6 parts) or '
    '--config.train_input.batch_size=48 ('
  )
  assert (needed.of(48, 6), needed.of(16, 2)) == (228, 196)
  assert 'microbatches' not in memory._what_fits(needed, 3, 150)
  none = 'Use a smaller model, or more devices with --config.mesh.fsdp; docs/training.md, "Memory"'
  assert memory._what_fits(needed, 3, 100).startswith(none)


def test_a_run_that_cannot_fit_ends_before_it_compiles(monkeypatch, tmp_path):
  monkeypatch.setattr(hardware, 'host_memory', lambda: 2**20)
  monkeypatch.setattr(hardware, 'host_swap', lambda: 0)
  monkeypatch.setattr(train_step, 'compile_step', lambda *_: pytest.fail('compiled'))
  config = importlib.import_module('configs.digits').get_config()
  with pytest.raises(InputError, match=r'a step needs about 0\.\d GiB, and this machine has 0\.0'):
    runs.train_here(config, tmp_path)
  assert not (tmp_path / 'metrics.jsonl').exists()
