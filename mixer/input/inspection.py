"""Decodes all the images of an input, and finds the bad, the odd and the empty ones."""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import os

import numpy as np
from PIL import Image
import tqdm

from mixer import runtime
from mixer.files import IMAGE_ENDINGS
from mixer.input import pipeline

tf = runtime.tensorflow()

# What is odd about an image that can be read, and what training does with it.
ODD = {
  'tiny': 'less than 32 pixels high or wide: enlarged as any other',
  'ending': 'the content is of another format than the ending says: read by its content',
  'cmyk': 'CMYK: becomes RGB, without a colour profile',
  'deep': '16 bits a channel: the upper eight are kept',
  'alpha': 'an alpha channel: dropped, so what it hides is seen',
  'animated': 'an animation: its first frame is taken',
  'rotated': 'EXIF says that it is turned or mirrored: read as it is stored',
}
_TINY = 32  # pixels
_READ_AHEAD, _BATCH = 16, 256  # examples that one call fetches; rows that come out together
_NAMED, _KEPT = 10, 10_000  # odd images by kind, and bad ones, whose places are kept
_ENDINGS = {b'\xff\xd8': ('.jpg', '.jpeg'), b'\x89P': ('.png',), b'GI': ('.gif',), b'BM': ('.bmp',)}


@dataclasses.dataclass
class Findings:
  """What was found in one input.

  Attributes:
    examples: images looked at.
    bad: of them, those that cannot be decoded, and damaged TFRecord files.
    bad_places: 'where' and 'reason' of the first 10,000 of these.
    odd: by a key of ODD, how many images.
    odd_places: by a key of ODD, the first of these.
    per_class: labels of each class.
  """

  examples: int
  bad: int
  bad_places: list[dict[str, str]]
  odd: dict[str, int]
  odd_places: dict[str, list[str]]
  per_class: np.ndarray

  def note_bad(self, where: str, reason: str) -> None:
    self.bad += 1
    if len(self.bad_places) < _KEPT:
      self.bad_places.append({'where': where, 'reason': reason})

  def note_odd(self, kind: str, where: str) -> None:
    self.odd[kind] = self.odd.get(kind, 0) + 1
    places = self.odd_places.setdefault(kind, [])
    if len(places) < _NAMED:
      places.append(where)


def inspect(examples: pipeline.Examples, title: str) -> Findings:
  """Looks at every example; a record's checksum is verified when it is read."""
  n = examples.num_examples
  found = Findings(n, 0, [], {}, {}, np.zeros(examples.num_classes, np.int64))
  with tqdm.tqdm(total=n, desc=title, unit='image', dynamic_ncols=True) as bar:
    for index, row in enumerate(_rows(examples, bar)):
      if row is None:
        found.note_bad(examples.describe(index), _fault(examples, index))
      else:
        _look(found, examples, index, row)
  return found


def _rows(examples: pipeline.Examples, bar: tqdm.tqdm) -> Iterator[dict | None]:
  """What is to be known of each example in turn; None for one that cannot be decoded."""
  n = examples.num_examples

  def fetch(first):
    indices = np.arange(first, min(first + _READ_AHEAD, n))
    return indices, *pipeline.fetch_good(examples, indices)

  def call(first):
    columns = tf.numpy_function(fetch, [first], (tf.int64, *examples.dtypes), stateful=False)
    return tuple(tf.ensure_shape(column, [None]) for column in columns)

  dataset = tf.data.Dataset.range(0, n, _READ_AHEAD).map(call, 2, deterministic=True).unbatch()
  dataset = dataset.map(lambda *row: _facts(examples, *row), tf.data.AUTOTUNE, deterministic=True)
  position = 0
  for batch in dataset.ignore_errors().batch(_BATCH).prefetch(2).as_numpy_iterator():
    for i, index in enumerate(batch['index']):
      yield from (None for _ in range(position, index))
      yield {key: column[i] for key, column in batch.items()}
      position = index + 1
    bar.update(position - bar.n)
  yield from (None for _ in range(position, n))
  bar.update(n - bar.n)


def _facts(examples: pipeline.Examples, index, *row) -> dict[str, tf.Tensor]:
  encoded, label = examples.parse(*row)
  decoded = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  return {
    'index': index,
    'label': label,
    'side': tf.reduce_min(tf.shape(decoded)[:2]),
    'begin': tf.strings.substr(encoded, 0, 2),
    'odd': tf.ensure_shape(tf.numpy_function(_oddities, [encoded], tf.string), []),
  }


def _oddities(encoded: bytes) -> bytes:
  """Keys of ODD that the file's header tells, with spaces between."""
  found = []
  if encoded[:4] == b'\x89PNG':
    found += ['deep'] if encoded[24] == 16 else []  # bits of a channel, then the kind of colour
    found += ['alpha'] if encoded[25] in (4, 6) else []
  else:
    # Damaged metadata make Pillow raise all kinds; TensorFlow has decoded the image, so it is good.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(encoded)) as image:
      found += ['cmyk'] if image.mode == 'CMYK' else []
      found += ['animated'] if getattr(image, 'is_animated', False) else []
      found += ['rotated'] if image.getexif().get(0x0112, 1) != 1 else []
  return ' '.join(found).encode()


def _look(found: Findings, examples: pipeline.Examples, index: int, row: dict) -> None:
  label = row['label']
  if label.ndim:
    found.per_class += label
  else:
    found.per_class[label] += 1
  kinds = row['odd'].decode().split() + (['tiny'] if row['side'] < _TINY else [])
  where = examples.describe(index)
  ending = os.path.splitext(where)[1].lower()
  if ending in IMAGE_ENDINGS and ending not in _ENDINGS.get(row['begin'], IMAGE_ENDINGS):
    # What `fetch` has made a plain BMP of was a BMP or WebP.
    kinds += [] if row['begin'] == b'BM' and ending == '.webp' else ['ending']
  for kind in kinds:
    found.note_odd(kind, where)


def _fault(examples: pipeline.Examples, index: int) -> str:
  """Why an example cannot be decoded."""
  try:
    _facts(examples, index, *(column[0] for column in examples.fetch([index])))
  except pipeline.FAULTS as fault:
    return pipeline.reason(fault)
  return 'it could be read at a second try'
