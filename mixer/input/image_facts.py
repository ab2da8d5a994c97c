"""Facts of encoded images: size, depth, orientation, and what is unusual about them."""

from collections.abc import Collection, Iterable
import io
import math
import re
import struct

import numpy as np
from PIL import Image

MAX_PIXELS = 178_956_970  # where Pillow, too, refuses an image as a decompression bomb

_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG'
EXIF_ORIENTATION = 0x0112
SAMPLE = 100  # files that are looked at for remarks
_REMARKS = {  # kind: (argument of `readable`, fault)
  'rotated': (
    'exif_orientation',
    'an EXIF orientation, which is ignored: they are used as they are stored. '
    'exif_orientation=True turns them',
  ),
  'dark': (
    'bits_per_channel',
    '16 bits per channel, of which the upper two or more are 0: they are used as nearly black '
    'ones. bits_per_channel=12, for 12-bit data, scales them',
  ),
}
_TURN = Image.Transpose
TURNS = {  # EXIF orientation -> what makes the image upright
  2: _TURN.FLIP_LEFT_RIGHT,
  3: _TURN.ROTATE_180,
  4: _TURN.FLIP_TOP_BOTTOM,
  5: _TURN.TRANSPOSE,
  6: _TURN.ROTATE_270,
  7: _TURN.TRANSVERSE,
  8: _TURN.ROTATE_90,
}


def fault_text(fault: Exception) -> str:
  """What Pillow says of a file that it cannot read, without the object."""
  return re.sub(' ?<_io.BytesIO [^>]*>', '', str(fault)) or type(fault).__name__


def is_deep_png(encoded: bytes) -> bool:
  """Whether it is a PNG with 16 bits per channel."""
  return encoded[:4] == _PNG and encoded[24:25] == b'\x10'


def by_tensorflow(encoded: bytes, dtype: str = 'uint8') -> np.ndarray:
  """The pixels as TensorFlow decodes them, (height, width, 3); 'uint16' for a PNG alone.

  Pillow drops the lower bits of a PNG of 16 bits that has colours.
  """
  from mixer import runtime

  tf = runtime.tensorflow()
  options = {'channels': 3, 'dtype': dtype, 'expand_animations': False}
  return tf.io.decode_image(encoded, **options).numpy()


def sixteen_bits(image: Image.Image) -> np.ndarray:
  """The levels of a grey image of more than 8 bits; ValueError if they are not of 16 bits."""
  levels = np.asarray(image)
  if levels.min() < 0 or levels.max() >= 2**16:
    raise ValueError('its pixels have more than 16 bits; convert them to 8 or 16')
  return levels.astype(np.uint16)


def orientation(encoded: bytes) -> int:
  """The EXIF orientation; 1, which is upright, if there is none or it cannot be read."""
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      return image.getexif().get(EXIF_ORIENTATION, 1)
  except Exception:  # of damaged metadata: all kinds
    return 1


def oddities(encoded: bytes) -> list[str]:
  """What is unusual about an image that can be decoded: keys of `inspection.ODD`."""
  found = []
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      transparent = image.mode[-1] in 'Aa' or 'transparency' in image.info
      animated = getattr(image, 'is_animated', False) and encoded[:3] != _JPEG  # not several views
      rotated = orientation(encoded) in TURNS and image.format != 'TIFF'  # which Pillow turns
      facts = {'cmyk': image.mode == 'CMYK', 'animated': animated, 'rotated': rotated}
      found = [kind for kind, true in (facts | {'alpha': transparent}).items() if true]
      if is_deep_png(encoded) and math.prod(image.size) <= MAX_PIXELS:
        found += _deep(by_tensorflow(encoded, 'uint16'))
      elif image.mode.startswith('I'):
        found += _deep(sixteen_bits(image))
  except Exception:  # of damaged metadata, all kinds, in images that TensorFlow decodes
    return found
  return found


def _deep(levels: np.ndarray) -> list[str]:
  return ['deep'] if levels.max() >= 2**14 else ['deep', 'dark']


def sample(count: int) -> list[int]:
  """Numbers below `count`: all of them or, of many, a hundred at equal distances."""
  return np.unique(np.linspace(0, count - 1, SAMPLE).astype(int)).tolist()


def remarks(files: Iterable[tuple[str, bytes]], converted: Collection[str]) -> list[str]:
  """Sentences about images that are not read as they are meant, with the number of them.

  Args:
    files: (where it is, the file) of each image.
    converted: names of the arguments of `readable` that are set, so that there is no remark.
  """
  total, places = 0, {}
  for where, encoded in files:
    total += 1
    for kind in oddities(encoded):
      places.setdefault(kind, []).append(where)
  return [
    f'{len(places[kind])} of {total} images that were looked at, such as {places[kind][0]}, have '
    f'{fault}.'
    for kind, (argument, fault) in _REMARKS.items()
    if kind in places and argument not in converted
  ]


def dimensions(encoded: bytes) -> tuple[int, int]:
  """(width, height) that the header says; (0, 0) if it is not one that TensorFlow reads."""
  if encoded[:3] == _JPEG:
    from mixer import runtime

    height, width, _ = runtime.tensorflow().io.extract_jpeg_shape(encoded).numpy().tolist()
    return width, height
  for begin, form, place in (
    (_PNG, '>II', 16),
    (b'GIF8', '<HH', 6),
    (b'BM', '<ii', 18),
    (b'RIFF', '<HH', 26),
  ):
    if encoded.startswith(begin) and len(encoded) >= place + struct.calcsize(form):
      width, height = struct.unpack_from(form, encoded, place)
      if begin == b'RIFF':  # lossy; Pillow reads the size of other WebP files
        return (width & 0x3FFF, height & 0x3FFF) if encoded[12:16] == b'VP8 ' else (0, 0)
      return width, abs(height)
  return 0, 0


def fills_canvas(encoded: bytes) -> bool:
  """Whether the first frame of a GIF is as large as the canvas; also True if it is damaged."""
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      return image.tile[0][1] == (0, 0, *struct.unpack_from('<HH', encoded, 6))
  except Exception:  # TensorFlow says what is wrong
    return True


def check_pixels(size: tuple[int, int], max_pixels: int | None) -> None:
  width, height = size
  if max_pixels is not None and width * height > max_pixels:
    raise ValueError(
      f'{width} x {height} pixels are more than {max_pixels}, the limit against decompression '
      'bombs; max_pixels sets it'
    )
