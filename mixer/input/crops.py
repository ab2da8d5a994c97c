"""From an encoded image to uint8 pixels of the model's size, in TensorFlow ops.

`size` is (height, width) throughout; every op returns uint8 (height, width, 3). A `seed` is an
int64 (2,) tensor: the same seed gives the same pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

from mixer import runtime
from mixer.errors import InputError
from mixer.sizes import pair

tf = runtime.tensorflow()


class Crop(NamedTuple):
  """A crop: function(encoded, size[, resize=][, seed=]) -> image."""

  function: Callable
  random: bool  # takes `seed`: for training
  resizes: bool  # takes `resize`, (height, width)


def inception_crop(encoded, size, seed, *, area_range=(0.05, 1.0)):
  """A random part of the image, of random shape, resized; then flipped half of the time.

  The paper's pre-training crop: area 5-100 %, aspect 3/4 to 4/3, bilinear, only the crop is
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
    aspect_ratio_range=(3 / 4, 4 / 3),
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
  return _window(_bilinear(_decode(encoded), resize), size, seed)


def resize_small_crop(encoded, size, *, resize):
  """The centre of the image after its shorter side has become `resize` pixels (area filter).

  The paper's evaluation (ii). A rectangular `size` with `resize` (height, width) scales the
  image so that it just covers `resize`, keeping its shape.
  """
  return _centre(_cover(_decode(encoded), resize), size)


def resize_small_random_crop(encoded, size, seed, *, resize):
  """The same with a random part, flipped half of the time: big_vision's fine-tuning."""
  return _flip(_window(_cover(_decode(encoded), resize), size, seed), seed)


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
  # From float32 the op takes two thirds of its time from uint8. A mean of levels needs no clipping.
  resized = tf.image.resize(tf.cast(image, tf.float32), size, 'bilinear')
  return tf.ensure_shape(tf.cast(resized, tf.uint8), (*size, 3))


def _cover(image, resize):
  """The image scaled so that it just covers `resize`."""
  height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
  factor = tf.maximum(resize[0] / height, resize[1] / width)
  scaled = tf.cast(tf.round(tf.stack([height * factor, width * factor])), tf.int32)
  return _to_uint8(tf.image.resize(image, scaled, 'area'))


def _centre(image, size):
  return _cut(image, (tf.shape(image)[:2] - size) // 2, size)


def _window(image, size, seed):
  """A part of the image at a uniformly random position."""
  room = tf.cast(tf.shape(image)[:2] - size, tf.float32)
  share = tf.random.stateless_uniform((2,), tf.random.experimental.stateless_fold_in(seed, 0))
  return _cut(image, tf.cast(share * (room + 1), tf.int32), size)


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


def _to_uint8(image):
  return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)
