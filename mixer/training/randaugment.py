"""RandAugment in JAX, for the accelerator: a batch of images, each with its own operations.

The operations are those of `mixer.input.randaugment`, which says where they come from. Pixels are
the same but for rounding, as XLA may fuse a product with a sum: where Rotate and Shear lie halfway
between two pixels, and by one level in AutoContrast. docs/input.md has how often.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from mixer.errors import InputError

NAMES = (
  'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'Color', 'Contrast',
  'Brightness', 'Sharpness', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Cutout',
  'SolarizeAdd',
)  # fmt: skip
_MOVING = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')

_GREY = 128  # what moves in from outside the image, and the inside of Cutout's box
_STREAM = 2**31  # folded into an example's key; the model's own numbers are small


def check(layers: int, magnitude: float) -> None:
  """Raises InputError if either is negative."""
  if layers < 0 or magnitude < 0:
    raise InputError(
      f'randaugment with layers={layers} and magnitude={magnitude}: neither may be negative. '
      'The paper has layers=2 and a magnitude of 10, 15 or 20; layers=0 leaves images as they are.'
    )


def arguments(magnitude: float) -> dict[str, float]:
  """What the operations with a parameter get at `magnitude`, by name.

  Degrees for Rotate; sideways pixels per pixel for Shear; pixels for Translate and Cutout (half of
  the box's side); bits for Posterize; grey levels for Solarize (where inversion begins; 256 wraps
  to 0) and SolarizeAdd; a factor for the rest, of which 1 keeps the image.
  """
  level = magnitude / 10
  factor = level * 1.8 + 0.1
  return {
    'Rotate': level * 30.0,
    'Posterize': int(level * 4),
    'Solarize': int(level * 256) % 256,
    'Color': factor,
    'Contrast': factor,
    'Brightness': factor,
    'Sharpness': factor,
    'ShearX': level * 0.3,
    'ShearY': level * 0.3,
    'TranslateX': level * 100.0,
    'TranslateY': level * 100.0,
    'Cutout': int(level * 40),
    'SolarizeAdd': int(level * 110),
  }


def make(
  *, layers: int, magnitude: float, at_once: int | None = None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """A function (uint8 images (n, height, width, 3), keys (n,)) -> such images.

  Each layer draws one of the 16 operations for each image from that image's key alone.

  Args:
    layers, magnitude: as the paper's table 4 has them.
    at_once: images that are processed together, which computes every operation for every image; 1
      costs the drawn ones alone, one image after another. None for 1 on a CPU and 64 elsewhere,
      where a batch in single steps would leave the device idle.
  """
  check(layers, magnitude)

  def augment(example):
    image, key = example
    for layer in range(layers):
      image = _apply(image, *draw(key, layer), magnitude)
    return image

  def augment_all(images, keys):
    together = at_once or (1 if jax.default_backend() == 'cpu' else 64)
    batch_size = together if together > 1 else None  # a batch of 1 would be vmapped as well
    return jax.lax.map(augment, (images, keys), batch_size=batch_size)

  return augment_all


def draw(key: jax.Array, layer: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What layer number `layer` gets: (index into NAMES, sign, centre).

  An int32, a float32 -1 or 1, and float32 (2,) in [0, 1), all uniform.
  """
  uniform = jax.random.uniform(jax.random.fold_in(key, _STREAM + layer), (4,))
  index = (uniform[0] * len(NAMES)).astype(jnp.int32)
  return index, jnp.where(uniform[1] < 0.5, -1.0, 1.0), uniform[2:]


def _apply(image, index, sign, centre, magnitude):
  """The operation number `index`.

  Under vmap each branch is computed for each image, so the five that move pixels share a gather.
  """
  matrices = _matrices(image.shape, magnitude, sign)
  moving = jnp.array([NAMES.index(name) for name in _MOVING])
  which = jnp.argmax(index == moving)
  matrix = jnp.stack([jnp.stack(matrices[name]) for name in _MOVING])[which]
  own = operations(image, magnitude, sign, centre)
  branches = [own[name] for name in NAMES if name not in _MOVING] + [lambda: affine(image, matrix)]
  number = {name: i for i, name in enumerate(n for n in NAMES if n not in _MOVING)}
  numbers = jnp.array([number.get(name, len(number)) for name in NAMES])
  return jax.lax.switch(numbers[index], branches)


def operations(image, magnitude, sign, centre) -> dict[str, Callable[[], jax.Array]]:
  """The 16 operations by name, as functions without arguments that return the changed image."""
  to, matrices = arguments(magnitude), _matrices(image.shape, magnitude, sign)
  found = {
    'AutoContrast': lambda: autocontrast(image),
    'Equalize': lambda: equalize(image),
    'Invert': lambda: 255 - image,
    'Posterize': lambda: posterize(image, to['Posterize']),
    'Solarize': lambda: jnp.where(image < to['Solarize'], image, 255 - image),
    'Color': lambda: color(image, to['Color']),
    'Contrast': lambda: contrast(image, to['Contrast']),
    'Brightness': lambda: _blend(0, image, to['Brightness']),
    'Sharpness': lambda: sharpness(image, to['Sharpness']),
    'Cutout': lambda: cutout(image, to['Cutout'], centre),
    'SolarizeAdd': lambda: solarize_add(image, to['SolarizeAdd']),
  }
  moved = {name: lambda m=m: affine(image, jnp.stack(m)) for name, m in matrices.items()}
  return {name: (found | moved)[name] for name in NAMES}


# Levels.


def posterize(image, bits):
  """Keeps the highest `bits`; 8 keep all."""
  shift = min((8 - bits) % 256, 7)  # as TensorFlow shifts a uint8
  return image & jnp.uint8(255 >> shift << shift)


def solarize_add(image, addition):
  """Raises the levels below 128 by `addition`, to at most 255."""
  raised = jnp.minimum(image.astype(jnp.int32) + addition, 255).astype(jnp.uint8)
  return jnp.where(image < 128, raised, image)


def autocontrast(image):
  """Stretches each channel to 0..255 in float32, rounded down; a channel of one level stays."""
  low = image.min(axis=(0, 1), keepdims=True).astype(jnp.float32)
  spread = image.max(axis=(0, 1), keepdims=True).astype(jnp.float32) - low
  scale = jnp.where(spread > 0, 255 / jnp.maximum(spread, 1), 1.0)
  offset = jnp.where(spread > 0, -low * scale, 0.0)
  return _to_uint8(image.astype(jnp.float32) * scale + offset)


def equalize(image):
  """Gives each channel's levels about equally many pixels, in PIL's whole-number arithmetic."""
  indices = image.astype(jnp.int32) + jnp.array([[[0, 256, 512]]])
  counts = jnp.zeros(768, jnp.int32).at[indices].add(1).reshape(3, 256)
  darker = jnp.cumsum(counts, axis=1) - counts  # pixels below each level
  step = jnp.where(counts > 0, darker, 0).max(axis=1, keepdims=True) // 255
  levels = jnp.minimum((darker + step // 2) // jnp.maximum(step, 1), 255)
  levels = jnp.where(step > 0, levels, jnp.arange(256)[None])
  return levels.astype(jnp.uint8).reshape(-1)[indices]


# Away from (factor > 1) or towards (factor < 1) a degenerate image.


def color(image, factor):
  """The degenerate image is the grey one, rounded down as tf.image.rgb_to_grayscale does."""
  red, green, blue = (image[..., i, None].astype(jnp.float32) * (1 / 255) for i in range(3))
  grey = (0.2989 * red + 0.587 * green + 0.114 * blue) * 255.5
  return _blend(jnp.floor(grey), image, factor)


def contrast(image, factor):
  """The degenerate image is of one level: height * width / 256, not the image's mean."""
  return _blend(min(image.shape[0] * image.shape[1] // 256, 255), image, factor)


def sharpness(image, factor):
  """The degenerate image is blurred by [1 1 1; 1 5 1; 1 1 1] / 13, rounded down; borders stay."""
  levels = image.astype(jnp.int32)
  three = levels[:-2] + levels[1:-1] + levels[2:]
  total = three[:, :-2] + three[:, 1:-1] + three[:, 2:] + 4 * levels[1:-1, 1:-1]
  inner = _blend(total // 13, image[1:-1, 1:-1], factor)
  return image.at[1:-1, 1:-1].set(inner)


def _blend(degenerate, image, factor):
  """degenerate + factor * (image - degenerate), cut to 0..255 and to whole levels."""
  degenerate = jnp.asarray(degenerate, jnp.float32)
  return _to_uint8(degenerate + factor * (image.astype(jnp.float32) - degenerate))


def _to_uint8(image):
  return jnp.clip(image, 0.0, 255.0).astype(jnp.uint8)


# Places.


def _matrices(shape, magnitude, sign):
  """name -> (a, b, c, d, e, f): (x, y) shows the pixel at (ax + by + c, dx + ey + f)."""
  to = {name: sign * value for name, value in arguments(magnitude).items()}
  y, x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
  angle = to['Rotate'] * (math.pi / 180)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  zero = jnp.zeros_like(cos)
  one = zero + 1
  return {
    'Rotate': (cos, -sin, x - (cos * x - sin * y), sin, cos, y - (sin * x + cos * y)),
    'ShearX': (one, to['ShearX'] + zero, zero, zero, one, zero),
    'ShearY': (one, zero, zero, to['ShearY'] + zero, one, zero),
    'TranslateX': (one, zero, to['TranslateX'] + zero, zero, one, zero),
    'TranslateY': (one, zero, zero, zero, one, to['TranslateY'] + zero),
  }


def affine(image, matrix):
  """Shows at each place the pixel nearest to where `matrix` points; grey outside."""
  height, width, _ = image.shape
  a, b, c, d, e, f = matrix
  column = jnp.arange(width, dtype=jnp.float32)[None, :]
  row = jnp.arange(height, dtype=jnp.float32)[:, None]
  x, y = a * column + b * row + c, d * column + e * row + f
  inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
  nearest = (y + 0.5).astype(jnp.int32), (x + 0.5).astype(jnp.int32)
  return jnp.where(inside[..., None], image[nearest], jnp.uint8(_GREY))


def cutout(image, pad, centre):
  """Greys the box that reaches `pad` pixels to each side of `centre`, parts of height and width."""
  height, width, _ = image.shape
  row, column = (centre * jnp.array([height, width], jnp.float32)).astype(jnp.int32)
  y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
  box = (y >= row - pad) & (y < row + pad) & (x >= column - pad) & (x < column + pad)
  return jnp.where(box[..., None], jnp.uint8(_GREY), image)
