"""Encoded images of any kind, converted to those that `crops` decodes, in TensorFlow ops."""

from typing import NamedTuple

import numpy as np

from mixer import runtime
from mixer.input import image_facts, image_files

tf = runtime.tensorflow()


class Conversion(NamedTuple):
  """How an image that needs it is converted; see `image_files.readable`."""

  max_pixels: int = image_facts.MAX_PIXELS
  exif_orientation: bool = False
  bits_per_channel: int = 16

  def changed(self) -> dict[str, int]:
    """The values that change pixels and are not the default ones."""
    return {
      key: value
      for key, value in self._asdict().items()
      if key != 'max_pixels' and value != self._field_defaults[key]
    }

  def __call__(self, encoded: tf.Tensor) -> tf.Tensor:
    """The file as it is, or an uncompressed one; a JPEG that stays as it is costs no Python."""
    encoded = tf.convert_to_tensor(encoded)

    def readable(given):  # outside a graph, an array without dimensions
      return image_files.readable(np.asarray(given, object).item(), **self._asdict())

    def convert():
      return tf.ensure_shape(tf.numpy_function(readable, [encoded], tf.string, stateful=False), [])

    if self.exif_orientation:
      return convert()
    return tf.cond(self._is_small_jpeg(encoded), lambda: encoded, convert)

  def _is_small_jpeg(self, encoded):
    def small():
      sides = tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.int64)
      return tf.reduce_prod(sides) <= self.max_pixels

    return tf.cond(tf.io.is_jpeg(encoded), small, lambda: False)


DEFAULT = Conversion()
