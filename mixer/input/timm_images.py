"""Single image files, resized and cropped as timm does in an evaluation: by Pillow."""

from collections.abc import Mapping
import io

import numpy as np
from PIL import Image

from mixer.errors import InputError
from mixer.input import image_files

_FILTERS = {
  'nearest': Image.Resampling.NEAREST,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'box': Image.Resampling.BOX,
  'hamming': Image.Resampling.HAMMING,
  'lanczos': Image.Resampling.LANCZOS,
}
_MODES = ('center', 'squash')


def decoder(preprocessing: Mapping, size: tuple[int, int], channels: int):
  """A function from the content of an image file to uint8 (height, width, channels).

  Args:
    preprocessing: 'resize' (height, width); 'interpolation', a key of Pillow's filters; and 'mode':
      'center' scales the image to cover 'resize', 'squash' does not keep its shape.
    size: (height, width) of the part from the centre.
    channels: 1 or 3.

  Raises:
    InputError: an unknown filter or mode, or other channels.
  """
  name, mode = preprocessing['interpolation'], preprocessing['mode']
  if name not in _FILTERS or mode not in _MODES or channels not in (1, 3):
    raise InputError(
      f'the preprocessing of timm by {name!r}, {mode!r} for {channels} channels is unknown; known '
      f'are {list(_FILTERS)}, {list(_MODES)} for 1 or 3.'
    )
  resize = tuple(preprocessing['resize'])

  def decode(content: bytes) -> np.ndarray:
    try:
      image = Image.open(io.BytesIO(image_files.readable(content)))
      image = image.convert('L' if channels == 1 else 'RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as fault:
      raise InputError(str(fault).replace('BytesIO object', 'content')) from fault
    old = image.height, image.width
    height, width = resize if mode == 'squash' else _covering(old, resize)
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    image = image.resize((width, height), _FILTERS[name])
    image = image.crop((left, top, left + size[1], top + size[0]))
    return np.asarray(image).reshape(*size, channels)

  return decode


def _covering(old: tuple[int, int], resize: tuple[int, int]) -> tuple[int, int]:
  """The size of an image of the shape of `old` that just covers `resize`.

  As torchvision rounds it for a square, and timm for a rectangle.
  """
  if resize[0] == resize[1]:
    side, short = resize[0], min(old)
    return tuple(side if length == short else int(side * length / short) for length in old)
  ratio = min(have / want for have, want in zip(old, resize))
  return tuple(round(length / ratio) for length in old)
