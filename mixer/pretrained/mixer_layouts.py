"""Layouts of a Mixer: `MixerBlock_0/token_mixing/Dense_0/kernel` is the released one."""

import re

import numpy as np

from mixer.pretrained import renaming
from mixer.pretrained.renaming import Flat, Layout

_OLDER_TOP = {'embedding': 'stem', 'Mixer/encoder_norm': 'pre_head_layer_norm'}
_OLDER_LEAF = {
  'kernel1': 'Dense_0/kernel', 'bias1': 'Dense_0/bias',
  'kernel2': 'Dense_1/kernel', 'bias2': 'Dense_1/bias',
}  # fmt: skip
_OLDER_NORM = re.compile(r'Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/(\w+)')
_OLDER_MLP = re.compile(r'Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(\w+[12])')

_TIMM = renaming.Modules(
  top={
    'stem.proj': ('stem', True), 'norm': ('pre_head_layer_norm', False), 'head': ('head', True),
  },
  block={
    'norm1': ('LayerNorm_0', False), 'mlp_tokens.fc1': ('token_mixing/Dense_0', True),
    'mlp_tokens.fc2': ('token_mixing/Dense_1', True), 'norm2': ('LayerNorm_1', False),
    'mlp_channels.fc1': ('channel_mixing/Dense_0', True),
    'mlp_channels.fc2': ('channel_mixing/Dense_1', True),
  },
  theirs=re.compile(r'blocks\.(\d+)\.(.+)'),
  released=re.compile(r'MixerBlock_(\d+)/(.+)'),
  to_released='MixerBlock_{}/'.format,
  to_theirs='blocks.{}.'.format,
)  # fmt: skip


def to_timm(flat: Flat) -> dict[str, np.ndarray]:
  """The released layout -> the state dict of timm's MlpMixer."""
  state, faults = renaming.to_torch(flat, _TIMM)
  if faults:
    raise renaming.no_place("timm's Mixer", faults)
  return state


def _from_timm(flat: Flat):
  return renaming.from_torch(flat, _TIMM)


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
}
