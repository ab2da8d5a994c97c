"""Images held in memory as numpy arrays. Needs no TensorFlow."""

from collections.abc import Iterator, Sequence

import numpy as np

from mixer.errors import InputError
from mixer.input import order


class Arrays:
  """An input over uint8 images (n, height, width, channels) and class numbers (n,)."""

  bad_images = None  # there are none

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    batch_size: int,
    shift_pixels: int = 0,
  ):
    """Wraps the arrays.

    Args:
      images: uint8 (n, height, width, channels).
      labels: (n,), in range(len(class_names)).
      class_names: in the order of the class numbers.
      batch_size: the global one.
      shift_pixels: training images are moved by up to this many pixels along each axis, by
        uniform draws, and filled up with 0.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
      raise InputError(
        'images are uint8 (n, height, width, channels) with as many labels; '
        f'got {images.dtype} {images.shape} and {len(labels)} labels.'
      )
    if shift_pixels < 0:
      raise InputError(f'shift_pixels is {shift_pixels}; use 0 for none.')
    self.for_evaluation = True  # there, images are not shifted
    self._images, self._labels = images, labels.astype(np.int32)
    self._shift = shift_pixels
    self.batch_size, self.num_examples = batch_size, len(images)
    self.class_names, self.num_classes = tuple(class_names), len(class_names)
    self.image_size, self.channels = images.shape[1:3], images.shape[3]
    self.preprocessing = {'name': 'none', 'value_range': [-1, 1]}

  def train_batches(
    self, first_batch: int, seed: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches from number `first_batch` on, without end."""
    batch = first_batch
    while True:
      positions = order.rows(batch, self.batch_size, shard, num_shards)
      index = order.examples(positions, self.num_examples, seed)
      words = order.draws(int(positions[0]), len(positions), seed)
      yield {'image': self._shifted(self._images[index], words), 'label': self._labels[index]}
      batch += 1

  def eval_batches(
    self, batch_size: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, with a bool 'mask' that is False for padding."""
    batches = order.padded_batches(self.num_examples, batch_size, shard, num_shards)
    for index, mask in batches:
      yield {'image': self._images[index], 'label': self._labels[index], 'mask': mask}

  def _shifted(self, images: np.ndarray, words: np.ndarray) -> np.ndarray:
    if not self._shift:
      return images
    reach = self._shift
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:3], axis=(1, 2))
    down, right = (words[:, :2] % np.uint64(2 * reach + 1)).astype(np.int64).T
    return windows[np.arange(len(images)), down, right].transpose(0, 2, 3, 1)  # (n, h, w, c)


def digits(*, split: str, batch_size: int, shift_pixels: int = 0) -> Arrays:
  """scikit-learn's bundled handwritten digits: 1,797 real 8x8 grey images of ten classes.

  'train' is a fixed random 80 % (1,437 images), 'test' the other 360.
  """
  from sklearn import datasets

  bunch = datasets.load_digits()
  images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  shuffled = order.permutation(len(images), seed=0, epoch=0)
  parts = {'train': shuffled[:-360], 'test': shuffled[-360:]}
  if split not in parts:
    raise InputError(f'digits has no split {split!r}; use one of {sorted(parts)}.')
  index = parts[split]
  names = [str(name) for name in bunch.target_names]
  return Arrays(
    images[index], bunch.target[index], names, batch_size=batch_size, shift_pixels=shift_pixels
  )
