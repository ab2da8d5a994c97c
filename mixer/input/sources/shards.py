"""Plain TFRecord or ArrayRecord files of tf.train.Example with encoded images."""

from collections.abc import Iterator, Sequence
import contextlib
import glob
import hashlib
import os

from google.protobuf.message import DecodeError
import numpy as np

from mixer import labels, runtime
from mixer.errors import InputError
from mixer.input import label_numbers, order
from mixer.input.records import readers
from mixer.values import Count, Steps

tf = runtime.tensorflow()

_SAMPLE = 32  # records that are checked before the run
_KINDS = {'bytes_list': 'bytes', 'int64_list': 'int64', 'float_list': 'float'}
_IMAGES = (b'\xff\xd8', b'\x89PNG', b'GIF8', b'BM', b'RIFF')  # how their files begin


class Shards:
  """The records of `files`, in the order of the sorted paths; see `reading.Examples`."""

  dtypes = (tf.string,)

  def __init__(
    self,
    *,
    files: str | Sequence[str] | None,
    num_classes: Count,
    image_key: str = 'image/encoded',
    label_key: str = 'image/class/label',
    multi_label: bool = False,
    class_names: str | None = None,
    label_offset: Steps = 0,
    first: float = 0,
    last: float | None = None,
  ):
    """Opens the files, and checks a sample of the records.

    Args:
      files: a path or glob, or several; all of one format.
      num_classes: of the label; 18,291 for JFT-300M.
      image_key: the feature with an image file: one bytes value.
      label_key: the feature with the class numbers, int64, or with names of `class_names`.
      multi_label: images have any number of labels, which gives uint8 vectors (num_classes,);
        without it, exactly one, which gives int32.
      class_names: a list of `mixer.labels`, or a file with a class on each line; where a line
        begins with a WordNet id, that is the name. None for the numbers.
      label_offset: what is subtracted from class numbers, 1 where they begin at 1. A warning says
        where class 0 seems not to occur.
      first, last: the part that is read: ints count examples, floats are fractions of them, `last`
        itself is not in it, None is the end.

    Raises:
      InputError: no file matches; or the sample lacks a feature, or has one of another kind, or a
        label that is not a class. Such a label in another record is an error when it is read.
    """
    self._image_key, self._label_key, self.multi_label = image_key, label_key, multi_label
    self.num_classes, self._offset = num_classes, label_offset
    self.class_names = _names(class_names, num_classes)
    paths = _matching(files)
    self._records = readers.open_files(paths)
    where = f'{files!r} ({len(paths)} files)'
    if not len(self._records):
      raise InputError(f'{where}: the files hold no records.')
    names = '\0'.join(map(os.path.basename, paths))
    self.fingerprint = hashlib.sha256(os.fsencode(names)).hexdigest()[:16]
    self._begin, end = order.part(len(self._records), first, last, where)
    self.num_examples = end - self._begin
    self.index_bytes, self.record_bytes = self._records.index_bytes, self._records.record_bytes
    sample = self._sample()
    self._text = _checked_kind(sample, image_key, label_key, multi_label) == 'bytes'
    self._table = self._lookup(class_names) if self._text else None
    for place, example in sample.items():
      self._check_labels(place, example)
    if self._text and label_offset:
      raise InputError(f'{label_key!r} holds text, so label_offset={label_offset} has no effect.')
    if not self._text:
      label_numbers.warn_of_offset(where, self._some_labels(), label_offset)

  def fetch(self, indices: Sequence[int]) -> tuple[np.ndarray]:
    found = self._records.read(np.asarray(indices) + self._begin)
    return (np.array(found, dtype=object),)

  def parse(self, record) -> tuple[tf.Tensor, tf.Tensor]:
    dtype = tf.string if self._text else tf.int64
    label = (
      tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)
      if self.multi_label
      else tf.io.FixedLenFeature([], dtype)
    )
    features = {self._image_key: tf.io.FixedLenFeature([], tf.string), self._label_key: label}
    example = tf.io.parse_single_example(record, features)
    given = example[self._label_key]
    numbers = self._table.lookup(given) if self._text else given - self._offset
    known = tf.reduce_all((numbers >= 0) & (numbers < self.num_classes))
    message = f'{self._label_key} is not a class of {self.num_classes}:'
    hint = '' if self._text else f'(counted from {self._offset}; label_offset shifts them)'
    checked = tf.raw_ops.Assert(condition=known, data=[message, given, hint])
    with tf.control_dependencies([checked]):
      numbers = tf.identity(numbers)
    if self.multi_label:
      hot = tf.reduce_max(tf.one_hot(numbers, self.num_classes, dtype=tf.uint8), axis=0)
      return example[self._image_key], hot
    return example[self._image_key], tf.cast(numbers, tf.int32)

  def describe(self, index: int) -> str:
    return self._records.where(self._begin + index)

  def _sample(self) -> dict[str, tf.train.Example]:
    """{place: record} of some records over all of the part, without damaged ones."""
    sample = {}
    for index in np.unique(np.linspace(0, self.num_examples - 1, _SAMPLE).astype(int)):
      place = self.describe(index)
      try:
        ((record,),) = self.fetch([index])
        sample[place] = tf.train.Example.FromString(record)
      except DecodeError as fault:
        raise InputError(f'{place} is not a tf.train.Example: {fault}.') from fault
      except InputError as fault:
        damaged = fault
    if not sample:
      raise damaged
    return sample

  def _some_labels(self) -> Iterator[list]:
    """The labels of some records, without damaged ones, to see where they begin."""
    for index in label_numbers.sample(self.num_examples, self.num_classes):
      with contextlib.suppress(DecodeError, InputError):
        ((record,),) = self.fetch([index])
        yield _values(tf.train.Example.FromString(record), self._label_key)

  def _lookup(self, class_names: str | None) -> tf.lookup.StaticHashTable:
    if class_names is None:
      raise InputError(
        f'{self._label_key!r} holds text; give the file with the classes as class_names.'
      )
    if len(set(self.class_names)) < self.num_classes:
      twice = sorted(name for name in self.class_names if self.class_names.count(name) > 1)
      raise InputError(f'{class_names} has classes of the same name, such as {twice[0]!r}.')
    numbers = np.arange(self.num_classes, dtype=np.int64)
    initial = tf.lookup.KeyValueTensorInitializer(list(self.class_names), numbers)
    return tf.lookup.StaticHashTable(initial, default_value=-1)

  def _check_labels(self, place: str, example: tf.train.Example) -> None:
    given = _values(example, self._label_key)
    if not self.multi_label and len(given) != 1:
      raise InputError(
        f'{place} has {len(given)} labels in {self._label_key!r}; with multi_label=True images may '
        'have any number.'
      )
    numbers = range(self._offset, self._offset + self.num_classes)
    names = {name.encode() for name in self.class_names} if self._text else numbers
    unknown = [label for label in given if label not in names]
    if unknown:
      raise InputError(
        f'{place} has the label {unknown[0]!r} in {self._label_key!r}, '
        + (
          f'which is not a class of {self.num_classes}; see class_names.'
          if self._text
          else label_numbers.outside(unknown[0], self.num_classes, self._offset)
        )
      )


def _checked_kind(sample: dict, image_key: str, label_key: str, multi_label: bool) -> str:
  """The kind of the label's values; InputError if one of the features is wrong in the sample."""
  kinds = {}
  for place, example in sample.items():
    here = {key: _kind(feature) for key, feature in example.features.feature.items()}
    kinds |= {key: kind for key, kind in here.items() if kind != 'empty' or key not in kinds}
    missing = [key for key in (image_key, label_key)[: 1 if multi_label else 2] if key not in here]
    if missing:
      raise InputError(f'{place} has no feature {missing}; it has {dict(sorted(here.items()))}.')
  if label_key not in kinds:
    raise InputError(
      f'no record of {len(sample)} has a feature {label_key!r}; they have {sorted(kinds)}.'
    )
  if kinds[image_key] != 'bytes' or kinds[label_key] not in ('bytes', 'int64', 'empty'):
    raise InputError(
      f'{image_key!r} must hold bytes and {label_key!r} int64 or bytes; they hold '
      f'{kinds[image_key]} and {kinds[label_key]}.'
    )
  files = [value for example in sample.values() for value in _values(example, image_key)]
  if not any(value.startswith(_IMAGES) for value in files):
    raise InputError(
      f'{image_key!r} holds no image files (JPEG, PNG, GIF, BMP, WebP) in {len(sample)} records; '
      f'it begins with {files[0][:16] if files else None!r}.'
    )
  return kinds[label_key]


def _kind(feature: tf.train.Feature) -> str:
  kind = feature.WhichOneof('kind')
  return _KINDS[kind] if kind and getattr(feature, kind).value else 'empty'


def _values(example: tf.train.Example, key: str) -> list:
  feature = example.features.feature[key]
  kind = feature.WhichOneof('kind')
  return list(getattr(feature, kind).value) if kind else []


def _names(class_names: str | None, num_classes: int) -> tuple[str, ...]:
  if class_names is None:
    return tuple(str(number) for number in range(num_classes))
  return tuple(synset or name for synset, name in labels.load(class_names, num_classes))


def _matching(files: str | Sequence[str] | None) -> list[str]:
  """The paths that match the globs, sorted."""
  if not files:
    raise InputError(
      f'files is {files!r}; give a glob, such as --config.train_input.files="/data/train-*".'
    )
  paths = []
  for pattern in [files] if isinstance(files, str) else files:
    pattern = os.path.expanduser(pattern)
    remote = '://' in pattern
    found = tf.io.gfile.glob(pattern) if remote else filter(os.path.isfile, glob.glob(pattern))
    found = list(found)
    if not found:
      raise InputError(f'no file matches {pattern!r}.')
    paths += found
  return sorted(set(paths))
