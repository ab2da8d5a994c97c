"""Parameters of ViT and BiT by the names that other programs give them."""

import numpy as np

from weights import flat


def vit_timm(params):
  """timm: query, key and value in one Linear, (3 C, C); the head's bias and kernel transposed."""
  blocks = params['Transformer']
  width = len(params['embedding']['bias'])
  state = {
    'pos_embed': blocks['posembed_input']['pos_embedding'],
    'patch_embed.proj.weight': np.einsum('hwio->oihw', params['embedding']['kernel']),
    'patch_embed.proj.bias': params['embedding']['bias'],
    'norm.weight': blocks['encoder_norm']['scale'],
    'norm.bias': blocks['encoder_norm']['bias'],
  }
  if 'cls' in params:
    state['cls_token'] = params['cls']
  for name, theirs in (('head', 'head'), ('pre_logits', 'pre_logits.fc')):
    if name in params:
      state[f'{theirs}.weight'] = params[name]['kernel'].T
      state[f'{theirs}.bias'] = params[name]['bias']
  for i in range(len(blocks) - 2):
    block = blocks[f'encoderblock_{i}']
    attention = block['MultiHeadDotProductAttention_1']
    parts = [attention[part] for part in ('query', 'key', 'value')]
    kernels = [part['kernel'].reshape(width, width).T for part in parts]
    own = {
      'attn.qkv.weight': np.concatenate(kernels),
      'attn.qkv.bias': np.concatenate([part['bias'].ravel() for part in parts]),
      'attn.proj.weight': attention['out']['kernel'].reshape(width, width).T,
      'attn.proj.bias': attention['out']['bias'],
    }
    for theirs, norm in (('norm1', 'LayerNorm_0'), ('norm2', 'LayerNorm_2')):
      own[f'{theirs}.weight'], own[f'{theirs}.bias'] = block[norm]['scale'], block[norm]['bias']
    for theirs, dense in (('mlp.fc1', 'Dense_0'), ('mlp.fc2', 'Dense_1')):
      own[f'{theirs}.weight'] = block['MlpBlock_3'][dense]['kernel'].T
      own[f'{theirs}.bias'] = block['MlpBlock_3'][dense]['bias']
    state |= {f'blocks.{i}.{name}': array for name, array in own.items()}
  return {name: np.ascontiguousarray(array) for name, array in state.items()}


NEWER = (
  ('LayerNorm_2', 'LayerNorm_1'), ('MlpBlock_3', 'MlpBlock_0'),
  ('MultiHeadDotProductAttention_1', 'MultiHeadDotProductAttention_0'),
)  # fmt: skip


def newer(name):
  for old, new in NEWER:
    name = name.replace(f'/{old}/', f'/{new}/')
  return name


def vit_numbered(params):
  """vision_transformer as it is today: only the numbers of the modules differ."""
  return {newer(name): array for name, array in flat(params).items()}


def vit_big_vision(params):
  """The position of the class token is in the token."""
  found = vit_numbered(params)
  table = found.pop('Transformer/posembed_input/pos_embedding')
  if 'cls' in found:
    found['cls'], table = found['cls'] + table[:, :1], table[:, 1:]
  return {**found, 'pos_embedding': table}


def vit_scanned(params):
  found = vit_big_vision(params)
  prefix = 'Transformer/encoderblock_'
  rest = {name: array for name, array in found.items() if not name.startswith(prefix)}
  ends = [n.removeprefix(f'{prefix}0/') for n in found if n.startswith(f'{prefix}0/')]
  for end in ends:
    rows = [found[f'{prefix}{i}/{end}'] for i in range(len(params['Transformer']) - 2)]
    rest[f'Transformer/encoderblock/{end}'] = np.stack(rows)
  return rest


def bit_tf(params, numbered=False, axes=0):
  """BiT's own files: TF's names, gamma and beta of any leading axes of length 1."""
  found = {}
  number = iter(range(1, 10**6))
  for name, array in flat(params).items():
    *place, leaf = name.split('/')
    module = place[-1]
    kind = 'group_norm' if leaf == 'scale' or 'gn' in module or 'norm' in module else 'conv'
    suffix = f'_{next(number)}' if numbered and kind == 'conv' and module != 'head' else ''
    conv = f'standardized_conv2d{suffix}'
    if module == 'head':
      found[f'resnet/head/conv2d/{leaf}'] = array[None, None] if leaf == 'kernel' else array
      continue
    if kind == 'group_norm':
      leaf = {'scale': 'gamma', 'bias': 'beta'}[leaf]
      array = array.reshape((1,) * axes + array.shape)
    where = {'conv_root': conv, 'norm-pre-head': 'group_norm', 'conv_proj': f'a/proj/{conv}'}
    for i, group in enumerate('abc', 1):
      where |= {f'conv{i}': f'{group}/{conv}', f'gn{i}': f'{group}/group_norm'}
    found['/'.join(['resnet', *place[:-1], where[module], leaf])] = array
  return found


def bit_big_vision(params):
  return {
    name: array[None, None, None] if 'gn' in name or 'norm' in name else array
    for name, array in flat(params).items()
  }


def bit_timm(params):
  state = {
    'stem.conv.weight': params['root_block']['conv_root']['kernel'],
    'norm.weight': params['norm-pre-head']['scale'], 'norm.bias': params['norm-pre-head']['bias'],
  }  # fmt: skip
  if 'head' in params:
    state |= {'head.fc.weight': params['head']['kernel'][None, None]}
    state |= {'head.fc.bias': params['head']['bias']}
  stages = [name for name in params if name.startswith('block')]
  for i in range(len(stages)):
    for j in range(len(params[f'block{i + 1}'])):
      unit = params[f'block{i + 1}'][f'unit{j + 1:02d}']
      prefix = f'stages.{i}.blocks.{j}.'
      for name, part in unit.items():
        if name.startswith('gn'):
          state[f'{prefix}norm{name[2]}.weight'] = part['scale']
          state[f'{prefix}norm{name[2]}.bias'] = part['bias']
        else:
          theirs = 'downsample.conv' if name == 'conv_proj' else name
          state[f'{prefix}{theirs}.weight'] = part['kernel']
  return {
    name: np.ascontiguousarray(np.einsum('hwio->oihw', array) if array.ndim == 4 else array)
    for name, array in state.items()
  }
