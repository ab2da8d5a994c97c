"""Layouts, the names of a model's parameters: from all known ones to the released, and back.

All functions take and return flat dicts {name: array}. The released layout is that of the files of
Mixer and ViT, and for BiT that of big_vision.
"""

from collections.abc import Iterable, Sequence
import re
from typing import NamedTuple

import numpy as np

from mixer.errors import InputError
from mixer.pretrained import bit_layouts, mixer_layouts, relatives, vit_layouts
from mixer.pretrained.renaming import Flat, Pairs

LAYOUTS = {**mixer_layouts.LAYOUTS, **bit_layouts.LAYOUTS, **vit_layouts.LAYOUTS}
# What is written beside the released layout: {layout: {family: how}}.
WRITTEN = {
  'timm': {
    'Mixer': mixer_layouts.to_timm, 'ViT': vit_layouts.to_timm, 'BiT': bit_layouts.to_timm,
  },
  'tf': {'BiT': bit_layouts.to_tf},
  'big_vision': {'ViT': vit_layouts.to_big_vision},
}  # fmt: skip

# What Flax code keeps beside the parameters, which may be in 'opt/target/'.
_BOOKKEEPING = re.compile(
  r'(opt(?!/target/)|opt_state|optimizer\w*|step|extra|chrono|rng)(/.*)?', re.DOTALL
)
# Modules that PyTorch puts around others, at any depth.
_AROUND = re.compile(
  r'(?<![^./])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.'
)
_AVERAGE = re.compile(r'(?<![^\W_])ema(?![^\W_])', re.IGNORECASE)


class Released(NamedTuple):
  """Parameters in the released layout.

  Attributes:
    arrays: {released name: array}.
    layout: the one that they were in, and the prefix of their names.
    dropped: names that were left out.
    choice: sentences on what the names leave open: which of several sets of parameters is taken,
      and how many attention heads there are; '' for nothing.
  """

  arrays: dict[str, np.ndarray]
  layout: str
  dropped: list[str]
  choice: str


def to_released(flat: Flat, *, nested: bool = False, num_heads: int | None = None) -> Released:
  """Any known layout -> the released one.

  The names may have a prefix, such as 'params/' or 'module.'. Of several sets of parameters, the
  one that is a running average (EMA) is taken if there is exactly one. The others are dropped, and
  so is the optimizer's state beside parameters with a prefix. Any other name that has no place in
  the model stays, for the check against a model to report.

  Args:
    flat: the arrays.
    nested: their names are those of a training checkpoint, whose parameters are in one of several
      dicts; the others are dropped.
    num_heads: of a ViT in timm's layout, where it is known.

  Raises:
    InputError: none of the layouts or several, several sets, or two arrays for one parameter.
  """
  flat = _renamed((_AROUND.sub('', name), array) for name, array in flat.items())
  prefix, choice, others = _choose(flat)
  bare, dropped = _without_prefix(flat, prefix, others, nested)
  layout = recognise(bare)
  converted = _renamed(LAYOUTS[layout].to_released(bare))
  if layout == 'timm' and (gated := relatives.gated(bare)):
    raise InputError(gated)
  if layout == 'vit_timm' and (relative := relatives.beside_vit(bare)):
    raise InputError(relative)
  if layout == 'vit_timm':
    converted, words = vit_layouts.with_heads(converted, num_heads)
    choice = '. '.join(filter(None, [choice, words]))
  return Released(converted, layout + (f" under '{prefix}'" if prefix else ''), dropped, choice)


def _renamed(pairs: Pairs) -> dict[str, np.ndarray]:
  found: dict[str, np.ndarray] = {}
  for name, array in pairs:
    if name in found:
      raise InputError(f'two arrays for {name}: the names mix layouts, {_first(found)}.')
    found[name] = array
  return found


def recognise(flat: Flat) -> str:
  """The key of LAYOUTS to which the names of the blocks belong.

  Raises:
    InputError: none or several.
  """
  found = [k for k, one in LAYOUTS.items() if any(one.blocks.match(name) for name in flat)]
  if len(found) == 1:
    return found[0]
  if not found and (network := relatives.recognise(flat)):
    raise InputError(f'the {len(flat)} parameters are in no known layout. {network}')
  known = '\n'.join(f'  {name:<14} {layout.example}' for name, layout in LAYOUTS.items())
  what = f'names of the layouts {found} mixed' if found else 'in no known layout'
  raise InputError(
    f'the {len(flat)} parameters are {what}: {_first(flat)}. Known are\n{known}\n'
    "each also under 'params/', 'opt/target/', 'module.', 'model.' and the like. Rename the "
    'parameters to one of them.'
  )


def to_timm(flat: Flat) -> dict[str, np.ndarray]:
  """The released layout of any family -> the state dict of timm's model, C-contiguous.

  Raises:
    InputError: a parameter that timm's model does not have.
  """
  return written('timm', flat)


def written(layout: str, flat: Flat) -> dict[str, np.ndarray]:
  """The released layout -> another one of the same family, a key of WRITTEN.

  Raises:
    InputError: the family has no such layout, or it has no place for a parameter.
  """
  family = family_of(flat)
  if family not in WRITTEN[layout]:
    raise InputError(f'the layout {layout!r} is for {" and ".join(WRITTEN[layout])} alone.')
  return WRITTEN[layout][family](flat)


def family_of(names: Iterable[str]) -> str:
  """'Mixer', 'ViT' or 'BiT', by the names of parameters in the released layout."""
  tops = {name.split('/')[0] for name in names}
  return 'ViT' if 'Transformer' in tops else 'BiT' if 'root_block' in tops else 'Mixer'


def _choose(flat: Flat) -> tuple[str, str, list[str]]:
  """(prefix of the parameters to take, a sentence on the choice, prefixes of the others)."""
  prefixes: dict[str, None] = {}
  for name in flat:
    for layout in LAYOUTS.values():
      found = re.search(rf'(?<![^./])(?:{layout.blocks.pattern})', name)
      if found and not _BOOKKEEPING.fullmatch(name[: found.start()]):
        prefixes[name[: found.start()]] = None
  if len(prefixes) <= 1:
    return next(iter(prefixes), ''), '', []
  averages = [prefix for prefix in prefixes if _AVERAGE.search(prefix)]
  if len(averages) != 1:
    raise InputError(
      f'there are several sets of parameters, under {list(prefixes)}. Write the one to use to a '
      'file of its own.'
    )
  others = [prefix for prefix in prefixes if prefix not in averages]
  choice = (
    f'the running average (EMA) of the parameters is taken, {averages[0]!r}, and not {others}. To '
    'use others, write them to a file of their own'
  )
  return averages[0], choice, others


def _without_prefix(
  flat: Flat, prefix: str, others: Sequence[str], nested: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
  """(the arrays to use, by names without the prefix, the names of the others)."""
  box = prefix[
    : prefix.rfind('/') + 1
  ]  # a prefix 'state_dict/module.' is in the dict 'state_dict/'
  inside = {name for name in flat if name.startswith(prefix)}

  def is_beside(name: str) -> bool:
    if nested and not name.startswith(box):
      return True
    is_state = bool(prefix and _BOOKKEEPING.fullmatch(name))
    return is_state or any(name.startswith(other) for other in others)

  dropped = [name for name in flat if name not in inside and is_beside(name)]
  left = set(flat) - set(dropped)
  pairs = (
    (name.removeprefix(prefix if name in inside else box), flat[name])
    for name in flat
    if name in left
  )
  return _renamed(pairs), dropped


def _first(flat: Flat) -> str:
  names = list(flat)
  return ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
