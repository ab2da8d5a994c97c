"""RandAugment in the form that EfficientNet's TPU code gave it and Mixer was trained with.

Images are uint8 (height, width, 3), at least 3 pixels a side. The pixels are those of
models/official/efficientnet/autoaugment.py in github.com/tensorflow/tpu, including what look like
mistakes: Solarize's threshold and Posterize's shift wrap, Contrast ignores the image's mean.
"""

import math

from mixer import runtime
from mixer.training.randaugment import arguments, check

tf = runtime.tensorflow()

# XLA's loops take a tenth to a half of the time of TensorFlow's own. XLA may fuse a float32 product
# with a sum, or multiply two constant factors first, which changes the rounding. So products and
# their sums are in different compiled functions, and factors are arguments.
_compiled = tf.function(jit_compile=True)

_LUMA = 0.2989, 0.5870, 0.1140  # the shares of red, green and blue in grey
_GREY = 128  # what moves in from outside the image, and the inside of Cutout's box
_FIRST_STREAM = 2  # numbers 0 and 1 folded into an example's seed belong to the crop and the flip


def randaugment(image, seed, *, layers=2, magnitude):
  """The image after `layers` operations in turn, each drawn uniformly from the 16.

  `seed` is an int64 (2,) tensor: the same seed gives the same pixels. `magnitude` 10 is the end of
  the published scale and larger ones extrapolate; the paper (table 4) uses 10, 15 and 20.
  Raises InputError if `layers` or `magnitude` is negative.
  """
  check(layers, magnitude)
  shape = image.shape
  for layer in range(layers):
    index, sign, centre = draw(seed, layer)
    branches = operations(image, magnitude, sign, centre)
    image = tf.switch_case(index, list(branches.values()))
  return tf.ensure_shape(image, shape)


def draw(seed, layer):
  """What layer number `layer` gets: (index of the operation, sign, centre).

  An int32 from 0 to 15, a float32 -1 or 1, and float32 (2,) in [0, 1), all uniform.
  """
  stream = tf.random.experimental.stateless_fold_in(seed, _FIRST_STREAM + layer)
  uniform = tf.random.stateless_uniform((4,), stream)
  index = tf.cast(uniform[0] * 16, tf.int32)
  return index, tf.where(uniform[1] < 0.5, -1.0, 1.0), uniform[2:]


def operations(image, magnitude, sign, centre):
  """The 16 operations by name, as functions without arguments that return the changed image."""
  to = arguments(magnitude)
  return {
    'AutoContrast': lambda: autocontrast(image),
    'Equalize': lambda: equalize(image),
    'Invert': lambda: invert(image),
    'Rotate': lambda: rotate(image, sign * to['Rotate']),
    'Posterize': lambda: posterize(image, to['Posterize']),
    'Solarize': lambda: solarize(image, to['Solarize']),
    'Color': lambda: color(image, to['Color']),
    'Contrast': lambda: contrast(image, to['Contrast']),
    'Brightness': lambda: brightness(image, to['Brightness']),
    'Sharpness': lambda: sharpness(image, to['Sharpness']),
    'ShearX': lambda: shear_x(image, sign * to['ShearX']),
    'ShearY': lambda: shear_y(image, sign * to['ShearY']),
    'TranslateX': lambda: translate_x(image, sign * to['TranslateX']),
    'TranslateY': lambda: translate_y(image, sign * to['TranslateY']),
    'Cutout': lambda: cutout(image, to['Cutout'], centre),
    'SolarizeAdd': lambda: solarize_add(image, to['SolarizeAdd']),
  }


# Levels by their own value.


def invert(image):
  return 255 - image


def posterize(image, bits):
  """Keeps the highest `bits`; 8 keep all."""
  shift = min((8 - bits) % 256, 7)  # a uint8, and TF shifts by 7 at most: 0 and 9 bits act as 1
  return tf.bitwise.bitwise_and(image, 255 >> shift << shift)


def solarize(image, threshold):
  """Inverts the levels from `threshold` on."""
  return _solarize(image, tf.constant(threshold, tf.uint8))


@_compiled
def _solarize(image, threshold):
  return tf.where(image < threshold, image, 255 - image)


def solarize_add(image, addition):
  """Raises the levels below 128 by `addition`, to at most 255."""
  return _solarize_add(image, tf.constant(min(addition, 255), tf.uint8))


@_compiled
def _solarize_add(image, addition):
  return tf.where(image < 128, tf.minimum(image, 255 - addition) + addition, image)


# Levels by those of the whole channel.


def autocontrast(image):
  """Stretches each channel to 0..255 in float32, rounded down; a channel of one level stays."""
  low, high = _extremes(image)
  spread = high - low
  scale = tf.where(spread > 0, 255 / tf.maximum(spread, 1), 1.0)
  offset = tf.where(spread > 0, -low * scale, 0.0)
  width = tf.shape(image)[1]
  stretched = _sum(_product(_rows(image), tf.tile(scale, [width])), tf.tile(offset, [width]))
  return tf.reshape(stretched, tf.shape(image))


@_compiled
def _extremes(image):
  """The least and the greatest level of each channel, float32 (3,) each."""
  rows = _rows(image)
  least = tf.reduce_min(tf.reshape(tf.reduce_min(rows, axis=0), [-1, 3]), axis=0)
  greatest = tf.reduce_max(tf.reshape(tf.reduce_max(rows, axis=0), [-1, 3]), axis=0)
  return tf.cast(least, tf.float32), tf.cast(greatest, tf.float32)


def equalize(image):
  """Gives each channel's levels about equally many pixels, in PIL's whole-number arithmetic."""
  indices = _indices(image)
  counts = tf.reshape(tf.math.bincount(indices, minlength=768, maxlength=768), [3, 256])
  darker = tf.cumsum(counts, axis=1, exclusive=True)  # pixels below each level
  step = tf.reduce_max(tf.where(counts > 0, darker, 0), axis=1, keepdims=True) // 255
  levels = tf.minimum((darker + step // 2) // tf.maximum(step, 1), 255)
  levels = tf.where(step > 0, levels, tf.range(256)[None])
  flat = tf.reshape(tf.cast(levels, tf.uint8), [-1])
  return tf.reshape(_take(flat, indices), tf.shape(image))


@_compiled
def _indices(image):
  """int32 (height, width * 3): the level of a pixel, plus 256 for each channel before its own."""
  rows = _rows(image)
  return tf.cast(rows, tf.int32) + tf.range(tf.shape(rows)[1]) % 3 * 256


@_compiled
def _take(table, indices):
  return tf.gather(table, indices)


# Away from (factor > 1) or towards (factor < 1) a degenerate image.


def color(image, factor):
  """The degenerate image is the grey one, which is that of `tf.image.rgb_to_grayscale`."""
  shares = _shares_of_grey(image, tf.constant(1 / 255), tf.constant(_LUMA))
  return _blend(_grey(*shares), image, factor)


@_compiled
def _shares_of_grey(image, scale, luma):
  """float32 (height, width, 1) for each channel."""
  return [tf.cast(image[..., i : i + 1], tf.float32) * scale * luma[i] for i in range(3)]


@_compiled
def _grey(red, green, blue):
  return tf.cast((red + green + blue) * 255.5, tf.uint8)


def contrast(image, factor):
  """The degenerate image is of one level: height * width / 256, not the image's mean."""
  level = tf.minimum(tf.shape(image)[0] * tf.shape(image)[1] // 256, 255)
  return _blend(level, image, factor)


def brightness(image, factor):
  """The degenerate image is black."""
  return _blend(0, image, factor)


def sharpness(image, factor):
  """The degenerate image is blurred by [1 1 1; 1 5 1; 1 1 1] / 13, rounded down; borders stay.

  Sums are whole here. The original adds rounded thirteenths, so its blur may be one level lower.
  """
  rows = _rows(image)
  sharp = _blend(_blurred(rows), rows[1:-1, 3:-3], factor)
  sharp = tf.concat([rows[1:-1, :3], sharp, rows[1:-1, -3:]], axis=1)
  return tf.reshape(tf.concat([rows[:1], sharp, rows[-1:]], axis=0), tf.shape(image))


@_compiled
def _blurred(rows):
  """uint8 (height - 2, (width - 2) * 3)."""
  levels = tf.cast(rows, tf.uint16)
  three = levels[:-2] + levels[1:-1] + levels[2:]
  total = three[:, :-6] + three[:, 3:-3] + three[:, 6:] + 4 * levels[1:-1, 3:-3]
  return tf.cast(total // 13, tf.uint8)


def _blend(degenerate, image, factor):
  """degenerate + factor * (image - degenerate), cut to 0..255 and to whole levels."""
  degenerate = tf.convert_to_tensor(degenerate)
  return _sum(_scaled_difference(image, degenerate, tf.constant(factor)), degenerate)


@_compiled
def _scaled_difference(image, degenerate, factor):
  return factor * (tf.cast(image, tf.float32) - tf.cast(degenerate, tf.float32))


@_compiled
def _product(values, factor):
  return tf.cast(values, tf.float32) * factor


@_compiled
def _sum(products, addend):
  """products + addend, cut to 0..255 and to whole levels."""
  levels = products + tf.cast(addend, tf.float32)
  return tf.cast(tf.clip_by_value(levels, 0.0, 255.0), tf.uint8)


# Places.


def rotate(image, degrees):
  """About the image's centre."""
  size = tf.cast(tf.shape(image), tf.float32)
  x, y = (size[1] - 1) / 2, (size[0] - 1) / 2
  cos, sin = tf.cos(degrees * (math.pi / 180)), tf.sin(degrees * (math.pi / 180))
  return _affine(image, (cos, -sin, (cos * x - sin * y) - x), (sin, cos, (sin * x + cos * y) - y))


def shear_x(image, slope):
  return _affine(image, (1.0, slope, 0.0), (0.0, 1.0, 0.0))


def shear_y(image, slope):
  return _affine(image, (1.0, 0.0, 0.0), (slope, 1.0, 0.0))


def translate_x(image, pixels):
  return _affine(image, (1.0, 0.0, -pixels), (0.0, 1.0, 0.0))


def translate_y(image, pixels):
  return _affine(image, (1.0, 0.0, 0.0), (0.0, 1.0, -pixels))


def _affine(image, to_x, to_y):
  """Shows at (x, y) the pixel nearest to (to_x . (x, y, -1), to_y . (x, y, -1)); grey outside.

  The last term is subtracted, since TensorFlow's optimizer of graphs may change the order of a sum.
  """
  shape = tf.cast(tf.shape(image), tf.float32)
  column, row = tf.range(shape[1])[None, :], tf.range(shape[0])[:, None]
  x, y = ((to[0] * column, to[1] * row, tf.convert_to_tensor(to[2])) for to in (to_x, to_y))
  return _nearest(image, x, y)


@_compiled
def _nearest(image, x, y):
  """The pixel nearest to (x, y) for each (a + b - c) of these; grey outside.

  Each is (a (1, width), b (height, 1), c), float32.
  """
  x, y = x[0] + x[1] - x[2], y[0] + y[1] - y[2]
  height, width = tf.shape(image)[0], tf.shape(image)[1]
  limit_x, limit_y = tf.cast(width, tf.float32) - 0.5, tf.cast(height, tf.float32) - 0.5
  inside = (x > -0.5) & (x < limit_x) & (y > -0.5) & (y < limit_y)
  place = tf.cast(y + 0.5, tf.int32) * width + tf.cast(x + 0.5, tf.int32)
  pixels = tf.gather(tf.reshape(image, [-1, 3]), tf.where(inside, place, 0))
  return tf.where(inside[..., None], pixels, tf.constant(_GREY, tf.uint8))


def cutout(image, pad, centre):
  """Greys the box that reaches `pad` pixels to each side of `centre`, parts of height and width."""
  middle = tf.cast(centre * tf.cast(tf.shape(image)[:2], tf.float32), tf.int32)
  return _cutout(image, tf.constant(pad), middle)


@_compiled
def _cutout(image, pad, middle):
  shape = tf.shape(image)
  y, x = tf.range(shape[0])[:, None, None], tf.range(shape[1])[None, :, None]
  row, column = middle[0], middle[1]
  box = (y >= row - pad) & (y < row + pad) & (x >= column - pad) & (x < column + pad)
  return tf.where(box, tf.constant(_GREY, tf.uint8), image)


def _rows(image):
  """(height, width, 3) as (height, width * 3)."""
  shape = tf.shape(image)
  return tf.reshape(image, [shape[0], shape[1] * 3])
