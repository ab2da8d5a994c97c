"""Single image files, decoded and cropped as in an evaluation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import fnmatch
import glob
import io
import itertools
import os
import sys

from etils import epath
import numpy as np
from PIL import Image

from mixer import runtime
from mixer.errors import InputError
from mixer.input import folders, image_facts, image_files, timm_images
from mixer.sizes import pair

Decode = Callable[[bytes], np.ndarray]


def find(paths: Iterable[str], *, warn: bool = True) -> Iterator[epath.Path]:
  """The images that `paths` stand for, in their order.

  Each is a file, a folder (all images in it, at any depth), a pattern with *, ?, [] and, for
  folders at any depth, ** (the images that match), or - (the lines of standard input, each a
  file). Images of a folder or pattern are sorted, and found while the result is iterated. Those
  that no installed package reads are named in a warning then, unless `warn` is false.

  Raises:
    InputError: at once: no path, one that does not exist, a folder or pattern without images.
      During the iteration: a folder in them cannot be read, or standard input is empty.
  """
  sources = [_source(path, warn) for path in paths]
  if not sources:
    raise InputError(
      'no image is given; name image files, folders of them, patterns, or - for a list on standard '
      'input.'
    )
  return (image for source in sources for image in source())


def _source(path: str, warn: bool) -> Callable[[], Iterable[epath.Path]]:
  """A function that returns the images of one of the `paths` of `find`, which has some."""
  if path == '-':
    return _listed
  path = epath.Path(path).expanduser()
  fixed = len(list(itertools.takewhile(lambda name: glob.escape(name) == name, path.parts)))
  if path.is_dir():
    folder, pattern, fault = path, ('**',), f'the folder {path} has no image'
  elif path.exists():
    return lambda: [path]
  elif fixed == len(path.parts):
    raise InputError(f'no file or folder {path}.')
  else:
    pattern, fault = path.parts[fixed:], f'no image matches {path}'
    folder = path.parents[len(pattern) - 1]

  def images(warn: bool = warn) -> Iterator[epath.Path]:
    left_out = []
    for place, is_image in folders.walk(str(folder), lambda inside: matches(inside, begins=True)):
      if is_image and matches(place):
        yield folder / place
      elif folders.seems_image(place) and matches(place):
        left_out.append(place)
    if warn:
      folders.warn_left_out(str(folder), left_out)

  def matches(place: str, *, begins: bool = False) -> bool:
    return _matches(place.split(os.sep), pattern, begins=begins)

  if next(images(), None) is None:
    raise InputError(f'{fault}: no {", ".join(image_files.ENDINGS)} file.')
  return images


def _matches(names: Sequence[str], pattern: Sequence[str], *, begins: bool = False) -> bool:
  """Whether a path matches a pattern, or `begins` one that may; ** is any number of folders."""
  if not names:
    return bool(pattern) if begins else all(part == '**' for part in pattern)
  if not pattern:
    return False
  first, *rest = pattern
  if first == '**':
    return _matches(names[1:], pattern, begins=begins) or _matches(names, rest, begins=begins)
  return fnmatch.fnmatchcase(names[0], first) and _matches(names[1:], rest, begins=begins)


def _listed() -> Iterator[epath.Path]:
  """The files that the lines of standard input name."""
  name = None
  for line in sys.stdin.buffer:
    if line.strip():
      name = os.fsdecode(line.rstrip(b'\r\n'))
      yield epath.Path(name)
  if name is None:
    raise InputError('standard input names no image; give the name of a file in each line.')


def decoder(
  preprocessing: Mapping,
  image_size: tuple[int, int],
  channels: int,
  on_change: Callable[[str], None] = lambda change: None,
) -> Decode:
  """A function from the content of an image file to uint8 (height, width, channels).

  The function raises InputError, with the reason alone, for a file that it cannot decode.

  Args:
    preprocessing: that of an `input.Input`: 'name', a key of DECODERS, and its arguments.
    image_size: (height, width) that the model takes.
    channels: of the model.
    on_change: called, from any thread, with what was done to an image that is not as the model
      takes it.

  Raises:
    InputError: the preprocessing is unknown.
  """
  name, values = preprocessing['name'], preprocessing['value_range']
  if name not in DECODERS or list(values) != [-1, 1]:
    raise InputError(
      f'unknown preprocessing {name!r} to {values}; known are {sorted(DECODERS)} to [-1, 1].'
    )
  return DECODERS[name](preprocessing, tuple(image_size), channels, on_change)


def remarks(paths: Sequence[epath.Path], preprocessing: Mapping) -> list[str]:
  """`image_facts.remarks` on a sample of the files; those that cannot be read are left out."""

  def files():
    for number in image_facts.sample(len(paths)):
      with contextlib.suppress(OSError):
        yield str(paths[number]), folders.read_file(str(paths[number]))

  exact = DECODERS[preprocessing['name']] is _exact
  return [] if exact else image_facts.remarks(files(), _converted(preprocessing))


def _converted(preprocessing: Mapping) -> dict:
  """The arguments of `conversion.Conversion` that are recorded."""
  names = ('exif_orientation', 'bits_per_channel')
  return {name: preprocessing[name] for name in names if name in preprocessing}


def _exact(_, size: tuple[int, int], channels: int, on_change: Callable[[str], None]) -> Decode:
  """For models of in-memory data: the pixels as they are, if size and channels are the model's."""

  def decode(content: bytes) -> np.ndarray:
    try:
      image = Image.open(io.BytesIO(content))
      if channels in (1, 3) and image.mode in _OTHER_COLOURS:
        on_change(f'made RGB of {image.mode}')
        image = image.convert('RGB')
      _check_channels(image, channels)  # only the header is read
      image = _in_channels(image, channels, on_change)
    except InputError:
      raise
    except Exception as fault:  # Pillow raises all kinds of errors for damaged files
      raise InputError(image_facts.fault_text(fault)) from fault
    if (image.height, image.width) != size:
      on_change(f'resized to {size[0]} x {size[1]} pixels, without keeping its shape')
      image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(*size, channels)

  return decode


_OTHER_COLOURS = ('CMYK', 'YCbCr', 'LAB', 'HSV')
_BANDS = {
  '1': 1,
  'L': 1,
  'LA': 2,
  'P': 3,
  'RGB': 3,
  'RGBA': 4,
}  # modes of a byte a channel, or less
_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}


def _check_channels(image: Image.Image, channels: int) -> None:
  """Raises InputError if the image has other channels that do not make those of the model."""
  bands = _BANDS.get(image.mode)
  if bands != channels and (channels not in (1, 3) or bands is None):
    raise InputError(
      f'it has {image.height} x {image.width} pixels of {len(image.getbands())} channels '
      f'({image.mode}), and the model takes {channels} of 8 bits'
    )


def _in_channels(
  image: Image.Image, channels: int, on_change: Callable[[str], None]
) -> Image.Image:
  """The image in the model's channels: grey of colour, three equal channels of grey."""
  mode, wanted = image.mode, _MODES.get(channels)
  if _BANDS[mode] == channels and 'transparency' not in image.info:
    return image.convert(wanted)
  if mode in ('LA', 'RGBA') or 'transparency' in image.info:
    on_change('its transparency left out')
    image = image.convert('L' if mode in ('1', 'L', 'LA') else 'RGB')
  if channels == 1 and image.mode != 'L':
    on_change('made grey of its colours, since the model takes one channel')
  elif channels == 3 and image.mode in ('1', 'L'):
    on_change('made three equal channels of its grey, since the model takes colour')
  return image.convert(wanted)


def _cropped(
  preprocessing: Mapping, size: tuple[int, int], channels: int, on_change: Callable[[str], None]
) -> Decode:
  """The crop of that name in `mixer.input.crops`, as in an evaluation."""
  try:
    tf = runtime.tensorflow()
    from mixer.input import conversion, crops, reading  # loads TensorFlow
  except ImportError as fault:
    raise InputError(
      f'the preprocessing {preprocessing["name"]!r} needs a package that is not installed: '
      f'{fault}. Install requirements.txt.'
    ) from fault
  resize = preprocessing.get('resize')
  crop = crops.find(preprocessing['name'], size, resize)
  if channels not in (1, 3):
    raise InputError(
      f'the crop {preprocessing["name"]!r} makes colour images, of which 3 channels or a grey one '
      f'can be used, and the model takes {channels}.'
    )
  arguments = {'resize': pair(resize)} if crop.resizes else {}
  convert = conversion.Conversion(**_converted(preprocessing))

  def cropped(content):
    return crop.function(convert(content), size, **arguments)

  with tf.device('CPU'):  # several times faster as a graph, which threads would make several times
    in_graph = tf.function(cropped).get_concrete_function(tf.TensorSpec((), tf.string))

  def decode(content: bytes) -> np.ndarray:
    try:
      with tf.device('CPU'):
        encoded = tf.constant(content)
        try:
          image = in_graph(encoded)
        except reading.ERRORS:  # from a graph, the text has a traceback too
          image = cropped(encoded)
    except reading.ERRORS as error:
      raise InputError(reading.error_text(error)) from error
    if channels == 3:
      return image.numpy()
    on_change('made grey of its colours, if it has some, since the model takes one channel')
    return np.asarray(Image.fromarray(image.numpy()).convert('L'))[..., None]

  return decode


def _as_timm(preprocessing: Mapping, size: tuple[int, int], channels: int, *_) -> Decode:
  return timm_images.decoder(preprocessing, size, channels)


# The preprocessing of in-memory inputs is 'none', that of timm 'timm'; the others are named after
# their crop.
DECODERS = {
  'none': _exact,
  'timm': _as_timm,
  'direct': _cropped,
  'resize': _cropped,
  'resize_small': _cropped,
}
