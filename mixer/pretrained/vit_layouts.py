"""Layouts of a ViT: that of the files of vision_transformer is the one of this code."""

import math
import re

import numpy as np

from mixer.errors import InputError
from mixer.models import vit
from mixer.pretrained import renaming
from mixer.pretrained.renaming import Flat, Layout

POSITIONS = 'Transformer/posembed_input/pos_embedding'
_ATTENTION = 'MultiHeadDotProductAttention_1'
_PARTS = ('query', 'key', 'value')
_BIG_VISION = 'pos_embedding'  # its position table, which has no row for the class token
_HEADS = re.compile(rf'.*/{_ATTENTION}/(query|key|value|out)/(kernel|bias)')
# Numbers of the modules of a block, as newer Flax gives them -> those of this code.
_NUMBERS = {
  'LayerNorm_1': 'LayerNorm_2', 'MultiHeadDotProductAttention_0': _ATTENTION,
  'MlpBlock_0': 'MlpBlock_3',
}  # fmt: skip
_TOP = {'cls_token': 'cls', 'pos_embed': POSITIONS}  # timm's arrays -> those of this code

_TIMM = renaming.Modules(
  top={
    'patch_embed.proj': ('embedding', True), 'norm': ('Transformer/encoder_norm', False),
    'pre_logits.fc': ('pre_logits', True), 'head': ('head', True),
  },
  block={
    'norm1': ('LayerNorm_0', False), 'attn.qkv': (f'{_ATTENTION}/qkv', True),
    'attn.proj': (f'{_ATTENTION}/out', True), 'norm2': ('LayerNorm_2', False),
    'mlp.fc1': ('MlpBlock_3/Dense_0', True), 'mlp.fc2': ('MlpBlock_3/Dense_1', True),
  },
  theirs=re.compile(r'blocks\.(\d+)\.(.+)'),
  released=re.compile(r'Transformer/encoderblock_(\d+)/(.+)'),
  to_released='Transformer/encoderblock_{}/'.format,
  to_theirs='blocks.{}.'.format,
)  # fmt: skip


def to_timm(flat: Flat) -> dict[str, np.ndarray]:
  """The layout of this code -> the state dict of timm's VisionTransformer.

  A representation layer gets the name that older versions of timm give it, `pre_logits.fc`; newer
  ones have none.
  """
  back = {ours: theirs for theirs, ours in _TOP.items()}
  state, faults = renaming.to_torch(dict(_fuse(flat)), _TIMM)
  left = [name for name in faults if name not in back]
  if left:
    raise renaming.no_place("timm's ViT", left)
  return {**{back[name]: np.ascontiguousarray(flat[name]) for name in faults}, **state}


def to_big_vision(flat: Flat) -> dict[str, np.ndarray]:
  """The layout of this code -> big_vision's, which adds the class token's position to the token."""
  numbers = {ours: theirs for theirs, ours in _NUMBERS.items()}
  found = {_renumbered(name, numbers): array for name, array in flat.items()}
  if POSITIONS in found:
    table = found.pop(POSITIONS)
    if 'cls' in found:
      found['cls'], table = found['cls'] + table[:, :1], table[:, 1:]
    found[_BIG_VISION] = np.ascontiguousarray(table)
  return found


def with_heads(flat: Flat, num_heads: int | None) -> tuple[dict[str, np.ndarray], str]:
  """(the parameters with an axis for the attention heads, a sentence on their number or '').

  Args:
    flat: kernels of attention are (inputs, outputs), as in timm, whose files do not have the heads.
    num_heads: if known; else that of the paper's size of this width, or one per 64 channels.

  Raises:
    InputError: the width is no multiple of the heads, or does not determine them.
  """
  widths = {len(x) for n, x in flat.items() if n.endswith(f'/{_ATTENTION}/query/bias')}
  if len(widths) != 1:  # `trees.check` lists what is missing
    return dict(flat), ''
  width, words = widths.pop(), ''
  if num_heads is None:
    presets = {of['hidden_dim']: of for of in vit.SIZES.values()}
    if width not in presets and width % 64:
      raise InputError(
        f'the file does not tell the number of attention heads, and the width {width} is no '
        'multiple of 64, the channels of a head in the ViT paper. Put the .json with the model '
        'beside the file, as mixer.convert writes it.'
      )
    num_heads = presets[width]['num_heads'] if width in presets else width // 64
    words = f'the number of attention heads is taken to be {num_heads}, by the width {width}'
    depth = len({m[1] for n in flat if (m := _TIMM.released.fullmatch(n))})
    if width in presets and depth == presets[width]['num_blocks']:
      words = ''
  if width % num_heads:
    raise InputError(f'the width {width} is no multiple of the {num_heads} attention heads.')
  heads = (num_heads, width // num_heads)
  found = {}
  for name, array in flat.items():
    part = _HEADS.fullmatch(name)
    if part and part[1] == 'out' and array.shape == (width, width):
      array = array.reshape(*heads, width)
    elif part and part[1] != 'out' and array.shape[-1] == width:
      array = array.reshape(*array.shape[:-1], *heads)
    found[name] = array
  return found, words


def _renumbered(name: str, numbers) -> str:
  parts = name.split('/')
  is_in_block = len(parts) > 3 and parts[0] == 'Transformer'
  return '/'.join(numbers.get(p, p) for p in parts) if is_in_block else name


def _fuse(flat: Flat):
  """One array for query, key and value, and without the axis of the heads."""
  for name, array in flat.items():
    part = _HEADS.fullmatch(name)
    if not part:
      yield name, array
    elif part[1] == 'out':
      yield name, array.reshape(-1, array.shape[-1]) if part[2] == 'kernel' else array
    elif part[1] == 'query':
      names = [name.replace('/query/', f'/{each}/') for each in _PARTS]
      if all(each in flat for each in names):
        lead = array.shape[:1] if part[2] == 'kernel' else ()
        arrays = [np.reshape(flat[each], (*lead, -1)) for each in names]
        yield name.replace('/query/', '/qkv/'), np.concatenate(arrays, axis=-1)
      else:
        yield name, array
    elif name.replace(f'/{part[1]}/', '/query/') not in flat:
      yield name, array


def _from_timm(flat: Flat):
  """Kernels of attention stay without the axis of the heads."""
  for name, array in renaming.from_torch(flat, _TIMM):
    fused = re.fullmatch(rf'(.*/{_ATTENTION})/qkv/(kernel|bias)', name)
    if fused and array.shape[-1] % 3 == 0:
      for part, values in zip(_PARTS, np.split(array, 3, axis=-1), strict=True):
        yield f'{fused[1]}/{part}/{fused[2]}', values
    else:
      yield _TOP.get(name, name), array


def _from_flax(flat: Flat):
  """Any numbers of the modules, one block or stacked blocks, any place of the position table."""
  for name, array in flat.items():
    stacked = re.fullmatch(r'Transformer/encoderblock/(.+)', name)
    if stacked:
      for i, row in enumerate(array):
        yield _renumbered(f'Transformer/encoderblock_{i}/{stacked[1]}', _NUMBERS), row
    elif name in (_BIG_VISION, f'Transformer/{_BIG_VISION}'):
      yield POSITIONS, _with_class_row(array) if name == _BIG_VISION and 'cls' in flat else array
    else:
      yield _renumbered(name, _NUMBERS), array


def _with_class_row(table: np.ndarray) -> np.ndarray:
  """A table with a row for the class token: zero if big_vision has added it to the token.

  As in big_vision, a table has that row if it has one more than a square.
  """
  if table.ndim != 3 or math.isqrt(table.shape[1]) ** 2 + 1 == table.shape[1]:
    return table
  return np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)


LAYOUTS = {
  'vit': Layout(
    re.compile(
      r'Transformer/encoderblock_\d+/(?:LayerNorm_2|MultiHeadDotProductAttention_1|MlpBlock_3)/'
    ),
    'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel',
    _from_flax,
  ),
  'vit_big_vision': Layout(
    re.compile(
      r'Transformer/encoderblock_\d+/(?:LayerNorm_1|MultiHeadDotProductAttention_0|MlpBlock_0)/'
    ),
    'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel',
    _from_flax,
  ),
  'vit_scanned': Layout(
    re.compile(r'Transformer/encoderblock/'),
    'Transformer/encoderblock/MlpBlock_0/Dense_0/kernel',
    _from_flax,
  ),
  'vit_timm': Layout(
    # The blocks of Swin and others are in layers or stages.
    re.compile(r'(?<!layers\.\d\.)(?<!stages\.\d\.)blocks\.\d+\.attn\.qkv\.'),
    'blocks.0.attn.qkv.weight',
    _from_timm,
  ),
}
