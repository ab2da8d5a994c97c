"""Image files that a table lists with their labels, read by their paths."""

from collections.abc import Iterable, Sequence
import hashlib
import os

from absl import logging
import numpy as np

from mixer import labels, runtime
from mixer.errors import InputError
from mixer.input import tables
from mixer.input.sources import folder
from mixer.values import Share

tf = runtime.tensorflow()

_NAMED = 5  # classes in a message
Numbered = tuple[tables.Row, list[int]]  # a row with its class numbers


class ImageTable(folder.ImageFolder):
  """The images of a CSV, TSV or JSON-lines file; see `reading.Examples`.

  Like the images of a folder, they are sorted by class and path (with several labels by path), and
  a part is held out where the table has no splits, so that a table of a folder's images gives the
  same batches.
  """

  def __init__(
    self,
    *,
    path: str,
    split: str,
    val_fraction: Share = folder.VAL_FRACTION,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    split_column: str | None = None,
    multi_label: bool = False,
    label_separator: str | None = None,
    images_dir: str | None = None,
    class_names: str | Sequence[str] | None = None,
  ):
    """Reads the table, and checks that all of the split's files exist.

    Args:
      path: of the table.
      split: 'train', 'val' (or 'validation') or 'test', as the column has it. In a table without
        splits, 'train' and 'val' are fixed parts of each class. 'train[:90%]' and 'train[90%:]' are
        fixed parts of 'train'.
      val_fraction: as for `folder.ImageFolder`; of a table without splits.
      path_column, label_column, split_column, multi_label, label_separator: see `tables.read`.
      images_dir: what the paths are relative to; None for the folder of the table.
      class_names: the classes in order; or a file with one on each line, a list of `mixer.labels`,
        or another table, of which the training rows have them; None for those of the training rows.
        Where they are no numbers, a label that is one is the number of a class, from 0.

    Raises:
      MissingData: no such file.
      InputError: as `tables.read`; a file does not exist, a label is no class, or a split is empty.
    """
    columns = tables.Columns(path_column, label_column, split_column)
    how = {'multi_label': multi_label, 'label_separator': label_separator}
    rows = tables.read(path, columns, **how)
    if isinstance(class_names, str):
      class_names = _listed_classes(class_names, columns, how)
    self.class_names = tuple(class_names or tables.classes(path, rows, columns, multi_label))
    numbered = tables.numbered(path, rows, self.class_names)
    groups = ('',) if multi_label else self.class_names
    chosen = _part(path, numbered, groups, split, val_fraction)
    _warn_of_absent(path, split, chosen, self.class_names)
    self._paths = tables.find_images(path, [row for row, _ in chosen], images_dir)
    self.multi_label = multi_label
    if (
      multi_label
    ):  # the class numbers of a row as bytes, since all rows of a column have one shape
      each = [np.array(numbers, '<i4').tobytes() for _, numbers in chosen]
      self._labels, self.dtypes = np.array(each, object), (tf.string, tf.string)
    else:
      self._labels = np.array([number for _, (number,) in chosen], np.int32)
    self.num_examples, self.num_classes = len(chosen), len(self.class_names)
    self.index_bytes, self.record_bytes = folder.host_bytes(self._paths)
    self.fingerprint = _fingerprint(chosen)

  def class_counts(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
    if not self.multi_label:
      return super().class_counts(chosen)
    numbers = np.frombuffer(b''.join(self._labels[chosen]), '<i4')
    return np.bincount(numbers, minlength=self.num_classes)

  def parse(self, encoded, label) -> tuple[tf.Tensor, tf.Tensor]:
    if self.multi_label:
      numbers = tf.io.decode_raw(label, tf.int32)
      label = tf.reduce_max(tf.one_hot(numbers, self.num_classes, dtype=tf.uint8), axis=0)
    return encoded, label


def _listed_classes(source: str, columns: tables.Columns, how: dict) -> list[str]:
  """The classes of another table's training rows, or of a list with one on each line."""
  if tables.is_table(source):
    rows = tables.read(source, columns, **how)
    return list(tables.classes(source, rows, columns, how['multi_label']))
  return [synset or name for synset, name in labels.load(source, None)]


def _part(
  path: str, rows: Iterable[Numbered], classes: Sequence[str], split: str, val_fraction: float
) -> list[Numbered]:
  """The rows of a split, sorted by class and path, or by path if `classes` is ('',)."""
  base, within = folder.parse_split(split)
  rows = list(rows)
  own = [part for part in ('train', 'val', 'test') if any(row.split == part for row, _ in rows)]
  if own and val_fraction not in (folder.VAL_FRACTION, 0, 1):
    logging.warning(
      '%s has the splits %s, so val_fraction=%g has no effect.', path, own, val_fraction
    )
  if own and base not in own:
    raise InputError(
      f'{path} has no rows of the split {split!r}; it has {own}. To evaluate on one of these, give '
      'its split, as in --config.evals.NAME.input.split=test.'
    )
  if base == 'test' and not own and val_fraction < 1:
    raise InputError(
      f'{path} has no split {split!r}: it has no column {tables.SPLIT_COLUMN!r}, so its rows are '
      'divided into "train" and "val". Add the column, or give val_fraction=1 to evaluate all rows.'
    )
  groups = _by_class([row for row in rows if not own or row[0].split == base], classes)
  files = {name: sorted(of) for name, of in groups.items()}
  if not own:
    files = {name: folder.half(name, of, base, val_fraction) for name, of in files.items()}
  if within:
    files = folder.part_of_train(path, split, files, within)
  chosen = [groups[name][file] for name, of in files.items() for file in of]
  if not chosen:
    raise InputError(
      f'{path}, split {split!r}, is empty with val_fraction={val_fraction}. Give another fraction.'
    )
  return chosen


def _by_class(rows: Iterable[Numbered], classes: Sequence[str]) -> dict[str, dict[str, Numbered]]:
  """{class: {path: its row}}, where paths begin in the folder of the class if all are in it."""
  groups: dict[str, dict[str, Numbered]] = {name: {} for name in classes}
  for row, numbers in rows:
    groups[classes[numbers[0]] if len(classes) > 1 else ''][row.path] = (row, numbers)
  for name, of in groups.items():
    inside = f'{name}/'
    if all(path.startswith(inside) for path in of):
      groups[name] = {path.removeprefix(inside): row for path, row in of.items()}
  return groups


def _warn_of_absent(path: str, split: str, numbered: Iterable[Numbered], classes: Sequence[str]):
  absent = set(range(len(classes))) - {number for _, numbers in numbered for number in numbers}
  if absent:
    named = [classes[number] for number in sorted(absent)][:_NAMED]
    logging.warning(
      '%s, split %r: %d of %d classes have no image, such as %s.',
      path, split, len(absent), len(classes), named,
    )  # fmt: skip


def _fingerprint(numbered: Iterable[Numbered]) -> str:
  """A digest of the images' names and class numbers, wherever the table and the images are."""
  lines = '\0'.join(f'{row.path}:{numbers}' for row, numbers in numbered)
  return hashlib.sha256(os.fsencode(lines)).hexdigest()[:16]
