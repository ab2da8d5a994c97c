"""Which parameters are trained and how fast: names, factors and updates by hand."""

import functools
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import finetune
from mixer import models
from mixer.checkpoints import manager
from mixer.errors import InputError
from mixer.training import losses, optimizers, param_groups, sharding, train_step
from mixer.training.augmentation import Augmentation

FAMILIES = {
  'Mixer': dict(
    name='Mixer', num_blocks=3, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24, patch_size=4
  ),
  'ViT': dict(name='ViT', num_blocks=2, hidden_dim=8, mlp_dim=16, num_heads=2, patch_size=4),
  'BiT': dict(name='BiT', stage_sizes=(2, 1), width=8, groups=4),
}
SGD = {
  'optimizer': {'name': 'sgd'},
  'learning_rate': 0.1,
  'schedule': {'warmup_steps': 0, 'decay': 'linear', 'linear_end': 1.0},
  'total_steps': 8,
  'clip_norm': None,
  'weight_decay': 0.0,
  'weight_decay_mode': 'adamw',
}


@functools.cache
def network(family, **options):
  """(a tiny model, its shapes, what optimizers know of them)."""
  model = models.build(**{**FAMILIES[family], **options}, num_classes=5)
  shapes = models.shapes(model, 16)
  return model, shapes, models.layout(model, shapes)


def make(family='Mixer', *, scan=None, **arguments):
  options = {} if scan is None else {'scan': scan}
  return param_groups.make(layout=network(family, **options)[2], **arguments)


def draw(shapes, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), shapes)


# --- Names ---------------------------------------------------------------------------------


def test_a_pattern_is_for_whole_parts_of_a_name():
  name = 'MixerBlock_1/token_mixing/Dense_0/kernel'
  for pattern in (
    'MixerBlock_1', 'MixerBlock_[0-5]', 'MixerBlock_1/token_mixing', '.*/kernel', 'MixerBlock.*',
    name, 'stem|MixerBlock_1', '(?!head).*', 'MixerBlock_1/.*',
  ):  # fmt: skip
    assert param_groups.matches(pattern, name), pattern
  for pattern in ('MixerBlock', 'token_mixing', 'kernel', 'MixerBlock_', 'ixerBlock_1', ''):
    assert not param_groups.matches(pattern, name), pattern
  assert not param_groups.matches('MixerBlock_1', 'MixerBlock_10/token_mixing/Dense_0/kernel')


DEPTHS = {  # the exponent of layer_decay; 0 for all others
  'Mixer': {'stem': 4, 'MixerBlock_0': 3, 'MixerBlock_1': 2, 'MixerBlock_2': 1},
  'ViT': {
    'embedding': 3, 'cls': 3, 'Transformer/posembed_input': 3,
    'Transformer/encoderblock_0': 2, 'Transformer/encoderblock_1': 1,
  },
  'BiT': {'root_block': 4, 'block1/unit01': 3, 'block1/unit02': 2, 'block2/unit01': 1},
}  # fmt: skip


@pytest.mark.parametrize('family', DEPTHS)
def test_a_linear_probe_trains_the_head(family):
  (pattern,) = finetune.get_config('train=head').optim.freeze
  trained, _ = param_groups.divide(network(family)[1], make(family, freeze=pattern).frozen)
  assert trained.keys() == {'head'} and trained['head'].keys() == {'kernel', 'bias'}


@pytest.mark.parametrize('family', DEPTHS)
def test_layer_decay_and_factors(family):
  groups = make(family, layer_decay=0.75, lr_mults=(('.*/bias', 2.0), ('head', 10)))
  seen = set()
  for path, factors in groups.factors.items():
    name = '/'.join(path)
    starts = [start for start in DEPTHS[family] if f'{name}/'.startswith(f'{start}/')]
    seen.update(starts)
    own = 2.0 if path[-1] == 'bias' else 10.0 if path[0] == 'head' else 1.0
    assert factors == (own * 0.75 ** (DEPTHS[family][starts[0]] if starts else 0),), name
  assert seen == DEPTHS[family].keys()


def test_factors_of_stacked_blocks():
  groups = make(scan=True, layer_decay=0.5, freeze='stem')
  kernel = ('MixerBlocks', 'token_mixing', 'Dense_0', 'kernel')
  assert groups.factors[kernel] == (0.125, 0.25, 0.5)
  assert groups.factors['head', 'kernel'] == (1.0,)
  tx = param_groups.scale_by_factors(groups.factors)
  trained, _ = param_groups.divide(network('Mixer', scan=True)[1], groups.frozen)
  ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), trained)
  scaled = traverse_util.flatten_dict(tx.update(ones, tx.init(ones))[0])
  np.testing.assert_array_equal(scaled[kernel][:, 3, 3], [0.125, 0.25, 0.5])


@pytest.mark.parametrize(
  ('arguments', 'wanted'),
  [
    (
      {'freeze': ('stem', 'MixerBlok_0')},
      "config.optim.freeze: 'MixerBlok_0' matches no parameter. A pattern is a regular expression "
      "for a name or its first parts, as in 'stem'; the names begin with MixerBlock_N/LayerNorm_N, "
      'MixerBlock_N/channel_mixing, MixerBlock_N/token_mixing, head, pre_head_layer_norm, stem.',
    ),
    ({'lr_mults': (('kernel', 2.0),)}, "config.optim.lr_mults: 'kernel' matches no parameter. "),
    (
      {'lr_mults': (('.*', 2.0), ('head', 3.0))},
      "config.optim.lr_mults: 'head' has no effect; what it matches is frozen, or an earlier ",
    ),
    ({'lr_mults': (('stem', 2.0),), 'freeze': 'stem'}, "config.optim.lr_mults: 'stem' has no eff"),
    ({'freeze': '.*'}, "config.optim.freeze=('.*',) matches all parameters, so there is nothing "),
    (
      {'freeze': 'MixerBlock_[01]', 'scan': True},
      'config.optim.freeze has MixerBlock_0/LayerNorm_0/bias and not MixerBlock_2/LayerNorm_0/bias,'
      ' which model.scan=True stacks into one array. Freeze all blocks or none, or use config.mode',
    ),
  ],
)
def test_errors(arguments, wanted):
  with pytest.raises(InputError, match=f'^{re.escape(wanted)}'):
    make(**arguments)


@pytest.mark.parametrize(
  ('changes', 'wanted'),
  [
    ({'freeze': ('stem', '[')}, "a regular expression such as 'MixerBlock_[0-5]', or a tuple of"),
    ({'lr_mults': (('head', 0.0),)}, '(a regular expression, a number above 0), as in'),
    ({'lr_mults': ('head', 10.0)}, '(a regular expression, a number above 0), as in'),
    ({'layer_decay': 1.5}, 'a number above 0 and up to 1, or None'),
    ({'freezes': 'stem'}, "config.optim: nothing reads 'freezes' (did you mean 'freeze'?)"),
  ],
)
def test_values_in_a_config(changes, wanted):
  section = {key: value for key, value in SGD.items() if key != 'total_steps'}
  (found,) = optimizers.faults({**section, **changes})
  assert wanted in found


def test_descriptions():
  assert make().describe() == ''
  assert make(layer_decay=1.0).describe() == ''
  assert make(freeze='(?!head).*').describe() == (
    '85 of 4,357 parameters; the other 4,272 are frozen'
  )
  assert make(scan=True, layer_decay=0.5, lr_mults=(('stem', 4.0),)).describe() == (
    'learning rate times 0.125 for 1,152, 0.25 for 1,936, 0.5 for 1,152, 1 for 117 parameters '
    '(4 groups)'
  )


# --- Steps ---------------------------------------------------------------------------------


def batches(count):
  rng = np.random.default_rng(5)
  return [
    {
      'image': rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
      'label': rng.integers(0, 5, 16, dtype=np.int32),
    }
    for _ in range(count)
  ]


def compiled(groups, optim, mesh, scan=False, microbatches=1):
  """(the compiled step, a function that makes the first state, its shapes) of the Mixer."""
  model, shapes, _ = network('Mixer', scan=scan)
  tx, rate = optimizers.make(**optim, groups=groups)
  params = draw(shapes, 0)
  initial, like = train_step.init_state(
    lambda _: params, tx, jax.random.key(0), mesh, groups.frozen
  )
  step = train_step.make_step(
    apply=models.apply_function(model), tx=tx, learning_rate=rate,
    objective=losses.Objective(loss='softmax'), augmentation=Augmentation(num_classes=5),
    microbatches=microbatches, key=jax.random.key(1), mesh=mesh, frozen=groups.frozen,
  )  # fmt: skip
  batch = sharding.put(batches(1)[0], mesh)
  return train_step.compile_step(step, like, batch, mesh), initial, like


def test_frozen_parameters_in_steps_by_hand():
  """Clipping, momentum, decay and factors from gradients of all parameters, on eight devices."""
  groups = make(
    freeze=('stem', 'MixerBlock_[01]'), lr_mults=(('head', 3.0), ('.*/bias', 2.0)), layer_decay=0.5
  )
  optim = {**SGD, 'clip_norm': 0.5, 'weight_decay': 0.3}
  mesh = sharding.make_mesh(fsdp=2)
  step, initial, like = compiled(groups, optim, mesh, microbatches=2)
  whole, *_ = compiled(make(), SGD, mesh, microbatches=2)
  assert step.cost_analysis()['flops'] < 0.7 * whole.cost_analysis()['flops']

  model, shapes, _ = network('Mixer')
  params = traverse_util.flatten_dict(draw(shapes, 0))
  trained = {path for path in params if path[0] in ('MixerBlock_2', 'pre_head_layer_norm', 'head')}
  momenta = [leaf.shape for leaf in jax.tree.leaves(like.opt_state) if leaf.ndim]
  assert sorted(momenta) == sorted(params[path].shape for path in trained)

  @jax.jit
  def gradient(params, batch):
    def loss(params):
      logits = model.apply({'params': params}, jnp.float32(batch['image']) / 127.5 - 1)
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()

    return jax.grad(loss)(params)

  state, before, momentum = initial(), dict(params), dict.fromkeys(params, 0.0)
  for batch in batches(3):
    grads = traverse_util.flatten_dict(gradient(traverse_util.unflatten_dict(params), batch))
    grads = {path: np.float64(grads[path]) for path in trained}
    norm = np.sqrt(sum((leaf**2).sum() for leaf in grads.values()))
    for path, leaf in grads.items():
      factor = 3.0 if path[0] == 'head' else 2.0 if path[-1] == 'bias' else 1.0
      factor *= 0.5 if path[0] == 'MixerBlock_2' else 1.0
      momentum[path] = 0.9 * momentum[path] + leaf * min(1.0, 0.5 / norm)
      decay = 0.3 * params[path] if path[-1] == 'kernel' else 0.0
      params[path] = np.float32(params[path] - 0.1 * factor * (momentum[path] + decay))
    state, metrics = step(state, sharding.put(batch, mesh))
    assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-4)
  found = traverse_util.flatten_dict(jax.device_get(state.params))
  for path, leaf in found.items():
    if path in trained:
      np.testing.assert_allclose(leaf, params[path], rtol=1e-4, atol=1e-5, err_msg=str(path))
    else:
      np.testing.assert_array_equal(leaf, before[path])


def test_a_checkpoint_of_muon_without_state_of_frozen_parameters(tmp_path, monkeypatch):
  """Sharded moments of stacked blocks; a restored state goes on with the same bits."""
  monkeypatch.setattr(sharding, '_MIN_SHARDED_SIZE', 1)
  mesh = sharding.make_mesh(fsdp=4)
  groups = make(scan=True, freeze=('stem', 'head'), layer_decay=0.75)
  step, initial, like = compiled(groups, {**SGD, 'optimizer': {'name': 'muon'}}, mesh, scan=True)
  kernel = like.params['MixerBlocks']['channel_mixing']['Dense_0']['kernel']
  moments = [leaf for leaf in jax.tree.leaves(like.opt_state) if leaf.shape == kernel.shape]
  assert len(moments) == 1 and moments[0].sharding == kernel.sharding
  assert moments[0].sharding.shard_shape(kernel.shape) == (3, 16, 6)

  state, given = initial(), [sharding.put(batch, mesh) for batch in batches(4)]
  for batch in given[:2]:
    state, _ = step(state, batch)
  with manager.Checkpoints(tmp_path, keep_last=1, keep_best=None) as saved:
    saved.save(2, state)
    saved.wait()
    again = saved.restore(2, like)
  for batch in given[2:]:
    state, metrics = step(state, batch)
    again, repeated = step(again, batch)
  assert metrics['loss'] == repeated['loss']
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(again))


def test_flops_of_a_linear_probe():
  """The trunk has a forward pass alone; XLA counts element-wise work as well."""
  model = models.build('Mixer-S/16', 1000)
  layout = models.layout(model, models.shapes(model, 224))
  groups = param_groups.make(layout=layout, freeze='(?!head).*')
  found = models.train_flops(model, 224, 3, groups.frozen_names)
  parts = models.FAMILIES['Mixer'].matmul_flops(model, 224)
  assert 1.0 < found / (sum(parts.values()) + parts['head']) < 1.03


@pytest.mark.parametrize(
  ('family', 'options', 'count'),
  [
    ('Mixer', {'untie_tokens': True, 'num_blocks': 1}, 4),
    ('ViT', {'scan': True}, 6),
    ('BiT', {'stage_sizes': (1,)}, 4),
  ],
)
def test_muon_orthogonalises_the_matrices_between_stem_and_head(family, options, count):
  """Singular values of its updates: five iterations bring them to between 0.5 and 1.5."""
  _, shapes, layout = network(family, **options)
  tx, _ = optimizers.make(
    **{**SGD, 'optimizer': {'name': 'muon', 'consistent_rms': 0.2}},
    groups=param_groups.make(layout=layout),
  )
  params = draw(shapes, 0)
  updates, _ = jax.jit(tx.update)(draw(shapes, 1), tx.init(params), params)
  seen = set()
  for path, leaf in traverse_util.flatten_dict(jax.device_get(updates)).items():
    if path[-1] != 'kernel' or path[0] in ('stem', 'embedding', 'root_block', 'head'):
      np.testing.assert_allclose(abs(leaf), 0.1 * (1 + 0.9 * 0.1 / 0.19), rtol=1e-3)  # NAdam's
      continue
    seen.add(path[-3:])
    batch = int('encoderblock' in path or 'untied_token_mixing' in path)
    outputs = 2 if path[-2] in ('query', 'key', 'value') else 1
    width = int(np.prod(leaf.shape[leaf.ndim - outputs :]))
    matrices = leaf.reshape(*leaf.shape[:batch], -1, width)
    size = 0.1 * 0.2 * np.sqrt(max(matrices.shape[-2:]))
    values = np.linalg.svd(matrices / size, compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.5, (path, values)
  assert len(seen) == count
