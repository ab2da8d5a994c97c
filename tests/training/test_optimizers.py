"""The optimiser chain against the update rule written out in NumPy."""

import re

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.tree_util import DictKey
import ml_dtypes
import numpy as np
import optax
from optax import contrib
import pytest

from mixer.errors import InputError
from mixer.training import optimizers, param_groups

TOTAL = 12
SCHEDULE = {'warmup_steps': 3, 'decay': 'linear', 'linear_end': 1e-5}


def make(**changes):
  values = {
    'optimizer': {'name': 'adam'},
    'learning_rate': 1e-2,
    'schedule': SCHEDULE,
    'total_steps': TOTAL,
    'clip_norm': 1.0,
    'weight_decay': 0.1,
    'weight_decay_mode': 'adamw',
  }
  return optimizers.make(**{**values, **changes})


def parameters(seed=0):
  """A tree like a model's: kernels, biases and scales, and blocks stacked by a scan."""
  rng = np.random.default_rng(seed)
  shapes = {
    'stem': {'kernel': (2, 2, 3, 4), 'bias': (4,)},
    'MixerBlocks': {
      'LayerNorm_0': {'scale': (3, 4), 'bias': (3, 4)},
      'Dense_0': {'kernel': (3, 4, 5), 'bias': (3, 5)},
    },
    'head': {'kernel': (4, 2), 'bias': (2,)},
  }
  draw = lambda shape: np.float32(rng.standard_normal(shape))  # noqa: E731
  return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def factor_by_hand(step, total=TOTAL, warmup=3, decay='linear', end=1e-5):
  """m(t) of big_vision: a ramp times a decay from 1 to `end`."""
  q = min(max((step - warmup) / (total - warmup), 0.0), 1.0)
  fall = 1 - q if decay == 'linear' else (1 + np.cos(np.pi * q)) / 2
  return (end + (1 - end) * fall) * min(1.0, step / warmup)


def steps_by_hand(params, gradients, direction, *, rate, clip, decay, factor):
  """[params after each step]: clip, direction, decay of kernels, schedule, in float64."""
  flat, tree = jax.tree_util.tree_flatten_with_path(params)
  kernel = [path[-1].key == 'kernel' for path, _ in flat]
  values = [np.float64(leaf) for _, leaf in flat]
  memory = [{} for _ in values]
  history = []
  for step, gradient in enumerate(gradients):
    leaves = [np.float64(leaf) for leaf in jax.tree.leaves(gradient)]
    norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves))
    scale = min(1.0, clip / norm) if clip else 1.0
    for i, leaf in enumerate(leaves):
      update = rate * direction(scale * leaf, memory[i], step)
      update = update + decay * kernel[i] * values[i]
      values[i] = values[i] - factor(step) * update
    history.append(jax.tree.unflatten(tree, list(values)))
  return history


def adam_by_hand(gradient, memory, step, b1=0.9, b2=0.999, eps=1e-8):
  memory['m'] = b1 * memory.get('m', 0.0) + (1 - b1) * gradient
  memory['v'] = b2 * memory.get('v', 0.0) + (1 - b2) * gradient**2
  m, v = memory['m'] / (1 - b1 ** (step + 1)), memory['v'] / (1 - b2 ** (step + 1))
  return m / (np.sqrt(v) + eps)


def momentum_by_hand(gradient, memory, step, momentum=0.9):
  memory['m'] = momentum * memory.get('m', 0.0) + gradient
  return memory['m']


def run(tx, params, gradients):
  state, history = tx.init(params), []
  update = jax.jit(tx.update)
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    history.append(params)
  return history, state


def close(actual, wanted, tolerance=1e-6):
  jax.tree.map(
    lambda a, w: np.testing.assert_allclose(a, w, rtol=tolerance, atol=tolerance), actual, wanted
  )


def gradients_of(count, scale=1.0):
  gradients = [parameters(seed) for seed in range(1, count + 1)]
  # The second is small, so that clipping leaves it alone.
  factors = [scale * (0.01 if i == 1 else 1.0) for i in range(count)]
  return [jax.tree.map(lambda x, f=f: np.float32(f * x), g) for g, f in zip(gradients, factors)]


@pytest.mark.parametrize('mode', ['adamw', 'independent'])
@pytest.mark.parametrize('decay', ['linear', 'cosine'])
def test_adam_steps(mode, decay):
  schedule = {**SCHEDULE, 'decay': decay, 'linear_end': 0.1}
  weight_decay = 0.1 if mode == 'adamw' else 0.003
  tx, _ = make(
    optimizer={'name': 'adam', 'b1': 0.8, 'b2': 0.99, 'eps': 1e-4},
    schedule=schedule, weight_decay=weight_decay, weight_decay_mode=mode,
  )  # fmt: skip
  params, gradients = parameters(), gradients_of(8)
  history, _ = run(tx, params, gradients)
  wanted = steps_by_hand(
    params,
    gradients,
    lambda g, m, t: adam_by_hand(g, m, t, 0.8, 0.99, 1e-4),
    rate=1e-2,
    clip=1.0,
    decay=1e-2 * weight_decay if mode == 'adamw' else weight_decay,
    factor=lambda t: factor_by_hand(t, decay=decay, end=0.1),
  )
  for actual, want in zip(history, wanted, strict=True):
    close(actual, want)


@pytest.mark.parametrize('clip', [None, 1.0])
def test_sgd_steps(clip):
  """The fine-tuning setting: momentum without Nesterov, cosine to 0, no decay."""
  tx, _ = make(
    optimizer={'name': 'sgd', 'momentum': 0.9},
    schedule={'warmup_steps': 3, 'decay': 'cosine'},
    clip_norm=clip, weight_decay=0.0,
  )  # fmt: skip
  params, gradients = parameters(), gradients_of(8, scale=0.3)
  history, _ = run(tx, params, gradients)
  wanted = steps_by_hand(
    params, gradients, momentum_by_hand, rate=1e-2, clip=clip, decay=0.0,
    factor=lambda t: factor_by_hand(t, decay='cosine', end=0.0),
  )  # fmt: skip
  for actual, want in zip(history, wanted, strict=True):
    close(actual, want)


def test_paper_decay_in_both_conventions_is_optax_adamw():
  """Decay 1e-4 of big_vision = 0.1 of the paper's tables at rate 1e-3 = optax.adamw's 0.1."""
  params, gradients = parameters(), gradients_of(6)
  rate = lambda step: 1e-3 * (factor_by_hand_traced(step))  # noqa: E731
  reference = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(rate, weight_decay=0.1, mask={
      'stem': {'kernel': True, 'bias': False},
      'MixerBlocks': {
        'LayerNorm_0': {'scale': False, 'bias': False}, 'Dense_0': {'kernel': True, 'bias': False}
      },
      'head': {'kernel': True, 'bias': False},
    }),
  )  # fmt: skip
  wanted, _ = run(reference, params, gradients)
  for mode, weight_decay in (('independent', 1e-4), ('adamw', 0.1)):
    tx, _ = make(learning_rate=1e-3, weight_decay=weight_decay, weight_decay_mode=mode)
    history, _ = run(tx, params, gradients)
    for actual, want in zip(history, wanted, strict=True):
      close(actual, want)


# --- Other optimizers against optax's own ----------------------------------------------------


def by_block(tree):
  """Each block in a dict of its own."""
  block = lambda i: jax.tree.map(lambda x: x[i], tree['MixerBlocks'])  # noqa: E731
  return {
    'stem': tree['stem'], 'head': tree['head'], **{f'MixerBlock_{i}': block(i) for i in range(3)}
  }  # fmt: skip


def layout_of(params):
  """What `mixer.models.layout` says of `parameters`, by hand."""
  names = {}
  for path in traverse_util.flatten_dict(params):
    blocks = [f'MixerBlock_{i}' for i in range(3)] if path[0] == 'MixerBlocks' else [path[0]]
    names[path] = ['/'.join((block, *path[1:])) for block in blocks]
  matrices = {('MixerBlocks', 'Dense_0', 'kernel'): ((1,), (2,))}
  return param_groups.Layout(names=names, trunk=('stem',), matrices=matrices)


def optax_muon(rate, weight_decay, mask):
  """optax's Muon for the kernels of the blocks and its NAdamW for all else."""

  def is_matrix(path):
    return DictKey('Dense_0') in path and path[-1] == DictKey('kernel')

  def axes(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: contrib.MuonDimensionNumbers() if is_matrix(path) else None, params
    )

  muon = contrib.muon(
    rate, weight_decay=weight_decay, consistent_rms=0.2, muon_weight_dimension_numbers=axes
  )
  adam = optax.nadamw(rate, weight_decay=weight_decay, mask=mask)

  def update(gradients, state, params):
    found = [tx.update(gradients, own, params) for tx, own in zip((muon, adam), state)]
    (matrices, others), state = zip(*found)
    choose = lambda path, one, other: one if is_matrix(path) else other  # noqa: E731
    return jax.tree_util.tree_map_with_path(choose, matrices, others), state

  return optax.GradientTransformation(lambda params: (muon.init(params), adam.init(params)), update)


OF_OPTAX = {
  # name: our arguments, optax's optimizer
  'adam': ({'nesterov': True}, optax.nadamw),
  'sgd': ({'nesterov': True}, lambda rate, weight_decay, mask: optax.chain(
    optax.trace(0.9, nesterov=True), optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(rate),
  )),
  'radam': ({'b1': 0.8, 'b2': 0.5}, lambda rate, weight_decay, mask: optax.chain(
    optax.scale_by_radam(0.8, 0.5), optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(rate),
  )),
  'adan': ({'b1': 0.97}, lambda *a, **k: optax.adan(*a, **k, b1=0.97)),
  'lion': ({}, optax.lion),
  'lamb': ({}, optax.lamb),
  'muon': ({}, optax_muon),
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'mode'), [*((name, 'adamw') for name in OF_OPTAX), ('lamb', 'independent')]
)
def test_optimizers_are_those_of_optax(name, mode):
  """Six clipped steps of stacked blocks, beside optax's optimizer on each block by itself."""
  arguments, reference = OF_OPTAX[name]
  params, gradients = parameters(), gradients_of(6)
  tx, _ = make(
    optimizer={'name': name, **arguments}, weight_decay=0.1 if mode == 'adamw' else 1e-3,
    weight_decay_mode=mode, groups=param_groups.Groups(layout_of(params)),
  )  # fmt: skip
  rate = lambda step: 1e-2 * factor_by_hand_traced(step)  # noqa: E731
  is_kernel = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
    lambda path, _: path[-1] == DictKey('kernel'), tree
  )
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0), reference(rate, weight_decay=0.1, mask=is_kernel)
  )
  history, state = run(tx, params, gradients)
  wanted, _ = run(theirs, by_block(params), [by_block(gradient) for gradient in gradients])
  for actual, want in zip(history, wanted, strict=True):
    close(by_block(actual), want, 3e-6)
  of_params = {leaf.shape for leaf in jax.tree.leaves(params)}
  assert {leaf.shape for leaf in jax.tree.leaves(state)} <= {*of_params, (), (3,)}


def test_muon_without_a_matrix_to_train():
  layout = layout_of(parameters())
  frozen = param_groups.Groups(layout, frozenset(layout.matrices))
  with pytest.raises(InputError, match="'muon', but no kernel between the stem and the head is tr"):
    make(optimizer={'name': 'muon'}, groups=frozen)


def factor_by_hand_traced(step):
  q = jnp.clip((step - 3) / (TOTAL - 3), 0.0, 1.0)
  return (1e-5 + (1 - 1e-5) * (1 - q)) * jnp.minimum(1.0, step / 3)


# --- What decays ---------------------------------------------------------------------------


def test_kernels_alone_decay():
  """With zero gradients SGD shows the decay alone: kernels shrink by m(t) * d, the rest stays."""
  tx, _ = make(
    optimizer={'name': 'sgd'}, weight_decay=0.25, weight_decay_mode='independent',
    schedule={'warmup_steps': 0, 'decay': 'linear'}, total_steps=2,
  )  # fmt: skip
  params = parameters()
  history, _ = run(tx, params, [jax.tree.map(np.zeros_like, params)] * 2)
  for path, leaf in jax.tree_util.tree_flatten_with_path(history[-1])[0]:
    before = params
    for key in path:
      before = before[key.key]
    shrunk = 0.75 * 0.875 if path[-1].key == 'kernel' else 1.0  # m = 1, then 1/2
    np.testing.assert_allclose(leaf, before * np.float32(shrunk), rtol=1e-6, err_msg=str(path))


# --- The schedule --------------------------------------------------------------------------


def schedule(step, **changes):
  values = {'total_steps': 100, 'warmup_steps': 10, 'decay': 'linear', 'linear_end': 0.0}
  return float(optimizers.schedule_factor(**{**values, **changes})(jnp.int32(step)))


CORNERS = {
  # decay, linear_end: factor at steps 0, 5, 10, 55, 100 and 1000
  ('linear', 0.0): (0.0, 0.5, 1.0, 0.5, 0.0, 0.0),
  ('cosine', 0.0): (0.0, 0.5, 1.0, 0.5, 0.0, 0.0),
  ('linear', 0.2): (0.0, 0.5, 1.0, 0.6, 0.2, 0.2),
  ('cosine', 0.2): (0.0, 0.5, 1.0, 0.6, 0.2, 0.2),
}


@pytest.mark.parametrize('decay,end', CORNERS)
def test_schedule_corners(decay, end):
  values = [schedule(step, decay=decay, linear_end=end) for step in (0, 5, 10, 55, 100, 1000)]
  np.testing.assert_allclose(values, CORNERS[decay, end], atol=1e-6)


def test_schedule_between_corners():
  """A quarter of the way down, where line and cosine differ."""
  assert schedule(35, total_steps=110) == pytest.approx(0.75, rel=1e-6)
  cosine = schedule(35, total_steps=110, decay='cosine')
  assert cosine == pytest.approx((1 + np.sqrt(0.5)) / 2, rel=1e-6)


def test_schedule_without_warmup():
  assert [schedule(s, warmup_steps=0) for s in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize('total', [5, 10])
def test_schedule_that_ends_within_its_warmup(total):
  values = [schedule(step, total_steps=total) for step in range(total)]
  np.testing.assert_allclose(values, np.arange(total) / 10, atol=1e-6)


def test_paper_schedule():
  """ImageNet: 92,897 steps; the last rate is a fraction 1e-5 of 1e-3, so 1e-8."""
  _, rate = optimizers.make(
    optimizer={'name': 'adam'}, learning_rate=1e-3, total_steps=92_897, clip_norm=1.0,
    schedule={'warmup_steps': 10_000, 'decay': 'linear', 'linear_end': 1e-5},
    weight_decay=0.1, weight_decay_mode='adamw',
  )  # fmt: skip
  for step in (0, 1, 5000, 10_000, 50_000, 92_896, 92_897):
    wanted = 1e-3 * factor_by_hand(step, 92_897, 10_000)
    assert float(rate(jnp.int32(step))) == pytest.approx(wanted, rel=1e-5, abs=2e-10)


def test_schedule_errors():
  text = "config.optim.schedule.decay is 'rsqrt'; use one of ['cosine', 'linear', 'step']."
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    make(schedule={'warmup_steps': 3, 'decay': 'rsqrt'})
  text = 'config.optim.schedule.warmup_steps is -1; use an int from 0 to 2**31 - 1.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    make(schedule={'warmup_steps': -1, 'decay': 'linear'})


# --- Accumulators --------------------------------------------------------------------------


def test_bfloat16_momentum():
  """The buffer is stored and decayed in bfloat16, by 0.9 as bfloat16 has it, 0.8984.

  Upstream's fine-tuning does the same. The update and the parameters stay float32.
  """
  bfloat16 = ml_dtypes.bfloat16
  tx, _ = make(
    optimizer={'name': 'sgd', 'momentum': 0.9, 'accumulator_dtype': 'bfloat16'},
    schedule={'warmup_steps': 0, 'decay': 'linear', 'linear_end': 1.0},
    clip_norm=None, weight_decay=0.0,
  )  # fmt: skip
  params, gradients = parameters(), gradients_of(4)
  state = tx.init(params)
  buffer = np.zeros((4, 2), bfloat16)
  for gradient in gradients:
    updates, state = tx.update(gradient, state, params)  # XLA may skip a rounding in a jit
    direction = gradient['head']['kernel'] + np.float32(bfloat16(0.9) * buffer)
    buffer = direction.astype(bfloat16)
    np.testing.assert_allclose(updates['head']['kernel'], -1e-2 * direction, rtol=1e-6)
    assert {x.dtype.name for x in jax.tree.leaves(updates)} == {'float32'}
    assert {x.dtype.name for x in jax.tree.leaves(state) if x.ndim} == {'bfloat16'}


def test_bfloat16_first_moment_of_adam():
  tx, _ = make(optimizer={'name': 'adam', 'moment_dtype': 'bfloat16'})
  params = parameters()
  _, state = run(tx, params, gradients_of(2))
  adam = next(s for s in state if isinstance(s, optax.ScaleByAdamState))
  assert {x.dtype.name for x in jax.tree.leaves(adam.mu)} == {'bfloat16'}
  assert {x.dtype.name for x in jax.tree.leaves(adam.nu)} == {'float32'}


def test_accumulators_are_float32_unless_asked():
  for name in optimizers.OPTIMIZERS:
    groups = param_groups.Groups(layout_of(parameters()))
    tx, _ = make(optimizer={'name': name}, groups=groups)
    state = tx.init(parameters())
    assert {x.dtype.name for x in jax.tree.leaves(state) if x.ndim} == {'float32'}


# --- Errors and descriptions ---------------------------------------------------------------


def test_unknown_names():
  text = (
    "config.optim.optimizer.name is 'adamw'; use one of "
    "['adam', 'adan', 'lamb', 'lion', 'muon', 'radam', 'sgd']."
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    make(optimizer={'name': 'adamw'})
  text = "unknown weight_decay_mode 'l2'; use one of ['adamw', 'independent']."
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    make(weight_decay_mode='l2')


def test_no_optimizer():
  text = (
    'config.optim.optimizer.name is None; use one of '
    "['adam', 'adan', 'lamb', 'lion', 'muon', 'radam', 'sgd']."
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    make(optimizer={'momentum': 0.9})


def test_keys_that_nothing_reads():
  text = (
    "config.optim.optimizer: nothing reads 'momentun' (did you mean 'momentum'?). "
    "It takes ['accumulator_dtype', 'momentum', 'nesterov']."
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    make(optimizer={'name': 'sgd', 'momentun': 0.9})
  text = (
    "config.optim.schedule: nothing reads 'warmup' (did you mean 'warmup_steps'?); "
    "'warmup_steps' is missing. It takes ['boundaries', 'decay', 'linear_end', 'warmup_steps']."
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    make(schedule={'warmup': 3, 'decay': 'linear'})


@pytest.mark.parametrize('decay,mode', [(1e-4, 'independent'), (0.1, 'adamw')])
def test_decay_is_described_in_both_conventions(decay, mode):
  assert optimizers.describe_decay(decay, mode, 1e-3) == (
    'weight decay on kernels: 0.0001 times the schedule (big_vision, "independent") '
    f'= 0.1 times the learning rate (AdamW, "adamw"); the config says {decay:g} in mode {mode!r}'
  )


def test_description():
  section = {
    'optimizer': {'name': 'adam'},
    'learning_rate': 1e-3,
    'schedule': {'warmup_steps': 10_000, 'decay': 'linear'},
    'weight_decay': 0.1,
    'weight_decay_mode': 'adamw',
  }
  first, second = optimizers.describe(section, 92_897).split('\n')
  assert first == (
    'adam, learning rate 0.001 after 10000 steps of warm-up, then linear decay to step 92897'
  )
  assert second.startswith('weight decay on kernels: 0.0001 times the schedule')


def test_a_run_that_ends_within_its_warm_up(caplog):
  section = {'schedule': {'warmup_steps': 10_000}}
  optimizers.warn_of_warmup(section, 10_001)
  assert not caplog.messages
  optimizers.warn_of_warmup(section, 2_500)
  assert caplog.messages == [
    'config.optim.schedule.warmup_steps=10000: the run ends within its warm-up, after 2500 steps, '
    'at 0.25 of the learning rate. Use fewer warm-up steps, or train longer.'
  ]
