"""Names of parameters: every layout of a Mixer that is in use, and the released one.

Everything here is a pure function of flat dicts {name: array}; no file is read or written.
"""

from collections.abc import Callable, Mapping
import math
import re

import numpy as np

from mixer.errors import InputError

Flat = Mapping[str, np.ndarray]

# layout -> (what its blocks' names look like, an example for messages)
LAYOUTS = {
  'released': (re.compile(r'MixerBlock_\d+/'), 'MixerBlock_0/token_mixing/Dense_0/kernel'),
  'scanned': (re.compile(r'MixerBlocks/'), 'MixerBlocks/token_mixing/Dense_0/kernel'),
  'older': (
    re.compile(r'Mixer/encoderblock_\d+/'),
    'Mixer/encoderblock_0/token_mixing_phase_0/kernel1',
  ),
  'timm': (re.compile(r'blocks\.\d+\.mlp_tokens\.'), 'blocks.0.mlp_tokens.fc1.weight'),
  # A BiT of train.py's own; it stays as it is.
  'bit': (re.compile(r'block\d+/unit\d+/'), 'block1/unit01/conv1/kernel'),
}
# Flax code wraps the parameters so, beside the optimiser's state and the like.
_WRAPPERS = ('opt/target/params/', 'opt/target/', 'params/')
_BOOKKEEPING = re.compile(r'(opt|opt_state|optimizer|step|extra|chrono|rng)(/.*)?')

_CHANGED = re.compile(r'MixerBlock_\d+/(\w+_token_mixing)/')  # `mixer.models.variants`

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


def to_released(flat: Flat) -> tuple[dict[str, np.ndarray], str, list[str]]:
  """Any known layout -> (the released layout, the layout it was, the names that were dropped).

  Dropped is the optimiser's state beside parameters that lie under 'params/' or 'opt/target/';
  any other name that has no place in a Mixer stays, for the check against a model to report.

  Raises:
    InputError: none of the layouts or several, or two arrays for one parameter.
  """
  bare, wrapper, dropped = _unwrap(flat)
  layout = recognise(bare)
  converted: dict[str, np.ndarray] = {}
  for name, array in _CONVERTERS[layout](bare):
    if name in converted:
      raise InputError(f'two arrays for {name}: the names mix layouts, {_first(bare)}.')
    converted[name] = array
  return converted, layout + (f" under '{wrapper}'" if wrapper else ''), dropped


def recognise(flat: Flat) -> str:
  """The key of LAYOUTS whose block names are there.

  Raises:
    InputError: those of none are, or of several.
  """
  found = [k for k, (blocks, _) in LAYOUTS.items() if any(blocks.match(name) for name in flat)]
  if len(found) == 1:
    return found[0]
  known = '\n'.join(f'  {layout:<9} {example}' for layout, (_, example) in LAYOUTS.items())
  what = f'names of the layouts {found} mixed' if found else 'in no known layout of a Mixer'
  raise InputError(
    f'the {len(flat)} parameters are {what}: {_first(flat)}. Known are\n{known}\n'
    "each also under 'params/' or 'opt/target/'. Rename the parameters to one of them."
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


def dimensions(flat: Flat) -> dict:
  """What the shapes of the released layout say of the model.

  Keys: num_blocks, hidden_dim, tokens_mlp_dim, channels_mlp_dim, patch_size (height, width),
  num_classes (None without a head), tokens, channels, and image_size: (height, width) of a square
  grid of patches, or None where the tokens make no square.

  Raises:
    InputError: a parameter that tells one of them is missing or has another rank, or token mixing
      is not the paper's own.
  """
  changed = sorted({m[1] for name in flat if (m := _CHANGED.match(name))})
  if changed:
    raise InputError(
      f'token mixing is changed as in appendix A of the paper ({", ".join(changed)}), which the '
      'shapes alone do not tell: use the run with its config, or the .npz with its .json.'
    )
  wanted = {
    'stem/kernel': 4,
    'MixerBlock_0/token_mixing/Dense_0/kernel': 2,
    'MixerBlock_0/channel_mixing/Dense_0/kernel': 2,
  } | ({'head/kernel': 2} if 'head/kernel' in flat else {})
  faults = [
    f'{name} is {"of shape " + str(flat[name].shape) if name in flat else "missing"}'
    for name, rank in wanted.items()
    if name not in flat or flat[name].ndim != rank
  ]
  if faults:
    raise InputError(f'the shapes are not those of a Mixer: {"; ".join(faults)}.')
  stem, tokens, channels, *head = (flat[name].shape for name in wanted)
  blocks = {m[1] for name in flat if (m := re.match(r'MixerBlock_(\d+)/', name))}
  side = math.isqrt(tokens[0])
  square = side * side == tokens[0]
  return {
    'num_blocks': len(blocks),
    'hidden_dim': stem[3],
    'tokens_mlp_dim': tokens[1],
    'channels_mlp_dim': channels[1],
    'patch_size': stem[:2],
    'num_classes': head[0][1] if head else None,
    'tokens': tokens[0],
    'channels': stem[2],
    'image_size': (side * stem[0], side * stem[1]) if square else None,
  }


def _unwrap(flat: Flat) -> tuple[dict[str, np.ndarray], str, list[str]]:
  """(without the wrapper, the wrapper or '', the names of the optimiser's state)."""
  for wrapper in _WRAPPERS:
    if any(name.startswith(wrapper) for name in flat):
      inside = {n.removeprefix(wrapper): flat[n] for n in flat if n.startswith(wrapper)}
      beside = [name for name in flat if not name.startswith(wrapper)]
      dropped = [name for name in beside if _BOOKKEEPING.fullmatch(name)]
      return inside | {n: flat[n] for n in beside if n not in dropped}, wrapper, dropped
  return dict(flat), '', []


def _from_released(flat: Flat):
  yield from flat.items()


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


_CONVERTERS: dict[str, Callable] = {
  'released': _from_released,
  'scanned': _from_scanned,
  'older': _from_older,
  'timm': _from_timm,
  'bit': _from_released,
}


def _first(flat: Flat) -> str:
  names = list(flat)
  return ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
