"""Any TensorFlow Datasets image set that has been prepared on disk. Never downloads."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import os

from google.protobuf.message import DecodeError
import numpy as np
import tensorflow_datasets as tfds

from mixer import runtime
from mixer.errors import InputError, MissingData
from mixer.input import label_numbers
from mixer.input.records import readers
from mixer.values import Steps

tf = runtime.tensorflow()

_READERS = {
  tfds.core.FileFormat.TFRECORD: readers.TFRecords,
  tfds.core.FileFormat.ARRAY_RECORD: readers.ArrayRecords,
}


def open_split(
  *,
  name: str,
  split: str,
  data_dir: str | None = None,
  image_key: str = 'image',
  label_key: str = 'label',
  label_offset: Steps = 0,
) -> 'Split':
  """One split of a prepared data set.

  Args:
    name: of the data set, with '/config' and ':version' where it needs them.
    split: in the syntax of TFDS, such as 'train[:99%]'.
    data_dir: the directory of TFDS sets; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    image_key, label_key: names of the features. The label is a ClassLabel or a Sequence of it.
    label_offset: what is subtracted from class numbers, 1 where they begin at 1; the first name is
      then of no class. A warning says where class 0 seems not to occur.

  Raises:
    MissingData: the set is not on disk; says where it looked and what to do.
    InputError: the split or feature does not exist, or files of the set are missing.
  """
  builder = open_builder(name, data_dir)
  classes = _classes(builder, image_key, label_key)
  multi_label = isinstance(builder.info.features[label_key], tfds.features.Sequence)

  names = classes.names[label_offset:]

  def to_label(stored):
    if label_offset:
      message = f'{label_key} is below label_offset={label_offset}:'
      known = tf.reduce_all(stored >= label_offset)
      with tf.control_dependencies([tf.raw_ops.Assert(condition=known, data=[message, stored])]):
        stored = stored - label_offset
    if multi_label:
      return tf.reduce_max(tf.one_hot(stored, len(names), dtype=tf.uint8), axis=0)
    return tf.cast(stored, tf.int32)

  keys = (image_key, label_key)
  opened = Split(builder, split, keys, names, to_label=to_label, multi_label=multi_label)
  where = f'{builder.info.full_name}, split {split!r}'
  label_numbers.warn_of_offset(where, _some_labels(opened, label_key), label_offset)
  return opened


def _some_labels(opened: 'Split', label_key: str) -> Iterator[list[int]]:
  """The class numbers of some examples, without damaged ones, to see where they begin."""
  for index in label_numbers.sample(opened.num_examples, opened.num_classes):
    with contextlib.suppress(DecodeError, InputError):
      ((record,),) = opened.fetch([index])
      example = tf.train.Example.FromString(record)
      yield list(example.features.feature[label_key].int64_list.value)


class Split:
  """The serialised examples of a split of a prepared set; see `reading.Examples`."""

  dtypes = (tf.string,)

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    keys: tuple[str, str],
    class_names: Sequence[str],
    *,
    to_label: Callable,
    to_image: Callable = lambda stored: stored,
    multi_label: bool = False,
  ):
    """Opens the records.

    Args:
      builder: of the set.
      split: in the syntax of TFDS.
      keys: the features of the image and of the label.
      class_names: in the order of the class numbers.
      to_label, to_image: make the label and the encoded image of what is stored.
      multi_label: labels are vectors.
    """
    self._records = open_records(builder, split)
    self._features = tfds.features.FeaturesDict({key: builder.info.features[key] for key in keys})
    self._keys, self._to_image, self._to_label = keys, to_image, to_label
    self._where = f'{builder.info.full_name}, split {split!r}, example'
    self.num_examples, self.multi_label = len(self._records), multi_label
    self.index_bytes, self.record_bytes = self._records.index_bytes, self._records.record_bytes
    self.num_classes, self.class_names = len(class_names), tuple(class_names)

  def fetch(self, indices: Sequence[int]) -> tuple[np.ndarray]:
    return (np.array(self._records.read(indices), dtype=object),)

  def parse(self, record) -> tuple[tf.Tensor, tf.Tensor]:
    image, label = self._keys
    skip = {image: tfds.decode.SkipDecoding()}
    example = self._features.deserialize_example(record, decoders=skip)
    return self._to_image(example[image]), self._to_label(example[label])

  def describe(self, index: int) -> str:
    return f'{self._where} {index}'


def open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """The builder of a prepared set; without a version in `name`, any version on disk serves.

  Raises:
    MissingData: it is not on disk.
  """
  data_dir = os.path.expanduser(data_dir) if data_dir else None  # TFDS takes '~' for a name
  candidates = [name] if ':' in name else [name, f'{name}:*.*.*']
  for candidate in candidates:
    try:
      builder = tfds.builder(candidate, data_dir=data_dir)
    except (
      tfds.core.DatasetNotFoundError,
      tfds.core.dataset_info.DatasetInfoFileError,  # half written
      AssertionError,
      ValueError,
    ):
      continue
    if builder.info.splits:
      return builder
  raise MissingData(_how_to_get(name, data_dir))


def _how_to_get(name: str, data_dir: str | None) -> str:
  where = os.path.expanduser(
    data_dir or os.environ.get('TFDS_DATA_DIR') or os.path.join('~', 'tensorflow_datasets')
  )
  try:
    entries = sorted(entry for entry in os.listdir(where) if entry != 'downloads')
  except OSError:
    entries = None
  found = 'which does not exist' if entries is None else f'which holds {entries or "nothing"}'
  bare = name.split(':')[0].split('/')[0]
  registered = bare in tfds.list_builders(with_community_datasets=False)
  prepare = f'python -m mixer.input.prepare --name={name if registered else bare}'
  if not registered:
    more = ' --split=SPLIT --images=FOLDER_OF_CLASS_FOLDERS'
  elif tfds.builder_cls(bare).MANUAL_DOWNLOAD_INSTRUCTIONS:
    more = ' --manual_dir=FOLDER_OF_ITS_ARCHIVES'
  else:
    more = '   (downloads)'
  return (
    f'no prepared data set {name!r} in {where}, {found}.\n'
    f'  To prepare it:       {prepare} --data_dir={where}{more}\n'
    '  If it is elsewhere:  --config.train_input.data_dir=DIR, in a config of evaluations alone '
    '--config.data_dir=DIR, or set TFDS_DATA_DIR\n'
    '  To run without it:   python train.py --config=configs/digits.py --workdir=/tmp/digits'
  )


def open_records(builder: tfds.core.DatasetBuilder, split: str):
  """The records of a split, or InputError with the splits that exist."""
  try:
    instructions = builder.info.splits[split].file_instructions
  except (KeyError, ValueError, AssertionError) as fault:
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    raise InputError(
      f'{builder.info.full_name} has no split {split!r}; it has {sizes} ({fault}).'
    ) from fault
  if builder.info.file_format not in _READERS:
    raise InputError(
      f'{builder.info.full_name} is stored as {builder.info.file_format}; '
      'prepare it as tfrecord or array_record.'
    )
  parts = [
    (i.filename, i.skip, i.take if i.take >= 0 else i.examples_in_shard - i.skip)
    for i in instructions
  ]
  absent = [path for path, _, _ in parts if not tf.io.gfile.exists(path)]
  if absent or not parts:
    raise InputError(
      f'{builder.info.full_name}, split {split!r}: '
      + (
        f'{len(absent)} of {len(parts)} files are missing, the first {absent[0]}.'
        if absent
        else 'empty.'
      )
    )
  opened = _READERS[builder.info.file_format](parts)
  expected = builder.info.splits[split].num_examples
  if len(opened) != expected:
    raise InputError(
      f'{builder.info.full_name}, split {split!r}: the files hold {len(opened)} records, '
      f'dataset_info.json promises {expected}. Prepare the set again.'
    )
  return opened


def _classes(
  builder: tfds.core.DatasetBuilder, image_key: str, label_key: str
) -> tfds.features.ClassLabel:
  """The feature with the class names, or InputError where the two are not an image and a label."""
  features = builder.info.features
  missing = [key for key in (image_key, label_key) if key not in features]
  if missing:
    raise InputError(f'{builder.info.full_name} has no feature {missing}; it has {list(features)}.')
  label = features[label_key]
  label = label.feature if isinstance(label, tfds.features.Sequence) else label
  if not isinstance(features[image_key], tfds.features.Image) or not isinstance(
    label, tfds.features.ClassLabel
  ):
    raise InputError(
      f'{builder.info.full_name}: {image_key!r} must be an Image and {label_key!r} a ClassLabel or '
      f'a Sequence of it; they are {features[image_key]} and {features[label_key]}.'
    )
  return label
