"""What the layouts of all families share: their type, and the names and axes of PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import re
from typing import NamedTuple

import numpy as np

from mixer.errors import InputError

Flat = Mapping[str, np.ndarray]
Pairs = Iterable[tuple[str, np.ndarray]]


class Layout(NamedTuple):
  """A way to name the parameters of a network."""

  blocks: re.Pattern  # the names of those in its blocks
  example: str  # for messages
  to_released: Callable[[Flat], Pairs]


class Modules(NamedTuple):
  """The modules of a PyTorch model beside those of the released layout.

  Attributes:
    top, block: module of the whole model, or of a block -> (the released one, whether it has a
      kernel rather than a scale).
    theirs, released: patterns of a name in a block; the groups are the block's numbers and the
      rest of the name.
    to_released, to_theirs: the block's numbers -> the beginning of its names.
  """

  top: Mapping[str, tuple[str, bool]]
  block: Mapping[str, tuple[str, bool]]
  theirs: re.Pattern
  released: re.Pattern
  to_released: Callable[..., str]
  to_theirs: Callable[..., str]


def from_torch(flat: Flat, modules: Modules) -> Iterator[tuple[str, np.ndarray]]:
  """PyTorch's names and axes -> released ones; a name that is no module's stays as it is."""
  for name, array in flat.items():
    parsed = modules.theirs.fullmatch(name)
    *numbers, rest = parsed.groups() if parsed else (name,)
    module, _, leaf = rest.rpartition('.')
    table = modules.block if parsed else modules.top
    if module not in table or leaf not in ('weight', 'bias'):
      yield name, array
      continue
    released, has_kernel = table[module]
    prefix = modules.to_released(*map(int, numbers)) if parsed else ''
    leaf = leaf if leaf == 'bias' else 'kernel' if has_kernel else 'scale'
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, tuple(range(array.ndim)))
    yield f'{prefix}{released}/{leaf}', np.transpose(array, axes)


def to_torch(flat: Flat, modules: Modules) -> tuple[dict[str, np.ndarray], list[str]]:
  """(the arrays by PyTorch's names with its axes, C-contiguous; the names without a module)."""
  tables = [
    {released: (theirs, has_kernel) for theirs, (released, has_kernel) in table.items()}
    for table in (modules.top, modules.block)
  ]
  state, faults = {}, []
  for name, array in flat.items():
    parsed = modules.released.fullmatch(name)
    *numbers, rest = parsed.groups() if parsed else (name,)
    module, _, leaf = rest.rpartition('/')
    theirs, has_kernel = tables[bool(parsed)].get(module, ('', False))
    if not theirs or leaf not in ('bias', 'kernel' if has_kernel else 'scale'):
      faults.append(name)
      continue
    prefix = modules.to_theirs(*map(int, numbers)) if parsed else ''
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, tuple(range(array.ndim)))
    leaf = 'bias' if leaf == 'bias' else 'weight'
    state[f'{prefix}{theirs}.{leaf}'] = np.ascontiguousarray(np.transpose(array, axes))
  return state, faults


def no_place(model: str, names: list[str]) -> InputError:
  return InputError(f'{model} has no place for {", ".join(names[:8])}.')


def without_axes(array: np.ndarray) -> np.ndarray:
  """The vector in an array whose other axes have length 1; any other array as it is."""
  return array.reshape(-1) if array.ndim and array.size == array.shape[-1] else array
