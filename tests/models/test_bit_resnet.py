"""BiT against its parameter counts and against NumPy written out by hand."""

import re

import jax
import numpy as np
import pytest

from mixer import models, pretrained
from mixer.errors import InputError
from mixer.models import bit_resnet

# With 1000 classes; a headless R152x4 is the 928 million of BiT's paper.
COUNTS = {
  'R50x1': 25_549_352,
  'R50x2': 97_988_712,
  'R101x1': 44_541_480,
  'R152x1': 60_185_128,
  'R152x2': 236_335_208,
  'R152x4': 936_533_224,
  'R200x3': 568_633_000,
}


def tiny(num_classes=5, **options):
  return models.build(
    'BiT', num_classes, **{'stage_sizes': (1, 1), 'width': 8, 'groups': 4} | options
  )


def random_params(model, image_size=(20, 13), seed=0):
  """Parameters without a zero or a one among them, so that each has an effect."""
  rng = np.random.default_rng(seed)
  shapes = models.shapes(model, image_size)
  return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def random_images(n, size=(20, 13), seed=1):
  return np.random.default_rng(seed).uniform(-1, 1, (n, *size, 3)).astype(np.float32)


# --- By hand, in float64 --------------------------------------------------------------------


def conv(x, kernel, stride):
  """One output pixel at a time; the kernel standardised, the image padded by half a kernel."""
  flat = kernel.reshape(-1, kernel.shape[-1])
  kernel = ((flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-10)).reshape(kernel.shape)
  side = len(kernel)
  x = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)))
  rows = range(0, x.shape[1] - side + 1, stride)
  columns = range(0, x.shape[2] - side + 1, stride)
  out = [
    [np.einsum('nhwi,hwio->no', x[:, r : r + side, c : c + side], kernel) for c in columns]
    for r in rows
  ]
  return np.array(out).transpose(2, 0, 1, 3)


def norm_relu(x, p, groups=4):
  out = np.empty_like(x)
  size = x.shape[-1] // groups
  for n in range(len(x)):
    for first in range(0, x.shape[-1], size):
      part = x[n, :, :, first : first + size]
      out[n, :, :, first : first + size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
  return np.maximum(out * p['scale'] + p['bias'], 0)


def unit(x, p, stride):
  y = norm_relu(x, p['gn1'])
  shortcut = conv(y, p['conv_proj']['kernel'], stride) if 'conv_proj' in p else x
  y = conv(y, p['conv1']['kernel'], 1)
  y = conv(norm_relu(y, p['gn2']), p['conv2']['kernel'], stride)
  y = conv(norm_relu(y, p['gn3']), p['conv3']['kernel'], 1)
  return shortcut + y


def root(images, kernel):
  x = np.pad(conv(images, kernel, 2), ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows, columns = range(0, x.shape[1] - 2, 2), range(0, x.shape[2] - 2, 2)
  out = [[x[:, r : r + 3, c : c + 3].max((1, 2)) for c in columns] for r in rows]
  return np.array(out).transpose(2, 0, 1, 3)


def forward(params, images):
  """{layer: output} of a network with the stages of `tiny`."""
  params = jax.tree.map(np.float64, params)
  found = {'root_block': root(images, params['root_block']['conv_root']['kernel'])}
  x = found['root_block']
  for i in (1, 2):
    for name, p in sorted(params[f'block{i}'].items()):
      x = unit(x, p, stride=2 if i == 2 and name == 'unit01' else 1)
    found[f'block{i}'] = x
  found['pre_logits'] = norm_relu(x, params['norm-pre-head']).mean((1, 2))
  found['output'] = found['pre_logits'] @ params['head']['kernel'] + params['head']['bias']
  return found


def close(actual, wanted, tolerance=2e-5):
  np.testing.assert_allclose(actual, wanted, atol=tolerance * max(1, np.abs(wanted).max()), rtol=0)


def test_weight_standardisation():
  kernel = np.random.default_rng(0).normal(3.0, 1e-4, (3, 5, 4, 6))
  flat = kernel.reshape(-1, 6)
  wanted = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-10)
  with jax.enable_x64():
    actual = bit_resnet.standardize(jax.numpy.asarray(kernel))
  np.testing.assert_allclose(actual, wanted.reshape(kernel.shape), rtol=1e-9)
  assert 0.9 < np.std(wanted) < 0.999  # so small a kernel shows the 1e-10


@pytest.mark.parametrize(('channels', 'stride'), [(16, 1), (16, 2), (12, 1)])
def test_a_unit(channels, stride):
  """With and without a projection, and with a stride."""
  rng = np.random.default_rng(2)
  module = bit_resnet.Unit(width=4, stride=stride, groups=4, dtype='float32')
  x = rng.standard_normal((2, 7, 6, channels)).astype(np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
  params = jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape)), shapes)
  assert ('conv_proj' in params) == ((channels, stride) != (16, 1))
  actual = module.apply({'params': params}, x)
  close(actual, unit(np.float64(x), jax.tree.map(np.float64, params), stride))


def test_the_network_and_its_intermediates():
  model, images = tiny(stage_sizes=(1, 2)), random_images(2)
  params = random_params(model)
  wanted = forward(params, images)
  found = jax.jit(lambda params, images: models.intermediates(model, params, images))(
    params, images
  )
  assert set(found) == {'root_block', 'block1', 'block2', 'pre_logits', 'output'}
  assert found['root_block'].shape == (2, 5, 4, 8) and found['block2'].shape == (2, 3, 2, 64)
  for name, value in wanted.items():
    close(found[name], value)


def test_pre_logits_without_a_head():
  """Together with `hidden_dim`, by which a head is made for them."""
  params, images = random_params(tiny()), random_images(2)
  headless = {name: leaf for name, leaf in params.items() if name != 'head'}
  features = jax.jit(models.apply_function(tiny(None)))(headless, images)
  assert features.shape == (2, tiny().hidden_dim) == (2, 64) and features.dtype == np.float32
  close(features, forward(params, images)['pre_logits'])


# --- Sizes, names, initial values ----------------------------------------------------------


@pytest.mark.parametrize(
  'size',
  [
    size if size in ('R50x1', 'R101x1') else pytest.param(size, marks=pytest.mark.slow)
    for size in COUNTS
  ],
)
def test_parameter_counts(size):
  shapes = models.shapes(models.build(f'BiT-{size}', 1000), 224)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[size]


def test_names_and_shapes():
  """Those of BiT-M-R50x1 under the parameter names of big_vision."""
  shapes = models.shapes(models.build('BiT-R50x1', 21843), 224)
  found = {name: leaf.shape for name, leaf in pretrained.flatten(shapes).items()}
  wanted = {
    'root_block/conv_root/kernel': (7, 7, 3, 64),
    'norm-pre-head/scale': (2048,),
    'norm-pre-head/bias': (2048,),
    'head/kernel': (2048, 21843),
    'head/bias': (21843,),
  }
  inputs = 64
  for stage, (units, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], 1):
    for number in range(1, units + 1):
      prefix = f'block{stage}/unit{number:02d}/'
      for name, channels in (('gn1', inputs), ('gn2', width), ('gn3', width)):
        wanted |= {f'{prefix}{name}/{leaf}': (channels,) for leaf in ('scale', 'bias')}
      wanted[f'{prefix}conv1/kernel'] = (1, 1, inputs, width)
      wanted[f'{prefix}conv2/kernel'] = (3, 3, width, width)
      wanted[f'{prefix}conv3/kernel'] = (1, 1, width, 4 * width)
      if number == 1:
        wanted[f'{prefix}conv_proj/kernel'] = (1, 1, inputs, 4 * width)
      inputs = 4 * width
  assert found == wanted


def test_initial_logits_are_the_head_bias():
  model = tiny(head_bias=-10.0)
  params = jax.jit(lambda key: models.init(model, key, (20, 13)))(jax.random.key(0))
  logits = jax.jit(models.apply_function(model))(params, random_images(2))
  np.testing.assert_array_equal(logits, -10.0)
  assert not np.any(params['head']['kernel'])


def test_saved_and_loaded(tmp_path):
  params = random_params(tiny())
  pretrained.save(tmp_path / 'model.npz', params)
  jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path / 'model.npz'), params)


# --- Options -------------------------------------------------------------------------------


def test_flops_against_jax():
  """XLA counts normalisations, and does not count products with the padding."""
  model = models.build('BiT-R50x1', 1000)
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
  apply = models.apply_function(model)
  counted = jax.jit(apply).lower(models.shapes(model, 224), images).cost_analysis()['flops'] / 2
  flops = bit_resnet.matmul_flops(model, 224)
  assert list(flops) == ['stem', 'block1', 'block2', 'block3', 'block4', 'head']
  assert 0.97 < counted / sum(flops.values()) < 1.03
  assert round(sum(flops.values()) / 2e9, 1) == 4.1  # a ResNet-50's GMAC
  assert models.train_flops(model, 224) == 3 * sum(flops.values()) - flops['stem']


def test_bfloat16_stays_near_float32():
  params, images = random_params(tiny()), random_images(4)
  low = jax.jit(models.apply_function(tiny(dtype='bfloat16')))(params, images)
  assert low.dtype == np.float32
  wanted = forward(params, images)['output']
  close(low, wanted, 0.03)
  assert np.abs(low - wanted).max() > 1e-3 * np.abs(wanted).max()


def test_remat_changes_no_value():
  images, params = random_images(2), random_params(tiny(stage_sizes=(1,)))

  def gradient(**options):
    apply = models.apply_function(tiny(stage_sizes=(1,), **options))
    return jax.grad(lambda p: (apply(p, images) ** 2).mean())

  assert 'remat' in str(jax.make_jaxpr(gradient(remat=True))(params))
  plain, again = jax.jit(gradient())(params), jax.jit(gradient(remat=True))(params)
  jax.tree.map(lambda a, b: close(a, b), again, plain)


@pytest.mark.parametrize(
  ('name', 'options', 'text'),
  [
    ('BiT-R50x1', {'stochastic_depth': 0.1}, "BiT has no option 'stochastic_depth'; it has "),
    ('BiT-R50x1/16', {}, "unknown model 'BiT-R50x1/16'; write one of Mixer-S/<patch>, "),
    ('BiT-R50', {}, "unknown model 'BiT-R50'; write one of Mixer-S/<patch>, "),
    ('BiT', {'width': 64}, "model 'BiT' names no size, so it needs ['stage_sizes'] too."),
    ('BiT', {'width': 48, 'stage_sizes': (1,)}, 'width is 48 and groups 32: each normalisation '),
    (
      'BiT',
      {'width': 64, 'stage_sizes': (1, 0)},
      'stage_sizes is (1, 0); use a tuple of which each is an int from 1 to ',
    ),
  ],
)
def test_build_faults(name, options, text):
  with pytest.raises(InputError, match=f'^{re.escape(text)}'):
    models.build(name, 10, **options)
