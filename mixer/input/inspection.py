"""Decodes all images of an input, and finds the bad and the unusual ones."""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import os

import numpy as np
from PIL import Image
import tqdm

from mixer import runtime
from mixer.input import image_files, reading

tf = runtime.tensorflow()

# Unusual properties of an image that can be read, and how training reads it.
ODD = {
  'tiny': 'less than 32 pixels high or wide: enlarged',
  'ending': 'the format is not that of the file name extension: read by its content',
  'cmyk': 'CMYK: converted to RGB without a colour profile',
  'deep': '16 bits per channel: the upper eight are kept',
  'alpha': 'an alpha channel: dropped, so that transparent parts show their colour',
  'animated': 'an animation: the first frame is read',
  'rotated': 'an EXIF orientation: ignored, the image is read as it is stored',
}
_TINY = 32  # pixels
_BATCH = 256  # examples
_NAMED, _KEPT = 10, 10_000  # unusual images of each kind, and bad images, that the report names
_ENDINGS = {
  b'\xff\xd8': image_files.JPEG_ENDINGS,
  b'\x89P': ('.apng', '.png'),
  b'GI': ('.gif',),
  b'BM': ('.bmp',),
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


def inspect(data: reading.Examples, title: str) -> Findings:
  """Decodes every example; reading a record verifies its checksum."""
  n = data.num_examples
  found = Findings(n, 0, [], {}, {}, np.zeros(data.num_classes, np.int64))
  with tqdm.tqdm(total=n, desc=title, unit='image', dynamic_ncols=True) as bar:
    for index, row in enumerate(_rows(data, bar)):
      where = data.describe(index)
      if row is None:
        found.add_bad(where, _fault(data, index))
      else:
        _add(found, where, row)
  return found


def _rows(data: reading.Examples, bar: tqdm.tqdm) -> Iterator[dict | None]:
  """The facts of each example in turn; None for one that cannot be decoded."""
  n = data.num_examples

  def rows(start, count):
    indices = np.arange(start, min(start + count, n))
    return indices, indices

  def make(index, *row):
    return _facts(data, index, *row)

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


def _facts(data: reading.Examples, index, *row) -> dict[str, tf.Tensor]:
  encoded, label = data.parse(*row)
  decoded = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  return {
    'index': index,
    'label': label,
    'side': tf.reduce_min(tf.shape(decoded)[:2]),
    'begin': tf.strings.substr(encoded, 0, 2),
    'odd': tf.ensure_shape(tf.numpy_function(_oddities, [encoded], tf.string), []),
  }


def _oddities(encoded: bytes) -> bytes:
  """Those keys of ODD that the header of the file shows, with spaces between."""
  found = []
  if encoded[:4] == b'\x89PNG':
    found += ['deep'] if encoded[24] == 16 else []  # bits of a channel; then the colour type
    found += ['alpha'] if encoded[25] in (4, 6) else []
  else:
    # Pillow raises all kinds of errors for damaged metadata of images that TensorFlow decodes.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(encoded)) as image:
      found += ['cmyk'] if image.mode == 'CMYK' else []
      found += ['animated'] if getattr(image, 'is_animated', False) else []
      found += ['rotated'] if image.getexif().get(0x0112, 1) != 1 else []
  return ' '.join(found).encode()


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
    # `image_files.readable` converts files of these endings to BMP, some of them or all.
    converted = ending not in {one for of in _ENDINGS.values() for one in of}
    kinds += [] if row['begin'] == b'BM' and converted else ['ending']
  for kind in kinds:
    found.add_odd(kind, where)


def _fault(data: reading.Examples, index: int) -> str:
  """Why an example cannot be decoded."""
  fault, _ = reading.make_one(data, index, lambda *row: _facts(data, index, *row))
  return fault or 'it could be read at the second attempt'
