"""Images held in memory as numpy arrays. Needs no TensorFlow."""

from collections.abc import Callable, Iterator, Sequence
import hashlib
import os
import re
import zipfile
import zlib

import numpy as np
from PIL import Image

from mixer import sizes
from mixer.errors import InputError
from mixer.input import label_numbers, order
from mixer.values import Count, Fraction, Seed, Steps

_SAMPLE = 256  # images that stand for all
Held = tuple[np.ndarray, np.ndarray, Sequence[str]]  # images, labels, class names; see `Arrays`


class Arrays:
  """An input over uint8 images (n, height, width, channels) with their classes."""

  bad_images = None  # arrays are not decoded

  def __init__(
    self,
    open_arrays: Callable[[], Held],
    /,
    *,
    batch_size: Count,
    image_size: sizes.Size | None = None,
    shift_pixels: Steps = 0,
    flip: bool = False,
    subset_fraction: Fraction = 1.0,
    subset_seed: Seed = 0,
  ):
    """Opens the arrays.

    Args:
      open_arrays: returns the images, uint8 (n, height, width, channels); the labels, ints (n,) in
        range(len(class_names)) or zeros and ones (n, len(class_names)); and the class names in the
        order of the class numbers.
      batch_size: global, not per process.
      image_size: the images are resized to it when they are opened, bilinearly with antialiasing,
        without keeping the aspect ratio; None for their own size.
      shift_pixels: training images are moved by up to this many pixels along each axis, by
        uniform draws, and filled up with 0.
      flip: training images are mirrored half of the time.
      subset_fraction, subset_seed: the part of the examples to use, see `order.subset`.

    Raises:
      InputError: the arrays are of another kind or shape, or a label is not a class.
    """
    images, labels, class_names = open_arrays()
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
      raise InputError(
        'images are uint8 (n, height, width, channels) with as many labels; '
        f'got {images.dtype} {images.shape} and {len(labels)} labels.'
      )
    if image_size is not None and sizes.pair(image_size) != images.shape[1:3]:
      images = _resized(images, sizes.pair(image_size))
    if shift_pixels >= min(images.shape[1:3]):
      raise InputError(
        f'shift_pixels is {shift_pixels} and the images have {images.shape[1]} x {images.shape[2]} '
        'pixels, which would be moved out of sight; use less than a side.'
      )
    _check_labels(labels, len(class_names))
    self._chosen = None  # numbers of the images that are used; None for all
    if subset_fraction != 1.0:
      self._chosen = order.subset(len(images), subset_fraction, subset_seed)
      labels = labels[self._chosen]
    self.for_evaluation = True  # evaluation batches are neither shifted nor flipped
    self._images, self._shift, self._flip = images, shift_pixels, flip
    self._labels = np.array(labels, np.int32 if labels.ndim == 1 else np.uint8)
    self.multi_label = labels.ndim == 2
    self.batch_size, self.num_examples = batch_size, len(labels)
    self.class_names, self.num_classes = tuple(class_names), len(class_names)
    self.image_size, self.channels = images.shape[1:3], images.shape[3]
    self.preprocessing = {'name': 'none', 'value_range': [-1, 1]}
    self.fingerprint = _fingerprint(images, self._labels)
    self.augment = None

  def train_batches(
    self, first_batch: int, seed: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches from number `first_batch` on, without end."""
    batch = first_batch
    while True:
      positions = order.rows(batch, self.batch_size, shard, num_shards)
      index = order.examples(positions, self.num_examples, seed)
      words = order.draws(int(positions[0]), len(positions), seed)
      image = self._flipped(self._shifted(self._read(index), words), words)
      yield {'image': image, 'label': self._labels[index]}
      batch += 1

  def eval_batches(
    self, batch_size: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, with a bool 'mask' that is False for padding."""
    batches = order.padded_batches(self.num_examples, batch_size, shard, num_shards)
    for index, mask in batches:
      yield {'image': self._read(index), 'label': self._labels[index], 'mask': mask}

  def describe(self, index: int) -> str:
    return ''

  def image(self, index: int) -> np.ndarray:
    return self._read(np.array([index]))[0]

  def class_counts(self) -> np.ndarray:
    """The number of images with each class."""
    if self.multi_label:
      return self._labels.sum(axis=0, dtype=np.int64)
    return np.bincount(self._labels, minlength=self.num_classes)

  def host_bytes(self, num_shards: int = 1) -> dict[str, int]:
    """Estimated memory of a process: {part: bytes}."""
    on_disk = isinstance(self._images, np.memmap)
    numbers = 0 if self._chosen is None else self._chosen.nbytes
    return {
      'arrays': self._labels.nbytes + numbers + (0 if on_disk else self._images.nbytes),
      'order': order.host_bytes(self.num_examples),
      'batches': 2 * self.batch_size // num_shards * self._images[0].nbytes,
    }

  def _read(self, index: np.ndarray) -> np.ndarray:
    return np.asarray(self._images[index if self._chosen is None else self._chosen[index]])

  def _shifted(self, images: np.ndarray, words: np.ndarray) -> np.ndarray:
    if not self._shift:
      return images
    reach = self._shift
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:3], axis=(1, 2))
    down, right = (words[:, :2] % np.uint64(2 * reach + 1)).astype(np.int64).T
    return windows[np.arange(len(images)), down, right].transpose(0, 2, 3, 1)  # (n, h, w, c)

  def _flipped(self, images: np.ndarray, words: np.ndarray) -> np.ndarray:
    if not self._flip:
      return images
    mirror = (words[:, 2] >> np.uint64(63)).astype(bool)[:, None, None, None]
    return np.where(mirror, images[:, :, ::-1], images)


def _resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Images (n, height, width, channels) of another size, by Pillow."""
  resized = np.empty((*images.shape[:1], *size, *images.shape[3:]), np.uint8)
  for i, channel in np.ndindex(len(images), images.shape[3]):
    image = Image.fromarray(images[i, :, :, channel])
    resized[i, :, :, channel] = image.resize(size[::-1], Image.Resampling.BILINEAR)
  return resized


def _fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
  """A digest of the shape, the labels and a sample of the images."""
  sample = images[:: len(images) // _SAMPLE + 1]
  parts = (repr(images.shape).encode(), labels.tobytes(), np.ascontiguousarray(sample).tobytes())
  return hashlib.sha256(b''.join(parts)).hexdigest()[:16]


def _check_labels(labels: np.ndarray, num_classes: int) -> None:
  numbers = labels.ndim == 1
  whole = labels.dtype.kind in 'iub'
  limit = num_classes if numbers else 2
  if not len(labels):
    raise InputError('the arrays hold no images.')
  if not whole or not (numbers or labels.shape[1:] == (num_classes,)):
    raise InputError(
      f'labels are ints (n,) or, of {num_classes} classes, zeros and ones (n, {num_classes}); got '
      f'{labels.dtype} {labels.shape}.'
    )
  bad = np.argwhere((labels < 0) | (labels >= limit))
  if len(bad):
    raise InputError(
      f'image {bad[0, 0]} has the label {labels[tuple(bad[0])]}; there are {num_classes} classes, '
      + ('counted from 0; label_offset shifts them.' if numbers else 'each 0 or 1.')
    )


def load(
  *,
  images: str,
  labels: str | None = None,
  num_classes: Count | None = None,
  label_offset: Steps = 0,
  first: float = 0,
  last: float | None = None,
) -> Held:
  """The arrays of one .npz or two .npy files; those stay on the disk and are read as needed.

  Args:
    images: path of a .npz with 'images', 'labels' and optionally 'class_names'; or of a .npy
      with uint8 (n, height, width, channels).
    labels: path of a .npy with the labels that `Arrays` takes, where `images` is one.
    num_classes: None for the number of 'class_names'.
    label_offset: what is subtracted from class numbers, 1 where they begin at 1. A warning says
      where class 0 does not occur.
    first, last: the part that is read: ints count images, floats are fractions of them, `last`
      itself is not in it, None is the end.

  Raises:
    InputError: a file or array is missing or invalid.
  """
  if str(images).endswith('.npz') == (labels is not None):
    raise InputError(
      f'images={images!r} with labels={labels!r}: give one .npz with both, or two .npy files.'
    )
  if labels is None:
    held = _load(images)
    missing = [key for key in ('images', 'labels') if key not in held]
    if missing:
      raise InputError(f'{images} has no array {missing}; it has {sorted(held)}.')
  else:
    held = {'images': _load(images), 'labels': _load(labels)}
  names = [str(name) for name in held.get('class_names', range(num_classes or 0))]
  if not names or num_classes not in (None, len(names)):
    raise InputError(
      f'{images} names {len(names)} classes and num_classes is {num_classes}; '
      + ('they differ.' if names else 'give num_classes.')
    )
  if held['images'].ndim and held['images'].shape[:1] == held['labels'].shape[:1]:
    begin, end = order.part(len(held['images']), first, last, images)
    held = {key: held[key][begin:end] for key in ('images', 'labels')}
  return held['images'], counted(held['labels'], label_offset, images), names


def counted(given: np.ndarray, label_offset: int, where: str) -> np.ndarray:
  """The class numbers from 0; `where` they are from, for a message."""
  if given.ndim == 1 and given.dtype.kind in 'iu':
    label_numbers.warn_of_offset(where, [np.unique(given)], label_offset)
    return given.astype(np.int64) - label_offset
  if label_offset:
    raise InputError(f'{where}: label_offset={label_offset} is for class numbers alone.')
  return given


def _load(path: str):
  """The array of a .npy, read from the disk when it is needed, or those of a .npz by name."""
  path = os.path.expanduser(path)
  try:
    if not path.endswith('.npz'):
      return np.lib.format.open_memmap(path, mode='r')
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)
  except FileNotFoundError as fault:
    raise InputError(f'no file {path}.') from fault
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as fault:
    raise InputError(f'{path} is not a readable .npy or .npz file: {fault}') from fault


def part_of_split(split: str, names: Sequence[str], what: str) -> tuple[str, Callable]:
  """The name of a split, and a function from its number of examples to (begin, end) of the part.

  Args:
    split: one of `names`, or a part as in TFDS: 'train[:55000]', 'train[-5000:]', 'train[90%:]'.
    names: of the splits.
    what: the data, for the message of an error.

  Raises:
    InputError: there is no such split or, from the function, no such part.
  """
  parsed = re.fullmatch(r'(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?', split)
  if not parsed or parsed[1] not in names:
    raise InputError(
      f'{what} has no split {split!r}; use one of {sorted(names)}, or a part such as '
      '"train[:1000]" and "train[90%:]".'
    )

  def bounds(n: int) -> tuple[int, int]:
    begin, end = (
      default if bound is None else _position(bound, n)
      for bound, default in zip(parsed.groups()[1:], (0, n), strict=True)
    )
    if not 0 <= begin < end <= n:
      raise InputError(f'{what}, split {split!r}, is not a part of the {n} images.')
    return begin, end

  return parsed[1], bounds


def _position(bound: str, n: int) -> int:
  """The number of the example at a bound such as '55000', '-5000' or '90%'."""
  at = round(int(bound[:-1]) * n / 100) if bound.endswith('%') else int(bound)
  return at + n if bound.startswith('-') else at


def digits(*, split: str) -> Held:
  """scikit-learn's bundled handwritten digits: 1,797 real 8x8 grey images of ten classes.

  'train' is a fixed random 80 % (1,437 images), 'test' the other 360; `split` may be a part of
  either, see `part_of_split`.
  """
  from sklearn import datasets

  parts = {'train': slice(-360), 'test': slice(-360, None)}
  name, bounds = part_of_split(split, list(parts), 'digits')
  bunch = datasets.load_digits()
  images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  chosen = order.permutation(len(images), seed=0, epoch=0)[parts[name]]
  begin, end = bounds(len(chosen))
  chosen = chosen[begin:end]
  return images[chosen], bunch.target[chosen], [str(name) for name in bunch.target_names]
