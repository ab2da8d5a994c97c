"""Encoded images with labels: what a source opens, and how a pipeline reads it."""

from collections.abc import Callable, Sequence
import re
from typing import Any, Protocol

import numpy as np

from mixer import runtime
from mixer.input import order

tf = runtime.tensorflow()

READ_AHEAD = 16  # examples that one call of `fetch` reads
CHUNKS = 4  # of READ_AHEAD examples in memory: two calls in parallel, and one result of each
_CUT_OFF = 'jpeg::Uncompress failed. Invalid JPEG data or crop window.'
ERRORS = (tf.errors.OpError, OSError, ValueError)  # raised by an example that is damaged


class Examples(Protocol):
  """Encoded images with labels, read by number.

  A source that has a path has a `fingerprint` too, see `input.Input`. One that knows its labels has
  `class_counts(chosen)`: of the examples with these numbers, by default of all.
  """

  num_examples: int
  num_classes: int
  class_names: tuple[str, ...]
  multi_label: bool
  dtypes: tuple[tf.DType, ...]  # of what `fetch` returns
  index_bytes: int  # of host memory, to find any example
  record_bytes: int  # of a stored example, on average

  def fetch(self, indices: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The stored examples, as columns; called from several threads."""

  def parse(self, *row) -> tuple[tf.Tensor, tf.Tensor]:
    """(encoded image, label) of one row of those columns, in TensorFlow ops."""

  def describe(self, index: int) -> str:
    """The file, record or split of an example, for messages."""


class Subset:
  """A part of other examples, see `order.subset`; the classes remain those of all."""

  def __init__(self, examples: Examples, fraction: float, seed: int):
    self._chosen = order.subset(examples.num_examples, fraction, seed)
    self._all, self.num_examples = examples, len(self._chosen)
    self.num_classes, self.class_names = examples.num_classes, examples.class_names
    self.multi_label, self.dtypes = examples.multi_label, examples.dtypes
    self.parse = examples.parse
    self.fingerprint = getattr(examples, 'fingerprint', '')
    self.index_bytes = examples.index_bytes + self._chosen.nbytes
    self.record_bytes = examples.record_bytes
    if hasattr(examples, 'class_counts'):
      self.class_counts = lambda: examples.class_counts(self._chosen)

  def fetch(self, indices: Sequence[int]) -> tuple[np.ndarray, ...]:
    return self._all.fetch(self._chosen[indices])

  def describe(self, index: int) -> str:
    return self._all.describe(self._chosen[index])


def read(
  examples: Examples,
  starts: tf.data.Dataset,
  rows: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
  dtype: tf.DType,
  make: Callable,
  *,
  skip_errors: bool,
) -> tf.data.Dataset:
  """What `make` makes of each example, in order.

  Args:
    examples: where they are read.
    starts: ascending numbers, READ_AHEAD apart.
    rows: (start, count) -> (the indices of up to `count` examples, a value for each).
    dtype: of the values.
    make: (value, *row of the example) -> structure of tensors, in TensorFlow ops.
    skip_errors: leave out the examples that cannot be read or made, without a message. Otherwise
      the row of such an example raises an error, and none before it.
  """

  def fetch(start):
    indices, values = rows(start, READ_AHEAD)
    return values, *_fetch_or_empty(examples, indices)

  def call(start):
    columns = tf.numpy_function(fetch, [start], (dtype, *examples.dtypes), stateful=False)
    return tuple(tf.ensure_shape(column, [None]) for column in columns)

  dataset = starts.map(call, num_parallel_calls=2, deterministic=True).unbatch()
  dataset = dataset.map(make, tf.data.AUTOTUNE, deterministic=True)
  return dataset.ignore_errors() if skip_errors else dataset


def _fetch_or_empty(examples: Examples, indices: Sequence[int]) -> tuple[np.ndarray, ...]:
  """`examples.fetch`, with an empty file, which cannot be decoded, for what cannot be read."""
  try:
    return examples.fetch(indices)
  except ERRORS:
    if len(indices) > 1:
      return tuple(map(np.concatenate, zip(*(_fetch_or_empty(examples, [i]) for i in indices))))
    kinds = [object if dtype == tf.string else dtype.as_numpy_dtype for dtype in examples.dtypes]
    return tuple(np.array([b'' if kind is object else 0], kind) for kind in kinds)


def make_one(examples: Examples, index: int, make: Callable) -> tuple[str | None, Any]:
  """(None, `make` of the row of one example) or (why it cannot be read or made, None)."""
  try:
    return None, make(*(column[0] for column in examples.fetch([index])))
  except ERRORS as error:
    return error_text(error), None


def error_text(error: Exception) -> str:
  """The message of an error, for TensorFlow's without the names of its nodes."""
  text = error.message if isinstance(error, tf.errors.OpError) else str(error)
  text = re.sub(r'^\{\{.*?\}\} |\n\t \[\[.*$| \[Op:\w+\].*$', '', text, flags=re.DOTALL)
  # What the op that reads the size says of a JPEG that is cut off, as the decoder says it.
  return re.sub(r'^Invalid JPEG data, size \d+$', _CUT_OFF, text)
