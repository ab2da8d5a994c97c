"""Image files: which files are images, and how to read those that TensorFlow 2.21 cannot."""

import io
import os
import re

import numpy as np
from PIL import Image, features

from mixer.input import image_facts


def _reads_heic() -> bool:
  """Whether pillow-heif is installed, which Pillow then uses."""
  try:
    import pillow_heif
  except ImportError:
    return False
  pillow_heif.register_heif_opener()
  return True


_WITH_DECODER = {  # formats for which an optional package is needed
  '.avif': 'avif' in features.modules and features.check('avif'),  # since Pillow 11.3
  '.heic': _reads_heic(),
  '.heif': _reads_heic(),
  '.jp2': features.check('jpg_2000'),
}
# Of files that are read as images, in lower or upper case.
ENDINGS = tuple(
  sorted(
    ('.apng', '.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.mpo', '.pbm', '.pgm', '.png')
    + ('.pnm', '.ppm', '.tif', '.tiff', '.webp')
    + tuple(ending for ending, found in _WITH_DECODER.items() if found)
  )
)
JPEG_ENDINGS = ('.jfif', '.jpe', '.jpeg', '.jpg', '.mpo')
# The first bytes of TIFF, portable pixmaps, AVIF and HEIC, and JPEG 2000.
_ONLY_PILLOW = re.compile(
  rb'II[*+]\0|MM\0[*+]|P[1-6]\s|....ftyp(avi[fs]|he[iv][a-z]|mif1|msf1)|\0\0\0\x0cjP  ', re.DOTALL
)


def is_image(name: str) -> bool:
  """Whether a file of this name is read as an image: by its ending, and not if it is hidden."""
  return name.lower().endswith(ENDINGS) and not name.startswith('.')


def lacks_decoder(name: str) -> bool:
  """Whether a file of this name is an image for which no decoder is installed."""
  ending, hidden = os.path.splitext(name)[1].lower(), os.path.basename(name).startswith('.')
  return not _WITH_DECODER.get(ending, True) and not hidden


def readable(
  encoded: bytes,
  *,
  max_pixels: int | None = None,
  exif_orientation: bool = False,
  bits_per_channel: int = 16,
) -> bytes:
  """The file as it is, or one without an alpha channel if TensorFlow cannot read it.

  TensorFlow takes the palette indices of a BMP for grey values, and a GIF's first frame for the
  whole canvas; it refuses a WebP with an alpha channel, and its op for animated WebP corrupts
  memory; and it does not know TIFF, AVIF, HEIC, JPEG 2000 and portable pixmaps.

  Args:
    encoded: the file. What is no known image is returned as it is.
    max_pixels: of an image; None for no limit but Pillow's.
    exif_orientation: turn an image as its EXIF orientation says.
    bits_per_channel: that images of 16 bits per channel use; the upper eight of them are kept.

  Raises:
    ValueError: Pillow cannot read such a file, or it has more pixels; says why.
  """
  try:
    if max_pixels is not None:
      image_facts.check_pixels(image_facts.dimensions(encoded), max_pixels)
    if _needs_pillow(encoded):
      return _converted(encoded, max_pixels, exif_orientation, bits_per_channel)
    shift = bits_per_channel != 16 and image_facts.is_deep_png(encoded)
    if shift or (exif_orientation and image_facts.orientation(encoded) != 1):
      return _converted(encoded, max_pixels, exif_orientation, bits_per_channel)
  except Exception as fault:  # Pillow raises all kinds of errors for damaged files
    raise ValueError(image_facts.fault_text(fault)) from fault
  return encoded


def _needs_pillow(encoded: bytes) -> bool:
  begin, kind = encoded[:4], encoded[8:12]
  if begin == b'GIF8':
    return not image_facts.fills_canvas(encoded)
  return (
    (begin[:2] == b'BM' and encoded[28:30] not in (b'\x18\x00', b'\x20\x00'))  # bits of a pixel
    or (begin == b'RIFF' and kind == b'WEBP' and encoded[12:16] != b'VP8 ')
    or bool(_ONLY_PILLOW.match(encoded))
  )


def _converted(encoded: bytes, max_pixels: int | None, turn: bool, bits: int) -> bytes:
  """The image as a BMP or, of 16 bits that are not shifted, as a PNG."""
  with Image.open(io.BytesIO(encoded)) as opened:
    image_facts.check_pixels(opened.size, max_pixels)
    if opened.format == 'TIFF':
      opened.load()  # which turns it, and removes its orientation
    number = opened.getexif().get(image_facts.EXIF_ORIENTATION, 1) if turn else 1
    if bits != 16 and image_facts.is_deep_png(encoded):
      image = _upper_eight(image_facts.by_tensorflow(encoded, 'uint16'), bits)
    elif opened.mode.startswith('I'):
      levels = image_facts.sixteen_bits(opened)
      image = _upper_eight(levels, bits) if bits != 16 else Image.fromarray(levels)
    elif opened.mode == 'F':
      raise ValueError('its pixels are floating-point numbers; convert them to 8 or 16 bits')
    elif opened.format in ('JPEG', 'MPO'):  # the same pixels as of those that need no turn
      image = Image.fromarray(image_facts.by_tensorflow(encoded))
    else:
      image = opened
    deep = image.mode == 'I;16'
    image = image if deep else image.convert('RGB')
  image = image.transpose(image_facts.TURNS[number]) if number in image_facts.TURNS else image
  plain = io.BytesIO()
  image.save(plain, 'PNG' if deep else 'BMP')
  return plain.getvalue()


def _upper_eight(levels: np.ndarray, bits: int) -> Image.Image:
  """The upper eight of the `bits` that 16-bit pixels use; brighter ones are white."""
  return Image.fromarray(np.minimum(levels >> (bits - 8), 255).astype(np.uint8))
