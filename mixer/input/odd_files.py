"""Image files that TensorFlow 2.21 reads wrongly or not at all."""

import io

from PIL import Image


def for_tensorflow(encoded: bytes) -> bytes:
  """The file as it is, or one of the odd ones as a plain BMP, without an alpha channel.

  TensorFlow takes the palette's indices in a BMP for grey values, refuses a WebP with an alpha
  channel, and its op for animated WebP corrupts memory.

  Raises:
    OSError, ValueError: an odd file that Pillow cannot read.
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
