"""Image files in a folder of class folders, read by their paths."""

from collections.abc import Sequence
import hashlib
import os
import sys

from absl import logging
import numpy as np

from mixer import runtime
from mixer.errors import InputError, MissingData
from mixer.input import image_files

tf = runtime.tensorflow()

# split -> possible names of its folder
SPLITS = {
  'train': ('train',),
  'val': ('val', 'validation'),
  'validation': ('validation', 'val'),
  'test': ('test',),
}
_MAX_NAMED = 5  # names in a warning
_SAMPLE = 100  # files whose sizes are taken for those of all


class ImageFolder:
  """The files PATH/SPLIT/CLASS/*, or a part of PATH/CLASS/*; see `reading.Examples`.

  The classes are the folders of the training split in sorted order, whichever split is read.
  """

  dtypes = (tf.string, tf.int32)
  multi_label = False

  def __init__(self, *, path: str, split: str, val_fraction: float = 0.1):
    """Lists the files.

    Args:
      path: the folder.
      split: 'train', 'val' (or 'validation') or 'test'. Where PATH holds the class folders
        themselves, 'train' and 'val' are fixed parts of each class and 'test' does not exist.
      val_fraction: the part of each class that is 'val' if PATH/train does not exist; 0 puts
        everything into 'train'.

    Raises:
      MissingData: PATH does not exist.
      InputError: a folder in it is missing, or a class has no training images or is unknown in
        training.
    """
    self.class_names, paths, labels = find(path, split, val_fraction)
    self._paths, self._labels = paths, np.array(labels, np.int32)
    self.num_examples, self.num_classes = len(paths), len(self.class_names)
    self.index_bytes = sum(map(sys.getsizeof, paths)) + 12 * len(paths)  # a reference, a label
    sizes = [_size(path) for path in paths[:: len(paths) // _SAMPLE + 1]]
    self.record_bytes = sum(sizes) // len(sizes)

  def fetch(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    files = [image_files.readable(_read(self._paths[i])) for i in indices]
    return np.array(files, dtype=object), self._labels[indices]

  def parse(self, encoded, label) -> tuple[tf.Tensor, tf.Tensor]:
    return encoded, label

  def describe(self, index: int) -> str:
    return self._paths[index]


def find(path: str, split: str, val_fraction: float) -> tuple[tuple, list[str], list[int]]:
  """(class names, the path of every image, its class number) of a split, class by class.

  Raises InputError as `ImageFolder` does; warns of classes without images and of other files.
  """
  path = os.path.expanduser(path)
  if split not in SPLITS:
    raise InputError(f'unknown split {split!r} of a folder; use one of {list(SPLITS)}.')
  if not 0 <= val_fraction < 1:
    raise InputError(f'val_fraction={val_fraction}; it is at least 0 and below 1.')
  if not _is_folder(path):
    raise MissingData(f'no folder {path}.')
  own = _split_folders(path)
  if 'train' in own:
    return _split_folder(path, split, own)
  if own:
    raise InputError(
      f'{path} holds {own} with class folders in them, but no "train" with class '
      'folders, from which the classes are taken.'
    )
  return _part(path, split, val_fraction)


def splits(path: str) -> list[str]:
  """Those of 'train', 'val' and 'test' for which PATH has a folder with class folders."""
  own = _split_folders(os.path.expanduser(path))
  return [split for split in ('train', 'val', 'test') if set(SPLITS[split]) & set(own)]


def _split_folders(path: str) -> list[str]:
  return [name for name in sorted(SPLITS) if _folders(os.path.join(path, name))]


def _split_folder(path: str, split: str, own: Sequence[str]):
  classes = _classes(os.path.join(path, 'train'))
  folder = next((name for name in SPLITS[split] if name in own), None)
  if folder is None:
    raise InputError(
      f'{path} has no split {split!r} with class folders; it has {own}. To hold out a fraction of '
      f'the training images as "val", give {os.path.join(path, "train")} as the path.'
    )
  where = os.path.join(path, folder)
  unknown = sorted(set(_folders(where)) - set(classes))
  if unknown:
    raise InputError(
      f'{where} has classes that {os.path.join(path, "train")} does not have: {unknown}. '
      'Remove them, or add training images.'
    )
  files = _files(where, classes)
  _check(where, files, needed=folder == 'train')
  return _listed(where, files)


def _part(path: str, split: str, val_fraction: float):
  if split == 'test':
    raise InputError(
      f'{path} has no split {split!r}: it holds the class folders themselves, which are split into '
      '"train" and "val". For others, make PATH/train/CLASS, PATH/val/CLASS and PATH/test/CLASS.'
    )
  classes = _classes(path)
  if set(classes) <= set(SPLITS):
    raise InputError(
      f'{path} holds {classes} without class folders in them; images belong in '
      'PATH/train/CLASS/image.jpg.'
    )
  files = _files(path, classes)
  _check(path, files, needed=True)
  files = {name: _half(name, of, split, val_fraction) for name, of in files.items()}
  if not any(files.values()):
    raise InputError(
      f'{path}, split {split!r}, is empty with val_fraction={val_fraction}. Give another fraction.'
    )
  _check(f'{path}, split {split!r},', files, needed=False)
  return _listed(path, files)


def _half(class_name: str, files: list[str], split: str, val_fraction: float) -> list[str]:
  """The files of a class that belong to a split: 'val' has those of the lowest digests.

  So an image stays where it is whatever the seed, the machine and the folder's place, and adding
  images moves hardly any. With two images or more, both splits have one, unless the fraction is 0.
  """
  count = int(len(files) * val_fraction + 0.5)
  count = min(max(count, 1), len(files) - 1) if val_fraction else 0

  def digest(file):
    return hashlib.sha256(os.fsencode(f'{class_name}/{file}')).digest()

  held_out = set(sorted(files, key=digest)[:count])
  return [file for file in files if (file in held_out) == (split != 'train')]


def _classes(folder: str) -> list[str]:
  classes = _folders(folder)
  if len(classes) < 2:
    raise InputError(
      f'{folder} must hold one folder per class, at least two; it holds {classes}. '
      'PATH is the folder of PATH/CLASS/image.jpg or of PATH/train/CLASS/image.jpg.'
    )
  return classes


def _files(folder: str, classes: Sequence[str]) -> dict[str, list[str]]:
  """{class: its image files, sorted}; warns of other files."""
  files, others = {}, [name for name in _names(folder) if name not in set(classes)]
  for name in classes:
    path = os.path.join(folder, name)
    entries = _names(path) if _is_folder(path) else []  # "val" and "test" need not have all classes
    files[name] = [file for file in entries if image_files.is_image(file)]
    others += [os.path.join(name, file) for file in entries if not image_files.is_image(file)]
  if others:
    listed = ', '.join(others[:_MAX_NAMED]) + (', ...' if len(others) > _MAX_NAMED else '')
    logging.warning(
      '%s: %d entries are not read, since they are not CLASS/*{%s}: %s',
      folder, len(others), ','.join(image_files.ENDINGS), listed,
    )  # fmt: skip
  return files


def _check(where: str, files: dict[str, list[str]], *, needed: bool) -> None:
  empty = [name for name, of in files.items() if not of]
  if empty and (needed or len(empty) == len(files)):
    raise InputError(
      f'{where} has class folders without images ({", ".join(image_files.ENDINGS)}): {empty}. '
      'Remove them, or add images.'
    )
  if empty:
    logging.warning('%s has no images of the classes %s.', where, empty)


def _listed(folder: str, files: dict[str, list[str]]):
  paths = [os.path.join(folder, name, file) for name, of in files.items() for file in of]
  labels = [number for number, of in enumerate(files.values()) for _ in of]
  return tuple(files), paths, labels


def _folders(path: str) -> list[str]:
  """Names of the folders in `path` that are not hidden; none if `path` does not exist."""
  if not _is_folder(path):
    return []
  visible = [name for name in _names(path) if not name.startswith('.')]
  return [name for name in visible if _is_folder(os.path.join(path, name))]


# Paths with a scheme, such as gs://, are read by TensorFlow, which is slower on a local disk.


def _is_folder(path: str) -> bool:
  return tf.io.gfile.isdir(path) if '://' in path else os.path.isdir(path)


def _names(folder: str) -> list[str]:
  listed = tf.io.gfile.listdir(folder) if '://' in folder else os.listdir(folder)
  return sorted(name.rstrip('/') for name in listed)


def _size(path: str) -> int:
  if '://' in path:
    return tf.io.gfile.stat(path).length
  return os.path.getsize(path) if os.path.exists(path) else 0  # a dangling link


def _read(path: str) -> bytes:
  if '://' in path:
    return tf.io.gfile.GFile(path, 'rb').read()
  with open(path, 'rb') as file:
    return file.read()
