"""ViT against the published counts and names and against its equations written out in NumPy."""

import itertools
import re
import types

import jax
import numpy as np
import pytest
import scipy.ndimage

from mixer import models
from mixer.errors import InputError
from mixer.models import attention, layers, position_tables, scanning, vit
from mixer.training import sharding
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
)
import reference
from reference import layer_norm, mlp

# Parameters with 1000 classes at 224 pixels.
COUNTS = {
  'Ti/16': 5_717_416,
  'S/32': 22_878_952,
  'S/16': 22_050_664,
  'B/32': 88_224_232,
  'B/16': 86_567_656,
  'L/32': 306_535_400,
  'L/16': 304_326_632,
  'H/14': 632_045_800,
}
GAP_COUNTS = {
  'S/32': 22_878_184,
  'S/16': 22_049_896,
  'B/32': 88_222_696,
  'B/16': 86_566_120,
}
KINDS = [
  dict(pool=pool, representation_layer=layer) for pool in ('token', 'gap') for layer in (0, 1)
]
kinds = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: '-'.join(map(str, kind.values())))
SIZES = dict(num_blocks=3, hidden_dim=32, mlp_dim=48, num_heads=4, patch_size=4)


def tiny(num_classes=5, **options):
  return models.build('ViT', num_classes, **{**SIZES, **options})


def attend(x, p):
  """Equations (5) to (8) of the ViT paper, one head at a time."""
  out = p['out']['bias'] + np.zeros_like(x)
  for head in range(p['query']['kernel'].shape[1]):
    q, k, v = (
      x @ p[name]['kernel'][:, head] + p[name]['bias'][head] for name in ('query', 'key', 'value')
    )
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out += weights / weights.sum(-1, keepdims=True) @ v @ p['out']['kernel'][head]
  return out


def forward(params, images, patch=(4, 4), branch_scales=None):
  """Equations (1) to (4) of the ViT paper in float64: ({name: activation}, logits).

  The parameters say what the pool and the head are. `branch_scales` multiplies the attention and
  the MLP of each block.
  """
  params = jax.tree.map(np.float64, params)
  kernel, bias = params['embedding']['kernel'], params['embedding']['bias']
  rows, columns = images.shape[1] // patch[0], images.shape[2] // patch[1]
  found = {'embedding': np.empty((len(images), rows, columns, kernel.shape[-1]))}
  for r, c in np.ndindex(rows, columns):
    pixels = images[:, r * patch[0] : (r + 1) * patch[0], c * patch[1] : (c + 1) * patch[1]]
    found['embedding'][:, r, c] = np.einsum('nhwi,hwio->no', pixels, kernel) + bias
  x = found['embedding'].reshape(len(images), rows * columns, -1)
  if 'cls' in params:
    x = np.concatenate([np.repeat(params['cls'], len(x), axis=0), x], axis=1)
  encoder = params['Transformer']
  x = x + encoder['posembed_input']['pos_embedding']
  for i in range(sum(name.startswith('encoderblock_') for name in encoder)):
    p = encoder[f'encoderblock_{i}']
    scales = branch_scales[i] if branch_scales else (1.0, 1.0)
    u = x + scales[0] * attend(layer_norm(x, p['LayerNorm_0']), p['MultiHeadDotProductAttention_1'])
    x = u + scales[1] * mlp(layer_norm(u, p['LayerNorm_2']), p['MlpBlock_3'])
    found[f'encoderblock_{i}'] = x
  x = layer_norm(x, encoder['encoder_norm'])
  x = x[:, 0] if 'cls' in params else x.mean(axis=1)
  if 'pre_logits' in params:
    x = np.tanh(x @ params['pre_logits']['kernel'] + params['pre_logits']['bias'])
  found['pre_logits'] = x
  return found, x @ params['head']['kernel'] + params['head']['bias']


def without_positions(params):
  encoder = params['Transformer']
  zeros = jax.tree.map(np.zeros_like, encoder['posembed_input'])
  return {**params, 'Transformer': {**encoder, 'posembed_input': zeros}}


# --- Sizes and names -----------------------------------------------------------------------


@pytest.mark.parametrize('size', COUNTS)
def test_parameter_counts(size):
  assert count(shapes_of(models.build(f'ViT-{size}', 1000, scan=True))) == COUNTS[size]
  if size in GAP_COUNTS:
    model = models.build(f'ViT-{size}', 1000, pool='gap', scan=True)
    assert count(shapes_of(model)) == GAP_COUNTS[size]


def test_released_names_and_shapes():
  """Those of imagenet21k/ViT-B_16.npz, which has a representation layer."""
  wanted = {
    'cls': (1, 1, 768),
    'embedding/kernel': (16, 16, 3, 768),
    'embedding/bias': (768,),
    'Transformer/posembed_input/pos_embedding': (1, 197, 768),
    'Transformer/encoder_norm/scale': (768,),
    'Transformer/encoder_norm/bias': (768,),
    'pre_logits/kernel': (768, 768),
    'pre_logits/bias': (768,),
    'head/kernel': (768, 21843),
    'head/bias': (21843,),
  }
  for i in range(12):
    block = f'Transformer/encoderblock_{i}'
    for norm in ('LayerNorm_0', 'LayerNorm_2'):
      wanted |= {f'{block}/{norm}/{leaf}': (768,) for leaf in ('scale', 'bias')}
    for name in ('query', 'key', 'value'):
      wanted[f'{block}/MultiHeadDotProductAttention_1/{name}/kernel'] = (768, 12, 64)
      wanted[f'{block}/MultiHeadDotProductAttention_1/{name}/bias'] = (12, 64)
    wanted[f'{block}/MultiHeadDotProductAttention_1/out/kernel'] = (12, 64, 768)
    wanted[f'{block}/MultiHeadDotProductAttention_1/out/bias'] = (768,)
    wanted[f'{block}/MlpBlock_3/Dense_0/kernel'] = (768, 3072)
    wanted[f'{block}/MlpBlock_3/Dense_0/bias'] = (3072,)
    wanted[f'{block}/MlpBlock_3/Dense_1/kernel'] = (3072, 768)
    wanted[f'{block}/MlpBlock_3/Dense_1/bias'] = (768,)
  shapes = shapes_of(models.build('ViT-B/16', 21843, representation_layer=True))
  paths, _ = jax.tree_util.tree_flatten_with_path(shapes)
  assert {'/'.join(key.key for key in path): leaf.shape for path, leaf in paths} == wanted
  assert {leaf.dtype for _, leaf in paths} == {np.dtype('float32')}


# --- The forward pass ----------------------------------------------------------------------


@kinds
def test_logits_equal_numpy(kind):
  model = tiny(**kind)
  params, images = random_params(model), random_images(3)
  assert ('cls' in params) == (kind['pool'] == 'token')
  assert ('pre_logits' in params) == bool(kind['representation_layer'])
  actual = run(model, params, images)
  assert actual.dtype == np.float32 and actual.shape == (3, 5)
  close(actual, forward(params, images)[1])


def test_epsilon(monkeypatch):
  """With small embeddings and positions, another epsilon changes the logits measurably."""
  params, images = random_params(tiny()), random_images(3)
  small = {name: params[name] for name in ('embedding', 'cls')}
  params |= jax.tree.map(lambda x: x * np.float32(1e-3), small)
  params = without_positions(params)
  actual = run(tiny(), params, images)
  close(actual, forward(params, images)[1])
  monkeypatch.setattr(reference, 'EPSILON', 1e-5)
  assert np.abs(forward(params, images)[1] - actual).max() > 1e-2


@pytest.mark.parametrize('size,patch', [((8, 24), 4), ((12, 16), (4, 2))])
def test_logits_of_rectangles(size, patch):
  model = tiny(patch_size=patch)
  params, images = random_params(model, size), random_images(3, size)
  close(run(model, params, images), forward(params, images, layers.pair(patch))[1])


@kinds
def test_intermediates(kind):
  plain, model = tiny(**kind), tiny(**kind, scan=True, remat=True)
  params, images = random_params(plain), random_images(2)
  wanted, logits = forward(params, images)
  for net, tree in ((plain, params), (model, params), (model, scanning.stack_blocks(params))):
    found = models.intermediates(net, tree, images)
    assert list(found) == [*wanted, 'output']
    for name, value in wanted.items():
      close(found[name], value)
    close(found['output'], logits)


def test_pre_logits_without_a_head():
  """Together with `hidden_dim`, the width of the head's kernel."""
  model = tiny(representation_layer=True)
  params, images = random_params(model), random_images(4)
  features = jax.jit(models.features_function(model))(params, images)
  assert features.shape == (4, model.hidden_dim) and features.dtype == np.float32
  close(features, forward(params, images)[0]['pre_logits'])


@pytest.mark.parametrize('pool', ['token', 'gap'])
def test_permuted_patches(pool):
  """Only the position table tells a token's place."""
  model, patch = tiny(pool=pool), 4
  params, images = random_params(model), random_images(4)
  order = np.random.default_rng(7).permutation(16)
  grid = images.reshape(4, 4, patch, 4, patch, 3).transpose(0, 1, 3, 2, 4, 5)
  moved = grid.reshape(4, 16, patch, patch, 3)[:, order].reshape(grid.shape)
  moved = moved.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
  bare = without_positions(params)
  close(run(model, bare, moved), run(model, bare, images))
  assert np.abs(run(model, params, moved) - run(model, params, images)).max() > 0.01


# --- Initial values ------------------------------------------------------------------------


def test_initial_values():
  """Uniform with variance 2 / (inputs + outputs) in the blocks, as in vision_transformer."""
  model = tiny(num_blocks=1, hidden_dim=192, mlp_dim=320, head_bias=-6.9)
  params = init(model, 32)
  block = params['Transformer']['encoderblock_0']
  heads, dense = block['MultiHeadDotProductAttention_1'], block['MlpBlock_3']
  for kernel, fans in [
    *((heads[name]['kernel'], 192 + 192) for name in ('query', 'key', 'value', 'out')),
    *((dense[name]['kernel'], 192 + 320) for name in ('Dense_0', 'Dense_1')),
  ]:
    values = np.asarray(kernel).ravel() * np.sqrt(fans / 2)
    assert abs(values.std() - 1) < 4 / np.sqrt(values.size)
    assert np.sqrt(3) - 0.01 < np.abs(values).max() < np.sqrt(3) + 1e-3
  embedding = np.asarray(params['embedding']['kernel']).ravel() * np.sqrt(4 * 4 * 3)
  assert abs(embedding.std() - 1) < 4 / np.sqrt(embedding.size)
  for leaf, deviation in [
    (params['Transformer']['posembed_input']['pos_embedding'], 0.02),
    (dense['Dense_0']['bias'], 1e-6),
    (dense['Dense_1']['bias'], 1e-6),
  ]:
    assert abs(np.std(leaf) / deviation - 1) < 4 / np.sqrt(leaf.size)
  assert not np.any(params['cls']) and not np.any(params['head']['kernel'])
  assert not any(np.any(heads[name]['bias']) for name in heads)
  np.testing.assert_array_equal(run(model, params, random_images(2, (32, 32))), np.float32(-6.9))


def test_scanned_model_starts_with_the_same_numbers():
  plain, scanned = init(tiny(), seed=5), init(tiny(scan=True), seed=5)
  assert set(scanned['Transformer']) == {'posembed_input', 'encoderblock', 'encoder_norm'}
  for i in range(3):
    row = jax.tree.map(lambda x, i=i: x[i], scanned['Transformer']['encoderblock'])
    block = plain['Transformer'][f'encoderblock_{i}']
    jax.tree.map(np.testing.assert_array_equal, row, block)
  jax.tree.map(np.testing.assert_array_equal, scanning.unstack_blocks(scanned), plain)
  jax.tree.map(np.testing.assert_array_equal, scanning.unstack_blocks(plain), plain)


# --- FLOPs ---------------------------------------------------------------------------------


@pytest.mark.parametrize('pool', ['token', 'gap'])
def test_flops_against_jax(pool):
  """XLA also counts element-wise work, and the products with the masks of the softmax."""
  model = models.build('ViT-S/16', 1000, num_blocks=2, pool=pool, representation_layer=True)
  params, images = shapes_of(model), jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
  apply = models.apply_function(model)
  forward_cost = jax.jit(apply).lower(params, images).cost_analysis()['flops'] / 2
  assert 1.0 < forward_cost / sum(vit.matmul_flops(model, 224).values()) < 1.03

  gradient = jax.jit(jax.grad(lambda p, x: apply(p, x).sum()))
  train_cost = gradient.lower(params, images).cost_analysis()['flops'] / 2
  assert 1.0 < train_cost / models.train_flops(model, 224) < 1.03


def test_flops_of_grey_rectangles():
  patches = (8 // 4) * (12 // 2)
  for pool, tokens in (('token', patches + 1), ('gap', patches)):
    assert vit.matmul_flops(tiny(pool=pool, patch_size=(4, 2)), (8, 12), channels=1) == {
      'stem': 2 * patches * 8 * 32,
      'projections': 3 * 4 * (2 * tokens * 32 * 32),
      'attention': 3 * 4 * 2 * (2 * tokens * tokens * 8),
      'mlp': 3 * 2 * (2 * tokens * 32 * 48),
      'head': 2 * 32 * 5,
    }
  assert vit.matmul_flops(tiny(None, representation_layer=True), 16)['head'] == 2 * 32 * 32


@pytest.mark.parametrize(
  'size,gmac', [('S/32', 1.1), ('S/16', 4.6), ('B/32', 4.4), ('B/16', 17.6), ('L/16', 61.6)]
)
def test_published_gmac(size, gmac):
  total = sum(vit.matmul_flops(models.build(f'ViT-{size}', 1000), 224).values()) / 2e9
  assert round(total, 1) == gmac


# --- bfloat16 ------------------------------------------------------------------------------


def test_bfloat16_stays_near_float32():
  plain, half = tiny(), tiny(dtype='bfloat16')
  assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes_of(half, 16))} == {'float32'}
  params, images = random_params(plain), random_images(16)
  logits = forward(params, images)[1]
  rough = run(half, params, images)
  assert rough.dtype == np.float32
  assert 1e-4 < np.abs(rough - logits).max() / np.abs(logits).max() < 0.03
  features = jax.jit(models.features_function(half))(params, images)
  assert features.dtype == np.float32


@pytest.mark.parametrize('scan', [False, True])
def test_bfloat16_matmuls_and_float32_reductions(scan):
  model = tiny(dtype='bfloat16', scan=scan, stochastic_depth=0.5, dropout=0.1)
  params, images, keys = shapes_of(model, 16), random_images(2), example_keys(2)

  def loss(params):
    return models.apply_function(model)(params, images, keys).sum()

  found = list(equations(jax.make_jaxpr(loss)(params).jaxpr))
  matmuls = [e for e in found if e.primitive.name == 'dot_general']
  assert len(matmuls) == 8 * (1 if scan else 3) + 1
  inputs = [{v.aval.dtype.name for v in e.invars} for e in matmuls]
  assert inputs == [{'bfloat16'}] * (len(matmuls) - 1) + [{'float32'}]  # the head is last
  reductions = ('reduce_sum', 'reduce_max', 'rsqrt', 'exp')
  used = [e.invars[0].aval.dtype.name for e in found if e.primitive.name in reductions]
  assert len(used) >= (2 * 3 + 3) * (1 if scan else 3) and set(used) == {'float32'}
  gradients = jax.eval_shape(jax.grad(loss), params)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {'float32'}


# --- Dropout and stochastic depth ----------------------------------------------------------


@pytest.mark.parametrize('rescale,scan', [(False, False), (True, True)])
def test_stochastic_depth(rescale, scan):
  """Each branch drops whole and by a separate draw, in block i of 3 with rate i / 2 * 0.6.

  All examples are the same image, so each output must be one of the sixteen that NumPy gets by
  keeping and dropping the attention and MLP branches of blocks 1 and 2.
  """
  n, rates = 4000, np.array([0.3, 0.3, 0.6, 0.6])
  small = dict(hidden_dim=8, mlp_dim=12, num_heads=2)
  model = tiny(4, **small, stochastic_depth=0.6, rescale_drop_path=rescale, scan=scan)
  params, image = random_params(tiny(4, **small), 8), random_images(1, (8, 8))
  masks = np.array(list(itertools.product((0, 1), repeat=4)))
  candidates = []
  for mask in masks / (1 - rates if rescale else 1):
    scales = [(1.0, 1.0), tuple(mask[:2]), tuple(mask[2:])]
    candidates.append(forward(params, image, branch_scales=scales)[1][0])
  tree = scanning.stack_blocks(params) if scan else params
  outputs = run(model, tree, np.repeat(image, n, axis=0), example_keys(n))
  distance = np.abs(outputs[:, None] - np.array(candidates)[None]).max(axis=-1)
  ordered = np.sort(distance, axis=1)
  assert ordered[:, 0].max() < 1e-5
  assert ordered[:, 1].min() > 1e-4  # no two of the sixteen look alike
  wanted = np.where(masks == 1, 1 - rates, rates).prod(axis=1)
  found = np.bincount(distance.argmin(axis=1), minlength=16) / n
  np.testing.assert_array_less(np.abs(found - wanted), 4.5 * np.sqrt(wanted * (1 - wanted) / n))


def test_no_keys_no_randomness():
  random = tiny(stochastic_depth=0.5, dropout=0.5)
  params, images = random_params(tiny()), random_images(4)
  _, logits = forward(params, images)
  close(run(random, params, images), logits)
  close(run(tiny(), params, images, example_keys(4)), logits)
  with_keys = run(random, params, images, example_keys(4))
  assert np.abs(with_keys - logits).max() > 0.01


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


def test_places_of_dropout(monkeypatch):
  """After the positions, after attention and twice in each MLP, each time with other keys."""
  calls, plain = [], layers.dropout

  def record(x, rate, keys):
    calls.append((x.shape, rate, keys))
    return plain(x, rate, keys)

  monkeypatch.setattr(layers, 'dropout', record)
  model = tiny(num_blocks=2, dropout=0.25)
  params = random_params(tiny(num_blocks=2))
  calls.clear()
  model.apply({'params': params}, random_images(2), example_keys(2))
  tokens, hidden = (2, 17, 32), (2, 17, 48)
  assert [shape for shape, _, _ in calls] == [tokens, *[tokens, hidden, tokens] * 2]
  assert {rate for _, rate, _ in calls} == {0.25}
  data = {tuple(np.ravel(jax.random.key_data(keys))) for _, _, keys in calls}
  assert len(data) == len(calls)


# --- Scan, remat and devices ---------------------------------------------------------------


def value_and_gradient(mesh=None, **options):
  """(logits, gradients in the released layout), with every kind of randomness on."""
  model = tiny(stochastic_depth=0.5, dropout=0.1, **options)
  params, images, keys = random_params(tiny()), random_images(8), example_keys(8)
  weights = np.random.default_rng(3).standard_normal((8, 5)).astype(np.float32)

  def loss(params, images, keys):
    logits = models.apply_function(model)(params, images, keys)
    return (weights * logits).sum(), logits

  step = jax.jit(jax.grad(loss, has_aux=True))
  arguments = (models.to_model_layout(model, params), images, keys)
  if mesh is None:
    gradient, logits = step(*arguments)
  else:
    rows = sharding.batch(mesh)
    places = (sharding.state(arguments[0], mesh), rows, rows)
    with jax.set_mesh(mesh):
      gradient, logits = step(*jax.device_put(arguments, places))
  return logits, scanning.unstack_blocks(jax.tree.map(np.asarray, gradient))


@pytest.fixture(scope='module')
def plain_gradient():
  return value_and_gradient()


@pytest.mark.parametrize(
  'scan,remat',
  [
    pytest.param(False, True, marks=pytest.mark.slow),
    pytest.param(True, False, marks=pytest.mark.slow),
    (True, True),
  ],
)
def test_scan_and_remat_change_nothing(plain_gradient, scan, remat):
  logits, gradient = value_and_gradient(scan=scan, remat=remat)
  close(logits, plain_gradient[0])
  close_trees(gradient, plain_gradient[1], 1e-5)


@pytest.mark.parametrize('fsdp', [pytest.param(1, marks=pytest.mark.slow), 4])
def test_eight_devices_change_nothing(plain_gradient, monkeypatch, fsdp):
  monkeypatch.setattr(sharding, '_MIN_SHARDED_SIZE', 256)
  mesh = sharding.make_mesh(fsdp=fsdp)
  logits, gradient = value_and_gradient(mesh, scan=fsdp > 1, remat=True)
  close(logits, plain_gradient[0])
  close_trees(gradient, plain_gradient[1], 1e-5)


@pytest.mark.parametrize('scan,remat', [(False, True), (True, False), (True, True)])
def test_scan_and_remat_are_used(scan, remat):
  """One loop of three iterations instead of three blocks; a checkpoint around each block."""
  model = tiny(scan=scan, remat=remat)
  jaxpr = jax.make_jaxpr(models.apply_function(model))(shapes_of(model, 16), random_images(1))
  found = list(equations(jaxpr.jaxpr))
  loops = [e.params['length'] for e in found if e.primitive.name == 'scan']
  assert loops == ([3] if scan else [])
  blocks = [e for e in found if e.primitive.name in ('checkpoint', 'remat', 'remat2')]
  assert len(blocks) == remat * (1 if scan else 3)


# --- The kernel of attention ---------------------------------------------------------------


@pytest.mark.parametrize(
  'device,dtype,dim,wanted',
  [
    (dict(compute_capability='9.0'), 'bfloat16', 64, True),
    (dict(compute_capability='8.0'), 'bfloat16', 80, True),
    (dict(compute_capability='12.0'), 'bfloat16', 128, True),
    (dict(compute_capability='7.5'), 'bfloat16', 64, False),
    (dict(compute_capability='gfx942'), 'bfloat16', 64, False),
    (dict(), 'bfloat16', 64, False),
    (dict(compute_capability='9.0'), 'float32', 64, False),
    (dict(compute_capability='9.0'), 'bfloat16', 136, False),
    (dict(compute_capability='9.0'), 'bfloat16', 60, False),
  ],
)
def test_devices_with_a_fused_kernel(monkeypatch, device, dtype, dim, wanted):
  monkeypatch.setattr(jax, 'local_devices', lambda: [types.SimpleNamespace(**device)])
  assert attention.has_fused_kernel(jax.ShapeDtypeStruct((2, 4, 1, dim), dtype)) == wanted


@pytest.mark.slow
@pytest.mark.parametrize('pool,tokens', [('token', 18), ('gap', 16)])
def test_the_fused_kernel_gets_an_even_number_of_tokens(monkeypatch, pool, tokens):
  """With XLA's attention in its place, which takes the same arguments, nothing changes."""
  model = tiny(pool=pool)
  params, images = random_params(model), random_images(3)
  weights = np.random.default_rng(3).standard_normal((3, 5)).astype(np.float32)

  def logits_and_gradient(model):
    apply = models.apply_function(model)
    gradient = jax.grad(lambda p: (weights * apply(p, images)).sum())
    return run(model, params, images), jax.jit(gradient)(params)

  wanted, calls, plain = logits_and_gradient(model), [], jax.nn.dot_product_attention

  def fused(query, key, value, *, implementation, **options):
    assert implementation == 'cudnn' and query.shape == key.shape == value.shape
    calls.append(query.shape)
    return plain(query, key, value, implementation='xla', **options)

  monkeypatch.setattr(attention, 'has_fused_kernel', lambda query: True)
  monkeypatch.setattr(jax.nn, 'dot_product_attention', fused)
  logits, gradient = logits_and_gradient(model)
  assert set(calls) == {(3, tokens, 4, 8)}
  close(logits, wanted[0])
  close_trees(gradient, wanted[1], 1e-5)

  calls.clear()
  monkeypatch.setattr(jax.nn, 'dot_product_attention', plain)
  close(run(tiny(pool=pool, fused_attention=False), params, images), wanted[0])


# --- Position tables -----------------------------------------------------------------------


def table_of(rows, columns, class_token):
  rng = np.random.default_rng(rows)
  return np.float32(rng.standard_normal((1, rows * columns + class_token, 3)))


@pytest.mark.parametrize('class_token', [False, True])
@pytest.mark.parametrize(
  'old,new', [((7, 7), (12, 12)), ((14, 14), (24, 24)), ((4, 6), (9, 5)), ((28, 28), (24, 13))]
)
def test_a_resized_table_is_bilinear(old, new, class_token):
  """Along each axis, `new` points from the first to the last; the class token keeps its row."""
  table = table_of(*old, class_token)
  resized = position_tables.resize(table, new, old)
  assert resized.dtype == np.float32 and resized.shape == (1, new[0] * new[1] + class_token, 3)
  np.testing.assert_array_equal(resized[:, :class_token], table[:, :class_token])
  grid = np.float64(table[0, class_token:]).reshape(*old, 3)
  for axis in (0, 1):
    points = np.linspace(0, old[axis] - 1, new[axis])
    grid = np.apply_along_axis(
      lambda row, axis=axis, points=points: np.interp(points, np.arange(old[axis]), row), axis, grid
    )
  np.testing.assert_allclose(resized[0, class_token:].reshape(*new, 3), grid, rtol=0, atol=1e-6)


@pytest.mark.parametrize('old,new', [(14, 24), (24, 14), (16, 37), (28, 24)])
def test_a_resized_table_is_that_of_vision_transformer(old, new):
  """Bit for bit, but for the last row and column where rounding leaves theirs at zero."""
  table = table_of(old, old, True)
  resized = position_tables.resize(table, (new, new))[0, 1:].reshape(new, new, 3)
  zoom = (new / old, new / old, 1)
  theirs = scipy.ndimage.zoom(table[0, 1:].reshape(old, old, 3), zoom, order=1)
  lost = (old, new) == (28, 24)
  assert np.all(theirs[-1] == 0) == np.all(theirs[:, -1] == 0) == lost
  inner = slice(None, -1 if lost else None)
  np.testing.assert_array_equal(resized[inner, inner], theirs[inner, inner])


def test_a_table_of_the_right_size_is_kept():
  table = table_of(4, 6, True)
  np.testing.assert_array_equal(position_tables.resize(table, (4, 6), (4, 6)), table)
  square = table_of(5, 5, False)
  np.testing.assert_array_equal(position_tables.resize(square, (5, 5)), square)


@pytest.mark.parametrize(
  'old,text',
  [
    (None, 'a position table of 24 rows is not that of a square grid, with or without a class '),
    ((5, 5), 'a position table of 24 rows is not that of the grid (5, 5), with or without a '),
  ],
)
def test_a_table_of_another_grid(old, text):
  with pytest.raises(InputError, match=f'^{re.escape(text)}.* give the size of the images that'):
    position_tables.resize(table_of(4, 6, False), (7, 7), old)


# --- Errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'options', 'text'),
  [
    ('ViT-B', {}, "unknown model 'ViT-B'; write one of Mixer-S/<patch>, "),
    ('ViT-G/14', {}, "unknown model 'ViT-G/14'; write one of Mixer-S/<patch>, "),
    ('ViT', {'hidden_dim': 8}, "model 'ViT' names no size, so it needs ['num_blocks', 'mlp_dim', "),
    ('ViT-B/16', {'pool': 'map'}, "pool is 'map'; use one of ['gap', 'token']."),
    ('ViT-B/16', {'num_heads': 5}, 'num_heads is 5; use a divisor of hidden_dim=768.'),
    ('ViT-B/16', {'num_heads': 0}, 'num_heads is 0; use an int from 1 to 2**31 - 1.'),
    ('ViT-B/16', {'dropout': 1.0}, 'dropout is 1.0; use a number of at least 0 and below 1.'),
    ('ViT-B/16', {'tokens_mlp_dim': 8}, "ViT has no option 'tokens_mlp_dim'; it has ['dropout', "),
    ('ViT-B/16', {'dtype': 'float16'}, "dtype is 'float16'; use one of "),
  ],
)
def test_build_faults(name, options, text):
  with pytest.raises(InputError, match=f'^{re.escape(text)}'):
    models.build(name, 10, **options)


def test_sizes_that_do_not_divide():
  with pytest.raises(InputError, match='width 225 is not a multiple of the patch width 16: use '):
    models.shapes(models.build('ViT-Ti/16', 10), (224, 225))
