"""Image files: which files are images, and how to read those that TensorFlow 2.21 cannot."""

import io
import os
import re

from PIL import Image, features


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


def readable(encoded: bytes) -> bytes:
  """The file as it is, or as a BMP without an alpha channel if TensorFlow cannot read it.

  TensorFlow takes the palette indices of a BMP for grey values, refuses a WebP with an alpha
  channel, its op for animated WebP corrupts memory, and it does not know TIFF, AVIF, HEIC, JPEG
  2000 and portable pixmaps.

  Raises:
    OSError, ValueError: Pillow cannot read such a file.
  """
  odd_bmp = encoded[:2] == b'BM' and encoded[28:30] not in (b'\x18\x00', b'\x20\x00')  # bits
  odd_webp = encoded[:4] == b'RIFF' and encoded[8:12] == b'WEBP' and encoded[12:16] != b'VP8 '
  if not odd_bmp and not odd_webp and not _ONLY_PILLOW.match(encoded):
    return encoded
  plain = io.BytesIO()
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      image.convert('RGB').save(plain, 'BMP')
  except (SyntaxError, Image.DecompressionBombError) as fault:
    raise ValueError(str(fault)) from fault
  return plain.getvalue()
