"""The tf.data pipeline of every source of encoded images: order, crops, batches."""

from collections.abc import Callable, Iterator, Sequence
import re
from typing import Protocol

import numpy as np

from mixer import runtime
from mixer.errors import InputError
from mixer.input import bad_images, crops, order, randaugment
from mixer.sizes import Size, pair
from mixer.training import randaugment as device_randaugment

tf = runtime.tensorflow()

_READ_AHEAD = 16  # examples that one call into Python fetches
_CHUNKS = 4  # of those at once: two calls, and what waits behind each
_BATCHES = 5  # at once: two ready, one in the making, one handed over, one on its way to the device
FAULTS = (tf.errors.OpError, OSError, ValueError)  # of an example
_AHEAD = 10_000  # rows that reading may be ahead, beside eight batches; only bad ones get there


class Examples(Protocol):
  """Encoded images with labels, read by number."""

  num_examples: int
  num_classes: int
  class_names: tuple[str, ...]
  multi_label: bool
  dtypes: tuple[tf.DType, ...]  # of what `fetch` returns
  index_bytes: int  # of host memory, to find any example
  record_bytes: int  # of a stored example, about

  def fetch(self, indices: Sequence[int]) -> tuple[np.ndarray, ...]:
    """What is stored of the examples, as columns; called from several threads."""

  def parse(self, *row) -> tuple[tf.Tensor, tf.Tensor]:
    """(encoded image, label) of one row of those, in TensorFlow ops."""

  def describe(self, index: int) -> str:
    """Where an example is, for a person."""


class Images:
  """An input over encoded images, cropped to one size; see `input.Input`."""

  def __init__(
    self,
    open_examples: Callable[[], Examples],
    /,
    *,
    batch_size: int,
    image_size: Size,
    crop: str,
    resize: Size | None = None,
    randaugment_layers: int = 0,
    randaugment_magnitude: float = 0,
    randaugment_on: str = 'host',
    on_bad_image: str = 'fail',
    subset_fraction: float = 1.0,
    subset_seed: int = 0,
  ):
    """Checks that the arguments go together, then opens the examples.

    Args:
      open_examples: opens what is read.
      batch_size: global, not per process.
      image_size: pixels of a side, or (height, width).
      crop: a name in `crops.CROPS`.
      resize: an int or (height, width), for the crops that take it.
      randaugment_layers, randaugment_magnitude: see `randaugment`; after a random crop only.
      randaugment_on: 'host', or 'device' to leave it to the train step.
      on_bad_image: in training. 'fail' raises an InputError with the paths; 'skip' takes the next
        good example in the order of their numbers, with the random draws of the bad one's
        position, and counts `bad_images`.
      subset_fraction, subset_seed: the part of the examples to use, see `order.subset`.

    Raises:
      InputError: the crop is unknown, or they do not go together.
    """
    if on_bad_image not in bad_images.CHOICES:
      raise InputError(f'on_bad_image={on_bad_image!r}; use one of {bad_images.CHOICES}.')
    self._crop = crops.find(crop, image_size, resize)
    if randaugment_layers and not self._crop.random:
      random = [name for name, one in crops.CROPS.items() if one.random]
      raise InputError(
        f'randaugment_layers={randaugment_layers} after crop={crop!r}, which has no randomness: '
        f'use one of {random}, or 0 layers.'
      )
    if randaugment_on not in ('host', 'device'):
      raise InputError(f"randaugment_on={randaugment_on!r}; use 'host' or 'device'.")
    self._randaugment = {'layers': randaugment_layers, 'magnitude': randaugment_magnitude}
    self.augment = None
    if randaugment_on == 'device' and randaugment_layers:
      self.augment = device_randaugment.make(**self._randaugment)
      self._randaugment['layers'] = 0
    self._resize = None if resize is None else pair(resize)
    self.image_size, self.channels = pair(image_size), 3
    self._examples = open_examples()
    if subset_fraction != 1.0:
      self._examples = _Subset(self._examples, subset_fraction, subset_seed)
    skips = on_bad_image == 'skip'
    self._bad = bad_images.BadImages(self._examples.num_examples) if skips else None
    self.for_evaluation = not self._crop.random
    self.batch_size, self.num_examples = batch_size, self._examples.num_examples
    self.num_classes, self.class_names = self._examples.num_classes, self._examples.class_names
    self.multi_label = self._examples.multi_label
    self.preprocessing = {
      'name': crop,
      'resize': self._resize,
      'crop': self.image_size,
      'value_range': [-1, 1],
    }

  @property
  def examples(self) -> Examples:
    """What is read, before any crop."""
    return self._examples

  @property
  def bad_images(self) -> int | None:
    """Images replaced since the start, each counted once; None where the first stops the run."""
    return None if self._bad is None else len(self._bad)

  def train_batches(
    self, first_batch: int, seed: int, shard: int = 0, num_shards: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches from number `first_batch` on, without end."""
    local = order.local_rows(self.batch_size, num_shards)

    def rows(first, count):
      sequence = first + np.arange(count)  # counts this process's rows since step 0
      positions = sequence // local * self.batch_size + shard * local + sequence % local
      return order.examples(positions, self.num_examples, seed), positions

    def example(position, *row):
      encoded, label = self._examples.parse(*row)
      return {'image': self._train_image(encoded, tf.stack([seed, position])), 'label': label}

    def starts(batch):
      return tf.data.Dataset.range(batch * local, np.iinfo(np.int64).max, _READ_AHEAD)

    if self._bad is None:
      return self._batches(starts(first_batch), rows, tf.int64, example, local, first_batch)
    return self._skipping(starts, rows, example, local, first_batch)

  def _skipping(self, starts: Callable, rows: Callable, example: Callable, local: int, first: int):
    """The same batches from number `first` on, with other examples where there are bad ones.

    A row is made from the bytes of its position's example and, if these are bad, of the next
    ones: what came before does not count, so a run that goes on makes the same batches.
    """
    begun = first * local  # rows of this process before the batch that is being made

    def positions(batch):
      nonlocal begun
      begun = batch * local
      return rows(begun, local)[1]

    def near(start):  # where there is nothing but bad images, a pipeline is to end
      return tf.numpy_function(lambda s: np.bool_(s < begun + 8 * local + _AHEAD), [start], tf.bool)

    def marked(position, *row):
      return {**example(position, *row), 'position': position}

    def batches_from(batch):
      return self._batches(starts(batch).take_while(near), rows, tf.int64, marked, local, skip=True)

    def make(batch, row):
      (index,), (position,) = rows(batch * local + row, 1)
      return self._substitute(index, position, example, seen=(batch - first) * local + row + 1)

    return bad_images.fill(batches_from, positions, make, first)

  def _substitute(self, index, position, example: Callable, *, seen: int) -> dict:
    """The row of a position, from the first example that can be decoded, beginning at `index`."""
    for step in range(self.num_examples):
      candidate = (int(index) + step) % self.num_examples
      fault, row = self._attempt(candidate, position, example)
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
    batches = list(order.padded_batches(self.num_examples, batch_size, shard, num_shards))
    indices = np.concatenate([index for index, _ in batches])
    masks = np.concatenate([mask for _, mask in batches])

    def rows(first, count):
      return indices[first : first + count], masks[first : first + count]

    def example(mask, *row):
      encoded, label = self._examples.parse(*row)
      return {'image': self._cropped(encoded), 'label': label, 'mask': mask}

    starts = tf.data.Dataset.range(0, len(indices), _READ_AHEAD)
    return self._batches(starts, rows, tf.bool, example, batch_size // num_shards)

  def host_bytes(self, num_shards: int = 1) -> dict[str, int]:
    """What each part takes of a process's memory, about."""
    height, width = self.image_size
    label = self.num_classes if self.multi_label else 4
    row = height * width * self.channels + label
    return {
      'index': self._examples.index_bytes,
      'order': order.host_bytes(self.num_examples),
      'read-ahead': _CHUNKS * _READ_AHEAD * self._examples.record_bytes,
      'batches': _BATCHES * self.batch_size // num_shards * row,
    }

  def _batches(
    self, starts, rows, dtype, example: Callable, local: int, first_batch: int = 0, skip=False
  ):
    """Batches of `local` times `example`, of the numbers and the word that `rows` has for each.

    An example that cannot be made is an InputError, or with `skip` left out without a word.
    """

    def fetch(first):
      indices, words = rows(first, _READ_AHEAD)
      fetched = fetch_good(self._examples, indices) if skip else self._examples.fetch(indices)
      return words, *fetched

    def call(first):
      columns = tf.numpy_function(fetch, [first], (dtype, *self._examples.dtypes), stateful=False)
      return tuple(tf.ensure_shape(column, [None]) for column in columns)

    dataset = starts.map(call, num_parallel_calls=2, deterministic=True).unbatch()
    dataset = dataset.map(example, tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.ignore_errors() if skip else dataset
    options = tf.data.Options()
    options.deterministic = True
    dataset = dataset.batch(local, drop_remainder=True).prefetch(2).with_options(options)
    iterator = dataset.as_numpy_iterator()

    def guarded():
      number = first_batch
      try:
        for batch in iterator:
          yield batch
          number += 1
      except tf.errors.OpError:
        self._blame(*rows(number * local, local), example)
        raise  # no example's own

    return iterator if skip else guarded()

  def _blame(self, indices, words, example: Callable) -> None:
    """Makes the examples of a batch that failed one by one, and names the bad ones."""
    attempts = ((i, self._attempt(i, word, example)[0]) for i, word in zip(indices, words))
    faults = {self._examples.describe(i): fault for i, fault in attempts if fault is not None}
    if faults:
      raise bad_images.in_one_batch(faults)

  def _attempt(self, index: int, word, example: Callable) -> tuple[str | None, dict | None]:
    """(what is wrong with an example or None, what was made of it)."""
    try:
      return None, example(word, *(column[0] for column in self._examples.fetch([index])))
    except FAULTS as fault:
      return reason(fault), None

  def _train_image(self, encoded, seed):
    if not self._crop.random:
      return self._cropped(encoded)
    image = self._cropped(encoded, seed=seed)
    return randaugment.randaugment(image, seed, **self._randaugment)

  def _cropped(self, encoded, **seed):
    resize = {'resize': self._resize} if self._crop.resizes else {}
    return self._crop.function(encoded, self.image_size, **resize, **seed)


class _Subset:
  """A part of other examples, see `order.subset`; the classes stay those of all."""

  def __init__(self, examples: Examples, fraction: float, seed: int):
    self._chosen = order.subset(examples.num_examples, fraction, seed)
    self._all, self.num_examples = examples, len(self._chosen)
    self.num_classes, self.class_names = examples.num_classes, examples.class_names
    self.multi_label, self.dtypes = examples.multi_label, examples.dtypes
    self.parse = examples.parse
    self.index_bytes = examples.index_bytes + self._chosen.nbytes
    self.record_bytes = examples.record_bytes

  def fetch(self, indices: Sequence[int]) -> tuple[np.ndarray, ...]:
    return self._all.fetch(self._chosen[indices])

  def describe(self, index: int) -> str:
    return self._all.describe(self._chosen[index])


def fetch_good(examples: Examples, indices: Sequence[int]) -> tuple[np.ndarray, ...]:
  """`examples.fetch` with nothing, which no one can decode, in place of what cannot be read."""
  try:
    return examples.fetch(indices)
  except FAULTS:
    if len(indices) > 1:
      return tuple(map(np.concatenate, zip(*(fetch_good(examples, [i]) for i in indices))))
    kinds = [object if dtype == tf.string else dtype.as_numpy_dtype for dtype in examples.dtypes]
    return tuple(np.array([b'' if kind is object else 0], kind) for kind in kinds)


def reason(fault: Exception) -> str:
  """TensorFlow's message without the names of its nodes."""
  text = fault.message if isinstance(fault, tf.errors.OpError) else str(fault)
  return re.sub(r'^\{\{.*?\}\} | \[Op:\w+\].*$', '', text, flags=re.DOTALL)
