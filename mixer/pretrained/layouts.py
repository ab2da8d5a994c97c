"""Layouts, the names of a Mixer's parameters: from all known ones to the released, and to timm's.

All functions take and return flat dicts {name: array}.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import re
from typing import NamedTuple

import numpy as np

from mixer.errors import InputError
from mixer.pretrained import relatives

Flat = Mapping[str, np.ndarray]

# What Flax code keeps beside the parameters, which may be in 'opt/target/'.
_BOOKKEEPING = re.compile(
  r'(opt(?!/target/)|opt_state|optimizer\w*|step|extra|chrono|rng)(/.*)?', re.DOTALL
)
# Modules that PyTorch puts around others, at any depth.
_AROUND = re.compile(
  r'(?<![^./])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.'
)
_AVERAGE = re.compile(r'(?<![^\W_])ema(?![^\W_])', re.IGNORECASE)

_OLDER_TOP = {'embedding': 'stem', 'Mixer/encoder_norm': 'pre_head_layer_norm'}
_OLDER_LEAF = {
  'kernel1': 'Dense_0/kernel', 'bias1': 'Dense_0/bias',
  'kernel2': 'Dense_1/kernel', 'bias2': 'Dense_1/bias',
}  # fmt: skip
_OLDER_NORM = re.compile(r'Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/(\w+)')
_OLDER_MLP = re.compile(r'Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(\w+[12])')

# timm's module -> (the released one, whether it has kernels rather than scales)
_TIMM_TOP = {
  'stem.proj': ('stem', True), 'norm': ('pre_head_layer_norm', False), 'head': ('head', True),
}  # fmt: skip
_TIMM_BLOCK = {
  'norm1': ('LayerNorm_0', False), 'mlp_tokens.fc1': ('token_mixing/Dense_0', True),
  'mlp_tokens.fc2': ('token_mixing/Dense_1', True), 'norm2': ('LayerNorm_1', False),
  'mlp_channels.fc1': ('channel_mixing/Dense_0', True),
  'mlp_channels.fc2': ('channel_mixing/Dense_1', True),
}  # fmt: skip


class Released(NamedTuple):
  """Parameters in the released layout.

  Attributes:
    arrays: {released name: array}.
    layout: the one that they were in, and the prefix of their names.
    dropped: names that were left out.
    choice: a sentence on which of several sets of parameters these are; '' for the only one.
  """

  arrays: dict[str, np.ndarray]
  layout: str
  dropped: list[str]
  choice: str


def to_released(flat: Flat, *, nested: bool = False) -> Released:
  """Any known layout -> the released one.

  The names may have a prefix, such as 'params/' or 'module.'. Of several sets of parameters, the
  one that is a running average (EMA) is taken if there is exactly one. The others are dropped, and
  so is the optimizer's state beside parameters with a prefix. Any other name that has no place in a
  Mixer stays, for the check against a model to report.

  Args:
    flat: the arrays.
    nested: their names are those of a training checkpoint, whose parameters are in one of several
      dicts; the others are dropped.

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
  return Released(converted, layout + (f" under '{prefix}'" if prefix else ''), dropped, choice)


def _renamed(pairs: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
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
    raise InputError(f'the {len(flat)} parameters are in no known layout of a Mixer. {network}')
  known = '\n'.join(f'  {name:<9} {layout.example}' for name, layout in LAYOUTS.items())
  what = f'names of the layouts {found} mixed' if found else 'in no known layout of a Mixer'
  raise InputError(
    f'the {len(flat)} parameters are {what}: {_first(flat)}. Known are\n{known}\n'
    "each also under 'params/', 'opt/target/', 'module.', 'model.' and the like. Rename the "
    'parameters to one of them.'
  )


def to_timm(flat: Flat) -> dict[str, np.ndarray]:
  """The released layout -> the state dict of timm's MlpMixer, C-contiguous.

  Raises:
    InputError: a parameter that timm's model does not have.
  """
  back = {name: (timm, kernels) for timm, (name, kernels) in (_TIMM_TOP | _TIMM_BLOCK).items()}
  state, faults = {}, []
  for name, array in flat.items():
    parsed = re.fullmatch(r'(?:MixerBlock_(\d+)/)?(.+)/(kernel|scale|bias)', name)
    if parsed is None or parsed[2] not in back:
      faults.append(name)
      continue
    module, _ = back[parsed[2]]
    prefix = '' if parsed[1] is None else f'blocks.{parsed[1]}.'
    leaf = 'bias' if parsed[3] == 'bias' else 'weight'
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, tuple(range(array.ndim)))
    state[f'{prefix}{module}.{leaf}'] = np.ascontiguousarray(np.transpose(array, axes))
  if faults:
    raise InputError(f"timm's Mixer has no place for {', '.join(faults[:8])}.")
  return state


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


def _from_scanned(flat: Flat):
  for name, array in flat.items():
    if name.startswith('MixerBlocks/'):
      for i, row in enumerate(array):
        yield f'MixerBlock_{i}/{name.removeprefix("MixerBlocks/")}', row
    else:
      yield name, array


def _from_older(flat: Flat):
  norms: dict[str, set[int]] = {}  # block -> the numbers of its LayerNorms: token MLP's first
  for name in flat:
    if norm := _OLDER_NORM.fullmatch(name):
      norms.setdefault(norm[1], set()).add(int(norm[2]))
  for name, array in flat.items():
    module, _, leaf = name.rpartition('/')
    if norm := _OLDER_NORM.fullmatch(name):
      number = sorted(norms[norm[1]]).index(int(norm[2]))
      yield f'MixerBlock_{norm[1]}/LayerNorm_{number}/{norm[3]}', array.squeeze()
    elif (mlp := _OLDER_MLP.fullmatch(name)) and mlp[3] in _OLDER_LEAF:
      yield f'MixerBlock_{mlp[1]}/{mlp[2]}_mixing/{_OLDER_LEAF[mlp[3]]}', array.squeeze()
    else:
      yield f'{_OLDER_TOP.get(module, module)}/{leaf}'.lstrip('/'), array


def _from_timm(flat: Flat):
  for name, array in flat.items():
    parsed = re.fullmatch(r'(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)', name)
    table = _TIMM_TOP if parsed is None or parsed[1] is None else _TIMM_BLOCK
    if parsed is None or parsed[2] not in table:
      yield name, array
      continue
    module, kernels = table[parsed[2]]
    prefix = '' if parsed[1] is None else f'MixerBlock_{parsed[1]}/'
    leaf = parsed[3] if parsed[3] == 'bias' else 'kernel' if kernels else 'scale'
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, tuple(range(array.ndim)))
    yield f'{prefix}{module}/{leaf}', np.transpose(array, axes)


class Layout(NamedTuple):
  """A way to name the parameters of a network."""

  blocks: re.Pattern  # the names of those in its blocks
  example: str  # for messages
  to_released: Callable  # flat dict -> pairs of (released name, array)


LAYOUTS = {
  'released': Layout(
    re.compile(r'MixerBlock_\d+/'), 'MixerBlock_0/token_mixing/Dense_0/kernel', dict.items
  ),
  'scanned': Layout(
    re.compile(r'MixerBlocks/'), 'MixerBlocks/token_mixing/Dense_0/kernel', _from_scanned
  ),
  'older': Layout(
    re.compile(r'Mixer/encoderblock_\d+/'),
    'Mixer/encoderblock_0/token_mixing_phase_0/kernel1',
    _from_older,
  ),
  'timm': Layout(
    re.compile(r'blocks\.\d+\.mlp_tokens\.'), 'blocks.0.mlp_tokens.fc1.weight', _from_timm
  ),
  # Other models, whose names do not change.
  'bit': Layout(re.compile(r'block\d+/unit\d+/'), 'block1/unit01/conv1/kernel', dict.items),
  'vit': Layout(
    re.compile(r'Transformer/encoderblock_\d+/'),
    'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel',
    dict.items,
  ),
}


def _first(flat: Flat) -> str:
  names = list(flat)
  return ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
