"""Tables that list images with their labels: CSV, TSV or JSON-lines files."""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
import csv
import dataclasses
import io
import json
import os
import re

from absl import logging

from mixer import runtime
from mixer.errors import InputError, MissingData
from mixer.input import folders

ENDINGS = ('.csv', '.tsv', '.jsonl', '.ndjson')  # in lower or upper case
# Names of columns that are used if none is given, in lower or upper case.
PATH_COLUMNS = (
  'path', 'file', 'filename', 'file_name', 'filepath', 'file_path', 'image', 'image_path', 'img'
)  # fmt: skip
LABEL_COLUMNS = ('label', 'labels', 'class', 'classes', 'class_name', 'target', 'category')
SPLIT_COLUMN = 'split'
_SEPARATORS = (';', '|', ',')  # of several labels in one cell
_NAMED = 5  # rows, labels or files in a message
_FLAGS = {'1': True, 'true': True, '1.0': True, '0': False, 'false': False, '0.0': False}


@dataclasses.dataclass(frozen=True)
class Row:
  """An image of a table.

  Attributes:
    line: of the table, from 1.
    path: as the table has it, with '/' between folders.
    labels: the names of its classes.
    split: 'train', 'val' or 'test'; None if the table has no such column.
  """

  line: int
  path: str
  labels: tuple[str, ...]
  split: str | None


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of a table have what; None for the usual names, see `read`."""

  path: str | None = None
  label: str | Sequence[str] | None = None
  split: str | None = None


def is_table(path: str) -> bool:
  """Whether a path is a table, by its ending."""
  return str(path).lower().endswith(ENDINGS)


def read(
  path: str, columns: Columns, *, multi_label: bool, label_separator: str | None
) -> list[Row]:
  """The rows of a table in the order of its lines; each image once.

  Args:
    path: of the file, with one of ENDINGS.
    columns: their names. By default the path is in the one of PATH_COLUMNS, the labels are in the
      one of LABEL_COLUMNS, and the split is in 'split', if there is one. Several label columns hold
      0 or 1 each, and their names are the classes.
    multi_label: images have any number of labels; without it, exactly one.
    label_separator: between several labels in a cell; None for the one of ; | , that occurs.

  Raises:
    MissingData: no such file.
    InputError: names the file, line and column of what cannot be read.
  """
  names, lines = _cells(path)
  columns = _chosen(path, names, columns, multi_label)
  labels = _labels(path, lines, columns.label, multi_label, label_separator)
  rows = [
    Row(
      line,
      _image_path(_place(path, line, columns.path), cells.get(columns.path)),
      of,
      _split(_place(path, line, columns.split), cells.get(columns.split))
      if columns.split
      else None,
    )
    for (line, cells), of in zip(lines, labels, strict=True)
  ]
  return _each_once(path, rows, columns)


def splits(path: str, split_column: str | None = None) -> list[str]:
  """Those of 'train', 'val' and 'test' that a table has rows of; [] without a column of splits."""
  names, lines = _cells(path)
  columns = [name for name in names if name.lower() == SPLIT_COLUMN]
  column = split_column or (columns[0] if columns else None)
  found = {folders.split_of(str(cells.get(column)).strip()) for _, cells in lines}
  return [split for split in ('train', 'val', 'test') if split in found]


def classes(path: str, rows: Sequence[Row], columns: Columns, multi_label: bool) -> tuple[str, ...]:
  """The classes of the training rows: names sorted, numbers by size, columns in their order.

  Raises:
    InputError: no row is of the training split, or fewer than two classes, or no label at all.
  """
  if not isinstance(columns.label, str | None):
    return tuple(columns.label)
  training = [row for row in rows if row.split in (None, 'train')]
  if not training:
    raise InputError(
      f'{path} has no rows of the split "train", from which the classes are taken. Give '
      'class_names: a file with a class on each line, or the table of the training images.'
    )
  found = {label for row in training for label in row.labels}
  if len(found) < (1 if multi_label else 2):
    raise InputError(
      f'{path}: the training images have the labels {sorted(found)}; at least '
      f'{"one is" if multi_label else "two are"} needed. Is it the right label_column?'
    )
  are_numbers = all(re.fullmatch(r'[0-9]+', label) for label in found)
  names = sorted(found, key=lambda label: (int(label), label)) if are_numbers else sorted(found)
  _warn_alike(path, names)
  return tuple(names)


def numbered(
  path: str, rows: Iterable[Row], class_names: Sequence[str]
) -> Iterator[tuple[Row, list[int]]]:
  """(row, its class numbers); InputError names a label that is no class."""
  numbers = {name: number for number, name in enumerate(class_names)}
  if not any(re.fullmatch(r'[0-9]+', name) for name in class_names):
    numbers |= {str(number): number for number in range(len(class_names))}
  for row in rows:
    unknown = [label for label in row.labels if label not in numbers]
    if unknown:
      raise InputError(
        f'{path}, line {row.line}: the label {unknown[0]!r} is none of the {len(class_names)} '
        f'classes {_listed(class_names)}. Remove the line, or add training images of it.'
      )
    yield row, [numbers[label] for label in row.labels]


def _warn_alike(path: str, class_names: Sequence[str]) -> None:
  """Warns of classes that may be the same one, written in two ways."""
  alike: dict[str, list[str]] = {}
  for name in class_names:
    key = str(int(name)) if re.fullmatch(r'\d+', name) else ' '.join(name.casefold().split())
    alike.setdefault(key, []).append(name)
  pairs = [names for names in alike.values() if len(names) > 1]
  if pairs:
    logging.warning(
      '%s: %d classes differ only in upper case, spaces or zeros from others, such as %s.',
      path, len(pairs), pairs[0],
    )  # fmt: skip


def find_images(path: str, rows: Sequence[Row], images_dir: str | None) -> list[str]:
  """The path of each row's image.

  Args:
    path: of the table.
    rows: of it.
    images_dir: what their paths are relative to; None for the folder of the table.

  Raises:
    InputError: files do not exist; names their lines.
  """
  base = os.path.expanduser(images_dir or os.path.dirname(path) or '.')
  entries: dict[str, set[str]] = {}  # {folder: what is in it}
  found, missing = [], []
  for row in rows:
    place = os.path.join(base, row.path)
    folder, name = os.path.split(place)
    if folder not in entries:
      inside = folders.entries(folder) if folders.is_folder(folder) else ()
      entries[folder] = {entry for kind in inside for entry in kind}
    found.append(place)
    if name not in entries[folder]:
      missing.append(f'\n  line {row.line}: no file {place}')
  if missing:
    listed = ''.join(missing[:_NAMED]) + ('\n  ...' if len(missing) > _NAMED else '')
    raise InputError(
      f'{path}: {len(missing)} of {len(rows)} images are not there. Remove their lines, or give '
      f'the folder in which the paths begin as images_dir (now {base}):{listed}'
    )
  return found


def _cells(path: str) -> tuple[list[str], list[tuple[int, dict]]]:
  """(names of the columns, [(line, {column: value})])."""
  if not is_table(path):
    raise InputError(f'{path} is no table; its name must end with {", ".join(ENDINGS)}.')
  reader = _json_lines if path.lower().endswith(('.jsonl', '.ndjson')) else _separated
  names, lines = reader(path, _text(path))
  if not lines:
    raise InputError(f'{path} has no rows.')
  return names, lines


def _place(path: str, line: int, column: str | Sequence[str]) -> str:
  return f'{path}, line {line}, column {column!r}'


def _text(path: str) -> str:
  expanded = os.path.expanduser(path)
  try:
    if '://' in path:
      content = runtime.tensorflow().io.gfile.GFile(path, 'rb').read()
    else:
      with open(expanded, 'rb') as file:
        content = file.read()
  except FileNotFoundError as fault:
    raise MissingData(f'no file {expanded}.') from fault
  except OSError as fault:
    raise InputError(f'{expanded} cannot be read: {fault.strerror or fault}.') from fault
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as fault:
    line = content[: fault.start].count(b'\n') + 1
    raise InputError(
      f'{path}, line {line}: byte {content[fault.start]:#04x} is not UTF-8 text. Save the table as '
      'UTF-8, as "CSV UTF-8" in a spreadsheet, or with iconv.'
    ) from fault


def _separated(path: str, text: str) -> tuple[list[str], list[tuple[int, dict]]]:
  """(names of the columns, [(line, {column: cell})]) of a CSV or TSV."""
  first = (text.strip().splitlines() or [''])[0]
  delimiters = '\t' if path.lower().endswith('.tsv') else ',;\t'
  delimiter = max(delimiters, key=first.count)
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
  names: list[str] = []
  lines = []
  begin = 1
  try:
    for cells in reader:
      line, begin = begin, reader.line_num + 1
      if not any(cell.strip() for cell in cells):
        continue
      if not names:
        names = [cell.strip() for cell in cells]
        continue
      if len(cells) != len(names):
        raise InputError(
          f'{path}, line {line}: {len(cells)} cells, and {len(names)} columns {names}. Put quotes '
          f'around a cell with {delimiter!r} in it.'
        )
      lines.append((line, dict(zip(names, cells, strict=True))))
  except csv.Error as fault:
    raise InputError(
      f'{path}, line {begin}: {fault}. Is a quote missing at its end, or in a line after it?'
    ) from fault
  twice = sorted({name for name in names if names.count(name) > 1 and name})
  if twice:
    raise InputError(f'{path}, line 1: several columns are called {twice[0]!r}.')
  return names, lines


def _json_lines(path: str, text: str) -> tuple[list[str], list[tuple[int, dict]]]:
  """(keys, [(line, object)]) of a file with a JSON object on each line."""
  lines = []
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      value = json.loads(line)
    except json.JSONDecodeError as fault:
      raise InputError(
        f'{path}, line {number}: not JSON at character {fault.pos + 1}: {fault.msg}. Write one '
        'object on each line.'
      ) from fault
    if not isinstance(value, dict):
      raise InputError(
        f'{path}, line {number}: {line.strip()[:40]} is no object. Write one object on each line, '
        'as in {"path": "1.jpg", "label": "cat"}.'
      )
    lines.append((number, value))
  return list(dict.fromkeys(key for _, value in lines for key in value)), lines


def _chosen(path: str, names: Sequence[str], given: Columns, multi_label: bool) -> Columns:
  """The columns to read."""
  several = isinstance(given.label, tuple | list)
  wanted = {
    'path_column': [given.path] if given.path else [],
    'label_column': list(given.label) if several else [given.label] if given.label else [],
    'split_column': [given.split] if given.split else [],
  }
  for option, columns in wanted.items():
    absent = [column for column in columns if column not in names]
    if absent:
      raise InputError(
        f'{path} has no column {absent[0]!r}, which is the {option}; it has {list(names)}.'
      )
  if several and not multi_label:
    raise InputError(f'label_column={tuple(given.label)} needs multi_label=True.')
  split = [name for name in names if name.lower() == SPLIT_COLUMN]
  return Columns(
    given.path or _usual(path, names, 'path_column', PATH_COLUMNS),
    given.label or _usual(path, names, 'label_column', LABEL_COLUMNS),
    given.split or (split[0] if split else None),
  )


def _usual(path: str, names: Sequence[str], option: str, usual: Sequence[str]) -> str:
  found = [name for name in names if name.lower() in usual]
  if len(found) == 1:
    return found[0]
  if found:
    raise InputError(f'{path} has the columns {found}; give the one to use as {option}.')
  raise InputError(
    f'{path} has none of the columns {list(usual)}; it has {list(names)}. Give the one to use as '
    f'{option}. (The first line of a CSV or TSV has the names of the columns.)'
  )


def _image_path(place: str, cell) -> str:
  if not isinstance(cell, str) or not cell.strip():
    raise InputError(f'{place}: {cell!r} is no path of an image.')
  path = cell.strip()
  if '://' in path:
    return path
  return os.path.normpath(path.replace('\\', '/'))


def _split(place: str, cell) -> str:
  split = folders.split_of(cell.strip()) if isinstance(cell, str) else None
  if split is None:
    raise InputError(f'{place}: {cell!r} is no split; use train, val or test.')
  return split


def _labels(
  path: str, lines, column: str | Sequence[str], multi_label: bool, separator: str | None
) -> list[tuple[str, ...]]:
  """The labels of each row."""
  if not isinstance(column, str):
    return [_marked(path, line, cells, column) for line, cells in lines]
  places = [_place(path, line, column) for line, _ in lines]
  values = [cells.get(column) for _, cells in lines]
  if multi_label:
    found = _several(path, column, places, values, separator)
  else:
    found = [(_one(place, value),) for place, value in zip(places, values, strict=True)]
    _warn_of_lists(path, column, [label for (label,) in found])
  flat = [label for labels in found for label in labels]
  if all(re.fullmatch(r'\d+(\.0+)?', label) for label in flat):  # 3.0 is the class 3
    found = [tuple(label.split('.')[0] for label in labels) for labels in found]
  return [tuple(dict.fromkeys(labels)) for labels in found]


def _one(place: str, value) -> str:
  label = _name(place, value)
  if not label:
    raise InputError(
      f'{place}: no label. Give one, or remove the line. '
      'With multi_label=True images may have none.'
    )
  return label


def _name(place: str, value) -> str:
  """A label as text; '' for none."""
  if isinstance(value, list | tuple):
    raise InputError(f'{place}: {value!r} is a list of labels, which needs multi_label=True.')
  if value is None or (isinstance(value, float) and value != value):
    return ''
  if isinstance(value, Mapping) or (isinstance(value, float) and not value.is_integer()):
    raise InputError(f'{place}: {value!r} is no label; use a name or a whole number.')
  return str(value).strip()


def _several(path, column, places, values, separator) -> list[tuple[str, ...]]:
  """The labels of cells that have any number of them."""
  lists = [_as_list(value) for value in values]
  cells = [value for value, of in zip(values, lists, strict=True) if of is None]
  text = ''.join(str(cell) for cell in cells if isinstance(cell, str))
  if separator is None:
    used = [mark for mark in _SEPARATORS if mark in text]
    if len(used) > 1:
      raise InputError(
        f'{path}, column {column!r}: labels have {used} in them; give the one between two labels '
        'as label_separator.'
      )
    separator = used[0] if used else None
    if separator is None and ' ' in text:
      logging.warning(
        '%s, column %r: labels have spaces and none of %s, so each cell is one label; '
        'label_separator=" " divides it.', path, column, ' '.join(_SEPARATORS),
      )  # fmt: skip
  found = []
  for place, value, of in zip(places, values, lists, strict=True):
    if of is None:
      of = str(value).split(separator) if isinstance(value, str) and separator else [value]
    found.append(tuple(filter(None, (_name(place, label) for label in of))))
  return found


def _as_list(value) -> list | None:
  """The labels of a list in JSON, or of one that is written as in Python: "['a', 'b']"."""
  if isinstance(value, str) and re.fullmatch(r'\s*\[.*\]\s*', value, re.DOTALL):
    try:
      value = ast.literal_eval(value.strip())
    except (SyntaxError, ValueError):
      return None
  return list(value) if isinstance(value, list) else None


def _warn_of_lists(path: str, column: str, labels: Sequence[str]) -> None:
  suspect = [label for label in labels if re.search(r'[;|]|^\[.*\]$', label)]
  if suspect:
    logging.warning(
      '%s, column %r: %d labels such as %r look like several, and each is read as one class; '
      'multi_label=True divides them.', path, column, len(suspect), suspect[0],
    )  # fmt: skip


def _marked(path: str, line: int, cells: Mapping, columns: Sequence[str]) -> tuple[str, ...]:
  """The columns that hold 1."""
  found = []
  for column in columns:
    value = str(cells.get(column, '')).strip().lower()
    if value not in _FLAGS:
      raise InputError(f'{_place(path, line, column)}: {value!r} is neither 0 nor 1.')
    found += [column] if _FLAGS[value] else []
  return tuple(found)


def _each_once(path: str, rows: Sequence[Row], columns: Columns) -> list[Row]:
  """The first row of each image; InputError if another one of it has other labels."""
  first: dict[str, Row] = {}
  again = 0
  for row in rows:
    other = first.setdefault(row.path, row)
    if other is row:
      continue
    again += 1
    differ = [
      (columns.label, sorted(other.labels), sorted(row.labels)),
      (columns.split, other.split, row.split),
    ]
    for column, there, here in differ:
      if there != here:
        raise InputError(
          f'{_place(path, row.line, column)}: {row.path} has {here!r} here, and {there!r} on line '
          f'{other.line}. Keep one of the lines, or with multi_label=True put all labels on one.'
        )
  if again:
    logging.warning('%s: %d lines repeat other lines, and are read once.', path, again)
  return list(first.values())


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names[:_NAMED]) + (', ...' if len(names) > _NAMED else '')
