"""The tf.data pipeline of every source of encoded images: order, crops, RandAugment, batches."""

from collections.abc import Callable, Iterator
import threading
from typing import Annotated
import weakref

from absl import logging
import numpy as np

from mixer import runtime
from mixer.errors import InputError
from mixer.input import bad_images, crops, image_facts, inspection, order, randaugment, reading
from mixer.input.conversion import Conversion
from mixer.sizes import Size, pair
from mixer.training import randaugment as device_randaugment
from mixer.values import Count, Fraction, OneOf, Range, Seed, Steps

tf = runtime.tensorflow()

# In memory at once: two ready, one being made, one handed over, one on its way to the device.
_BATCHES = 5
# A pipeline that skips bad images reads at most this many rows, and eight batches, ahead of the
# batch that is being made. Only a long sequence of bad images reaches this limit.
_SKIPPED_ROWS = 10_000


class Images:
  """An input over encoded images, cropped to one size; see `input.Input`."""

  def __init__(
    self,
    open_examples: Callable[[], reading.Examples],
    /,
    *,
    batch_size: Count,
    image_size: Size,
    crop: Annotated[str, OneOf(crops.CROPS)],
    resize: Size | None = None,
    randaugment_layers: Steps = 0,
    randaugment_magnitude: Annotated[float, Range(least=0, most=100)] = 0,
    randaugment_on: Annotated[str, OneOf(('host', 'device'))] = 'host',
    on_bad_image: Annotated[str, OneOf(bad_images.CHOICES)] = 'fail',
    max_pixels: Annotated[int, Range(least=1)] = image_facts.MAX_PIXELS,
    exif_orientation: bool = False,
    bits_per_channel: Annotated[int, Range(least=8, most=16)] = 16,
    subset_fraction: Fraction = 1.0,
    subset_seed: Seed = 0,
  ):
    """Checks that the arguments go together, then opens the examples.

    Args:
      open_examples: what the source opens.
      batch_size: global, not per process.
      image_size: pixels of a side, or (height, width).
      crop: a name in `crops.CROPS`.
      resize: pixels or (height, width), for the crops that take it.
      randaugment_layers, randaugment_magnitude: see `randaugment`; after a random crop only.
      randaugment_on: 'host', or 'device' to leave it to the train step.
      on_bad_image: in training. 'fail' raises an InputError with the paths. 'skip' replaces a bad
        image by the next good one in the order of the examples, with the random draws of the bad
        one's position, and counts it in `bad_images`.
      max_pixels: an image of more is a bad one.
      exif_orientation: turn images as their EXIF orientation says, which the paper's pipeline did
        not do.
      bits_per_channel: that images of 16 bits per channel use; the upper eight of them are kept.
      subset_fraction, subset_seed: the part of the examples to use, see `order.subset`.

    Raises:
      InputError: an argument is unknown, or does not go with the others.
    """
    self._crop = crops.find(crop, image_size, resize)
    if randaugment_layers and not self._crop.random:
      random = [name for name, known in crops.CROPS.items() if known.random]
      raise InputError(
        f'randaugment_layers={randaugment_layers} after crop={crop!r}, which has no randomness: '
        f'use one of {random}, or 0 layers.'
      )
    self._randaugment = {'layers': randaugment_layers, 'magnitude': randaugment_magnitude}
    self.augment = None
    if randaugment_on == 'device' and randaugment_layers:
      self.augment = device_randaugment.make(**self._randaugment)
      self._randaugment['layers'] = 0
    self.conversion = Conversion(max_pixels, exif_orientation, bits_per_channel)
    self._resize = None if resize is None else pair(resize)
    self.image_size, self.channels = pair(image_size), 3
    self._examples = open_examples()
    if subset_fraction != 1.0:
      self._examples = reading.Subset(self._examples, subset_fraction, subset_seed)
    self._bad, self._remarked = None, False
    if on_bad_image == 'skip':
      self._bad = bad_images.BadImages(self._examples.num_examples)
    self.for_evaluation = not self._crop.random
    self.batch_size, self.num_examples = batch_size, self._examples.num_examples
    self.num_classes, self.class_names = self._examples.num_classes, self._examples.class_names
    self.multi_label = self._examples.multi_label
    self.fingerprint = getattr(self._examples, 'fingerprint', '')
    self.preprocessing = {
      'name': crop,
      'resize': self._resize,
      'crop': self.image_size,
      'value_range': [-1, 1],
      **self.conversion.changed(),
    }

  @property
  def examples(self) -> reading.Examples:
    """The encoded images."""
    return self._examples

  @property
  def bad_images(self) -> int | None:
    """Images replaced since the start, each counted once; None if the first one is an error."""
    return None if self._bad is None else len(self._bad)

  def train_batches(
    self, first_batch: int, seed: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """The rows of process `shard` of all batches from number `first_batch` on, without end."""
    local = order.local_rows(self.batch_size, num_shards)
    self._remark(shard)

    def rows(start, count):
      sequence = start + np.arange(count)  # numbers of this process's rows since step 0
      positions = sequence // local * self.batch_size + shard * local + sequence % local
      return order.examples(positions, self.num_examples, seed), positions

    def make(position, *row):
      encoded, label = self._parse(*row)
      return {'image': self._train_image(encoded, tf.stack([seed, position])), 'label': label}

    def starts(batch):
      return tf.data.Dataset.range(batch * local, np.iinfo(np.int64).max, reading.READ_AHEAD)

    if self._bad is None:
      batches = self._batches(starts(first_batch), rows, tf.int64, make, local)
      return self._checked(batches, rows, make, local, first_batch)
    return self._filled(starts, rows, make, local, first_batch)

  def _filled(self, starts, rows, make: Callable, local: int, first_batch: int):
    """The same batches, in which other images replace the bad ones.

    The row of a position is made from its own example or, if that is bad, from the next ones. It
    does not depend on earlier rows, so that a resumed run makes the same batches.
    """
    begun = first_batch * local  # rows of this process before the batch that is being made

    def positions(batch):
      nonlocal begun
      begun = batch * local
      return rows(begun, local)[1]

    def near(start):  # ends the pipeline where it finds nothing but bad images
      limit = 8 * local + _SKIPPED_ROWS
      return tf.numpy_function(lambda row: np.bool_(row < begun + limit), [start], tf.bool)

    def make_with_position(position, *row):
      return {**make(position, *row), 'position': position}

    def batches_from(batch):
      near_starts = starts(batch).take_while(near)
      return self._batches(near_starts, rows, tf.int64, make_with_position, local, skip_errors=True)

    def make_missing(batch, row):
      (index,), (position,) = rows(batch * local + row, 1)
      seen = (batch - first_batch) * local + row + 1
      return self._replacement(index, lambda *columns: make(position, *columns), seen)

    return bad_images.fill(batches_from, positions, make_missing, first_batch)

  def _replacement(self, index: int, make: Callable, seen: int) -> dict[str, np.ndarray]:
    """`make` of the first good example from number `index` on; records the bad ones."""
    for step in range(self.num_examples):
      candidate = (int(index) + step) % self.num_examples
      fault, row = reading.make_one(self._examples, candidate, make)
      if fault is None:
        return {key: np.asarray(value) for key, value in row.items()}
      where = self._examples.describe(candidate)
      self._bad.add(candidate, f'{where}: {fault}', seen=seen)
    raise InputError('none of the images can be decoded.')

  def eval_batches(
    self, batch_size: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, with a bool 'mask' that is False for padding."""
    if self._crop.random:
      raise InputError('an evaluation needs a crop without randomness; use crop="resize_small".')
    self._remark(shard)
    batches = list(order.padded_batches(self.num_examples, batch_size, shard, num_shards))
    indices = np.concatenate([index for index, _ in batches])
    masks = np.concatenate([mask for _, mask in batches])

    def rows(start, count):
      return indices[start : start + count], masks[start : start + count]

    def make(mask, *row):
      encoded, label = self._parse(*row)
      return {'image': self._cropped(encoded), 'label': label, 'mask': mask}

    starts = tf.data.Dataset.range(0, len(indices), reading.READ_AHEAD)
    local = batch_size // num_shards
    return self._checked(self._batches(starts, rows, tf.bool, make, local), rows, make, local)

  def describe(self, index: int) -> str:
    return self._examples.describe(index)

  def image(self, index: int) -> np.ndarray:
    fault, image = reading.make_one(
      self._examples, index, lambda *row: self._cropped(self._parse(*row)[0])
    )
    if fault is not None:
      raise InputError(f'{self.describe(index)}: {fault}')
    return image.numpy()

  def class_counts(self) -> np.ndarray | None:
    """The number of images with each class; None if the labels are in records."""
    count = getattr(self._examples, 'class_counts', lambda: None)
    return count()

  def host_bytes(self, num_shards: int = 1) -> dict[str, int]:
    """Estimated memory of a process: {part: bytes}."""
    height, width = self.image_size
    label = self.num_classes if self.multi_label else 4
    row = height * width * self.channels + label
    return {
      'index': self._examples.index_bytes,
      'order': order.host_bytes(self.num_examples),
      'read-ahead': reading.CHUNKS * reading.READ_AHEAD * self._examples.record_bytes,
      'batches': _BATCHES * self.batch_size // num_shards * row,
    }

  def _checked(self, batches: Iterator[dict], rows, make: Callable, local: int, number: int = 0):
    """The batches from `number` on; InputError names the bad images of one that cannot be made."""
    failed = tf.errors.OpError  # a local variable, since modules are gone when Python exits
    try:
      for batch in batches:
        yield batch
        number += 1
    except failed as error:
      faults = {}
      for index, value in zip(*rows(number * local, local)):
        fault, _ = reading.make_one(self._examples, index, lambda *row, v=value: make(v, *row))
        if fault is not None:
          faults[self._examples.describe(index)] = fault
      if faults:
        raise bad_images.batch_error(faults) from None
      raise InputError(
        'a batch could not be made, although each of its images can be read at another attempt: '
        f'{reading.error_text(error)} Start again.'
      ) from error

  def _batches(self, starts, rows, dtype, make, local: int, *, skip_errors=False) -> Iterator[dict]:
    """Batches of `local` rows, see `reading.read`."""
    dataset = reading.read(self._examples, starts, rows, dtype, make, skip_errors=skip_errors)
    options = tf.data.Options()
    options.deterministic = True
    dataset = dataset.batch(local, drop_remainder=True).prefetch(2).with_options(options)
    return _NumpyBatches(dataset)

  def _remark(self, shard: int) -> None:
    """Warns once, on one process, of images that are not read as they are meant."""
    if shard == 0 and not self._remarked:
      for line in inspection.remarks(self._examples, self.conversion):
        logging.warning('%s', line)
    self._remarked = True

  def _parse(self, *row):
    encoded, label = self._examples.parse(*row)
    return self.conversion(encoded), label

  def _train_image(self, encoded, seed):
    if not self._crop.random:
      return self._cropped(encoded)
    image = self._cropped(encoded, seed=seed)
    return randaugment.randaugment(image, seed, **self._randaugment)

  def _cropped(self, encoded, **seed):
    resize = {'resize': self._resize} if self._crop.resizes else {}
    return self._crop.function(encoded, self.image_size, **resize, **seed)


class _NumpyBatches:
  """An iterator over a dataset. Nothing waits until it is freed, except the interpreter's exit."""

  def __init__(self, dataset: tf.data.Dataset):
    self._held = [dataset.as_numpy_iterator()]
    weakref.finalize(self, _free, self._held)

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._held[0])


def _free(held: list) -> None:
  """Frees an iterator. TensorFlow waits for the elements under way, which can take seconds."""
  if threading.main_thread().is_alive():
    threading.Thread(target=held.clear, name='free dataset', daemon=True).start()
  else:  # Python exits: later, the elements would wait for the interpreter, and it for them
    held.clear()
