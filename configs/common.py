"""Helpers of the config files: parsing the argument, image sizes, the model of a weights file."""

from ml_collections import ConfigDict

RELEASED_SIZE = 224  # pixels that the released files are trained at


def parse(argument: str, defaults: dict[str, str], choices: dict) -> dict[str, str]:
  """The options of 'KEY=VALUE,...' over `defaults`; `choices` has the allowed values of some."""
  options = dict(defaults)
  for part in filter(None, argument.split(',')):
    key, equals, value = part.partition('=')
    if key not in options or not equals:
      raise ValueError(f'{part!r} is not KEY=VALUE with a key of {sorted(options)}.')
    if key in choices and value not in choices[key]:
      raise ValueError(f'{key}={value!r}; use one of {choices[key]}.')
    options[key] = value
  return options


def image_size(resolution: str) -> tuple[int, int]:
  """'224' or 'HEIGHTxWIDTH' -> (height, width)."""
  height, width = (resolution.split('x') * 2)[:2]
  return int(height), int(width)


def resize(size: tuple[int, int]) -> tuple[int, int]:
  """The size before the center crop of `size`: 256 for 224, 512 for 448."""
  return tuple(side * 8 // 7 for side in size)


def tiles(size: tuple[int, int]) -> tuple[int, int]:
  """`config.model.tiles` of released weights grown to `size`: (2, 2) for 448."""
  return tuple(max(side // RELEASED_SIZE, 1) for side in size)


def mixer(variant: str, size: tuple[int, int]) -> ConfigDict:
  """`config.model` of a Mixer such as 'B/16', trained at 224 pixels or grown to `size`."""
  return ConfigDict({'name': f'Mixer-{variant}', 'tiles': tiles(size), 'dtype': 'float32'})
