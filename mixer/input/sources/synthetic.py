"""One random batch, repeated: the input does not limit the speed. Needs no TensorFlow."""

from collections.abc import Iterator
import itertools

import numpy as np

from mixer.input import order
from mixer.sizes import Size, pair
from mixer.values import Count


class Synthetic:
  """An input of random uint8 images that cost nothing; see `input.Input`."""

  bad_images = None  # nothing is decoded

  def __init__(
    self,
    *,
    num_classes: Count,
    num_examples: Count,
    image_size: Size,
    batch_size: Count,
    channels: Count = 3,
    multi_label: bool = False,
  ):
    """Nothing is drawn yet.

    Args:
      num_classes, num_examples: of the set that it stands for.
      image_size: pixels of a side, or (height, width).
      batch_size: the global one.
      channels: of an image.
      multi_label: labels are vectors with about one class in a hundred, not class numbers.
    """
    self.num_classes, self.num_examples, self.batch_size = num_classes, num_examples, batch_size
    self.class_names = tuple(str(i) for i in range(num_classes))
    self.image_size, self.channels, self.multi_label = pair(image_size), channels, multi_label
    self.for_evaluation = True
    self.preprocessing = {'name': 'none', 'value_range': [-1, 1]}
    self.augment = None

  def train_batches(
    self, first_batch: int, seed: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """The same arrays without end, whatever the `first_batch`."""
    return itertools.repeat(self._draw(order.local_rows(self.batch_size, num_shards), seed, shard))

  def eval_batches(
    self, batch_size: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """As many batches as `num_examples` take; 'mask' is False for padding."""
    batch = self._draw(order.local_rows(batch_size, num_shards), 0, shard)
    for _, mask in order.padded_batches(self.num_examples, batch_size, shard, num_shards):
      yield {**batch, 'mask': mask}

  def describe(self, index: int) -> str:
    return ''

  def image(self, index: int) -> None:
    """There is nothing to be seen in random pixels."""

  def class_counts(self) -> None:
    """The labels stand for others."""

  def host_bytes(self, num_shards: int = 1) -> dict[str, int]:
    """Estimated memory of a process: {part: bytes}."""
    height, width = self.image_size
    return {'batches': self.batch_size // num_shards * height * width * self.channels}

  def _draw(self, rows: int, seed: int, shard: int) -> dict[str, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=[seed, shard]))
    images = rng.integers(0, 256, (rows, *self.image_size, self.channels), np.uint8)
    if self.multi_label:
      return {'image': images, 'label': (rng.random((rows, self.num_classes)) < 0.01).astype('u1')}
    return {'image': images, 'label': rng.integers(0, self.num_classes, rows, np.int32)}
