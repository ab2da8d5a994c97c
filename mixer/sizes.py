"""Sizes of images, patches and grids: an int for a square, or (height, width)."""

from collections.abc import Sequence
from typing import Annotated

from mixer import values
from mixer.errors import InputError


def _is_size(value) -> bool:
  sides = [value] if isinstance(value, int) else value
  return len(sides) == 2 - isinstance(value, int) and all(
    values.accepts(values.Count, side) for side in sides
  )


Size = Annotated[
  int | Sequence[int], values.Where(_is_size, 'a positive int or a tuple (height, width)')
]


def pair(size: Size) -> tuple[int, int]:
  """(height, width); raises InputError for anything but one or two positive ints."""
  sides = (size, size) if isinstance(size, int) else size
  are_ints = isinstance(sides, Sequence) and all(isinstance(side, int) for side in sides)
  if not are_ints or len(sides) != 2 or min(sides) < 1:
    raise InputError(f'a size is a positive int or (height, width); got {size!r}.')
  return tuple(sides)


def parse(flag: str, sides: Sequence[str] | None) -> tuple[int, int] | None:
  """(height, width) of a list flag, SIDE or HEIGHT,WIDTH; None where the flag is not given."""
  if sides is None:
    return None
  if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) for side in sides):
    raise InputError(f'--{flag}={",".join(sides)}: give SIDE or HEIGHT,WIDTH in pixels, as in 224.')
  return int(sides[0]), int(sides[-1])
