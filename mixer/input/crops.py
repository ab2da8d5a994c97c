"""From an encoded image to uint8 pixels of the model's size, in TensorFlow ops.

`size` is (height, width) throughout; every op returns uint8 (height, width, channels).
"""

import tensorflow as tf


def inception_crop(encoded, size, seed, *, channels=3, area_range=(0.05, 1.0)):
  """A random part of the image, of random shape, resized; then flipped half of the time.

  The paper's pre-training crop: area 5-100 %, aspect 3/4 to 4/3, bilinear, only the crop is
  decoded. `seed` is an int64 (2,) tensor: the same seed gives the same pixels.
  """
  is_jpeg = tf.io.is_jpeg(encoded)
  decoded = tf.cond(
    is_jpeg, lambda: tf.zeros((1, 1, channels), tf.uint8), lambda: _decode(encoded, channels)
  )
  shape = tf.cond(is_jpeg, lambda: _jpeg_shape(encoded, channels), lambda: tf.shape(decoded))
  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    tf.zeros((1, 0, 4), tf.float32),
    seed,
    min_object_covered=0.0,
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=area_range,
    use_image_if_no_bounding_boxes=True,
  )
  window = tf.concat([begin[:2], extent[:2]], axis=0)
  image = tf.cond(
    is_jpeg,
    lambda: tf.io.decode_and_crop_jpeg(encoded, window, channels=channels),
    lambda: tf.slice(decoded, [begin[0], begin[1], 0], [extent[0], extent[1], -1]),
  )
  image = _to_uint8(tf.image.resize(image, size, 'bilinear'))
  flip = tf.random.stateless_uniform((), tf.random.experimental.stateless_fold_in(seed, 1)) < 0.5
  image = tf.cond(flip, lambda: tf.reverse(image, axis=[1]), lambda: image)
  return tf.ensure_shape(image, (*size, channels))


def resize_small_crop(encoded, size, *, channels=3, resize):
  """The centre of the image after its shorter side has become `resize` pixels (area filter).

  The paper's evaluation (ii). A rectangular `size` with `resize` (height, width) scales the
  image so that it just covers `resize`, keeping its shape.
  """
  image = _decode(encoded, channels)
  height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
  factor = tf.maximum(resize[0] / height, resize[1] / width)
  scaled = tf.cast(tf.round(tf.stack([height * factor, width * factor])), tf.int32)
  image = _to_uint8(tf.image.resize(image, scaled, 'area'))
  top, left = tf.unstack((scaled - tf.constant(size)) // 2)
  return tf.ensure_shape(image[top : top + size[0], left : left + size[1]], (*size, channels))


def _jpeg_shape(encoded, channels):
  return tf.concat([tf.io.extract_jpeg_shape(encoded)[:2], [channels]], axis=0)


def _decode(encoded, channels):
  """Any encoded image as uint8 (height, width, channels); of an animation, the first frame."""
  return tf.io.decode_image(encoded, channels=channels, expand_animations=False)


def _to_uint8(image):
  return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)
