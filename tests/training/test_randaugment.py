"""RandAugment: every operation against PIL or arithmetic by hand, then how they are drawn.

The operations are tested in both forms, TensorFlow's for the host and JAX's for the device.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps
import pytest

from mixer import runtime
from mixer.errors import InputError
from mixer.input import randaugment
from mixer.training import randaugment as jax_randaugment

tf = runtime.tensorflow()

HEIGHT, WIDTH = 40, 56
CENTRE = (0.31, 0.93)  # in row 12 and column 52
ROW, COLUMN = 12, 52


def noise(height=HEIGHT, width=WIDTH):
  return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene():
  """Smooth and flat parts, another range in each channel, the last of one level."""
  y, x = np.mgrid[:HEIGHT, :WIDTH]
  waves = np.clip(120 + 70 * np.sin(x / 9) * np.cos(y / 7), 65, 170)
  return np.stack([waves, 0.3 * waves + 4 * (x % 5), np.full_like(waves, 77)], -1).astype(np.uint8)


on_both_images = pytest.mark.parametrize('image', [noise(), scene()], ids=['noise', 'scene'])
at_magnitudes = pytest.mark.parametrize('magnitude', [3, 10, 15, 20])


@functools.cache
def in_tf_data(content, shape, magnitude):
  """(sign -> {name: image changed by it}) in a tf.data pipeline, whose graph is optimized."""
  names = jax_randaugment.NAMES

  def change(image, sign):
    image = tf.ensure_shape(image, shape)
    to = randaugment.operations(image, magnitude, sign, tf.constant(CENTRE, tf.float32))
    return [to[name]() for name in names]

  image = np.frombuffer(content, np.uint8).reshape(shape)
  images = tf.data.Dataset.from_tensors(image).repeat(2)
  signs = tf.data.Dataset.from_tensor_slices([1.0, -1.0])
  found = tf.data.Dataset.zip(images, signs).map(change).as_numpy_iterator()
  return {sign: dict(zip(names, of)) for sign, of in zip((1.0, -1.0), found, strict=True)}


def by_tensorflow(image, name, magnitude, sign=1.0):
  return in_tf_data(image.tobytes(), image.shape, magnitude)[sign][name]


def by_jax(image, name, magnitude, sign=1.0):
  to = jax_randaugment.operations(
    jnp.array(image), magnitude, jnp.float32(sign), jnp.float32(CENTRE)
  )
  return np.asarray(to[name]())


@pytest.fixture(params=[by_tensorflow, by_jax], ids=['tensorflow', 'jax'])
def changed(request):
  return request.param


def blend(degenerate, image, magnitude):
  return degenerate + (0.18 * magnitude + 0.1) * (image.astype(float) - degenerate)


def assert_rounds_down_to(got, *exact):
  """`got` is one of `exact`, cut to 0..255 and rounded down; either way next to a whole number."""
  possible = [np.floor(np.clip(e, 0, 255) + side) for e in exact for side in (-1e-3, 1e-3)]
  assert np.any([got == np.clip(p, 0, 255) for p in possible], axis=0).all()


@pytest.mark.parametrize(
  'magnitude, factor, degrees, slope, pixels, bits, threshold, addition, pad',
  [
    (10, 1.9, 30, 0.30, 100, 4, 0, 110, 40),
    (15, 2.8, 45, 0.45, 150, 6, 128, 165, 60),
    (20, 3.7, 60, 0.60, 200, 8, 0, 220, 80),
  ],
)
def test_arguments(magnitude, factor, degrees, slope, pixels, bits, threshold, addition, pad):
  expected = dict.fromkeys(('Color', 'Contrast', 'Brightness', 'Sharpness'), factor)
  expected |= {'Rotate': degrees, 'ShearX': slope, 'ShearY': slope}
  expected |= {'TranslateX': pixels, 'TranslateY': pixels, 'Cutout': pad}
  expected |= {'Posterize': bits, 'Solarize': threshold, 'SolarizeAdd': addition}
  assert randaugment.arguments(magnitude) == pytest.approx(expected)


@on_both_images
def test_invert(changed, image):
  np.testing.assert_array_equal(
    changed(image, 'Invert', 15), ImageOps.invert(Image.fromarray(image))
  )


@on_both_images
@pytest.mark.parametrize('magnitude, bits', [(3, 1), (10, 4), (15, 6), (20, 8), (0, 1), (25, 1)])
def test_posterize(changed, image, magnitude, bits):
  expected = ImageOps.posterize(Image.fromarray(image), bits)
  np.testing.assert_array_equal(changed(image, 'Posterize', magnitude), expected)


@on_both_images
@pytest.mark.parametrize('magnitude, threshold', [(3, 76), (10, 0), (15, 128), (20, 0)])
def test_solarize(changed, image, magnitude, threshold):
  expected = ImageOps.solarize(Image.fromarray(image), threshold)
  np.testing.assert_array_equal(changed(image, 'Solarize', magnitude), expected)


@pytest.mark.parametrize('magnitude', [10, 20])
def test_solarize_acts_as_invert_where_its_threshold_wraps_to_0(changed, magnitude):
  np.testing.assert_array_equal(changed(noise(), 'Solarize', magnitude), 255 - noise())


@on_both_images
@pytest.mark.parametrize(
  'magnitude, addition', [(3, 33), (10, 110), (15, 165), (20, 220), (30, 330)]
)
def test_solarize_add(changed, image, magnitude, addition):
  levels = image.astype(int)
  expected = np.where(levels < 128, np.minimum(levels + addition, 255), levels)
  np.testing.assert_array_equal(changed(image, 'SolarizeAdd', magnitude), expected)


@on_both_images
def test_autocontrast(changed, image):
  got = changed(image, 'AutoContrast', 15)
  for channel in range(3):
    levels = image[..., channel].astype(float)
    low, high = levels.min(), levels.max()
    exact = (levels - low) * 255 / (high - low) if high > low else levels
    assert_rounds_down_to(got[..., channel], exact)


@on_both_images
def test_equalize(changed, image):
  expected = ImageOps.equalize(Image.fromarray(image))
  np.testing.assert_array_equal(changed(image, 'Equalize', 15), expected)


def test_equalize_leaves_a_channel_with_too_few_pixels_below_its_brightest(changed):
  image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
  image[:4, :50] = 9  # 200 pixels, less than one for each of 255 steps
  np.testing.assert_array_equal(changed(image, 'Equalize', 15), image)


@on_both_images
@at_magnitudes
def test_brightness(changed, image, magnitude):
  got = changed(image, 'Brightness', magnitude)
  assert_rounds_down_to(got, blend(np.zeros(image.shape), image, magnitude))


@on_both_images
@at_magnitudes
def test_color(changed, image, magnitude):
  grey = (image.astype(float) @ (0.2989, 0.587, 0.114))[..., None] * 255.5 / 255
  degenerates = np.floor(grey - 1e-3), np.floor(grey + 1e-3)
  got = changed(image, 'Color', magnitude)
  assert_rounds_down_to(got, *(blend(degenerate, image, magnitude) for degenerate in degenerates))


def test_grey_is_that_of_tensorflow():
  """Of every red and green, with every third blue: a rounded sum would differ in a few of them."""
  levels = np.arange(256, dtype=np.uint8)
  image = np.stack(np.meshgrid(levels, levels, levels[::3], indexing='ij'), -1)
  image = tf.constant(image.reshape(256, -1, 3))
  np.testing.assert_array_equal(
    randaugment.color(image, 0.0), tf.repeat(tf.image.rgb_to_grayscale(image), 3, axis=-1)
  )


@at_magnitudes
@pytest.mark.parametrize('height, width, level', [(40, 56, 8), (224, 224, 196), (256, 300, 255)])
def test_contrast_blends_with_the_number_of_pixels(changed, height, width, level, magnitude):
  image = noise(height, width)
  got = changed(image, 'Contrast', magnitude)
  assert_rounds_down_to(got, blend(np.full(image.shape, level), image, magnitude))


@on_both_images
@at_magnitudes
def test_sharpness(changed, image, magnitude):
  windows = np.lib.stride_tricks.sliding_window_view(image.astype(int), (3, 3), axis=(0, 1))
  degenerate = image.astype(int)
  degenerate[1:-1, 1:-1] = (windows.sum((-2, -1)) + 4 * degenerate[1:-1, 1:-1]) // 13
  got = changed(image, 'Sharpness', magnitude)
  assert_rounds_down_to(got, blend(degenerate, image, magnitude))


@on_both_images
@pytest.mark.parametrize('name', ['color', 'contrast', 'brightness', 'sharpness'])
def test_factor_1_keeps_the_image(image, name):
  assert randaugment.arguments(5)['Color'] == 1
  np.testing.assert_array_equal(getattr(randaugment, name)(tf.constant(image), 1.0), image)


def test_factor_0_gives_the_degenerate_image():
  np.testing.assert_array_equal(
    randaugment.contrast(tf.constant(noise()), 0.0), np.full((HEIGHT, WIDTH, 3), 8)
  )


def pil_affine(image, matrix):
  """Nearest neighbour in PIL, whose pixels have their middle at (0.5, 0.5)."""
  rows = [(a, b, c + (1 - a - b) / 2) for a, b, c in matrix]
  return Image.fromarray(image).transform(
    (WIDTH, HEIGHT), Image.Transform.AFFINE, (*rows[0], *rows[1]), fillcolor=(128,) * 3
  )


@on_both_images
@at_magnitudes
@pytest.mark.parametrize('sign', [1.0, -1.0])
@pytest.mark.parametrize('name', ['Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY'])
def test_places(changed, image, name, magnitude, sign):
  level = sign * magnitude / 10
  cos, sin = math.cos(math.radians(30 * level)), math.sin(math.radians(30 * level))
  middle_x, middle_y = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
  matrix = {  # from (x, y, 1) of a pixel to (x, y) of the one it shows
    'Rotate': (
      (cos, -sin, middle_x - cos * middle_x + sin * middle_y),
      (sin, cos, middle_y - sin * middle_x - cos * middle_y),
    ),
    'ShearX': ((1, 0.3 * level, 0), (0, 1, 0)),
    'ShearY': ((1, 0, 0), (0.3 * level, 1, 0)),
    'TranslateX': ((1, 0, 100 * level), (0, 1, 0)),
    'TranslateY': ((1, 0, 0), (0, 1, 100 * level)),
  }[name]
  expected = pil_affine(image, matrix)
  if name == 'Rotate':
    expected = Image.fromarray(image).rotate(30 * level, fillcolor=(128,) * 3)

  y, x = np.mgrid[:HEIGHT, :WIDTH]
  shown = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.transpose(matrix)
  # PIL counts in 1 / 65536, the code in float32: between two pixels either may come.
  decided = (np.abs(shown % 1 - 0.5) > 2e-3).all(axis=-1)
  assert decided.mean() > 0.89
  got = changed(image, name, magnitude, sign)
  np.testing.assert_array_equal(got[decided], np.asarray(expected)[decided])


@pytest.mark.parametrize('magnitude', [3, 10, 15, 20])
@pytest.mark.parametrize(('height', 'width'), [(224, 224), (56, 40)])
def test_rotations_in_tf_data_add_in_the_order_of_the_original(height, width, magnitude):
  """float32, every product and sum rounded: x = (a * column + b * row) + c."""
  image = noise(height, width)
  column, row = (
    np.arange(width, dtype=np.float32)[None],
    np.arange(height, dtype=np.float32)[:, None],
  )
  middle_x, middle_y = np.float32((width - 1) / 2), np.float32((height - 1) / 2)
  for sign in (1.0, -1.0):
    radians = tf.constant(sign) * randaugment.arguments(magnitude)['Rotate'] * (math.pi / 180)
    cos, sin = tf.cos(radians).numpy(), tf.sin(radians).numpy()
    x = (cos * column + -sin * row) + (middle_x - (cos * middle_x - sin * middle_y))
    y = (sin * column + cos * row) + (middle_y - (sin * middle_x + cos * middle_y))
    nearest = [np.copysign(np.floor(np.abs(at) + np.float32(0.5)), at).astype(int) for at in (x, y)]
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    shown = image[np.where(inside, nearest[1], 0), np.where(inside, nearest[0], 0)]
    expected = np.where(inside[..., None], shown, 128)
    np.testing.assert_array_equal(by_tensorflow(image, 'Rotate', magnitude, sign), expected)


def test_halfway_between_two_pixels_the_one_away_from_0_is_nearest(changed):
  image, grey = noise(), np.full((HEIGHT, 1, 3), 128, np.uint8)
  forward = changed(image, 'TranslateX', 0.05)  # by half a pixel
  np.testing.assert_array_equal(forward, np.concatenate([image[:, 1:], grey], axis=1))
  back = changed(image, 'TranslateX', 0.05, sign=-1.0)
  np.testing.assert_array_equal(back, np.concatenate([grey, image[:, 1:]], axis=1))


@on_both_images
@pytest.mark.parametrize('magnitude, pad', [(0, 0), (1, 4), (3, 12), (10, 40)])
def test_cutout(changed, image, magnitude, pad):
  expected = image.copy()
  expected[max(0, ROW - pad) : ROW + pad, max(0, COLUMN - pad) : COLUMN + pad] = 128
  np.testing.assert_array_equal(changed(image, 'Cutout', magnitude), expected)


def draws(count, layer):
  """Of `count` examples: index, sign, centre, and whether the crop flips the example."""

  def example(position):
    seed = tf.stack([tf.constant(7, tf.int64), position])
    crops_flip = tf.random.stateless_uniform((), tf.random.experimental.stateless_fold_in(seed, 1))
    return *randaugment.draw(seed, layer), crops_flip < 0.5

  return next(tf.data.Dataset.range(count).map(example).batch(count).as_numpy_iterator())


def test_draws_are_uniform_and_independent():
  count = 12_800
  first, sign, centre, flip = draws(count, layer=0)
  second, *_ = draws(count, layer=1)
  assert set(sign) == {-1.0, 1.0}
  assert centre.min() >= 0 and centre.max() < 1
  rows, columns = (centre * 8).astype(int).T
  pairs = {
    'layers': (first, second),
    'index and sign': (first, sign > 0),
    'index and row': (first, rows),
    'sign and row': (rows, sign > 0),
    'centre': (rows, columns),
    'index and flip': (first, flip),
  }
  for name, (one, other) in pairs.items():
    table = np.zeros((one.max() + 1, int(other.max()) + 1))
    np.add.at(table, (one, other.astype(int)), 1)
    expected = count / table.size
    chi_square = ((table - expected) ** 2).sum() / expected
    # About `size` on average, with a deviation of its root times the root of 2.
    assert chi_square < table.size + 5 * math.sqrt(2 * table.size), name
  assert set(first) == set(second) == set(range(16))


def augmented(image, seeds, **arguments):
  """A tf.data set of `image`, changed once for each of the seeds."""

  def example(seed):
    return randaugment.randaugment(tf.constant(image), seed, **arguments)

  dataset = tf.data.Dataset.from_tensor_slices(tf.constant(seeds, tf.int64))
  return dataset.map(example, tf.data.AUTOTUNE, deterministic=True)


def test_in_tf_data_the_drawn_operations_follow_each_other():
  image, drawn = noise(), set()
  seeds = [(3, position) for position in range(64)]
  dataset = augmented(image, seeds, layers=2, magnitude=15)
  assert dataset.element_spec == tf.TensorSpec(image.shape, tf.uint8)
  for seed, got in zip(seeds, dataset.as_numpy_iterator(), strict=True):
    expected = tf.constant(image)
    for layer in range(2):
      index, sign, centre = randaugment.draw(tf.constant(seed, tf.int64), layer)
      operations = randaugment.operations(expected, 15, sign, centre)
      assert len(operations) == 16
      expected = list(operations.values())[index]()
      drawn.add(int(index))
    np.testing.assert_array_equal(got, expected)
  assert drawn == set(range(16))


def test_pixels_are_a_function_of_the_seed():
  seeds = [(3, position) for position in range(32)]
  dataset = augmented(noise(), seeds + seeds[::-1], layers=1, magnitude=10)
  images = np.stack(list(dataset.as_numpy_iterator()))
  np.testing.assert_array_equal(images, np.stack(list(dataset.as_numpy_iterator())))
  np.testing.assert_array_equal(images[:32], images[:31:-1])
  assert len(np.unique(images, axis=0)) > 8


def test_any_size_when_it_is_not_known_in_advance():
  signature = [tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((2,), tf.int64)]

  @tf.function(input_signature=signature)
  def unknown(image, seed):
    return randaugment.randaugment(image, seed, layers=1, magnitude=15)

  for position in range(64):
    image = tf.constant(noise(9 + position % 2, 5 + position % 3))
    seed = tf.constant((3, position), tf.int64)
    known = randaugment.randaugment(image, seed, layers=1, magnitude=15)
    np.testing.assert_array_equal(unknown(image, seed), known)


def test_no_layers_leave_the_image():
  got = randaugment.randaugment(
    tf.constant(noise()), tf.constant((1, 2), tf.int64), layers=0, magnitude=15
  )
  np.testing.assert_array_equal(got, noise())


@pytest.mark.parametrize('arguments', [{'magnitude': -1}, {'layers': -1, 'magnitude': 15}])
def test_negative_arguments_are_refused(arguments):
  with pytest.raises(InputError, match=r'=-1.*neither may be negative.*layers=2'):
    randaugment.randaugment(tf.constant(noise()), tf.constant((1, 2), tf.int64), **arguments)


# On the device.


@functools.cache
def device_step(layers, at_once):
  return jax.jit(jax_randaugment.make(layers=layers, magnitude=15, at_once=at_once))


def on_device(images, keys, layers=2, at_once=None):
  return np.asarray(device_step(layers, at_once)(images, keys))


@pytest.fixture(scope='module')
def batch():
  images = np.stack([noise(20, 24), *(scene()[i : i + 20, i : i + 24] for i in range(15))] * 5)
  return images, jax.random.split(jax.random.key(3), len(images))


def test_on_the_device_the_drawn_operations_follow_each_other(batch):
  """Each layer against TensorFlow's form of what JAX drew for it."""
  images, keys = batch
  first, second = on_device(*batch, layers=1), on_device(*batch, layers=2)
  drawn = set()
  for layer, before, after in ((0, images, first), (1, first, second)):
    for key, image, got in zip(keys, before, after, strict=True):
      index, sign, centre = jax.device_get(jax_randaugment.draw(key, layer))
      operations = randaugment.operations(
        tf.constant(image), 15, tf.constant(sign), tf.constant(centre)
      )
      assert tuple(operations) == jax_randaugment.NAMES
      name = jax_randaugment.NAMES[index]
      difference = np.abs(got.astype(int) - operations[name]().numpy())
      if name in ('Rotate', 'ShearX', 'ShearY'):  # halfway between two pixels either may come
        assert (difference > 0).mean() < 0.05, name
      else:
        assert difference.max() <= (1 if name == 'AutoContrast' else 0), name
      drawn.add(name)
  assert drawn == set(jax_randaugment.NAMES)


def test_on_the_device_an_image_depends_on_its_key_alone(batch):
  images, keys = batch
  whole = on_device(images, keys)
  np.testing.assert_array_equal(on_device(images[::-1], keys[::-1]), whole[::-1])
  other = on_device(images, jax.random.split(jax.random.key(4), len(images)))
  assert (other != whole).any(axis=(1, 2, 3)).mean() > 0.8


def test_images_worked_on_together_are_those_of_one_at_a_time(batch):
  together = on_device(*batch, layers=1, at_once=32)  # 80 images: 32, 32 and the rest
  np.testing.assert_array_equal(together, on_device(*batch, layers=1))


def test_draws_on_the_device_are_uniform():
  count = 16_000
  keys = jax.random.split(jax.random.key(0), count)
  first, second = (jax.vmap(lambda key, i=i: jax_randaugment.draw(key, i))(keys) for i in (0, 1))
  pairs = np.zeros((16, 16))
  np.add.at(pairs, (np.asarray(first[0]), np.asarray(second[0])), 1)
  expected = count / 256
  assert ((pairs - expected) ** 2).sum() / expected < 256 + 5 * math.sqrt(2 * 256)
  _, sign, centre = jax.device_get(first)
  assert set(sign) == {-1.0, 1.0} and abs(sign.mean()) < 0.05
  assert centre.min() >= 0 and centre.max() < 1 and np.allclose(centre.mean(0), 0.5, atol=0.02)


def test_no_layers_on_the_device(batch):
  np.testing.assert_array_equal(on_device(*batch, layers=0), batch[0])


@pytest.mark.parametrize('arguments', [(-1, 15), (2, -1)])
def test_negative_arguments_are_refused_on_the_device_too(arguments):
  with pytest.raises(InputError, match=r'=-1.*neither may be negative.*layers=2'):
    jax_randaugment.make(layers=arguments[0], magnitude=arguments[1])
