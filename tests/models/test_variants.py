"""The changes of appendix A: against formulas and NumPy, and combinations that are refused."""

import importlib
import json
import re

import jax
import numpy as np
import pytest

from mixer import convert, models, pretrained
from mixer.errors import InputError
from mixer.models import layers, mlp_mixer, scanning, variants
from mixer.pretrained import __main__ as program
from mixer.pretrained import warm_start
from reference import layer_norm, mlp
import runs

CHANGES = {
  'untied': dict(untie_tokens=True),
  'concat': dict(channel_groups=2, grouping='concat'),
  'views': dict(channel_groups=4, grouping='views'),
  'pyramid': dict(pyramid=((1, 5), (2, 2))),
}
SIZES = dict(num_blocks=3, hidden_dim=8, tokens_mlp_dim=6, channels_mlp_dim=12, patch_size=2)
SCANNED = [name for name in CHANGES if name != 'pyramid']
change = pytest.mark.parametrize('change', CHANGES)


def build(change=None, num_classes=3, **options):
  return models.build('Mixer', num_classes, **{**SIZES, **CHANGES.get(change, {}), **options})


def random_params(model, size=(6, 8), seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.float32(0.5 * rng.standard_normal(x.shape)), models.shapes(model, size)
  )


def random_images(n=3, size=(6, 8)):
  return np.float32(np.random.default_rng(1).uniform(-1, 1, (n, *size, 3)))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- Parameters ----------------------------------------------------------------------------


def headless_count(L, S, C, D_S, D_C, P, token_mlp):
  """Section 1.3 of the facts, with `token_mlp(i)` parameters in the token part of block i."""
  blocks = sum(token_mlp(i) + 2 * C * D_C + D_C + C + 4 * C for i in range(L))
  return P * P * 3 * C + C + blocks + 2 * C


S32 = dict(L=8, S=49, C=512, D_S=256, D_C=2048, P=32)


@pytest.mark.parametrize(
  'options,token_mlp',
  [
    ({}, lambda i: 2 * 49 * 256 + 256 + 49),
    (dict(untie_tokens=True), lambda i: 512 * (2 * 49 * 256 + 256 + 49)),
    (dict(channel_groups=2), lambda i: 2 * (2 * 49) * 256 + 256 + 2 * 49),
    (
      dict(channel_groups=4, grouping='views'),
      lambda i: 4 * (512 * (512 // 4)) + 2 * (4 * 49) * 256 + 256 + 4 * 49,
    ),
    (
      dict(pyramid=((4, 12),)),
      lambda i: (49 if i <= 4 else 12) * 256 + 256 + 256 * (49 if i < 4 else 12)
      + (49 if i < 4 else 12),
    ),
  ],
  ids=['none', *CHANGES],
)  # fmt: skip
def test_parameter_counts(options, token_mlp):
  shapes = models.shapes(models.build('Mixer-S/32', None, **options), 224)
  assert count(shapes) == headless_count(**S32, token_mlp=token_mlp)
  if not options:
    assert count(shapes) == 18_591_624  # Table 1


def test_counts_in_the_docs():
  text = (runs.ROOT / 'docs' / 'reproduction.md').read_text()
  config = importlib.import_module('configs.ablations')
  for change in config.CHANGES:
    (printed,) = re.findall(rf'^\| `{change}`.*?\| ([\d,]{{9,}}) \|', text, re.M)
    model = models.build(**config.get_config(f'change={change}').model, num_classes=None)
    assert f'{count(models.shapes(model, 224)):,}' == printed, change


def test_untied_token_mlps_are_as_many_as_channels():
  shared, untied = (
    models.shapes(models.build('Mixer-B/16', None, **options), 224)['MixerBlock_3']
    for options in ({}, CHANGES['untied'])
  )
  assert count(shared['token_mixing']) == 151_108
  assert count(untied['untied_token_mixing']) == 768 * 151_108


def test_off_is_the_released_layout():
  off = dict(untie_tokens=False, channel_groups=1, grouping='views', pyramid=())
  plain, explicit = (models.shapes(build(**options), (6, 8)) for options in ({}, off))
  assert jax.tree.map(np.shape, plain) == jax.tree.map(np.shape, explicit)
  assert set(plain['MixerBlock_0']) == {
    'LayerNorm_0', 'LayerNorm_1', 'token_mixing', 'channel_mixing'
  }  # fmt: skip


@change
def test_parameter_names_differ_from_the_mixers(change):
  block = models.shapes(build(change), (6, 8))['MixerBlock_1']
  assert 'token_mixing' not in block


def test_fan_in_of_untied_layers_is_that_of_one_row():
  layer = variants.UntiedDense(200)
  params = layer.init(jax.random.key(0), np.zeros((1, 30, 50), np.float32))['params']
  kernel = np.asarray(params['kernel'])
  assert kernel.shape == (30, 50, 200) and params['bias'].shape == (30, 200)
  assert np.all(np.abs(kernel.std(axis=(1, 2)) * np.sqrt(50) - 1) < 0.05)


# --- The forward pass in NumPy ----------------------------------------------------------------


def mix_untied(x, p):
  out = np.empty_like(x)
  for c in range(x.shape[-1]):
    own = jax.tree.map(lambda leaf, c=c: leaf[c], p['untied_token_mixing'])
    out[:, :, c] = mlp(x[:, :, c], own)
  return out


def mix_concat(x, p, groups=2):
  n, tokens, channels = x.shape
  table = np.empty((n, tokens * groups, channels // groups))
  for s, c in np.ndindex(tokens, channels):
    table[:, s * groups + c % groups, c // groups] = x[:, s, c]
  table = mlp(table.transpose(0, 2, 1), p['grouped_token_mixing']).transpose(0, 2, 1)
  out = np.empty_like(x)
  for s, c in np.ndindex(tokens, channels):
    out[:, s, c] = table[:, s * groups + c % groups, c // groups]
  return out


def mix_views(x, p, groups=4):
  n, tokens, channels = x.shape
  width = channels // groups
  table = np.empty((n, tokens * groups, width))
  for s, g in np.ndindex(tokens, groups):
    view = p['views']['kernel'][:, g * width : (g + 1) * width]
    table[:, s * groups + g] = x[:, s] @ view
  table = mlp(table.transpose(0, 2, 1), p['grouped_token_mixing']).transpose(0, 2, 1)
  return np.concatenate([table[:, g::groups] for g in range(groups)], axis=2)


def mix_plain(x, p):
  return mlp(x.transpose(0, 2, 1), p['token_mixing']).transpose(0, 2, 1)


def mix_pyramid(x, p):
  return mlp(x.transpose(0, 2, 1), p['pyramid_token_mixing']).transpose(0, 2, 1)


MIXING = {'untied': mix_untied, 'concat': mix_concat, 'views': mix_views}


def forward(change, params, images, patch=2):
  params = jax.tree.map(np.float64, params)
  n, height, width, _ = images.shape
  patches = images.reshape(n, height // patch, patch, width // patch, patch, 3)
  patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, patch * patch * 3)
  x = patches @ params['stem']['kernel'].reshape(-1, SIZES['hidden_dim']) + params['stem']['bias']
  for i in range(SIZES['num_blocks']):
    p = params[f'MixerBlock_{i}']
    normed = layer_norm(x, p['LayerNorm_0'])
    if change == 'pyramid':
      u = mix_pyramid(normed, p) if i in (1, 2) else x + mix_plain(normed, p)
    else:
      u = x + MIXING[change](normed, p)
    x = u + mlp(layer_norm(u, p['LayerNorm_1']), p['channel_mixing'])
  pooled = layer_norm(x, params['pre_head_layer_norm']).mean(axis=1)
  return pooled @ params['head']['kernel'] + params['head']['bias']


@change
def test_logits_equal_numpy(change):
  model = build(change)
  params, images = random_params(model), random_images()
  actual = np.asarray(jax.jit(models.apply_function(model))(params, images))
  wanted = forward(change, params, images)
  np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_table_of_a_pyramid_becomes_smaller():
  model = build('pyramid')
  found = jax.eval_shape(
    lambda images: models.intermediates(model, random_params(model), images), random_images()
  )
  assert [found[f'MixerBlock_{i}'].shape[1] for i in range(3)] == [12, 5, 2]


@change
def test_every_parameter_has_a_gradient(change):
  smaller = dict(pyramid=((1, 2),)) if change == 'pyramid' else {}
  model = build(change, num_blocks=2, **smaller)
  params, images = random_params(model), random_images()

  @jax.jit
  def gradient(params):
    return jax.grad(lambda p: (model.apply({'params': p}, images)[:, 0] ** 2).sum())(params)

  for name, leaf in pretrained.flatten(gradient(params)).items():
    assert np.isfinite(leaf).all() and (name.startswith('head') or np.any(leaf)), name


@change
def test_remat_and_scan(change):
  scan = change in SCANNED
  model = build(change, remat=True, scan=scan)
  params, images = random_params(build(change)), random_images()
  used = scanning.stack_blocks(params) if scan else params
  actual = np.asarray(jax.jit(models.apply_function(model))(used, images))
  wanted = forward(change, params, images)
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_bfloat16_reaches_untied_layers():
  x = np.ones((2, 3, 4), np.float32)
  layer = variants.UntiedDense(5, 'bfloat16')
  shapes = jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), x))
  assert shapes[0].dtype == 'bfloat16' and shapes[1]['params']['kernel'].dtype == 'float32'


@pytest.mark.parametrize('change', ['untied', 'views'])
def test_scanned_models_start_with_the_same_numbers(change):
  key = jax.random.key(5)
  plain, scanned = jax.jit(
    lambda key: [models.init(build(change, scan=scan), key, (6, 8)) for scan in (False, True)]
  )(key)
  jax.tree.map(np.testing.assert_array_equal, scanning.unstack_blocks(scanned), plain)


def test_dropout_differs_between_channels_of_untied_mlps():
  """A mask shared by all channels would drop a hidden unit of every MLP at once."""
  x, keys = np.ones((1, 2, 5), np.float32), jax.random.split(jax.random.key(1), 1)
  mlp = layers.MlpBlock(hidden_dim=8, dropout_rate=0.5, dense=variants.UntiedDense)
  out, _ = jax.jit(mlp.init_with_output)(jax.random.key(0), x, keys)
  dropped = np.asarray(out[0] == 0)
  assert dropped.any() and (dropped[0] != dropped[1]).any()


# --- FLOPs ---------------------------------------------------------------------------------


@change
def test_flops(change):
  S, C, D = 12, 8, 6
  wanted = {
    'untied': 3 * 2 * C * (S * D + D * S),
    'concat': 3 * 2 * (C // 2) * (2 * S * D + D * 2 * S),
    'views': 3 * 2 * (S * C * C + (C // 4) * (4 * S * D + D * 4 * S)),
    'pyramid': 2 * C * D * ((12 + 12) + (12 + 5) + (5 + 2)),
  }
  parts = mlp_mixer.matmul_flops(build(change), (6, 8))
  assert parts['tokens'] == wanted[change]
  tokens = 12 + 5 + 2 if change == 'pyramid' else 3 * 12
  assert parts['channels'] == 2 * tokens * 2 * C * 12
  assert parts['stem'] == 2 * 12 * 2 * 2 * 3 * C


@change
def test_flops_against_jax(change):
  options = {**CHANGES[change], **({'pyramid': ((1, 50),)} if change == 'pyramid' else {})}
  model = models.build('Mixer-S/16', 1000, **options, num_blocks=2)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  lowered = jax.jit(models.apply_function(model)).lower(models.shapes(model, 224), images)
  counted = lowered.cost_analysis()['flops'] / sum(mlp_mixer.matmul_flops(model, 224).values())
  assert 1.0 < counted < 1.03


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'options,words',
  [
    (dict(channel_groups=3), 'channel_groups is 3; use a divisor of hidden_dim=8'),
    (dict(channel_groups=0), 'channel_groups is 0; use an int from 1 to '),
    (dict(grouping='both'), "grouping is 'both'; use one of"),
    (dict(pyramid=(3, 4)), r'pyramid is \(3, 4\); use a tuple of which each is a tuple'),
    (dict(pyramid=((3, 2),)), 'blocks rising within 0 to 2'),
    (dict(pyramid=((2, 4), (1, 2))), 'blocks rising'),
    (dict(pyramid=((1, 4), (2, 4))), 'tokens falling'),
    (dict(pyramid=((1, 0),)), 'tokens falling'),
    (dict(pyramid=((1, 4),), scan=True), 'cannot be scanned; use scan=False'),
    (dict(untie_tokens=True, channel_groups=2), 'untie_tokens=True and channel_groups=2: only one'),
    (dict(untie_tokens=True, tiles=2), 'untie_tokens=True with tiles=2: growing .* use tiles=1'),
  ],
)
def test_refused(options, words):
  with pytest.raises(InputError, match=words):
    build(**options)


def test_a_pyramid_that_grows_is_refused():
  with pytest.raises(InputError, match='asks for 12 tokens where there are 12; ask for fewer'):
    models.shapes(build(pyramid=((1, 12),)), (6, 8))


@change
def test_loaders_refuse_a_changed_model_without_its_config(change, tmp_path):
  """Four groups on 6 x 6 patches have the shapes of a Mixer on 12 x 12."""
  params = random_params(build(change, channel_groups=4) if change == 'concat' else build(change))
  pretrained.save(tmp_path / 'm.npz', params)
  text = 'm.npz: token mixing is changed as in appendix A'
  for use in (
    lambda path: convert.convert(path, tmp_path / 'n.npz', (6, 8)),
    lambda path: pretrained.open(path).describe(image_size=(6, 8)),
    program.summarize,
  ):
    with pytest.raises(InputError, match=text):
      use(tmp_path / 'm.npz')


@change
def test_warm_start_needs_the_same_change(change):
  model = build(change)
  params = random_params(model)
  how = dict(source='m.npz', image_size=(6, 8), channels=3, head='auto')
  started, _ = warm_start.start_from(params, model, **how)
  jax.tree.map(np.testing.assert_array_equal, started, params)
  with pytest.raises(InputError, match='m.npz does not fit the model'):
    warm_start.start_from(random_params(build()), model, **how)
  with pytest.raises(InputError, match='m.npz: token mixing is changed as in appendix A'):
    warm_start.start_from(params, build(), **{**how, 'from_size': (6, 8)})


# --- From a config ----------------------------------------------------------------------------


@change
def test_a_config_and_its_json_build_the_model(change):
  config = importlib.import_module('configs.ablations').get_config(f'data=digits,change={change}')
  arguments = json.loads(json.dumps({**config.model.to_dict(), 'num_classes': 10}))
  model = models.build(**arguments)
  assert len(variants.active(model)) == 1
  assert models.shapes(model, 8, 1) == models.shapes(
    models.build(**config.model.to_dict(), num_classes=10), 8, 1
  )


@pytest.mark.parametrize(
  'argument,words',
  [
    ('change=tied', "change='tied'; use one of"),
    ('data=mnist', "data='mnist'; use one of"),
    ('size=S', "'size=S' is not KEY=VALUE"),
    ('model=S', "model='S'; write one as S/32"),
    ('data=digits,model=S/32', 'data=digits has its own small model'),
  ],
)
def test_config_arguments(argument, words):
  with pytest.raises(ValueError, match=words):
    importlib.import_module('configs.ablations').get_config(argument)
