"""The models against the paper's tables and against equation (1) written out in NumPy."""

import itertools
import re

import jax
import numpy as np
import pytest
import scipy.stats

from mixer import models
from mixer.errors import InputError
from mixer.models import layers, mlp_mixer
from mixer.training import losses
from networks import (
  close,
  close_trees,
  count,
  equations,
  example_keys,
  init,
  random_images,
  random_params,
  run,
  shapes_of,
)  # fmt: skip
import reference
from reference import forward, gelu, layer_norm

# Paper, Table 1 and the counts that follow from it:
# (headless, 1000 classes, 21843 classes, leaves, GMAC, GFLOP, token / channel / stem GFLOP).
TABLE = {
  'S/32': (18_591_624, 19_104_624, 29_797_083, 102, 1.002, 2.005, 0.206, 1.644, 0.154),
  'S/16': (18_015_264, 18_528_264, 29_220_723, 102, 3.777, 7.554, 0.822, 6.577, 0.154),
  'B/32': (59_524_428, 60_293_428, 76_321_695, 150, 3.238, 6.475, 0.694, 5.549, 0.231),
  'B/16': (59_111_472, 59_880_472, 75_908_739, 150, 12.602, 25.204, 2.775, 22.196, 0.231),
  'L/32': (205_914_264, 206_939_264, 228_303_339, 294, 11.253, 22.507, 2.466, 19.730, 0.308),
  'L/16': (207_171_168, 208_196_168, 229_560_243, 294, 44.548, 89.095, 9.865, 78.920, 0.308),
  'H/14': (431_069_952, 432_350_952, 459_050_835, 390, 120.990, 241.980, 26.844, 214.748, 0.385),
}
# The same at 448 pixels with token MLPs four times as wide: (headless parameters, GFLOP).
TABLE_448 = {
  'S/32': (21_609_504, 10.48),
  'S/16': (30_068_352, 40.08),
  'B/32': (66_313_776, 34.22),
  'B/16': (86_227_392, 134.10),
  'L/32': (224_018_016, 119.62),
  'L/16': (279_475_584, 474.76),
  'H/14': (588_442_368, 1290.03),
}


def tiny(num_classes=5, **options):
  sizes = dict(num_blocks=3, hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=64, patch_size=4)
  return models.build('Mixer', num_classes=num_classes, **{**sizes, **options})


# --- Sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize('size', TABLE)
def test_parameter_counts(size):
  headless, with_1000, with_21843, leaves, *_ = TABLE[size]
  for num_classes, wanted in ((None, headless), (1000, with_1000), (21843, with_21843)):
    shapes = shapes_of(models.build(f'Mixer-{size}', num_classes))
    assert count(shapes) == wanted
    assert len(jax.tree.leaves(shapes)) == leaves - 2 * (num_classes is None)


@pytest.mark.parametrize('size', TABLE)
def test_scanned_parameters_are_as_many(size):
  shapes = shapes_of(models.build(f'Mixer-{size}', 1000, scan=True))
  assert count(shapes) == TABLE[size][1]
  assert set(shapes) == {'stem', 'MixerBlocks', 'pre_head_layer_norm', 'head'}


@pytest.mark.parametrize('size', TABLE)
def test_448_pixels(size):
  tokens_mlp_dim = 4 * mlp_mixer.SIZES[size[0]]['tokens_mlp_dim']
  parameters, gflop = TABLE_448[size]
  model = models.build(f'Mixer-{size}', None, tokens_mlp_dim=tokens_mlp_dim)
  assert count(shapes_of(model, 448)) == parameters
  model = models.build(f'Mixer-{size}', 1000, tokens_mlp_dim=tokens_mlp_dim)
  total = sum(mlp_mixer.matmul_flops(model, 448).values())
  assert round(total / 1e9, 2) == gflop


def test_invariants_of_table_1():
  for sizes in mlp_mixer.SIZES.values():
    assert sizes['tokens_mlp_dim'] * 2 == sizes['hidden_dim']
    assert sizes['channels_mlp_dim'] == 4 * sizes['hidden_dim']


@pytest.mark.parametrize(
  'name,num_classes,blocks,tokens_dim,width,channels_dim',
  [('Mixer-B/16', 1000, 12, 384, 768, 3072), ('Mixer-L/16', 21843, 24, 512, 1024, 4096)],
)
def test_released_names_and_shapes(name, num_classes, blocks, tokens_dim, width, channels_dim):
  wanted = {
    'stem/kernel': (16, 16, 3, width),
    'stem/bias': (width,),
    'pre_head_layer_norm/scale': (width,),
    'pre_head_layer_norm/bias': (width,),
    'head/kernel': (width, num_classes),
    'head/bias': (num_classes,),
  }
  for i in range(blocks):
    wanted |= {
      f'MixerBlock_{i}/LayerNorm_0/scale': (width,),
      f'MixerBlock_{i}/LayerNorm_0/bias': (width,),
      f'MixerBlock_{i}/token_mixing/Dense_0/kernel': (196, tokens_dim),
      f'MixerBlock_{i}/token_mixing/Dense_0/bias': (tokens_dim,),
      f'MixerBlock_{i}/token_mixing/Dense_1/kernel': (tokens_dim, 196),
      f'MixerBlock_{i}/token_mixing/Dense_1/bias': (196,),
      f'MixerBlock_{i}/LayerNorm_1/scale': (width,),
      f'MixerBlock_{i}/LayerNorm_1/bias': (width,),
      f'MixerBlock_{i}/channel_mixing/Dense_0/kernel': (width, channels_dim),
      f'MixerBlock_{i}/channel_mixing/Dense_0/bias': (channels_dim,),
      f'MixerBlock_{i}/channel_mixing/Dense_1/kernel': (channels_dim, width),
      f'MixerBlock_{i}/channel_mixing/Dense_1/bias': (width,),
    }
  paths, _ = jax.tree_util.tree_flatten_with_path(shapes_of(models.build(name, num_classes)))
  assert {'/'.join(key.key for key in path): leaf.shape for path, leaf in paths} == wanted
  assert {leaf.dtype for _, leaf in paths} == {np.dtype('float32')}


# --- FLOPs ---------------------------------------------------------------------------------


@pytest.mark.parametrize('size', TABLE)
def test_forward_flops(size):
  *_, gmac, gflop, tokens, channels, stem = TABLE[size]
  parts = mlp_mixer.matmul_flops(models.build(f'Mixer-{size}', 1000), 224)
  assert round(sum(parts.values()) / 2e9, 3) == gmac
  assert round(sum(parts.values()) / 1e9, 3) == gflop
  printed = [round(parts[part] / 1e9, 3) for part in ('tokens', 'channels', 'stem')]
  assert printed == [tokens, channels, stem]


def test_flops_against_jax():
  """XLA also counts element-wise work, a few percent of a model this wide."""
  model = models.build('Mixer-S/16', 1000)
  params = shapes_of(model)
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
  apply = models.apply_function(model)
  forward_cost = jax.jit(apply).lower(params, images).cost_analysis()['flops'] / 2
  assert 1.0 < forward_cost / sum(mlp_mixer.matmul_flops(model, 224).values()) < 1.03

  gradient = jax.jit(jax.grad(lambda p, x: apply(p, x).sum()))
  train_cost = gradient.lower(params, images).cost_analysis()['flops'] / 2
  assert 1.0 < train_cost / models.train_flops(model, 224) < 1.03


def test_flops_of_grey_rectangles():
  model = tiny(patch_size=(4, 2))
  tokens = (8 // 4) * (12 // 2)
  assert mlp_mixer.matmul_flops(model, (8, 12), channels=1) == {
    'stem': 2 * tokens * 8 * 32,
    'tokens': 3 * 2 * (2 * tokens * 16 * 32),
    'channels': 3 * 2 * (2 * tokens * 32 * 64),
    'head': 2 * 32 * 5,
  }
  assert mlp_mixer.matmul_flops(tiny(None), 16)['head'] == 0


# --- The forward pass ----------------------------------------------------------------------


@pytest.mark.parametrize(
  'size,patch',
  [((16, 16), 4), ((8, 24), 4), ((12, 16), (4, 2)), ((12, 10), (3, 5))],
)
def test_logits_equal_numpy(size, patch):
  model = tiny(patch_size=patch)
  params, images = random_params(model, size), random_images(3, size)
  _, logits = forward(params, images, layers.pair(patch))
  actual = run(model, params, images)
  assert actual.dtype == np.float32 and actual.shape == (3, 5)
  close(actual, logits)


def test_epsilon_and_the_form_of_gelu(monkeypatch):
  """With small stem outputs, another epsilon or GELU by erf changes the logits measurably."""
  params, images = random_params(tiny()), random_images(3)
  params['stem'] = jax.tree.map(lambda x: x * np.float32(1e-3), params['stem'])
  actual = run(tiny(), params, images)
  close(actual, forward(params, images, (4, 4))[1])
  monkeypatch.setattr(reference, 'EPSILON', 1e-5)
  assert np.abs(forward(params, images, (4, 4))[1] - actual).max() > 1e-2
  monkeypatch.undo()
  monkeypatch.setattr(reference, 'gelu', lambda x: x * scipy.stats.norm.cdf(x))
  assert np.abs(forward(params, images, (4, 4))[1] - actual).max() > 1e-4


def test_pre_logits_without_a_head():
  with_head, without = tiny(5), tiny(None)
  params, images = random_params(with_head), random_images(4)
  headless = {name: leaf for name, leaf in params.items() if name != 'head'}
  pooled = run(without, headless, images)
  assert pooled.shape == (4, 32) and pooled.dtype == np.float32
  assert 'head' not in shapes_of(without, 16)
  close(pooled, forward(headless, images, (4, 4))[0]['pre_logits'])
  logits = pooled.astype(np.float64) @ params['head']['kernel'] + params['head']['bias']
  close(run(with_head, params, images), logits, 1e-6)


def test_intermediates():
  model = tiny(patch_size=(4, 2), scan=True, remat=True)
  plain = tiny(patch_size=(4, 2))
  params, images = random_params(plain, (8, 12)), random_images(2, (8, 12))
  wanted, logits = forward(params, images, (4, 2))
  for net in (plain, model):
    found = models.intermediates(net, params, images)
    assert list(found) == [
      'stem', 'MixerBlock_0', 'MixerBlock_1', 'MixerBlock_2', 'pre_logits', 'output'
    ]  # fmt: skip
    shapes = [found[name].shape for name in found]
    assert shapes == [(2, 2, 6, 32), (2, 12, 32), (2, 12, 32), (2, 12, 32), (2, 32), (2, 5)]
    for name, value in wanted.items():
      close(found[name], value)
    close(found['output'], logits)


def test_intermediates_of_a_truncated_model():
  params, images = random_params(tiny()), random_images(2)
  found = models.intermediates(tiny(), params, images)
  for blocks in (1, 2, 3):
    kept = [f'MixerBlock_{i}' for i in range(blocks)]
    short = {name: params[name] for name in ('stem', *kept, 'pre_head_layer_norm')}
    pooled = run(tiny(None, num_blocks=blocks), short, images)
    normed = layer_norm(np.float64(found[kept[-1]]), params['pre_head_layer_norm'])
    close(pooled, normed.mean(axis=1))


def test_channels_other_than_three():
  shapes = jax.eval_shape(lambda key: models.init(tiny(), key, 16, channels=1), jax.random.key(0))
  assert shapes['stem']['kernel'].shape == (4, 4, 1, 32)


# --- Initial values ------------------------------------------------------------------------


def test_initial_values():
  """Flax's defaults: lecun_normal kernels (truncated normal), zero biases, unit scales."""
  sizes = dict(hidden_dim=192, tokens_mlp_dim=256, channels_mlp_dim=512, patch_size=8)
  model = tiny(num_blocks=1, **sizes)
  params = init(model, 64)
  block = params['MixerBlock_0']
  fans = [
    (params['stem']['kernel'], 8 * 8 * 3),
    (block['token_mixing']['Dense_0']['kernel'], 64),
    (block['token_mixing']['Dense_1']['kernel'], 256),
    (block['channel_mixing']['Dense_0']['kernel'], 192),
    (block['channel_mixing']['Dense_1']['kernel'], 512),
  ]
  for kernel, fan_in in fans:
    values = np.asarray(kernel).ravel() * np.sqrt(fan_in)
    assert abs(values.std() - 1) < 4 / np.sqrt(values.size)
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert np.abs(values).max() < 2 / 0.8796 + 1e-3  # 0.8796 is the cut normal's own deviation
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    if path[-1].key in ('bias', 'scale'):
      assert (np.asarray(leaf) == (path[-1].key == 'scale')).all(), path


def test_logits_start_at_the_head_bias():
  model = tiny(1000, head_bias=-6.9)
  params = init(model)
  logits = run(model, params, random_images(4))
  np.testing.assert_array_equal(logits, np.full((4, 1000), -6.9, np.float32))
  labels = np.eye(1000, dtype=np.float32)[[0, 3, 500, 999]]
  loss = losses.sigmoid_cross_entropy(logits, labels)
  np.testing.assert_allclose(loss, 1000 * np.log1p(np.exp(-6.9)) + 6.9, rtol=1e-5)
  assert [round(float(value), 3) for value in loss] == [7.907] * 4


def test_scanned_model_starts_with_the_same_numbers():
  plain = init(tiny(), seed=5)
  scanned = init(tiny(scan=True), seed=5)
  for name in ('stem', 'pre_head_layer_norm', 'head'):
    jax.tree.map(np.testing.assert_array_equal, scanned[name], plain[name])
  for i in range(3):
    row = jax.tree.map(lambda x, i=i: x[i], scanned['MixerBlocks'])
    jax.tree.map(np.testing.assert_array_equal, row, plain[f'MixerBlock_{i}'])


def test_init_depends_on_the_key_alone():
  values = [init(tiny(num_blocks=1), seed=seed) for seed in (0, 0, 1)]
  jax.tree.map(np.testing.assert_array_equal, values[0], values[1])
  assert not np.array_equal(values[0]['stem']['kernel'], values[2]['stem']['kernel'])


# --- Errors --------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['Mixer-X/16', 'Mixer-B', 'B/16', 'Mixer-B/0', 'mixer-b/16', ''])
def test_unknown_name(name):
  text = (
    f'unknown model {name!r}; write one of Mixer-S/<patch>, Mixer-B/<patch>, Mixer-L/<patch>, '
    'Mixer-H/<patch>, ViT-Ti/<patch>, ViT-S/<patch>, ViT-B/<patch>, ViT-L/<patch>, ViT-H/<patch>, '
    'BiT-R50x1, BiT-R50x2, BiT-R50x3, BiT-R101x1, BiT-R101x3, BiT-R152x1, BiT-R152x2, '
    'BiT-R152x4, BiT-R200x3, '
    'as in Mixer-B/16.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    models.build(name, 10)


OPTIONS = (
  "['channel_groups', 'channels_mlp_dim', 'dropout', 'dtype', 'grouping', 'head_bias', "
  "'hidden_dim', 'num_blocks', 'num_classes', 'patch_size', 'pyramid', 'remat', "
  "'rescale_drop_path', 'scan', 'stochastic_depth', 'tiles', 'tokens_mlp_dim', 'untie_tokens']"
)
BUILD_FAULTS = {
  'a mistyped option': (
    'Mixer-B/16',
    dict(stochastic_deth=0.1),
    f"Mixer has no option 'stochastic_deth'; it has {OPTIONS}. Did you mean 'stochastic_depth'?",
  ),
  'an unknown option': (
    'Mixer-B/16',
    dict(qqq=1),
    f"Mixer has no option 'qqq'; it has {OPTIONS}.",
  ),
  'no dimensions': (
    'Mixer',
    dict(num_blocks=2, hidden_dim=8),
    "model 'Mixer' names no size, so it needs "
    "['tokens_mlp_dim', 'channels_mlp_dim', 'patch_size'] too.",
  ),
  'an unknown dtype': (
    'Mixer-B/16',
    dict(dtype='float16'),
    "dtype is 'float16'; use one of ['bfloat16', 'float32'].",
  ),
  'a patch of no size': (
    'Mixer-B/16',
    dict(patch_size=(16, 0)),
    'patch_size is (16, 0); use a positive int or a tuple (height, width).',
  ),
}


@pytest.mark.parametrize('fault', BUILD_FAULTS)
def test_build_faults(fault):
  name, options, text = BUILD_FAULTS[fault]
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    models.build(name, 10, **options)


def test_options_win_over_the_size():
  model = models.build('Mixer-B/16', 10, num_blocks=2, patch_size=[8, 4])
  assert (model.num_blocks, model.hidden_dim, tuple(model.patch_size)) == (2, 768, (8, 4))


SIZE_FAULTS = {
  (30, 224): 'height 30 is not a multiple of the patch height 16: use 16 or 32',
  (224, 225): 'width 225 is not a multiple of the patch width 16: use 224 or 240',
  (7, 250): 'height 7 is not a multiple of the patch height 16: use 16; '
  'width 250 is not a multiple of the patch width 16: use 240 or 256',
}


@pytest.mark.parametrize('size', SIZE_FAULTS)
def test_sizes_that_do_not_divide(size):
  """Both init and apply name the nearest valid sizes, for both sides at once."""
  model = tiny(patch_size=16)
  text = f'^{re.escape(f"image size {size}, patch size (16, 16): {SIZE_FAULTS[size]}.")}'
  with pytest.raises(InputError, match=text):
    models.init(model, jax.random.key(0), size)
  with pytest.raises(InputError, match=text):
    model.apply({'params': {}}, np.zeros((1, *size, 3), np.float32))


# --- bfloat16 ------------------------------------------------------------------------------


def test_bfloat16_stays_near_float32():
  """Eight bits of mantissa: errors of 2**-9 per rounding, about 20 roundings in sequence."""
  plain, half = tiny(), tiny(dtype='bfloat16')
  fresh = shapes_of(half, 16)
  assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {np.dtype('float32')}
  params, images = random_params(plain), random_images(16)
  logits = run(plain, params, images)
  rough = run(half, params, images)
  assert rough.dtype == np.float32
  assert 1e-4 < np.abs(rough - logits).max() / np.abs(logits).max() < 0.03
  headless = {name: leaf for name, leaf in params.items() if name != 'head'}
  pooled = run(tiny(None, dtype='bfloat16'), headless, images)
  assert pooled.dtype == np.float32


@pytest.mark.parametrize('scan', [False, True])
def test_bfloat16_matmuls_and_float32_reductions(scan):
  model = tiny(dtype='bfloat16', scan=scan, stochastic_depth=0.5, dropout=0.1)
  params, images, keys = shapes_of(model, 16), random_images(2), example_keys(2)
  labels = np.eye(5, dtype=np.float32)[:2]

  def loss(params):
    logits = models.apply_function(model)(params, images, keys)
    return losses.sigmoid_cross_entropy(logits, labels).mean()

  forward_only = list(equations(jax.make_jaxpr(loss)(params).jaxpr))
  matmuls = [e for e in forward_only if e.primitive.name == 'dot_general']
  assert len(matmuls) == (4 if scan else 12) + 1
  kinds = [{v.aval.dtype.name for v in (*e.invars, *e.outvars)} for e in matmuls]
  assert kinds == [{'bfloat16'}] * (len(matmuls) - 1) + [{'float32'}]  # the head is last
  stem = [e for e in forward_only if e.primitive.name == 'conv_general_dilated']
  assert [v.aval.dtype.name for v in (*stem[0].invars, *stem[0].outvars)] == ['bfloat16'] * 3

  # LayerNorm's mean and mean of squares, the pooling, and the loss.
  reductions = [e for e in forward_only if e.primitive.name in ('reduce_sum', 'rsqrt')]
  assert len(reductions) >= 3 * (2 if scan else 6) + 3
  assert {e.invars[0].aval.dtype.name for e in reductions} == {'float32'}
  logs = [e for e in forward_only if e.primitive.name in ('log1p', 'exp', 'logistic')]
  assert logs and {e.invars[0].aval.dtype.name for e in logs} == {'float32'}

  # Backwards, the same: two matmuls for each one forwards, that of the kernel written for CPUs and
  # for other devices, and float32 gradients.
  both = list(equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  kinds = [e.outvars[0].aval.dtype.name for e in both if e.primitive.name == 'dot_general']
  assert kinds.count('float32') == 3
  assert kinds.count('bfloat16') == 4 * (len(matmuls) - 1)
  gradients = jax.eval_shape(jax.grad(loss), params)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {'float32'}


# --- Dropout and stochastic depth ----------------------------------------------------------


def small_depth_model(**options):
  sizes = dict(hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=16)
  return tiny(4, **{**sizes, **options})


def stack(params):
  """The released layout -> the layout of a scanned model."""
  blocks = [params[f'MixerBlock_{i}'] for i in range(3)]
  rest = {name: params[name] for name in ('stem', 'pre_head_layer_norm', 'head')}
  return {**rest, 'MixerBlocks': jax.tree.map(lambda *rows: np.stack(rows), *blocks)}


@pytest.mark.parametrize('rescale,scan', [(False, False), (True, False), (False, True)])
def test_stochastic_depth(rescale, scan):
  """Each branch drops whole and by a separate draw, in block i of 3 with rate i / 2 * 0.6.

  All examples are the same image, so each output must be one of the sixteen that NumPy gets by
  keeping and dropping the token and channel branches of blocks 1 and 2.
  """
  n, rates = 4000, np.array([0.3, 0.3, 0.6, 0.6])
  model = small_depth_model(stochastic_depth=0.6, rescale_drop_path=rescale, scan=scan)
  params, image = random_params(small_depth_model(), 8), random_images(1, (8, 8))
  masks = np.array(list(itertools.product((0, 1), repeat=4)))
  candidates = []
  for mask in masks / (1 - rates if rescale else 1):
    scales = [(1.0, 1.0), tuple(mask[:2]), tuple(mask[2:])]
    candidates.append(forward(params, image, (4, 4), scales)[1][0])
  params_of_model = stack(params) if scan else params
  outputs = run(model, params_of_model, np.repeat(image, n, axis=0), example_keys(n))
  distance = np.abs(outputs[:, None] - np.array(candidates)[None]).max(axis=-1)
  ordered = np.sort(distance, axis=1)
  assert ordered[:, 0].max() < 1e-5
  assert ordered[:, 1].min() > 1e-4  # no two of the sixteen look alike
  wanted = np.where(masks == 1, 1 - rates, rates).prod(axis=1)
  found = np.bincount(distance.argmin(axis=1), minlength=16) / n
  np.testing.assert_array_less(np.abs(found - wanted), 4.5 * np.sqrt(wanted * (1 - wanted) / n))


def test_one_block_never_drops():
  model = small_depth_model(num_blocks=1, stochastic_depth=0.9)
  params, images = random_params(model, 8), random_images(16, (8, 8))
  outputs = run(model, params, images, example_keys(16))
  close(outputs, forward(params, images, (4, 4))[1])


def test_no_keys_no_randomness():
  random = tiny(stochastic_depth=0.5, dropout=0.5)
  params, images = random_params(tiny()), random_images(4)
  _, logits = forward(params, images, (4, 4))
  close(run(random, params, images), logits)
  close(run(tiny(), params, images, example_keys(4)), logits)
  with_keys = run(random, params, images, example_keys(4))
  assert np.abs(np.asarray(with_keys) - logits).max() > 0.01


def test_draws_follow_the_example():
  """An example's output does not depend on its place in the batch or on its neighbours."""
  model = tiny(stochastic_depth=0.5, dropout=0.2)
  apply = jax.jit(models.apply_function(model))
  params, images, keys = random_params(tiny()), random_images(8), example_keys(8)
  outputs = np.asarray(apply(params, images, keys))
  order = np.random.default_rng(0).permutation(8)
  close(apply(params, images[order], keys[order]), outputs[order], 1e-6)
  close(apply(params, images[2:5], keys[2:5]), outputs[2:5], 1e-6)
  others = np.asarray(apply(params, images, keys[order]))
  moved = order != np.arange(8)
  assert (np.abs(others - outputs).max(axis=1)[moved] > 1e-3).all()


def test_dropout_values():
  """Both layers drop: with an identity as second layer, a value passes both draws or is 0."""
  rate, n, width = 0.25, 400, 24
  params = {
    'Dense_0': {'kernel': np.eye(width, dtype=np.float32), 'bias': np.ones(width, np.float32)},
    'Dense_1': {'kernel': np.eye(width, dtype=np.float32), 'bias': np.zeros(width, np.float32)},
  }
  x = np.float32(np.random.default_rng(0).uniform(0, 1, (n, 3, width)))
  block = layers.MlpBlock(width, rate)
  outputs = np.asarray(block.apply({'params': params}, x, example_keys(n)))
  kept = outputs != 0
  close(outputs[kept], (gelu(x.astype(np.float64) + 1) / (1 - rate) ** 2)[kept], 1e-6)
  share, wanted = kept.mean(), (1 - rate) ** 2
  assert abs(share - wanted) < 4.5 * np.sqrt(wanted * (1 - wanted) / kept.size)
  # Draws are independent between positions and examples: shares by position and by example.
  for axis, size in ((0, n), ((1, 2), 3 * width)):
    spread = 4.5 * np.sqrt(wanted * (1 - wanted) / size)
    assert np.abs(kept.mean(axis=axis) - wanted).max() < spread
  # A single dropout: with no second bias, a zero input gives a zero output.
  hidden = layers.dropout(np.ones((n, 3, width), np.float32), rate, example_keys(n))
  assert set(np.unique(hidden)) == {np.float32(0), np.float32(1 / (1 - rate))}


def test_mlps_drop_independently():
  """Sixteen tokens of sixteen channels, so that equal keys would give equal masks."""
  model = tiny(hidden_dim=16, channels_mlp_dim=16, dropout=0.5)
  _, state = jax.jit(
    lambda params: model.apply(
      {'params': params},
      random_images(1),
      example_keys(1),
      capture_intermediates=lambda module, _: isinstance(module, layers.MlpBlock),
      mutable=['intermediates'],
    )
  )(random_params(model))
  masks = [
    np.asarray(state['intermediates'][f'MixerBlock_{i}'][name]['__call__'][0]) == 0
    for i in range(3)
    for name in ('token_mixing', 'channel_mixing')
  ]
  spread = 4.5 * 0.5 / np.sqrt(16 * 16)
  for mask in masks:
    assert abs(mask.mean() - 0.5) < spread
  for one, other in itertools.combinations(masks, 2):
    assert abs((one == other).mean() - 0.5) < spread


# --- Scan and remat ------------------------------------------------------------------------


@pytest.fixture(scope='module')
def plain_gradient():
  return value_and_gradient(scan=False, remat=False)


def value_and_gradient(scan, remat):
  """(logits, gradients in the released layout), with every kind of randomness on."""
  model = tiny(stochastic_depth=0.5, dropout=0.1, scan=scan, remat=remat)
  params, images, keys = random_params(tiny()), random_images(8), example_keys(8)
  weights = np.random.default_rng(3).standard_normal((8, 5)).astype(np.float32)

  def loss(params):
    logits = models.apply_function(model)(params, images, keys)
    return (weights * logits).sum(), logits

  gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(stack(params) if scan else params)
  gradient = jax.tree.map(np.asarray, gradient)
  if scan:
    stacked = gradient.pop('MixerBlocks')
    for i in range(3):
      gradient[f'MixerBlock_{i}'] = jax.tree.map(lambda x, i=i: x[i], stacked)
  return logits, gradient


@pytest.mark.parametrize('scan,remat', [(False, True), (True, False), (True, True)])
def test_scan_and_remat_change_nothing(plain_gradient, scan, remat):
  logits, gradient = value_and_gradient(scan, remat)
  close(logits, plain_gradient[0])
  close_trees(gradient, plain_gradient[1], 1e-5)


@pytest.mark.parametrize('shape', [(8, 3), (3, 8)])
def test_the_product_of_a_dense_layer(shape):
  """Its gradients too, which the CPU computes in an order of its own."""
  keys = jax.random.split(jax.random.key(0), 3)
  sides = (2, 5, shape[0]), shape, (2, 5, shape[1])
  x, kernel, dy = (jax.random.normal(key, side) for key, side in zip(keys, sides))
  y, backward = jax.jit(
    lambda *given: jax.vjp(lambda x, w: layers.dense_product(x, w, ()), *given)
  )(x, kernel)
  dx, dkernel = backward(dy)
  x, kernel, dy = (np.asarray(value, np.float64) for value in (x, kernel, dy))
  for found, wanted in (
    (y, x @ kernel), (dx, dy @ kernel.T), (dkernel, np.einsum('nra,nrb->ab', x, dy))
  ):  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('platform, ordered', [('cpu', True), ('tpu', False), ('cuda', False)])
def test_other_devices_choose_the_order_of_the_product(platform, ordered):
  x, kernel = (jax.ShapeDtypeStruct(shape, 'float32') for shape in ((4, 8), (8, 3)))
  gradient = jax.jit(jax.grad(lambda *given: layers.dense_product(*given, ()).sum(), 1))
  text = gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
  assert ('optimization_barrier' in text) == ordered


def test_gradient_against_finite_differences():
  """The deterministic model's gradient, along random directions, from the NumPy forward."""
  params, images = random_params(tiny()), random_images(8)
  weights = np.random.default_rng(3).standard_normal((8, 5)).astype(np.float32)
  gradient = jax.jit(
    jax.grad(lambda p: (weights * models.apply_function(tiny())(p, images)).sum())
  )(params)
  rng = np.random.default_rng(4)
  for _ in range(3):
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)
    moved = [
      forward(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction), images, (4, 4))[1]
      for s in (1e-6, -1e-6)
    ]
    wanted = (weights * (moved[0] - moved[1])).sum() / 2e-6
    products = jax.tree.map(lambda g, d: (np.float64(g) * d).sum(), gradient, direction)
    assert sum(jax.tree.leaves(products)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize('scan,remat', list(itertools.product([False, True], repeat=2)))
def test_scan_and_remat_are_used(scan, remat):
  """One loop of three iterations instead of three blocks; a checkpoint around each block."""
  model = tiny(scan=scan, remat=remat)
  apply = models.apply_function(model)
  jaxpr = jax.make_jaxpr(apply)(shapes_of(model, 16), random_images(1))
  found = list(equations(jaxpr.jaxpr))
  loops = [e.params['length'] for e in found if e.primitive.name == 'scan']
  assert loops == ([3] if scan else [])
  blocks = [e for e in found if e.primitive.name in ('checkpoint', 'remat', 'remat2')]
  assert len(blocks) == remat * (1 if scan else 3)
