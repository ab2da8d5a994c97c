"""Decodes all images of an input, and finds the bad and the unusual ones."""

from collections.abc import Iterator
import dataclasses
import os

import numpy as np
import tqdm

from mixer import runtime
from mixer.input import image_facts, image_files, reading
from mixer.input.conversion import DEFAULT, Conversion

tf = runtime.tensorflow()

# Unusual properties of an image that can be read, and how training reads it.
ODD = {
  'tiny': 'less than 32 pixels high or wide: enlarged',
  'ending': 'the format is not that of the file name extension: read by its content',
  'cmyk': 'CMYK: converted to RGB without a colour profile',
  'deep': '16 bits per channel: the upper eight of bits_per_channel are kept',
  'dark': '16 bits per channel, of which the upper ones are 0, as in 12-bit data: nearly black, '
  'unless bits_per_channel says how many are used',
  'alpha': 'an alpha channel: dropped, so that transparent parts show their colour',
  'animated': 'an animation: the first frame is read',
  'rotated': 'an EXIF orientation: ignored, the image is read as it is stored, unless '
  'exif_orientation=True',
}
_TINY = 32  # pixels
_BATCH = 256  # examples
_NAMED, _KEPT = 10, 10_000  # unusual images of each kind, and bad images, that the report names
_ENDINGS = {
  b'\xff\xd8': image_files.JPEG_ENDINGS,
  b'\x89P': ('.apng', '.png'),
  b'GI': ('.gif',),
  b'BM': ('.bmp',),
  b'RI': ('.webp',),
}


@dataclasses.dataclass
class Findings:
  """The findings of one input.

  Attributes:
    examples: number of images.
    bad: those that cannot be decoded, and damaged records.
    bad_places: 'where' and 'reason' of the first 10,000 of these.
    odd: {key of ODD: number of images}.
    odd_places: {key of ODD: the first of them}.
    per_class: number of labels of each class.
  """

  examples: int
  bad: int
  bad_places: list[dict[str, str]]
  odd: dict[str, int]
  odd_places: dict[str, list[str]]
  per_class: np.ndarray

  def add_bad(self, where: str, reason: str) -> None:
    self.bad += 1
    if len(self.bad_places) < _KEPT:
      self.bad_places.append({'where': where, 'reason': reason})

  def add_odd(self, kind: str, where: str) -> None:
    self.odd[kind] = self.odd.get(kind, 0) + 1
    places = self.odd_places.setdefault(kind, [])
    if len(places) < _NAMED:
      places.append(where)


def inspect(data: reading.Examples, title: str, conversion: Conversion = DEFAULT) -> Findings:
  """Decodes every example; reading a record verifies its checksum."""
  n = data.num_examples
  found = Findings(n, 0, [], {}, {}, np.zeros(data.num_classes, np.int64))
  with tqdm.tqdm(total=n, desc=title, unit='image', dynamic_ncols=True) as bar:
    for index, row in enumerate(_rows(data, conversion, bar)):
      where = data.describe(index)
      if row is None:
        found.add_bad(where, _fault(data, conversion, index))
      else:
        _add(found, where, row)
  return found


def remarks(data: reading.Examples, conversion: Conversion) -> list[str]:
  """`image_facts.remarks` on a sample of the examples; bad ones are left out."""

  def encoded():
    for index in image_facts.sample(data.num_examples):
      fault, row = reading.make_one(data, index, data.parse)
      if fault is None:
        yield data.describe(index), tf.convert_to_tensor(row[0]).numpy()

  return image_facts.remarks(encoded(), conversion.changed())


def _rows(data: reading.Examples, conversion: Conversion, bar: tqdm.tqdm) -> Iterator[dict | None]:
  """The facts of each example in turn; None for one that cannot be decoded."""
  n = data.num_examples

  def rows(start, count):
    indices = np.arange(start, min(start + count, n))
    return indices, indices

  def make(index, *row):
    return _facts(data, conversion, index, *row)

  starts = tf.data.Dataset.range(0, n, reading.READ_AHEAD)
  dataset = reading.read(data, starts, rows, tf.int64, make, skip_errors=True)
  position = 0
  for batch in dataset.batch(_BATCH).prefetch(2).as_numpy_iterator():
    for i, index in enumerate(batch['index']):
      yield from (None for _ in range(position, index))
      yield {key: column[i] for key, column in batch.items()}
      position = index + 1
    bar.update(position - bar.n)
  yield from (None for _ in range(position, n))
  bar.update(n - bar.n)


def _facts(data: reading.Examples, conversion, index, *row) -> dict[str, tf.Tensor]:
  encoded, label = data.parse(*row)
  decoded = tf.io.decode_image(conversion(encoded), channels=3, expand_animations=False)
  return {
    'index': index,
    'label': label,
    'side': tf.reduce_min(tf.shape(decoded)[:2]),
    'begin': tf.strings.substr(encoded, 0, 2),
    'odd': tf.ensure_shape(tf.numpy_function(_oddities, [encoded], tf.string), []),
  }


def _oddities(encoded: bytes) -> bytes:
  """Those keys of ODD that the file itself shows, with spaces between."""
  return ' '.join(image_facts.oddities(np.asarray(encoded, object).item())).encode()


def _add(found: Findings, where: str, row: dict) -> None:
  """Adds the facts of one example to the findings."""
  label = row['label']
  if label.ndim:
    found.per_class += label
  else:
    found.per_class[label] += 1
  kinds = row['odd'].decode().split() + (['tiny'] if row['side'] < _TINY else [])
  ending = os.path.splitext(where)[1].lower()
  known = image_files.ENDINGS
  if ending in known and ending not in _ENDINGS.get(row['begin'], known):
    kinds.append('ending')
  for kind in kinds:
    found.add_odd(kind, where)


def _fault(data: reading.Examples, conversion: Conversion, index: int) -> str:
  """Why an example cannot be decoded."""
  fault, _ = reading.make_one(data, index, lambda *row: _facts(data, conversion, index, *row))
  return fault or 'it could be read at the second attempt'
