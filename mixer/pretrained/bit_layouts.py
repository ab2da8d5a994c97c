"""Layouts of a BiT: big_vision's `block1/unit01/conv1/kernel` is the one of this code."""

import re

import numpy as np

from mixer.pretrained import renaming
from mixer.pretrained.renaming import Flat, Layout

_GROUPS = 'abc'  # in BiT's files, of the convolutions 1 to 3 of a unit
_NUMBERED = re.compile(r'(standardized_conv2d|group_norm|conv2d)_\d+(?=/)')
_NORM = re.compile(r'(?:.*/gn[123]|norm-pre-head)/(?:scale|bias)')
# Module of the whole model in BiT's files -> the one of this code.
_TF_TOP = {
  'root_block/standardized_conv2d': 'root_block/conv_root',
  'group_norm': 'norm-pre-head',
  'head/conv2d': 'head',
}
_TF_UNIT = {
  'a/proj/standardized_conv2d': 'conv_proj',
  **{f'{group}/standardized_conv2d': f'conv{i}' for i, group in enumerate(_GROUPS, 1)},
  **{f'{group}/group_norm': f'gn{i}' for i, group in enumerate(_GROUPS, 1)},
}
_TF_LEAF = {'gamma': 'scale', 'beta': 'bias'}

_TIMM = renaming.Modules(
  top={
    'stem.conv': ('root_block/conv_root', True), 'norm': ('norm-pre-head', False),
    'head.fc': ('head', True),
  },
  block={
    'downsample.conv': ('conv_proj', True),
    **{f'conv{i}': (f'conv{i}', True) for i in (1, 2, 3)},
    **{f'norm{i}': (f'gn{i}', False) for i in (1, 2, 3)},
  },
  theirs=re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.(.+)'),
  released=re.compile(r'block(\d+)/unit(\d+)/(.+)'),
  to_released=lambda stage, unit: f'block{stage + 1}/unit{unit + 1:02d}/',
  to_theirs=lambda stage, unit: f'stages.{stage - 1}.blocks.{unit - 1}.',
)  # fmt: skip


def to_timm(flat: Flat) -> dict[str, np.ndarray]:
  """The layout of this code -> the state dict of timm's ResNetV2, whose head is a convolution."""
  state, faults = renaming.to_torch(_with_conv_head(flat), _TIMM)
  if faults:
    raise renaming.no_place("timm's BiT", faults)
  return state


def to_tf(flat: Flat) -> dict[str, np.ndarray]:
  """The layout of this code -> that of BiT's own files."""
  top = {ours: tf for tf, ours in _TF_TOP.items()}
  unit = {ours: tf for tf, ours in _TF_UNIT.items()}
  leaves = {ours: tf for tf, ours in _TF_LEAF.items()}
  found, faults = {}, []
  for name, array in _with_conv_head(flat).items():
    parsed = re.fullmatch(r'(block\d+/unit\d+/)?(.+)/(\w+)', name)
    table = unit if parsed and parsed[1] else top
    if parsed is None or parsed[2] not in table:
      faults.append(name)
      continue
    leaf = leaves.get(parsed[3], parsed[3]) if 'norm' in table[parsed[2]] else parsed[3]
    found[f'resnet/{parsed[1] or ""}{table[parsed[2]]}/{leaf}'] = array
  if faults:
    raise renaming.no_place("BiT's own layout", faults)
  return found


def _with_conv_head(flat: Flat) -> dict[str, np.ndarray]:
  """The head's kernel as that of a 1 x 1 convolution."""
  heads = {'head/kernel': flat['head/kernel'][None, None]} if 'head/kernel' in flat else {}
  return {**flat, **heads}


def _flat_head(name: str, array: np.ndarray) -> np.ndarray:
  is_conv = name == 'head/kernel' and array.ndim == 4 and array.shape[:2] == (1, 1)
  return array[0, 0] if is_conv else array


def _from_timm(flat: Flat):
  for name, array in renaming.from_torch(flat, _TIMM):
    yield name, _flat_head(name, array)


def _from_tf(flat: Flat):
  for name, array in flat.items():
    plain = _NUMBERED.sub(r'\1', name)
    parsed = re.fullmatch(r'resnet/(block\d+/unit\d+/)?(.+)/(\w+)', plain)
    table = _TF_UNIT if parsed and parsed[1] else _TF_TOP
    if parsed is None or parsed[2] not in table:
      yield name, array
      continue
    renamed = f'{parsed[1] or ""}{table[parsed[2]]}/{_TF_LEAF.get(parsed[3], parsed[3])}'
    is_norm = _NORM.fullmatch(renamed)
    yield renamed, renaming.without_axes(array) if is_norm else _flat_head(renamed, array)


def _from_big_vision(flat: Flat):
  """Its normalisations have axes of length 1."""
  for name, array in flat.items():
    yield name, renaming.without_axes(array) if _NORM.fullmatch(name) else array


LAYOUTS = {
  'bit': Layout(
    re.compile(r'block\d+/unit\d+/(?:conv|gn)'), 'block1/unit01/conv1/kernel', _from_big_vision
  ),
  'bit_tf': Layout(
    re.compile(r'resnet/block\d+/unit\d+/[abc]/'),
    'resnet/block1/unit01/a/standardized_conv2d/kernel',
    _from_tf,
  ),
  'bit_timm': Layout(
    re.compile(r'stages\.\d+\.blocks\.\d+\.conv[123]\.'),
    'stages.0.blocks.0.conv1.weight',
    _from_timm,
  ),
}
