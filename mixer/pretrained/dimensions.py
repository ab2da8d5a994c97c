"""What the names and shapes of parameters determine: the family, its dimensions, a size's name."""

from collections.abc import Mapping
import math
import re
from typing import NamedTuple

import numpy as np

from mixer import models
from mixer.errors import InputError
from mixer.pretrained import trees
from mixer.sizes import pair

_CHANGED = re.compile(r'MixerBlock_\d+/(\w+_token_mixing)/')  # of `mixer.models.variants`
_VIT_BLOCK = 'Transformer/encoderblock_0'
# The parameters that determine a model: {name: rank}.
_STEMS = {'Mixer': 'stem/kernel', 'ViT': 'embedding/kernel', 'BiT': 'root_block/conv_root/kernel'}
_DETERMINE = {
  'Mixer': {
    'MixerBlock_0/token_mixing/Dense_0/kernel': 2,
    'MixerBlock_0/channel_mixing/Dense_0/kernel': 2,
  },
  'ViT': {
    'Transformer/posembed_input/pos_embedding': 3,
    f'{_VIT_BLOCK}/MlpBlock_3/Dense_0/kernel': 2,
    f'{_VIT_BLOCK}/MultiHeadDotProductAttention_1/query/kernel': 3,
  },
  'BiT': {'block1/unit01/conv1/kernel': 4},
}


class Inferred(NamedTuple):
  """What the shapes of a model's parameters determine.

  Attributes:
    model: arguments of `models.build`; 'num_classes' is None without a head.
    tokens: number of patches; None for a BiT.
    channels: of an image.
    image_size: (height, width) of a square grid of patches; None where `tokens` is no square, and
      for a BiT, which takes any size.
  """

  model: dict
  tokens: int | None
  channels: int
  image_size: tuple[int, int] | None


def family(params: Mapping) -> str | None:
  """'Mixer', 'ViT' or 'BiT' by the names of the parameters; None for another network."""
  marks = {'MixerBlock_0': 'Mixer', 'Transformer': 'ViT', 'root_block': 'BiT'}
  marks |= {'stem': 'Mixer', 'embedding': 'ViT'}
  return next((name for mark, name in marks.items() if mark in params), None)


def stem(params: Mapping) -> np.ndarray | None:
  """The kernel of the first convolution, (height, width, channels, outputs); None without one."""
  flat = trees.flatten(params)
  return next((flat[name] for name in _STEMS.values() if name in flat), None)


def is_changed(params: Mapping) -> bool:
  """Whether the token mixing of the Mixer with these parameters is a variant of appendix A."""
  return bool(_changed(trees.flatten(params)))


def _changed(flat: Mapping) -> list[str]:
  return sorted({m[1] for name in flat if (m := _CHANGED.match(name))})


def infer(params: Mapping, source: str) -> Inferred:
  """The model whose parameters these are; `params` has anything with a shape as leaves.

  The groups of a BiT's normalisations are in no shape; they are taken to be BiT's own number.

  Raises:
    InputError: a parameter that determines the model is missing or has another rank, or the token
      mixing of a Mixer is not that of the paper's main model.
  """
  flat = trees.flatten(params)
  changed = _changed(flat)
  if changed:
    raise InputError(
      f'{source}: token mixing is changed as in appendix A of the paper ({", ".join(changed)}), '
      'which the shapes do not determine: use the run with its config, or the .npz with its .json.'
    )
  name = family(params) or 'Mixer'
  wanted = {_STEMS[name]: 4, **_DETERMINE[name]}
  wanted |= {'head/kernel': 2} if 'head/kernel' in flat else {}
  faults = [
    f'{one} is {"of shape " + str(flat[one].shape) if one in flat else "missing"}'
    for one, rank in wanted.items()
    if one not in flat or flat[one].ndim != rank
  ]
  if faults:
    raise InputError(f'{source}: the shapes are not those of a {name}: {"; ".join(faults)}.')
  stem, *shapes = (flat[one].shape for one in wanted)
  classes = flat['head/kernel'].shape[1] if 'head/kernel' in flat else None
  arguments, tokens = _INFER[name](flat, stem, *shapes[: len(_DETERMINE[name])])
  side = math.isqrt(tokens or 0)
  square = (side * stem[0], side * stem[1]) if tokens and side * side == tokens else None
  model = {'name': name, 'num_classes': classes, **arguments}
  return Inferred(model, tokens, stem[2], square)


def _mixer(flat, stem, tokens, channels) -> tuple[dict, int]:
  return {
    'num_blocks': _count(flat, r'MixerBlock_(\d+)/'),
    'hidden_dim': stem[3],
    'tokens_mlp_dim': tokens[1],
    'channels_mlp_dim': channels[1],
    'patch_size': stem[:2],
  }, tokens[0]


def _vit(flat, stem, positions, mlp, query) -> tuple[dict, int]:
  return {
    'num_blocks': _count(flat, r'Transformer/encoderblock_(\d+)/'),
    'hidden_dim': stem[3],
    'mlp_dim': mlp[1],
    'num_heads': query[1],
    'patch_size': stem[:2],
    'pool': 'token' if 'cls' in flat else 'gap',
    'representation_layer': 'pre_logits/kernel' in flat,
  }, positions[1] - ('cls' in flat)


def _bit(flat, stem, _unit) -> tuple[dict, None]:
  stages = _count(flat, r'block(\d+)/')
  sizes = tuple(_count(flat, rf'block{i + 1}/(unit\d+)/') for i in range(stages))
  return {'stage_sizes': sizes, 'width': stem[3]}, None


def _count(flat: Mapping, pattern: str) -> int:
  return len({m[1] for name in flat if (m := re.match(pattern, name))})


_INFER = {'Mixer': _mixer, 'ViT': _vit, 'BiT': _bit}


def of_model(model) -> dict:
  """The arguments of `Inferred.model` of a module of `mixer.models`, without the classes."""
  name = next(n for n, known in models.FAMILIES.items() if isinstance(model, known.module))
  keys = {
    'Mixer': ('num_blocks', 'hidden_dim', 'tokens_mlp_dim', 'channels_mlp_dim'),
    'ViT': (
      'num_blocks', 'hidden_dim', 'mlp_dim', 'num_heads', 'pool', 'representation_layer'
    ),
    'BiT': ('width',),
  }[name]  # fmt: skip
  found = {'name': name, **{key: getattr(model, key) for key in keys}}
  if name == 'BiT':
    return {**found, 'stage_sizes': tuple(model.stage_sizes)}
  return {**found, 'patch_size': pair(model.patch_size)}


def unnamed(params: Mapping, section: Mapping) -> dict:
  """What the name of a ViT does not say and `section`, `config.model`, leaves out, by `params`."""
  if family(params) != 'ViT' or not str(section['name']).startswith('ViT'):
    return {}
  found = {
    'pool': 'token' if 'cls' in params else 'gap',
    'representation_layer': 'pre_logits' in params,
  }
  return {key: value for key, value in found.items() if key not in section}


def size_name(model: Mapping, *, ignore_tokens: bool = False) -> str | None:
  """'Mixer-B/16' or 'BiT-R50x1' of the arguments in `Inferred.model`; None for no known size.

  `ignore_tokens`: whatever the width of the token-mixing MLPs, which grows with the resolution.
  """
  ignored = {'tokens_mlp_dim'} if ignore_tokens else set()
  height, width = pair(model.get('patch_size', 1))
  names = [
    f'{model["name"]}-{size}' + (f'/{height}' if 'patch_size' in model else '')
    for size, of in models.FAMILIES[model['name']].sizes.items()
    if all(model[name] == value for name, value in of.items() if name not in ignored)
  ]
  return names[0] if names and height == width else None


def called(model: Mapping) -> str:
  """The name of the size, or the dimensions in words."""
  if name := size_name(model, ignore_tokens=True):
    return name
  if model['name'] == 'BiT':
    return f'a BiT of {model["stage_sizes"]} units of width {model["width"]}'
  mlp, more = (
    (model['channels_mlp_dim'], '')
    if model['name'] == 'Mixer'
    else (model['mlp_dim'], f', {model["num_heads"]} heads')
  )
  height, width = pair(model['patch_size'])
  return (
    f'a {model["name"]} of {model["num_blocks"]} blocks of width {model["hidden_dim"]} (MLPs '
    f'{mlp}{more}) on patches of {height} x {width}'
  )
