"""The train step against NumPy, and against itself on other meshes, microbatches and layouts."""

import contextlib
import itertools
import re
import types

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from mixer import models
from mixer.errors import InputError, Interrupted
from mixer.training import batch_ops, loop, losses, optimizers, plan, sharding, train_step
from mixer.training.augmentation import Augmentation


def make_mesh(data, fsdp):
  return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ('data', 'fsdp'))


def chain(total_steps=8, learning_rate=3e-3, **changes):
  values = {
    'optimizer': {'name': 'adam'},
    'schedule': {'warmup_steps': 2, 'decay': 'cosine'},
    'clip_norm': 1.0,
    'weight_decay': 0.1,
    'weight_decay_mode': 'adamw',
  }
  values = {**values, **changes}
  return optimizers.make(total_steps=total_steps, learning_rate=learning_rate, **values)


def batch_of(n=32, side=16, classes=5, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
    'label': rng.integers(0, classes, n).astype(np.int32),
  }


# --- A linear model, worked out by hand ----------------------------------------------------


def linear(params, images, keys=None):
  flat = images.reshape(len(images), -1)
  return flat @ params['head']['kernel'] + params['head']['bias'][None]


def linear_params(features=12, classes=5, seed=1):
  rng = np.random.default_rng(seed)
  kernel = np.float32(rng.standard_normal((features, classes)))
  return {'head': {'kernel': kernel, 'bias': np.float32(rng.standard_normal(classes))}}


def linear_setup(mesh, tx, rate, params, loss='softmax', microbatches=1, **augmentation):
  """(step function, initial state, its shapes) of the linear model."""
  step = train_step.make_step(
    apply=linear, tx=tx, learning_rate=rate, objective=losses.Objective(loss=loss),
    augmentation=Augmentation(num_classes=5, **augmentation), microbatches=microbatches,
    key=jax.random.key(7), mesh=mesh,
  )  # fmt: skip
  make, like = train_step.init_state(lambda _: params, tx, jax.random.key(0), mesh)
  return step, make(), like


def linear_by_hand(params, batch, loss):
  """(loss, accuracy, gradients of kernel and bias) in float64."""
  x = (np.float64(batch['image']) / 127.5 - 1).reshape(len(batch['image']), -1)
  kernel, bias = params
  logits = x @ kernel + bias
  y = np.eye(5)[batch['label']] if batch['label'].ndim == 1 else np.float64(batch['label'])
  if loss == 'softmax':
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    values = -(y * np.log(p)).sum(axis=1)
    error = p * y.sum(axis=1, keepdims=True) - y
  else:
    p = 1 / (1 + np.exp(-logits))
    values = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(axis=1)
    error = p - y
  right = y[np.arange(len(y)), logits.argmax(axis=1)] > 0
  error = error / len(y)
  return values.mean(), right.mean(), [x.T @ error, error.sum(axis=0)]


@pytest.mark.parametrize(
  'loss,microbatches,multi_hot',
  [('softmax', 1, False), ('sigmoid', 2, True), ('softmax', 4, False)],
)
def test_step_by_hand(loss, microbatches, multi_hot):
  """Four steps of clipped momentum SGD with decay: every metric, the parameters, the counter."""
  mesh = make_mesh(1, 1)
  tx, rate = chain(
    learning_rate=0.1, optimizer={'name': 'sgd'}, clip_norm=0.5,
    weight_decay=0.01, weight_decay_mode='independent',
  )  # fmt: skip
  params = linear_params()
  step, state, like = linear_setup(mesh, tx, rate, params, loss=loss, microbatches=microbatches)
  batches = [batch_of(8, side=2, seed=seed) for seed in range(4)]
  if multi_hot:
    for seed, batch in enumerate(batches):
      batch['label'] = np.random.default_rng(seed).integers(0, 2, (8, 5), dtype=np.uint8)
  compiled = train_step.compile_step(step, like, sharding.put(batches[0], mesh), mesh)

  values = [np.float64(params['head'][name]) for name in ('kernel', 'bias')]
  momentum = [0.0, 0.0]
  norm = lambda leaves: np.sqrt(sum((leaf**2).sum() for leaf in leaves))  # noqa: E731
  for t, batch in enumerate(batches):
    value, accuracy, gradient = linear_by_hand(values, batch, loss)
    factor = min(t / 2, 1.0) * (1 + np.cos(np.pi * max(t - 2, 0) / 6)) / 2
    clip = min(1.0, 0.5 / norm(gradient))
    momentum = [0.9 * m + clip * g for m, g in zip(momentum, gradient)]
    updates = [-factor * (0.1 * m + d * v) for m, d, v in zip(momentum, (0.01, 0.0), values)]
    values = [v + u for v, u in zip(values, updates)]
    state, metrics = compiled(state, sharding.put(batch, mesh))
    assert {k: (v.dtype.name, v.shape) for k, v in metrics.items()} == dict.fromkeys(
      ('loss', 'accuracy', 'grad_norm', 'update_norm', 'param_norm', 'learning_rate'),
      ('float32', ()),
    )
    wanted = {
      'loss': value, 'accuracy': accuracy, 'grad_norm': norm(gradient),
      'update_norm': norm(updates), 'param_norm': norm(values), 'learning_rate': 0.1 * factor,
    }  # fmt: skip
    for name, number in wanted.items():
      assert float(metrics[name]) == pytest.approx(number, rel=1e-5, abs=1e-7), (t, name)
  assert int(state.step) == 4 and state.step.dtype == np.int32
  np.testing.assert_allclose(state.params['head']['kernel'], values[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.params['head']['bias'], values[1], rtol=1e-5, atol=1e-6)


# --- Mixup and the example keys ------------------------------------------------------------


def seen_by_the_model(step_number, mixup, key=7, n=6, augment=None):
  """What `apply` is given, and the loss, when the step runs uncompiled."""
  seen = {}

  def apply(params, images, keys):
    logits = linear(params, images)
    seen.update(images=np.asarray(images), keys=np.asarray(jax.random.key_data(keys)))
    return logits

  tx, rate = chain()
  step = train_step.make_step(
    apply=apply, tx=tx, learning_rate=rate, objective=losses.Objective(loss='softmax'),
    augmentation=Augmentation(num_classes=5, mixup=mixup, augment=augment),
    microbatches=1, key=jax.random.key(key), mesh=make_mesh(1, 1),
  )  # fmt: skip
  params = linear_params()
  state = train_step.TrainState(
    step=jnp.int32(step_number), params=params, opt_state=tx.init(params)
  )
  _, metrics = step(state, batch_of(n, side=2))
  return seen, float(metrics['loss']), float(metrics['accuracy'])


def test_mixup():
  """One weight for images and labels alike, the predecessor as partner, a new weight a step."""
  batch = batch_of(6, side=2)
  own = np.float64(batch['image']) / 127.5 - 1
  previous = np.concatenate([own[-1:], own[:-1]])
  y = np.eye(5)[batch['label']]
  y_previous = np.concatenate([y[-1:], y[:-1]])
  weights = []
  for number in range(3):
    seen, loss, accuracy = seen_by_the_model(number, 0.8)
    difference = (own - previous).ravel()
    weight = difference @ (seen['images'] - previous).ravel() / (difference @ difference)
    np.testing.assert_allclose(seen['images'], weight * own + (1 - weight) * previous, atol=1e-6)
    logits = np.float64(linear(linear_params(), seen['images']))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = weight * y + (1 - weight) * y_previous
    assert loss == pytest.approx(-(targets * log_p).sum(axis=1).mean(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == batch['label']).mean(), rel=1e-6)
    weights.append(weight)
  assert all(0.5 <= weight <= 1 for weight in weights)
  assert len({round(weight, 6) for weight in weights}) == 3


def test_no_mixup():
  seen, *_ = seen_by_the_model(0, 0.0)
  wanted = np.float64(batch_of(6, side=2)['image']) / 127.5 - 1
  np.testing.assert_allclose(seen['images'], wanted, atol=1e-6)


def test_example_keys():
  """A key per row and step, which depends on the run's key, the step and the row alone."""
  keys = {
    (run, number): seen_by_the_model(number, 0.0, key=run)[0]['keys']
    for run, number in itertools.product((7, 8), (0, 1))
  }
  every_one = np.concatenate(list(keys.values()))
  assert len(np.unique(every_one, axis=0)) == len(every_one) == 24
  with_mixup = seen_by_the_model(1, 0.5)[0]['keys']
  np.testing.assert_array_equal(with_mixup, keys[7, 1])
  larger_batch = seen_by_the_model(1, 0.0, n=10)[0]['keys']
  np.testing.assert_array_equal(larger_batch[:6], keys[7, 1])


def test_augmentation_comes_before_mixup_and_is_the_same_on_any_mesh():
  """Each image gets a value drawn from its key; both parts of a mixture have theirs."""

  def augment(images, keys):
    draws = jax.vmap(lambda key: jax.random.randint(key, (), 1, 100))(keys)
    return images // 2 + draws.astype(jnp.uint8)[:, None, None, None]

  def metrics_on(data, microbatches, given=augment):
    tx, rate = chain()
    step, state, like = linear_setup(
      make_mesh(data, 1), tx, rate, linear_params(), mixup=0.8, microbatches=microbatches,
      augment=given,
    )  # fmt: skip
    batch = sharding.put(batch_of(16, side=2), make_mesh(data, 1))
    compiled = train_step.compile_step(step, like, batch, make_mesh(data, 1))
    return compiled(state, batch)[1]

  losses = {
    (data, microbatches): float(metrics_on(data, microbatches)['loss'])
    for data, microbatches in ((1, 1), (8, 1), (2, 4))
  }
  assert losses[8, 1] == pytest.approx(losses[1, 1], rel=1e-5)
  assert losses[2, 4] == pytest.approx(losses[1, 1], rel=1e-5)

  seen, *_ = seen_by_the_model(0, 0.8, augment=augment)
  keys = jax.random.wrap_key_data(seen['keys'])
  own = np.float64(augment(jnp.array(batch_of(6, side=2)['image']), keys)) / 127.5 - 1
  previous = np.concatenate([own[-1:], own[:-1]])
  difference = (own - previous).ravel()
  weight = difference @ (seen['images'] - previous).ravel() / (difference @ difference)
  np.testing.assert_allclose(seen['images'], weight * own + (1 - weight) * previous, atol=1e-6)


# --- One result on any mesh, in any number of microbatches, in any layout ------------------


def tiny(**options):
  return models.build(
    'Mixer', num_classes=5, num_blocks=2, hidden_dim=32, tokens_mlp_dim=16,
    channels_mlp_dim=64, patch_size=4, stochastic_depth=0.5, dropout=0.1, **options,
  )  # fmt: skip


def mixer_params(scan):
  """Random ones, for the zero head of a fresh model lets no gradient through to the blocks."""
  rng = np.random.default_rng(5)
  shapes = jax.eval_shape(lambda key: models.init(tiny(), key, 16), jax.random.key(0))

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape)
    if path[-1].key == 'kernel':
      return np.float32(values / np.sqrt(np.prod(leaf.shape[:-1])))
    return np.float32((path[-1].key == 'scale') + 0.1 * values)

  params = jax.tree_util.tree_map_with_path(draw, shapes)
  if scan:
    blocks = [params.pop(f'MixerBlock_{i}') for i in range(2)]
    params['MixerBlocks'] = jax.tree.map(lambda *rows: np.stack(rows), *blocks)
  return params


def released(tree):
  """Numpy arrays in the released layout."""
  tree = jax.tree.map(np.asarray, tree)
  if 'MixerBlocks' in tree:
    stacked = tree.pop('MixerBlocks')
    for i in range(2):
      tree[f'MixerBlock_{i}'] = jax.tree.map(lambda x, i=i: x[i], stacked)
  return tree


def recorder():
  """Keeps the gradient it is given as its state, and hands it on."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda updates, *_: (updates, updates)
  )


class Result(types.SimpleNamespace):
  """The losses of eight steps, the first gradient, and the compiled step with its shapes."""


def train(data, fsdp, microbatches, scan, remat):
  mesh = make_mesh(data, fsdp)
  tx, rate = chain()
  tx = optax.chain(recorder(), tx)
  make, like = train_step.init_state(lambda _: mixer_params(scan), tx, jax.random.key(0), mesh)
  step = train_step.make_step(
    apply=models.apply_function(tiny(scan=scan, remat=remat)), tx=tx, learning_rate=rate,
    objective=losses.Objective(loss='sigmoid'),
    augmentation=Augmentation(num_classes=5, mixup=0.5), microbatches=microbatches,
    key=jax.random.key(3), mesh=mesh,
  )  # fmt: skip
  batches = [sharding.put(batch_of(seed=seed), mesh) for seed in range(8)]
  compiled = train_step.compile_step(step, like, batches[0], mesh)
  state, history, gradient = make(), [], None
  for batch in batches:
    state, metrics = compiled(state, batch)
    gradient = gradient or released(state.opt_state[0])
    history.append({name: float(value) for name, value in metrics.items()})
  return Result(history=history, gradient=gradient, compiled=compiled, like=like)


@pytest.fixture(scope='module')
def plain():
  """One device, the whole batch at once, blocks one after another."""
  return train(1, 1, 1, scan=False, remat=False)


LAYOUTS = {
  # data, fsdp, microbatches: scan, remat
  (1, 1, 4): (False, True),
  (8, 1, 1): (True, True),
  (8, 1, 4): (True, False),
  (2, 4, 2): (True, True),
}
OTHER_LAYOUTS = {
  (1, 1, 2): (False, False),
  (8, 1, 2): (False, False),
  (2, 4, 1): (True, False),
  (2, 4, 4): (False, True),
}


@pytest.mark.parametrize(
  'layout',
  [*LAYOUTS, *(pytest.param(x, marks=pytest.mark.slow) for x in OTHER_LAYOUTS)],
  ids=lambda layout: '{}x{} in {}'.format(*layout),
)
def test_layouts_agree(plain, monkeypatch, layout):
  """With mixup, dropout and stochastic depth on, eight steps of Adam."""
  monkeypatch.setattr(sharding, '_MIN_SHARDED_SIZE', 2**8)
  scan, remat = {**LAYOUTS, **OTHER_LAYOUTS}[layout]
  result = train(*layout, scan, remat)
  split = [x for x in jax.tree.leaves(result.like) if 'fsdp' in x.sharding.spec]
  assert (len(split) > 10) == (layout[1] > 1)

  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain.gradient))
  jax.tree_util.tree_map_with_path(
    lambda path, a, w: np.testing.assert_allclose(a, w, atol=1e-6 * scale, err_msg=str(path)),
    result.gradient,
    plain.gradient,
  )
  for name in ('loss', 'accuracy', 'grad_norm', 'learning_rate'):
    actual, wanted = ([row[name] for row in r.history] for r in (result, plain))
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, err_msg=name)

  check_communication(result.compiled.as_text(), split)


def check_communication(text, split):
  """Gradients are summed, and kernels of those in `split` gathered for their block's turn.

  Of the batch, only mixup's one row per device goes to a neighbour.
  """
  shapes = {tuple(sorted(leaf.shape[i:])) for leaf in split for i in (0, 1)}
  moved = re.findall(
    r'= (.+?) (all-gather|all-to-all|collective-permute|ragged-all-to-all)(?:-start)?\(', text
  )
  for result, operation in moved:
    kind, sides = re.match(r'\(?(\w+)\[([\d,]*)\]', result).groups()
    shape = tuple(int(side) for side in sides.split(',') if side)
    if operation == 'collective-permute':
      assert shape[0] == 1 and kind in ('u8', 's32'), (operation, result)
    else:
      allowed = operation == 'all-gather' and kind == 'f32' and tuple(sorted(shape)) in shapes
      assert allowed, (operation, result)


def test_training_lowers_the_loss(plain):
  losses = [row['loss'] for row in plain.history]
  assert plain.history[0]['learning_rate'] == 0 and losses[-1] < losses[0] - 0.2


def test_gradient_is_not_trivial(plain):
  """What the layouts agree on has no zeros in it, but for the parameters that need none."""
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(plain.gradient))


@pytest.mark.parametrize('contiguous', [False, True])
def test_split_spares_the_network(monkeypatch, contiguous):
  """A contiguous split would move images between devices, and `check_communication` see it."""
  if contiguous:
    monkeypatch.setattr(
      batch_ops,
      'split',
      lambda batch, count: jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch),
    )
  mesh = make_mesh(8, 1)
  tx, rate = chain()
  step, _, like = linear_setup(mesh, tx, rate, linear_params(768), mixup=0.5, microbatches=4)
  compiled = train_step.compile_step(step, like, sharding.put(batch_of(32), mesh), mesh)
  moved = pytest.raises(AssertionError, match='all-to-all|all-gather')
  with moved if contiguous else contextlib.nullcontext():
    check_communication(compiled.as_text(), [])


# --- State ---------------------------------------------------------------------------------


def test_state_is_born_sharded(monkeypatch):
  monkeypatch.setattr(sharding, '_MIN_SHARDED_SIZE', 2**8)
  mesh = make_mesh(2, 4)
  tx, _ = chain()
  params = linear_params(768, 5)
  make, like = train_step.init_state(lambda _: params, tx, jax.random.key(0), mesh)
  state = make()
  assert like.params['head']['kernel'].sharding.spec == P('fsdp', None)
  kernels = [x for x in jax.tree.leaves(state) if x.shape == (768, 5)]
  assert len(kernels) == 3  # the parameter and Adam's two moments
  for kernel in kernels:
    assert {s.data.shape for s in kernel.addressable_shards} == {(192, 5)}
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)
  np.testing.assert_array_equal(state.params['head']['kernel'], params['head']['kernel'])
  assert int(state.step) == 0
  # Three copies of 768 x 5 + 5 floats, and three counters: the step, Adam's, the schedule's.
  assert train_step.state_bytes(like) == 4 * (3 * (768 * 5 + 5) + 3)
  assert sharding.bytes_per_device(like) == 4 * (3 * (192 * 5 + 5) + 3)


@pytest.mark.parametrize('shape', [(1, 1), (8, 1)])
def test_state_is_donated(shape):
  """The old state's memory is the new one's; only a step's own results are new."""
  mesh = make_mesh(*shape)
  tx, rate = chain()
  step, state, like = linear_setup(mesh, tx, rate, linear_params())
  batch = sharding.put(batch_of(8, side=2), mesh)
  compiled = train_step.compile_step(step, like, batch, mesh)
  assert compiled.memory_analysis().alias_size_in_bytes == train_step.state_bytes(like)
  after, _ = compiled(state, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))
  assert train_step.describe_shapes(like, batch) == (
    'per device: 0.0 MiB of parameters, 0.0 of optimizer state, 0.0 of images and labels'
  )
  text = train_step.describe_memory(compiled)
  assert re.fullmatch(r'memory per device of the compiled step: \d+\.\d MiB', text)


def test_unknown_loss():
  text = "unknown loss 'hinge'; use one of ['sigmoid', 'softmax']."
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    linear_setup(make_mesh(1, 1), *chain(), linear_params(), loss='hinge')


# --- Counting ------------------------------------------------------------------------------


def data_of(num_examples, batch_size, num_classes=10):
  return types.SimpleNamespace(
    num_examples=num_examples, batch_size=batch_size, num_classes=num_classes
  )


def test_count_steps():
  """The paper's ImageNet run, 300 epochs of 99 % of the set, is 92,897 steps."""
  assert plan.count_steps(None, 300.0, data_of(1_268_355, 4096)) == 92_897
  assert plan.count_steps(None, 300.0, data_of(1_281_167, 4096)) == 93_835
  assert plan.count_steps(17, 300.0, data_of(1_281_167, 4096)) == 17
  text = (
    'total_steps=None, total_epochs=0.1: that is 0 steps of 64 over 100 examples; at least 1 is '
    'needed.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    plan.count_steps(None, 0.1, data_of(100, 64))
  with pytest.raises(InputError, match='total_steps=0, total_epochs=5: that is 0 steps'):
    plan.count_steps(0, 5, data_of(100, 64))


def test_describe_data():
  assert plan.describe_data(data_of(1000, 64), 40) == (
    '1000 images of 10 classes; 40 steps of 64 are 2.56 epochs'
  )


def test_thousands_of_epochs_are_a_warning(caplog):
  plan.describe_data(data_of(800, 512), 2500)  # VTAB's
  assert not caplog.messages
  plan.describe_data(data_of(54, 512), 500)
  assert caplog.messages == [
    '500 STEPS OF 512 ARE 4,741 EPOCHS OF THE 54 TRAINING IMAGES. --config.total_steps=11 makes '
    'about 100 epochs; with a smaller batch, they have more steps.'
  ]


def intervals(evaluate, checkpoint, keep_best, every=0, early_stopping=None):
  return plan.intervals(
    log=5,
    evaluate=evaluate,
    checkpoint=checkpoint,
    keep_best=keep_best,
    evals={'val': {}, 'shots': {'every': every}, 'real': {}},
    comparable=['val/top1', 'val/loss', 'shots/5shot', 'real/top1'],
    skipped=['real'],
    early_stopping=early_stopping,
  )


def test_intervals():
  assert intervals(20, 10, 'val/top1') == {'log': 5, 'evaluate': 20, 'checkpoint': 10}
  assert intervals(15, 10, None) == {'log': 5, 'evaluate': 15, 'checkpoint': 10}


@pytest.mark.parametrize('evaluate,checkpoint', [(15, 10), (0, 10), (20, 0)])
def test_the_best_must_be_saved_when_it_is_measured(evaluate, checkpoint):
  text = (
    "config.checkpoints.keep_best='val/top1' needs a checkpoint at each evaluation: "
    f'config.every.evaluate={evaluate} is not a multiple of config.every.checkpoint={checkpoint}.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    intervals(evaluate, checkpoint, 'val/top1')


def test_the_best_must_be_measured():
  for unknown in ('test/top1', 'shots/5shot'):  # the latter is not measured each time
    text = f"config.checkpoints.keep_best={unknown!r}; use one of ['val/top1', 'val/loss']."
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      intervals(20, 10, unknown)
  text = "config.checkpoints.keep_best='real/top1', but the data of that evaluation are missing"
  with pytest.raises(InputError, match=f'^{re.escape(text)}. Prepare them'):
    intervals(20, 10, 'real/top1')


def test_an_evaluations_own_interval_is_a_multiple():
  assert intervals(20, 10, None, every=60)['evaluate'] == 20
  assert intervals(0, 10, None, every=0)['evaluate'] == 0
  for evaluate, every in ((20, 30), (0, 30), (20, -20)):
    text = (
      f'config.evals.shots.every={every} is not a multiple of config.every.evaluate={evaluate}.'
    )
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      intervals(evaluate, 10, None, every=every)


def test_what_ends_a_run_is_measured_each_time():
  assert intervals(20, 0, None, early_stopping=plan.EarlyStopping('val/loss', 1))
  for result, text in {
    'val/n': "config.early_stopping.result='val/n'; use one of ['val/top1', 'val/loss'].",
    'shots/5shot': "result='shots/5shot'; use one of",
    'real/top1': "result='real/top1', but the data of that evaluation are missing.",
  }.items():
    with pytest.raises(InputError, match=re.escape(text)):
      intervals(20, 0, None, early_stopping=plan.EarlyStopping(result, 1))
  with pytest.raises(
    InputError, match=r'needs evaluations before the end, and config\.every\.eval'
  ):
    intervals(0, 0, None, early_stopping=plan.EarlyStopping('val/top1', 1))


@pytest.mark.parametrize(
  'values,patience,min_delta,last',
  [
    ((0.1, 0.2, 0.2, 0.1), 2, 0.0, 3),  # an equal value is no improvement
    ((0.1, 0.2, 0.1, 0.3, 0.3), 2, 0.0, None),
    ((0.1, 0.14, 0.18, 0.22), 1, 0.05, 1),
    ((0.1, 0.14, 0.18, 0.22), 2, 0.05, None),  # 0.18 is 0.08 more than the best so far
    ((0.0,), 1, 0.0, None),
  ],
)
def test_early_stopping(values, patience, min_delta, last):
  stopping = plan.EarlyStopping('val/top1', patience, min_delta)
  rows = [
    {'step': 5 * i, **({'val/top1': values[i // 2]} if i % 2 else {})}
    for i in range(2 * len(values))
  ]
  reasons = [stopping.reason(rows[: 2 * (i + 1)]) for i in range(len(values))]
  assert next((i for i, reason in enumerate(reasons) if reason), None) == last
  if patience == 2 and last:
    assert reasons[3] == (
      'val/top1 was 0.2 at step 15, and in 2 evaluation(s) since then it was not higher by more '
      'than 0'
    )
  # The same of a loss, which falls as the other rises.
  falling = plan.EarlyStopping('val/loss', patience, min_delta)
  rows = [{'step': row['step'], 'val/loss': 1 - row['val/top1']} for row in rows if len(row) > 1]
  found = [falling.reason(rows[: i + 1]) for i in range(len(values))]
  assert [bool(reason) for reason in found] == [bool(reason) for reason in reasons]
  if patience == 2 and last:
    assert found[3].startswith('val/loss was 0.8 at step 15, ') and 'not lower by' in found[3]


def test_a_loss_that_is_not_a_number_is_the_worst():
  rows = [{'step': step, 'val/loss': value} for step, value in enumerate((0.5, np.nan, np.inf))]
  assert 'was 0.5 at step 0, and in 2 ' in plan.EarlyStopping('val/loss', 2).reason(rows)


def test_due():
  assert [step for step in range(1, 11) if plan.due(step, 4, 10)] == [4, 8, 10]
  assert [step for step in range(1, 11) if plan.due(step, 0, 10)] == [10]
  assert [step for step in range(1, 11) if plan.due(step, 5, 10)] == [5, 10]
  assert all(plan.due(step, 1, 10) for step in range(1, 11))


def test_check_batch_size():
  mesh = make_mesh(2, 4)
  plan.check_batch_size(64, 4, mesh)
  plan.check_batch_size(8, 1, mesh)
  begin = 'a batch of {} does not divide into {} microbatches on 8 devices; use a multiple of {}, '
  faults = {
    (60, 4): begin.format(60, 4, 32) + 'such as 32 or 64.',
    (100, 2): begin.format(100, 2, 16) + 'such as 96 or 112.',
  }
  for (batch_size, microbatches), text in faults.items():
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      plan.check_batch_size(batch_size, microbatches, mesh)
  with pytest.raises(InputError, match='use a multiple of 32, such as 32'):
    plan.check_batch_size(5, 4, mesh)
  with pytest.raises(InputError, match=r'^microbatches is 0; use 1 for the whole batch at once\.$'):
    plan.check_batch_size(64, 0, mesh)


# --- The loop ------------------------------------------------------------------------------


class Events(list):
  """A report and checkpoints that keep the calls, in order."""

  eval_deferred = is_multiprocess = False

  def save(self, step, state):
    self.append(('save', step, int(state.step)))

  def wait(self):
    self.append(('wait',))

  def add_results(self, step, results):
    self.append(('add_results', step, results))

  def timed(self, batches):
    return batches

  def step(self, step, metrics, *, keep):
    self.append(('step', step, metrics, keep))

  def add(self, results):
    self.append(('add', results))

  def defer_eval(self):
    self.append(('defer_eval',))

  def write(self, *, stopping=False):
    self.append(('write', 'stopping') if stopping else ('write',))

  @contextlib.contextmanager
  def pause_timer(self):
    yield


def fit(
  first, total, every, batches, *, last=None, eval_deferred=False, is_multiprocess=False, **more
):
  """(the last step, or the message of the end; events)."""
  events = Events()
  events.eval_deferred, events.is_multiprocess = eval_deferred, is_multiprocess
  arguments = {
    'step_fn': lambda state, batch: (
      state.replace(step=state.step + 1, params=state.params + 1), {'batch': batch}
    ),
    'batches': batches,
    'total_steps': total,
    'every': every,
    'evaluate': lambda state, step: ({'val/top1': state.params / 10}, state.params == last),
    'checkpoints': events,
    'report': events,
  }  # fmt: skip
  begin = train_step.TrainState(step=jnp.int32(first), params=first, opt_state=None)
  try:
    state = loop.fit(begin, **{**arguments, **more})
  except (InputError, Interrupted) as end:
    return str(end), events
  return int(state.step), events


def test_loop():
  """A step is saved before it is evaluated, and no batch is taken that is not used."""
  batches = iter(range(100))
  step, events = fit(0, 5, {'log': 2, 'evaluate': 4, 'checkpoint': 2}, batches)
  assert step == 5 and next(batches) == 5
  kept = {event[1]: event[3] for event in events if event[0] == 'step'}
  assert kept == {1: False, 2: True, 3: False, 4: True, 5: True}
  assert [event[2]['batch'] for event in events if event[0] == 'step'] == [0, 1, 2, 3, 4]
  assert [event for event in events if event[0] != 'step'] == [
    ('write',), ('save', 2, 2),
    ('defer_eval',), ('write',), ('save', 4, 4),
    ('add_results', 4, {'val/top1': 0.4}), ('add', {'val/top1': 0.4}),
    ('defer_eval',), ('write',), ('save', 5, 5),
    ('add_results', 5, {'val/top1': 0.5}), ('add', {'val/top1': 0.5}),
    ('write',),
  ]  # fmt: skip


@pytest.mark.parametrize('checkpoint', [2, 0])
def test_an_evaluation_ends_the_run(checkpoint):
  """The step is saved if it was not; after a restart whose evaluation was deferred, too."""
  every, batches = {'log': 0, 'evaluate': 2, 'checkpoint': checkpoint}, iter(range(9))
  step, events = fit(0, 9, every, batches, last=4)
  assert step == 4 and next(batches) == 4
  assert [event[1:] for event in events if event[0] == 'save'][-1] == (4, 4)
  assert events[-1] == ('write',)
  if not checkpoint:  # the results are in metrics.jsonl before the state is on disk
    assert events[-4:] == [('add', {'val/top1': 0.4}), ('write',), ('save', 4, 4), ('write',)]
  step, events = fit(4, 9, every, iter(range(4, 9)), last=4, eval_deferred=True)
  assert step == 4 and not [event for event in events if event[0] == 'step']


def test_loop_goes_on_where_the_state_is():
  batches = iter(range(3, 100))
  step, events = fit(3, 5, {'log': 0, 'evaluate': 0, 'checkpoint': 0}, batches)
  assert step == 5 and next(batches) == 5
  assert [event[1] for event in events if event[0] == 'step'] == [4, 5]
  assert fit(5, 5, {'log': 1, 'evaluate': 1, 'checkpoint': 1}, batches) == (5, [('write',)])


def test_loop_saves_where_it_is_told_to_stop():
  every = {'log': 0, 'evaluate': 0, 'checkpoint': 0}
  text, events = fit(0, 5, every, iter(range(9)), boundary=lambda step: step == 3)
  assert text == 'at step 3 of 5; its state is saved.'
  assert [event for event in events if event[0] != 'step'] == [
    ('write', 'stopping'), ('save', 3, 3),
  ]  # fmt: skip


def test_an_evaluation_that_is_left_is_made_up_for():
  def left(params, step):
    raise Interrupted('by a signal')

  every = {'log': 0, 'evaluate': 2, 'checkpoint': 4}
  text, events = fit(0, 5, every, iter(range(9)), evaluate=left)
  assert text == 'at step 2 of 5; its state is saved.'
  assert events[-3:] == [('defer_eval',), ('write', 'stopping'), ('save', 2, 2)]
  # Told to stop when the evaluation was due: it is not begun.
  assert fit(0, 5, every, iter(range(9)), boundary=lambda step: step == 2) == (text, events)

  step, events = fit(2, 3, every, iter([2]), eval_deferred=True)
  made = [('defer_eval',), ('add', {'val/top1': 0.2}), ('step', 3, {'batch': 2}, True)]
  assert step == 3 and events[:3] == made
  step, events = fit(4, 5, every, iter([4]), eval_deferred=True)
  results = {'val/top1': 0.4}
  assert events[:5] == [
    ('defer_eval',), ('write',), ('save', 4, 4), ('add_results', 4, results), ('add', results),
  ]  # fmt: skip


@pytest.mark.parametrize('is_multiprocess', [False, True])
@pytest.mark.parametrize('checkpoint', [0, 2])
@pytest.mark.parametrize('fault', [InputError('bad.jpg is truncated.'), MemoryError('no room')])
def test_a_step_whose_evaluation_fails_is_saved(fault, checkpoint, is_multiprocess):
  events = []

  def fail(params, step):
    raise fault

  def run():
    return fit(
      0, 5, {'log': 0, 'evaluate': 2, 'checkpoint': checkpoint}, iter(range(9)), evaluate=fail,
      is_multiprocess=is_multiprocess, report=events, checkpoints=events,
    )  # fmt: skip

  events = Events()
  events.is_multiprocess = is_multiprocess
  if isinstance(fault, InputError):
    text, _ = run()
    assert text == (
      'bad.jpg is truncated. The state of step 2 is saved; the same command repeats this '
      'evaluation and continues.'
    )
  else:
    with pytest.raises(MemoryError, match='^no room$'):
      run()
  names = [event[0] for event in events if event[0] != 'step']
  assert names[0] == 'defer_eval' and names.count('save') == 1
  assert names.index('write') < names.index('save') and 'add' not in names
  assert ('wait' in names) == (is_multiprocess or isinstance(fault, InputError))
