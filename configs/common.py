"""Helpers of the config files: parsing the argument, image sizes, `config.model`."""

import csv
import json
import pathlib
import re

from ml_collections import ConfigDict, config_dict

RELEASED_SIZE = 224  # pixels that the released files are trained at
# Words in the names of their folders; `mixer.input.folders` has the same, as a test checks.
_HELD_OUT = {
  'val': 'val|valid|validate|validation|dev|devel|development|eval|evaluation',
  'test': 'test|testing',
}
# Endings of tables of images and labels, as `mixer.input.tables` has them.
_TABLES = ('.csv', '.tsv', '.jsonl', '.ndjson')
# Arguments of the source 'table' besides its path and split, see docs/data.md.
_OF_TABLES = (
  'path_column', 'split_column', 'label_separator', 'images_dir', 'class_names'
)  # fmt: skip


def parse(argument: str, defaults: dict[str, str], choices: dict) -> dict[str, str]:
  """The options of 'KEY=VALUE,...' over `defaults`; `choices` has the allowed values of some.

  The path of `data` may have commas: a part that does not begin with a key continues it.
  """
  given: dict[str, str] = {}
  last = ''
  for part in filter(None, argument.split(',')):
    key, equals, value = part.partition('=')
    if key in defaults and equals:
      given[key], last = value, key
    elif last == 'data' and _continues(given['data'], part, defaults):
      given['data'] += f',{part}'
    else:
      raise ValueError(f'{part!r} is not KEY=VALUE with a key of {sorted(defaults)}.')
  for key, value in given.items():
    if key in choices and value not in choices[key]:
      raise ValueError(f'{key}={value!r}; use one of {choices[key]}.')
  return {**defaults, **given}


def _continues(path: str, part: str, keys) -> bool:
  """Whether `part` is the rest of a path, and not KEY=VALUE with a mistyped key."""
  word, equals, _ = part.partition('=')
  is_like_a_key = equals and len(word) > 1 and any(word[0] == key[0] for key in keys)
  return '/' in path + part and not is_like_a_key


def is_own(data: str) -> bool:
  """Whether `data=` is a table, a path, or a folder that is there, and no name of a data set."""
  return '/' in data or pathlib.Path(data).is_dir() or _is_table(data)


def images(path: str, train: ConfigDict | None = None) -> ConfigDict:
  """The source of a folder or table; that of an evaluation refers to the training input `train`."""
  own = ConfigDict({'path': path, 'val_fraction': 0.1})
  own.source = 'table' if _is_table(path) else 'folder'
  if _is_table(path):
    own.multi_label = False
    own.label_column = config_dict.placeholder(object)  # a name, or a tuple of names
    for key in _OF_TABLES:
      own[key] = config_dict.placeholder(str)
  for key in () if train is None else [key for key in own if key != 'source']:
    own[key] = train.get_ref(key)
  return own


def held_out(path: str) -> list[str]:
  """Those of 'val' and 'test' that a folder or table has; 'val' of one that has no splits."""
  root = pathlib.Path(path).expanduser()
  if _is_table(path):
    parts = _column_of_splits(root)
  else:
    inside = [part for part in root.glob('*') if part.is_dir()] if root.is_dir() else []
    parts = [part.name for part in inside if any(map(pathlib.Path.is_dir, part.glob('[!.]*')))]
  return [
    split
    for split, words in _HELD_OUT.items()
    if any(re.fullmatch(f'({words})([-_ ]?(set|data|images|split))?', n, re.I) for n in parts)
  ] or ['val']


def _is_table(path: str) -> bool:
  return path.lower().endswith(_TABLES)


def _column_of_splits(path: pathlib.Path) -> set[str]:
  """What the column 'split' of a table has; nothing if it cannot be read."""
  try:
    with path.open(encoding='utf-8-sig', newline='') as file:
      if path.suffix.lower() in ('.jsonl', '.ndjson'):
        rows = [json.loads(line) for line in file if line.strip()]
      else:
        header = file.readline()
        names = next(csv.reader([header], delimiter=max(',;\t', key=header.count)))
        names = [name.strip().lower() for name in names]
        rows = csv.DictReader(file, names, delimiter=max(',;\t', key=header.count))
      return {str(v).strip() for row in rows for key, v in row.items() if key.lower() == 'split'}
  except (OSError, ValueError, AttributeError, StopIteration, csv.Error):
    return set()


def image_size(resolution: str) -> tuple[int, int]:
  """'224' or 'HEIGHTxWIDTH' -> (height, width)."""
  sides = resolution.split('x')
  if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise ValueError(f'resolution={resolution!r}; write pixels, as in 224, or HEIGHTxWIDTH.')
  return int(sides[0]), int(sides[-1])


def resize(size: tuple[int, int]) -> tuple[int, int]:
  """The size before the center crop of `size`: 256 for 224, 512 for 448."""
  return tuple(side * 8 // 7 for side in size)


def tiles(size: tuple[int, int]) -> tuple[int, int]:
  """`config.model.tiles` of released weights grown to `size`: (2, 2) for 448."""
  return tuple(max(side // RELEASED_SIZE, 1) for side in size)


def model_name(model: str) -> str:
  """The full name: 'Mixer-B/16' of 'B/16', 'BiT-R50x1' of 'R50x1'; full names stay."""
  if '-' in model:
    return model
  return f'BiT-{model}' if model.startswith('R') else f'Mixer-{model}'


def model(name: str, size: tuple[int, int], **options) -> ConfigDict:
  """`config.model` of 'B/16' (a Mixer), 'ViT-B/16' or 'BiT-R50x1', for images of `size`.

  A Mixer is trained at 224 pixels or grown to `size`. `options` has those that BiT lacks too, and
  leaves them out for it.
  """
  section = ConfigDict({'name': model_name(name)})
  family = section.name.partition('-')[0]
  if family == 'Mixer':
    section.tiles = tiles(size)
  absent = ('stochastic_depth', 'rescale_drop_path', 'dropout', 'scan') if family == 'BiT' else ()
  section.update({key: value for key, value in options.items() if key not in absent})
  section.dtype = 'float32'
  return section
