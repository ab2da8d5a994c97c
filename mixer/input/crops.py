"""From an encoded image to uint8 pixels of the model's size, in TensorFlow ops.

`size` is (height, width) throughout; every op returns uint8 (height, width, 3). A `seed` is an
int64 (2,) tensor: the same seed gives the same pixels.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from mixer import runtime
from mixer.errors import InputError
from mixer.sizes import pair

tf = runtime.tensorflow()

# Pixels beyond which the memory for an image matters more than the time.
_LARGE = 2**23


class Crop(NamedTuple):
  """A crop: function(encoded, size[, resize=][, seed=]) -> image."""

  function: Callable
  random: bool  # takes `seed`: for training
  resizes: bool  # takes `resize`, (height, width)


def inception_crop(encoded, size, seed, *, area_range=(0.05, 1.0)):
  """A random part of the image, of random shape, resized; then flipped half of the time.

  The paper's pre-training crop: area 5-100 %, aspect 0.75 to 1.33, bilinear, only the crop is
  decoded. So a truncated JPEG is not detected if the crop is in the part that exists.
  """
  image = tf.cond(
    tf.io.is_jpeg(encoded),
    lambda: jpeg_window(encoded, seed, area_range),
    lambda: _window_of(_decode(encoded), seed, area_range),
  )
  return _flip(_bilinear(image, size), seed)


def jpeg_window(encoded, seed, area_range=(0.05, 1.0)):
  """A random part of a JPEG; only this part is decoded."""
  window = _draw_window(_jpeg_shape(encoded), seed, area_range)
  return tf.io.decode_and_crop_jpeg(encoded, window, channels=3)


def _window_of(image, seed, area_range):
  top, left, height, width = tf.unstack(_draw_window(tf.shape(image), seed, area_range))
  return image[top : top + height, left : left + width]


def _draw_window(shape, seed, area_range):
  """(top, left, height, width), int32."""
  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    tf.zeros((1, 0, 4), tf.float32),
    seed,
    min_object_covered=0.0,
    aspect_ratio_range=(0.75, 1.33),  # the op's default, which big_vision has; not quite 4 / 3
    area_range=area_range,
    use_image_if_no_bounding_boxes=True,
  )
  return tf.concat([begin[:2], extent[:2]], axis=0)


def direct(encoded, size):
  """The whole image, its shape not kept: vision_transformer's evaluation."""
  return _bilinear(_decode(encoded), size)


def direct_flip(encoded, size, seed):
  """The whole image, flipped half of the time: for labels that depend on its edges."""
  return _flip(direct(encoded, size), seed)


def resize_crop(encoded, size, *, resize):
  """The centre of the image resized to `resize`, its shape not kept: the paper's evaluation (i)."""
  return _centre(_bilinear(_decode(encoded), resize), size)


def resize_random_crop(encoded, size, seed, *, resize):
  """A random part of the image resized to `resize`, flipped half of the time: BiT's fine-tuning."""
  return _flip(resize_random_unflipped_crop(encoded, size, seed, resize=resize), seed)


def resize_random_unflipped_crop(encoded, size, seed, *, resize):
  """The same without a flip: for labels that mirroring would change."""
  image = _bilinear(_decode(encoded), resize)
  return _cut(image, _random_corner(tf.shape(image)[:2] - size, seed), size)


def resize_small_crop(encoded, size, *, resize):
  """The centre of the image after its shorter side has become `resize` pixels (area filter).

  The paper's evaluation (ii). A rectangular `size` with `resize` (height, width) scales the
  image so that it just covers `resize`, keeping its shape.
  """
  return _cover_and_cut(_decode(encoded), resize, size, lambda room: room // 2)


def resize_small_random_crop(encoded, size, seed, *, resize):
  """The same with a random part, flipped half of the time: big_vision's fine-tuning."""
  corner = functools.partial(_random_corner, seed=seed)
  return _flip(_cover_and_cut(_decode(encoded), resize, size, corner), seed)


CROPS = {
  'direct': Crop(direct, random=False, resizes=False),
  'direct_flip': Crop(direct_flip, random=True, resizes=False),
  'inception': Crop(inception_crop, random=True, resizes=False),
  'resize': Crop(resize_crop, random=False, resizes=True),
  'resize_random': Crop(resize_random_crop, random=True, resizes=True),
  'resize_random_unflipped': Crop(resize_random_unflipped_crop, random=True, resizes=True),
  'resize_small': Crop(resize_small_crop, random=False, resizes=True),
  'resize_small_random': Crop(resize_small_random_crop, random=True, resizes=True),
}


def find(name: str, image_size, resize) -> Crop:
  """The crop called `name`, or InputError if it is unknown or does not accept the sizes."""
  if name not in CROPS or CROPS[name].resizes != (resize is not None):
    having, lacking = ([n for n, c in CROPS.items() if c.resizes == r] for r in (True, False))
    raise InputError(
      f'crop={name!r} with resize={resize!r}: use one of {lacking} without or one of {having} '
      'with it.'
    )
  if resize is not None and any(s > r for s, r in zip(pair(image_size), pair(resize), strict=True)):
    raise InputError(f'a crop of {image_size} pixels needs resize >= it; got resize={resize}.')
  return CROPS[name]


def _bilinear(image, size):
  # From float32 the op takes two thirds of its time from uint8, but a large image four times its
  # memory; the pixels are the same. A mean of levels needs no clipping.
  resized = tf.cond(
    tf.size(image, tf.int64) <= 3 * _LARGE,
    lambda: tf.image.resize(tf.cast(image, tf.float32), size, 'bilinear'),
    lambda: tf.image.resize(image, size, 'bilinear'),
  )
  return tf.ensure_shape(tf.cast(resized, tf.uint8), (*size, 3))


def _cover_and_cut(image, resize, size, corner):
  """A part of `size` of the image scaled (area filter) so that it just covers `resize`.

  `corner` is a function from the rows and columns that are left over to the part's (top, left).
  """
  height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
  factor = tf.maximum(resize[0] / height, resize[1] / width)
  scaled = tf.cast(tf.round(tf.stack([height * factor, width * factor])), tf.int64)
  place = corner(scaled - size)
  part = tf.cond(
    tf.reduce_prod(scaled) <= max(_LARGE, 8 * resize[0] * resize[1]),
    lambda: _cut(tf.image.resize(image, tf.cast(scaled, tf.int32), 'area'), place, size),
    lambda: _part_by_areas(image, scaled, place, size),
  )
  return tf.cast(part, tf.uint8)  # a mean of levels needs no clipping


def _part_by_areas(image, scaled, place, size):
  """The part of `size` at `place` of the image resized to `scaled`, which is too large to make."""
  rows, columns = (_shares(tf.shape(image)[i], scaled[i], place[i], size[i]) for i in (0, 1))
  (row, of_rows), (column, of_columns) = rows, columns
  source = image[row : row + tf.shape(of_rows)[1], column : column + tf.shape(of_columns)[1]]
  narrow = tf.einsum('yh,hwc->ywc', of_rows, tf.cast(source, tf.float32))
  return tf.ensure_shape(tf.einsum('xw,ywc->yxc', of_columns, narrow), (*size, 3))


def _shares(length, scaled, begin, count):
  """Where `count` of `scaled` cells over `length` pixels lie, from number `begin` on.

  (the first pixel, float32 (count, pixels): the share that each pixel has in each cell).
  """
  scale = tf.cast(length, tf.float64) / tf.cast(scaled, tf.float64)
  edges = tf.cast(begin + tf.range(count + 1, dtype=tf.int64), tf.float64) * scale
  first = tf.cast(edges[0], tf.int32)
  last = tf.minimum(tf.cast(tf.math.ceil(edges[-1]), tf.int32), length)
  pixels = tf.cast(tf.range(first, last), tf.float64)[None]
  covered = tf.clip_by_value(edges[:, None] - pixels, 0.0, 1.0)
  return first, tf.cast((covered[1:] - covered[:-1]) / scale, tf.float32)


def _centre(image, size):
  return _cut(image, (tf.shape(image)[:2] - size) // 2, size)


def _random_corner(room, seed):
  """(top, left) of a part at a uniformly random position, with `room` rows and columns left."""
  share = tf.random.stateless_uniform((2,), tf.random.experimental.stateless_fold_in(seed, 0))
  return tf.cast(share * (tf.cast(room, tf.float32) + 1), room.dtype)


def _cut(image, corner, size):
  top, left = tf.unstack(corner)
  return tf.ensure_shape(image[top : top + size[0], left : left + size[1]], (*size, 3))


def _flip(image, seed):
  flip = tf.random.stateless_uniform((), tf.random.experimental.stateless_fold_in(seed, 1)) < 0.5
  flipped = tf.cond(flip, lambda: tf.reverse(image, axis=[1]), lambda: image)
  return tf.ensure_shape(flipped, image.shape)


def _jpeg_shape(encoded):
  return tf.concat([tf.io.extract_jpeg_shape(encoded)[:2], [3]], axis=0)


def _decode(encoded):
  """Any encoded image as uint8 (height, width, 3); of an animation, the first frame."""
  image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  return tf.ensure_shape(image, (None, None, 3))
