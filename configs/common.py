"""Helpers of the config files: parsing the argument, image sizes, the model of a weights file."""

import pathlib
import re

from ml_collections import ConfigDict

RELEASED_SIZE = 224  # pixels that the released files are trained at
# Words in the names of their folders; `mixer.input.folders` has the same, as a test checks.
_HELD_OUT = {
  'val': 'val|valid|validate|validation|dev|devel|development|eval|evaluation',
  'test': 'test|testing',
}


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


def is_folder(data: str) -> bool:
  """Whether `data=` is a path, or a folder that is there."""
  return '/' in data or pathlib.Path(data).is_dir()


def held_out(path: str) -> list[str]:
  """Those of 'val' and 'test' that a folder has; 'val' of one that is not divided, or not there."""
  root = pathlib.Path(path).expanduser()
  inside = [part for part in root.glob('*') if part.is_dir()] if root.is_dir() else []
  divided = [part.name for part in inside if any(map(pathlib.Path.is_dir, part.glob('[!.]*')))]
  return [
    split
    for split, words in _HELD_OUT.items()
    if any(re.fullmatch(f'({words})([-_ ]?(set|data|images|split))?', n, re.I) for n in divided)
  ] or ['val']


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


def mixer(variant: str, size: tuple[int, int]) -> ConfigDict:
  """`config.model` of a Mixer such as 'B/16', trained at 224 pixels or grown to `size`."""
  return ConfigDict({'name': f'Mixer-{variant}', 'tiles': tiles(size), 'dtype': 'float32'})
