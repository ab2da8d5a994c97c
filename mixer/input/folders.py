"""Folders of class folders: which folders are splits and classes, and which files are images.

Training, evaluation, `prepare`, `check` and `predict` all read a folder by these functions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import mimetypes
import os
import re
import stat

from absl import logging

from mixer import runtime
from mixer.errors import InputError
from mixer.input import image_files

# split -> words for it; a folder may add "set", "data" or "images", in any case: Training_Set
_WORDS = {
  'train': 'train|training',
  'val': 'val|valid|validate|validation|dev|devel|development|eval|evaluation',
  'test': 'test|testing',
}
_SUFFIX = '([-_ ]?(set|data|images|split))?'
_LEFTOVERS = (  # of operating systems and file servers, besides hidden files
  r'__macosx|__pycache__|@eadir|@tmp|@recycle|@recently-snapshot|#recycle|#snapshot|\$recycle\.bin|'
  r'system volume information|lost\+found|network trash folder|temporary items|'
  r'thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r'
)
_NAMED = 5  # names in a warning


def is_leftover(name: str) -> bool:
  """Whether a file or folder of this name is hidden, or left there by a system or a program."""
  return name.startswith('.') or bool(re.fullmatch(_LEFTOVERS, name, re.IGNORECASE))


def seems_image(path: str) -> bool:
  """Whether the name of a file is that of an image, of any format."""
  kind = mimetypes.guess_type(path)[0] or ''
  return kind.startswith('image/') and not is_leftover(os.path.basename(path))


def split_of(name: str) -> str | None:
  """'train', 'val' or 'test' if a folder of this name may be that split."""
  fits = (s for s, words in _WORDS.items() if re.fullmatch(f'({words}){_SUFFIX}', name, re.I))
  return next(fits, None)


def split_folders(path: str) -> dict[str, list[str]]:
  """{split: the folders in `path` that are it}; empty where `path` holds the class folders.

  A folder is a split if it has the name of one and holds folders. If it holds images too, as other
  folders beside it do, it is a class of that name.
  """
  visible = class_folders(path)
  named = [name for name in visible if split_of(name) and class_folders(os.path.join(path, name))]
  if any(_has_images(path, name) for name in named) and any(
    _has_images(path, name) for name in visible if not split_of(name)
  ):
    return {}
  found: dict[str, list[str]] = {}
  for name in sorted(named, key=lambda name: (name != split_of(name), name)):
    found.setdefault(split_of(name), []).append(name)
  return found


def check_classes(path: str, classes: Sequence[str]) -> None:
  """Raises InputError where all classes have names of splits, which hold no class folders."""
  if all(map(split_of, classes)) and not any(
    class_folders(os.path.join(path, name)) for name in classes
  ):
    raise InputError(
      f'{path} holds {sorted(classes)} without class folders in them; images belong in '
      'PATH/train/CLASS/image.jpg.'
    )


def class_folders(path: str) -> list[str]:
  """The names of the folders in `path` without leftovers, sorted; [] if it does not exist."""
  if not is_folder(path):
    return []
  return [name for name in entries(path)[0] if not is_leftover(name)]


def images(folder: str) -> tuple[list[str], list[str]]:
  """(the images in `folder` and the folders in it at any depth, all else), as sorted paths in it.

  A folder with the name of an image is taken for one, which cannot be read.
  """
  found: list[str] = []
  others: list[str] = []
  for place, is_image in walk(folder):
    (found if is_image else others).append(place)
  return sorted(found), sorted(others)


def walk(
  folder: str,
  enters: Callable[[str], bool] = lambda place: True,
  inside: str = '',
  above: Sequence[str] = (),
) -> Iterator[tuple[str, bool]]:
  """(its path in `folder`, whether it is an image) of all files at any depth, ordered by names.

  The names of one folder at a time are read, when they are asked for. A folder for whose path
  `enters` is false, and one that is not entered since it is a leftover or a ring of links, counts
  as a file.
  """
  path = os.path.join(folder, inside) if inside else folder
  above = (*above, _real(path, ''))
  inner, files = entries(path)
  folders = set(inner)
  for name in sorted((*inner, *files)):
    place = os.path.join(inside, name)
    if image_files.is_image(name):
      yield place, True
    elif (
      name in folders and not is_leftover(name) and enters(place) and _real(path, name) not in above
    ):
      yield from walk(folder, enters, place, above)
    else:
      yield place, False


def warn_left_out(folder: str, others: Iterable[str]) -> None:
  """Names and counts the files and folders of `folder` that are not read."""
  others = list(others)
  missing = [name for name in others if image_files.lacks_decoder(name)]
  if missing:
    logging.warning(
      '%s: %d images are left out, since no decoder for %s is installed (HEIC: pip install '
      'pillow-heif; AVIF: pip install -U Pillow): %s',
      folder, len(missing), ', '.join(sorted({os.path.splitext(n)[1].lower() for n in missing})),
      _listed(missing),
    )  # fmt: skip
  rest = [name for name in others if not image_files.lacks_decoder(name)]
  if rest:
    logging.warning(
      '%s: %d files or folders are left out, since they are no images (%s) in class folders: %s',
      folder, len(rest), ', '.join(image_files.ENDINGS), _listed(rest),
    )  # fmt: skip


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names[:_NAMED]) + (', ...' if len(names) > _NAMED else '')


def _has_images(path: str, name: str) -> bool:
  return any(map(image_files.is_image, entries(os.path.join(path, name))[1]))


# Paths with a scheme, such as gs://, are read by TensorFlow, which is slower on a local disk.


def is_folder(path: str) -> bool:
  return runtime.tensorflow().io.gfile.isdir(path) if '://' in path else os.path.isdir(path)


def entries(path: str) -> tuple[list[str], list[str]]:
  """(the folders in a folder, all else), sorted; InputError if it cannot be read."""
  if '://' in path:
    gfile = runtime.tensorflow().io.gfile
    names = sorted(name.rstrip('/') for name in gfile.listdir(path))
    folders = [name for name in names if gfile.isdir(os.path.join(path, name))]
    return folders, sorted(set(names) - set(folders))
  try:
    with os.scandir(path) as found:
      kinds = {  # without a system call for each name; isdir is False for a ring of links
        entry.name: os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
        for entry in found
      }
  except OSError as fault:
    raise InputError(f'the folder {path} cannot be read: {fault.strerror}.') from fault
  names = sorted(kinds)
  return [name for name in names if kinds[name]], [name for name in names if not kinds[name]]


def read_file(path: str) -> bytes:
  """The content; OSError if it cannot be read, or is a pipe or device, which might never end."""
  if '://' in path:
    return runtime.tensorflow().io.gfile.GFile(path, 'rb').read()
  kind = os.stat(path).st_mode
  if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
    raise OSError('it is a pipe, a socket or a device, and no file')
  with open(path, 'rb') as file:
    return file.read()


def _real(path: str, name: str) -> str:
  """Where a folder is without links, so that one that leads back to itself is noticed."""
  path = os.path.join(path, name)
  return path if '://' in path else os.path.realpath(path)
