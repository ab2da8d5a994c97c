"""Small image sets on disk, written by TFDS itself, so that its names and splits find them."""

from collections.abc import Mapping, Sequence
import io

import numpy as np
from PIL import Image


def encode(image: np.ndarray, kind: str = 'PNG', **options) -> bytes:
  """The file of a uint8 image (height, width, 3); `kind` as Pillow calls it."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **options)
  return file.getvalue()


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """A random image, uint8 (height, width, 3), smooth enough for a JPEG to keep its look."""
  coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
  return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))


def write(
  data_dir,
  name: str,
  split_sizes: Mapping[str, int],
  *,
  num_classes: int = 10,
  sides: tuple[int, int] = (24, 48),
  file_format: str = 'tfrecord',
  label_sequence: bool = False,
  **how,
) -> None:
  """Writes random images, JPEGs and PNGs in turn, under data_dir/name.

  Example i of a split has label i % num_classes, or with `label_sequence` the i % 4 labels from
  there on. The same arguments give the same images, whatever the `file_format`.

  Args:
    sides: the least and the greatest height and width, drawn for each image.
    **how: see `write_examples`.
  """
  rng = np.random.default_rng(0)
  splits = {}
  for split, size in split_sizes.items():
    splits[split] = []
    for i in range(size):
      image = smooth(rng, *rng.integers(sides[0], sides[1] + 1, 2))
      labels = [(i + j) % num_classes for j in range(i % 4)]
      file = encode(image, 'PNG') if i % 2 else encode(image, 'JPEG', quality=95)
      splits[split].append((file, labels if label_sequence else i % num_classes))
  write_examples(
    data_dir,
    name,
    splits,
    num_classes=num_classes,
    file_format=file_format,
    label_sequence=label_sequence,
    **how,
  )


def write_examples(
  data_dir,
  name: str,
  splits: Mapping[str, Sequence[tuple[bytes, int | list[int]]]],
  *,
  num_classes: int,
  file_format: str = 'tfrecord',
  label_sequence: bool = False,
  label_key: str = 'label',
  version: str = '1.0.0',
  config: str | None = None,
  num_shards: int | None = None,
) -> None:
  """Writes the given (image file, label or labels); TFDS reorders them within a split."""
  import tensorflow_datasets as tfds  # loads TensorFlow, which most tests do without

  tfds.disable_progress_bar()
  label = tfds.features.ClassLabel(num_classes=num_classes)
  features = {
    'image': tfds.features.Image(shape=(None, None, 3)),
    label_key: tfds.features.Sequence(label) if label_sequence else label,
    'file_name': tfds.features.Text(),
  }
  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version=version,
    features=tfds.features.FeaturesDict(features),
    split_datasets={
      split: [
        (i, {'image': io.BytesIO(file), label_key: label, 'file_name': f'{split}{i}'})
        for i, (file, label) in enumerate(rows)
      ]
      for split, rows in splits.items()
    },
    config=config,
    data_dir=data_dir,
    file_format=file_format,
    download_config=tfds.download.DownloadConfig(num_shards=num_shards),
  )


def numbered(n: int, sides: tuple[int, int] = (24, 40)) -> list[tuple[bytes, int]]:
  """(image file, i) for i in range(n), so that a label names its image; JPEGs and PNGs in turn."""
  rng = np.random.default_rng(0)
  images = [smooth(rng, *rng.integers(sides[0], sides[1] + 1, 2)) for _ in range(n)]
  return [(encode(image, ('JPEG', 'PNG')[i % 2]), i) for i, image in enumerate(images)]


def example(**features) -> bytes:
  """A serialised tf.train.Example; values are bytes, ints, floats, or lists of one of them."""
  import tensorflow as tf

  made = {}
  for key, value in features.items():
    values = value if isinstance(value, list) else [value]
    kind, of = {
      bytes: ('bytes_list', tf.train.BytesList),
      float: ('float_list', tf.train.FloatList),
      int: ('int64_list', tf.train.Int64List),
    }[type(values[0] if values else 0)]
    made[key] = tf.train.Feature(**({kind: of(value=values)} if values else {}))
  return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def write_records(path, records: Sequence[bytes], file_format: str = 'tfrecord') -> None:
  """Writes a TFRecord or an ArrayRecord file."""
  if file_format == 'tfrecord':
    import tensorflow as tf

    writer = tf.io.TFRecordWriter(str(path))
  else:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def write_registered(
  data_dir, name: str, splits: Mapping[str, Sequence[Mapping]], *, file_format: str = 'tfrecord'
) -> None:
  """Writes the given examples as the set that TFDS knows by `name`, with its real features."""
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  builder = tfds.builder(name, data_dir=data_dir, file_format=file_format)
  builder._split_generators = lambda _: {
    split: enumerate(examples) for split, examples in splits.items()
  }
  builder.download_and_prepare()


def assert_same(batches: Sequence[Mapping], others: Sequence[Mapping]) -> None:
  """The same keys, dtypes and bits in every batch."""
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    assert batch.keys() == other.keys()
    for key in batch:
      assert batch[key].dtype == other[key].dtype
      np.testing.assert_array_equal(batch[key], other[key])


def join(shards: Sequence[Sequence[Mapping]]) -> list[dict]:
  """The global batches of which each shard made some rows, in the order of the shards."""
  return [
    {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for parts in zip(*shards, strict=True)
  ]
