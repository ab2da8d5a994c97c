"""Other networks, recognised by the names of their parameters, so that a refusal can call them."""

from collections.abc import Iterable, Mapping
import re

import numpy as np

_KNOWN = 'This code has Mixer, ViT and BiT, in the layouts of docs/weights.md'
# The first pattern that is found in a name of a parameter says what the network is.
_NETWORKS = tuple(
  (re.compile(rf'(?:^|[./]){pattern}'), network)
  for pattern, network in (
    (r'blocks\.\d+\.linear_tokens\.', 'ResMLP'),
    (r'blocks\.\d+\.attn\.weight', 'ResMLP'),
    (r'blocks\.\d+\.mlp_channels\.gate\.', 'gMLP'),
    (r'(?:\w+\.)*\d+\.fn\.(?:\d+\.)?gate\.', 'gMLP'),
    (r'blocks\.\d+\.0\.fn\.0\.weight', 'ConvMixer'),
    (r'\d+\.0\.fn\.0\.weight', 'ConvMixer'),
    (r'\d+\.\d+\.fn\.0\.weight', 'the Mixer of mlp-mixer-pytorch'),
    (r'mixer_layers?\.\d+\.', 'a Mixer of another PyTorch code'),
    (r'layers\.\d+\.blocks\.\d+\.attn\.', 'Swin'),
    (r'swin\.', 'Swin'),
    (r'stages\.\d+\.blocks\.\d+\.(?:conv_dw|dwconv)\.', 'ConvNeXt'),
    (r'stages\.\d+\.\d+\.dwconv\.', 'ConvNeXt'),
    (r'stages\.\d+\.blocks\.\d+\.(?:layer_scale1|token_mixer)\.', 'PoolFormer or MetaFormer'),
    (r'blocks\.\d+\.(?:attn|attention)\.', 'BEiT, CaiT or another relative of ViT'),
    (r'(?:vit|deit|beit)\.encoder\.layer\.\d+\.', 'ViT of transformers'),
    (r'encoder\.layers\.encoder_layer_\d+\.', 'ViT of torchvision'),
    (r'transformer\.resblocks\.\d+\.', 'CLIP'),
    (r'layer[1-4]\.\d+\.conv1\.', 'ResNet'),
    (r'blocks\.\d+\.\d+\.conv_(?:pw|dw|pwl)\.', 'EfficientNet or MobileNet'),
    (r'gn_root/', 'a hybrid of ResNet and ViT, or a ResNet v1 of big_vision'),
    (r'denseblock\d+\.', 'DenseNet'),
    (r'features\.\d+\.weight', 'VGG or AlexNet'),
  )
)  # fmt: skip
# Of networks whose blocks have timm's names of ViT: what ViT does not have.
_BESIDE_VIT = re.compile(
  r'(?:fc_norm\.|dist_token|head_dist\.|reg_token|norm_pre\.|attn_pool\.).*|'
  r'blocks\.\d+\.(?:attn\.(?:[qv]_bias|[qk]_norm\.|relative_position_)|ls[12]\.|gamma_[12]).*'
)
_TIMM_MLP = re.compile(r'(blocks\.\d+\.mlp_(?:tokens|channels)\.)fc1\.weight')


def recognise(flat: Mapping[str, np.ndarray]) -> str | None:
  """A sentence on the network that is known by the names in `flat`, or None."""
  for pattern, network in _NETWORKS:
    if name := _first(pattern, flat):
      return f'They are the parameters of {network}, by the name {name}. {_KNOWN}.'
  return None


def gated(flat: Mapping[str, np.ndarray]) -> str | None:
  """A message on gMixer if the MLPs in `flat`, in timm's layout, are gated; else None.

  Its names are those of Mixer: its second layers take one half of the outputs of the first.
  """
  for name, first in sorted(flat.items()):
    second = flat.get(f'{m[1]}fc2.weight') if (m := _TIMM_MLP.fullmatch(name)) else None
    if second is not None and first.ndim == second.ndim == 2 and len(first) == 2 * second.shape[1]:
      return (
        f'these are the parameters of gMixer: the MLPs are gated, {name} has {len(first)} outputs '
        f'and fc2 takes {second.shape[1]}. {_KNOWN}.'
      )
  return None


def beside_vit(flat: Mapping[str, np.ndarray]) -> str | None:
  """A message on the relative of ViT that `flat`, in timm's layout of ViT, is; else None."""
  name = next((name for name in flat if _BESIDE_VIT.match(name)), None)
  if name is None:
    return None
  return (
    'these are the parameters of a relative of ViT (such as DeiT, BEiT, DINOv2, or a ViT that '
    f'normalises after the mean of the tokens): ViT has no {name}. {_KNOWN}.'
  )


def _first(pattern: re.Pattern, names: Iterable[str]) -> str | None:
  return next((name for name in names if pattern.search(name)), None)
