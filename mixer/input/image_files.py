"""Image files: which files are images, and how to read those that TensorFlow 2.21 cannot."""

from collections.abc import Iterator, Sequence
import io

from etils import epath
from PIL import Image

ENDINGS = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.webp')  # in lower or upper case


def is_image(name: str, endings: Sequence[str] = ENDINGS) -> bool:
  """Whether a file of this name is read as an image: by its ending, and not if it is hidden."""
  return name.lower().endswith(tuple(endings)) and not name.startswith('.')


def walk(folder: epath.Path, endings: Sequence[str] = ENDINGS) -> Iterator[epath.Path]:
  """The images in a folder and the folders in it, at any depth; sorted within each folder."""
  for parent, folders, names in folder.walk():
    folders.sort()
    yield from (parent / name for name in sorted(names) if is_image(name, endings))


def readable(encoded: bytes) -> bytes:
  """The file as it is, or as a BMP without an alpha channel if TensorFlow cannot read it.

  TensorFlow takes the palette indices of a BMP for grey values, refuses a WebP with an alpha
  channel, and its op for animated WebP corrupts memory.

  Raises:
    OSError, ValueError: Pillow cannot read such a file.
  """
  odd_bmp = encoded[:2] == b'BM' and encoded[28:30] not in (b'\x18\x00', b'\x20\x00')  # bits
  odd_webp = encoded[:4] == b'RIFF' and encoded[8:12] == b'WEBP' and encoded[12:16] != b'VP8 '
  if not odd_bmp and not odd_webp:
    return encoded
  plain = io.BytesIO()
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      image.convert('RGB').save(plain, 'BMP')
  except (SyntaxError, Image.DecompressionBombError) as fault:
    raise ValueError(str(fault)) from fault
  return plain.getvalue()
