"""Image files in a folder of class folders, read by their paths."""

from collections.abc import Sequence
import hashlib
import os
import re
import sys

from absl import logging
import numpy as np

from mixer import runtime
from mixer.errors import InputError, MissingData
from mixer.input import folders, image_files
from mixer.values import Share

tf = runtime.tensorflow()

_SPLITS = ('train', 'val', 'validation', 'test')
_PART_OF_TRAIN = r'train\[(?:(\d{1,2})%:|:(\d{1,2})%)\]'
VAL_FRACTION = 0.1
_MODEL = 'the model'
_SAMPLE = 100  # files whose sizes are taken for those of all


class ImageFolder:
  """The files PATH/SPLIT/CLASS/**, or a part of PATH/CLASS/**; see `reading.Examples`.

  The classes are the folders of the training split in sorted order, whichever split is read.
  """

  dtypes = (tf.string, tf.int32)
  multi_label = False

  def __init__(
    self,
    *,
    path: str,
    split: str,
    val_fraction: Share = VAL_FRACTION,
    class_names: Sequence[str] | None = None,
  ):
    """Lists the files.

    Args:
      path: the folder.
      split: 'train', 'val' (or 'validation') or 'test', whose folder may have any name of
        `folders.split_of`. Where PATH holds the class folders themselves, 'train' and 'val' are
        fixed parts of each class and 'test' does not exist. 'train[:90%]' and 'train[90%:]' are
        fixed parts of each class of 'train', to choose settings on the second.
      val_fraction: the part of each class that is 'val' if PATH is not divided; 0 puts everything
        into 'train', and 1 everything into 'val' and 'test'.
      class_names: of a model that is evaluated; None for those of the training split.

    Raises:
      MissingData: PATH does not exist.
      InputError: a folder in it is missing, or a class has no training images or is unknown in
        training.
    """
    where, files = _find(path, split, val_fraction, class_names)
    self.class_names, paths, labels = _listed(where, files)
    self._paths, self._labels = paths, np.array(labels, np.int32)
    self.fingerprint = _fingerprint(files)
    self.num_examples, self.num_classes = len(paths), len(self.class_names)
    self.index_bytes, self.record_bytes = host_bytes(paths)

  def fetch(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    files = [folders.read_file(self._paths[i]) for i in indices]
    return np.array(files, dtype=object), self._labels[indices]

  def parse(self, encoded, label) -> tuple[tf.Tensor, tf.Tensor]:
    return encoded, label

  def class_counts(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
    return np.bincount(self._labels[chosen], minlength=self.num_classes)

  def describe(self, index: int) -> str:
    return self._paths[index]


def find(path: str, split: str, val_fraction: float) -> tuple[tuple, list[str], list[int]]:
  """(class names, the path of every image, its class number) of a split, class by class.

  Raises InputError as `ImageFolder` does; warns of classes without images and of other files.
  """
  return _listed(*_find(path, split, val_fraction))


def _find(
  path: str, split: str, val_fraction: float, class_names: Sequence[str] | None = None
) -> tuple[str, dict[str, list[str]]]:
  """(a folder of class folders, {class: its images in the split, as paths in the class folder})."""
  path = os.path.expanduser(path)
  base, within = parse_split(split)
  if not folders.is_folder(path):
    raise MissingData(f'no folder {path}.')
  own = folders.split_folders(path)
  if 'train' in own and val_fraction not in (VAL_FRACTION, 0, 1):
    logging.warning(
      '%s is divided into %s, so val_fraction=%g has no effect.',
      path, _folders_of(own), val_fraction,
    )  # fmt: skip
  if 'train' in own or (own and class_names is not None):
    where, files = _split_folder(path, base, split, own, class_names)
  elif own:
    raise InputError(
      f'{path} holds {_folders_of(own)} with class folders in them, but no "train" with class '
      'folders, from which the classes are taken.'
    )
  else:
    where, files = path, _part(path, base, val_fraction, class_names)
  if within:
    files = part_of_train(where, split, files, within)
  return where, files


def parse_split(split: str) -> tuple[str, re.Match | None]:
  """('train', 'val' or 'test', what `part_of_train` takes of the first); InputError if invalid."""
  within = re.fullmatch(_PART_OF_TRAIN, split)
  if split not in _SPLITS and not within:
    raise InputError(
      f'unknown split {split!r} of a folder; use one of {list(_SPLITS)}, or a part such as '
      '"train[:90%]" and "train[90%:]".'
    )
  return 'train' if within else folders.split_of(split), within


def splits(path: str) -> list[str]:
  """Those of 'train', 'val' and 'test' for which PATH has a folder with class folders."""
  own = folders.split_folders(os.path.expanduser(path))
  return [split for split in ('train', 'val', 'test') if split in own]


def _folders_of(own: dict[str, list[str]]) -> list[str]:
  return sorted(name for names in own.values() for name in names)


def _split_folder(path: str, base: str, split: str, own: dict, class_names):
  """(the folder of a split, {class: its images})."""
  if base not in own:
    train = os.path.join(path, own['train'][0]) if 'train' in own else None
    raise InputError(
      f'{path} has no split {split!r} with class folders; it has {_folders_of(own)}. To evaluate '
      'on one of these, give its split, as in --config.evals.NAME.input.split=test.'
      + (
        f' To hold out a fraction of the training images as "val", give {train} as the path, as in '
        f'--config.train_input.path={train}.'
        if train
        else ''
      )
    )
  folder, *ignored = sorted(own[base], key=lambda name: name != split)
  folders.warn_left_out(path, [name for name in _all(path) if name not in _folders_of(own)])
  if ignored:
    logging.warning('%s: the split %r is %s, and not %s.', path, split, folder, ignored)
  where = os.path.join(path, folder)
  if class_names is None:
    train = os.path.join(path, own['train'][0])
    classes, origin = _classes(train), train
  else:
    classes, origin = class_names, _MODEL
  _check_known(where, classes, origin)
  files = _files(where, classes)
  _check(where, files, needed=base == 'train' and class_names is None)
  return where, files


def _check_known(where: str, classes: Sequence[str], origin: str) -> None:
  unknown = sorted(set(folders.class_folders(where)) - set(classes))
  if unknown:
    advice = 'train a model on them' if origin == _MODEL else 'add training images'
    raise InputError(
      f'{where} has classes that {origin} does not have: {unknown}. Remove them, or {advice}.'
    )


def _part(path: str, base: str, val_fraction: float, class_names) -> dict[str, list[str]]:
  """{class: its images in a split} of the class folders in `path`."""
  if base == 'test' and val_fraction < 1:
    raise InputError(
      f'{path} has no split {base!r}: it holds the class folders themselves, which are split into '
      '"train" and "val". For others, make PATH/train/CLASS, PATH/val/CLASS and PATH/test/CLASS.'
    )
  if class_names is not None:
    _check_known(path, class_names, _MODEL)
  classes = _classes(path) if class_names is None else class_names
  folders.check_classes(path, classes)
  files = _files(path, classes)
  _check(path, files, needed=class_names is None)
  files = {name: half(name, of, base, val_fraction) for name, of in files.items()}
  if not any(files.values()):
    raise InputError(
      f'{path}, split {base!r}, is empty with val_fraction={val_fraction}. Give another fraction.'
    )
  _check(f'{path}, split {base!r},', files, needed=False)
  return files


def part_of_train(where: str, split: str, files: dict, within: re.Match) -> dict[str, list[str]]:
  """The part of each class that a split such as 'train[:90%]' has."""
  begin, end = within.groups()
  part, fraction = 'train' if end else 'val', (100 - int(begin or end)) / 100
  files = {name: half(name, of, part, fraction) for name, of in files.items()}
  if not any(files.values()):
    raise InputError(f'{where}, split {split!r}, is empty. Each class needs two training images.')
  return files


def half(class_name: str, files: list[str], split: str, val_fraction: float) -> list[str]:
  """The files of a class that belong to a split: 'val' has those of the lowest digests.

  So an image stays where it is whatever the seed, the machine and the folder's place, and adding
  images moves hardly any. With two images or more, both splits have one, unless the fraction is 0.
  """
  count = int(len(files) * val_fraction + 0.5)
  if 0 < val_fraction < 1:
    count = min(max(count, 1), len(files) - 1)

  def digest(file):
    return hashlib.sha256(os.fsencode(f'{class_name}/{file}')).digest()

  held_out = set(sorted(files, key=digest)[:count])
  return [file for file in files if (file in held_out) == (split != 'train')]


def _classes(folder: str) -> list[str]:
  classes = folders.class_folders(folder)
  if len(classes) < 2:
    inner = [os.path.join(folder, name) for name in classes]
    deeper = [path for path in inner if len(folders.class_folders(path)) > 1]
    raise InputError(
      f'{folder} must hold one folder per class, at least two; it holds {classes}. '
      'PATH is the folder of PATH/CLASS/image.jpg or of PATH/train/CLASS/image.jpg'
      + (f': is it {deeper[0]}?' if deeper else '.')
      + ' Where a CSV or JSON-lines file has the labels, give that file, as source="table".'
    )
  return classes


def _all(path: str) -> list[str]:
  return sorted(name for kind in folders.entries(path) for name in kind)


def _files(folder: str, classes: Sequence[str]) -> dict[str, list[str]]:
  """{class: its image files, sorted}; warns of other files."""
  files, others = {}, [name for name in _all(folder) if name not in set(classes)]
  present = set(folders.class_folders(folder))  # "val" and "test" need not have all classes
  for name in classes:
    of, rest = folders.images(os.path.join(folder, name)) if name in present else ([], [])
    files[name] = of
    others += [os.path.join(name, file) for file in rest]
  folders.warn_left_out(folder, others)
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


def _fingerprint(files: dict[str, list[str]]) -> str:
  """A digest of the images' names, whatever the folder that holds them is called."""
  names = '\0'.join(f'{name}/{file}' for name, of in files.items() for file in of)
  return hashlib.sha256(os.fsencode(names)).hexdigest()[:16]


def host_bytes(paths: Sequence[str]) -> tuple[int, int]:
  """(memory of the paths and their labels, size of a file on average)."""
  sizes = [_size(path) for path in paths[:: len(paths) // _SAMPLE + 1]]
  index_bytes = sum(map(sys.getsizeof, paths)) + 12 * len(paths)  # a reference, a label
  return index_bytes, sum(sizes) // len(sizes)


def _size(path: str) -> int:
  if '://' in path:
    return tf.io.gfile.stat(path).length
  return os.path.getsize(path) if os.path.exists(path) else 0  # a dangling link
