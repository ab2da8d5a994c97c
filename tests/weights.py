"""Random parameters of small Mixers, and files of them as other programs write them."""

import io
import zipfile

import jax
import numpy as np
import safetensors.numpy

from mixer import models

SIZES = dict(hidden_dim=8, tokens_mlp_dim=6, channels_mlp_dim=16, patch_size=4)


def tree(blocks=3, seed=0, num_classes=5, image_size=8, **sizes):
  """Random parameters in the released layout, a nested dict; every array has its own scale."""
  model = models.build('Mixer', num_classes, **{**SIZES, 'num_blocks': blocks, **sizes})
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.float32(rng.standard_normal(x.shape) * rng.uniform(0.2, 0.6)),
    models.shapes(model, image_size),
  )


def flat(params, prefix=''):
  """{'a': {'b': x}} -> {'a/b': x}."""
  found = {}
  for name, value in params.items():
    found |= flat(value, f'{prefix}{name}/') if isinstance(value, dict) else {prefix + name: value}
  return found


def older(params):
  """paper: `Mixer/encoderblock_i`, whose LayerNorms had the numbers of pre-linen Flax."""
  found = {}
  for name, array in flat(params).items():
    parts = name.split('/')
    if not parts[0].startswith('MixerBlock_'):
      top = {'stem': 'embedding', 'pre_head_layer_norm': 'Mixer/encoder_norm'}
      found[f'{top.get(parts[0], parts[0])}/{parts[1]}'] = array
      continue
    block = f'Mixer/encoderblock_{parts[0].removeprefix("MixerBlock_")}'
    if parts[1].startswith('LayerNorm_'):
      number = {'LayerNorm_0': 2, 'LayerNorm_1': 10}[parts[1]]  # as text, 10 sorts before 2
      found[f'{block}/LayerNorm_{number}/{parts[2]}'] = array
    else:
      leaf = f'{parts[3]}{int(parts[2].removeprefix("Dense_")) + 1}'
      found[f'{block}/{parts[1]}_phase_0/{leaf}'] = array[None, ..., None]
  return found


def scanned(params):
  count = sum(name.startswith('MixerBlock_') for name in params)
  rest = {k: v for k, v in params.items() if not k.startswith('MixerBlock_')}
  rows = [flat(params[f'MixerBlock_{i}']) for i in range(count)]
  return flat(rest) | {f'MixerBlocks/{k}': np.stack([row[k] for row in rows]) for k in rows[0]}


def timm(params):
  """timm's state dict: torch's Linear keeps (out, in), its Conv2d (out, in, height, width)."""
  state = {
    'stem.proj.weight': np.einsum('hwio->oihw', params['stem']['kernel']),
    'stem.proj.bias': params['stem']['bias'],
  }
  for i in range(sum(name.startswith('MixerBlock_') for name in params)):
    block = params[f'MixerBlock_{i}']
    for timm_norm, norm in (('norm1', 'LayerNorm_0'), ('norm2', 'LayerNorm_1')):
      state[f'blocks.{i}.{timm_norm}.weight'] = block[norm]['scale']
      state[f'blocks.{i}.{timm_norm}.bias'] = block[norm]['bias']
    for timm_mlp, mlp in (('mlp_tokens', 'token_mixing'), ('mlp_channels', 'channel_mixing')):
      for timm_layer, layer in (('fc1', 'Dense_0'), ('fc2', 'Dense_1')):
        state[f'blocks.{i}.{timm_mlp}.{timm_layer}.weight'] = block[mlp][layer]['kernel'].T
        state[f'blocks.{i}.{timm_mlp}.{timm_layer}.bias'] = block[mlp][layer]['bias']
  state['norm.weight'] = params['pre_head_layer_norm']['scale']
  state['norm.bias'] = params['pre_head_layer_norm']['bias']
  if 'head' in params:
    state['head.weight'], state['head.bias'] = params['head']['kernel'].T, params['head']['bias']
  return {name: np.ascontiguousarray(array) for name, array in state.items()}


def npz(arrays, save=np.savez):
  buffer = io.BytesIO()
  save(buffer, **arrays)
  return buffer.getvalue()


def safetensors_bytes(arrays):
  return safetensors.numpy.save(dict(arrays))


_STORAGES = {
  'float32': 'FloatStorage', 'float16': 'HalfStorage', 'bfloat16': 'BFloat16Storage',
  'uint8': 'ByteStorage',
}  # fmt: skip


def pth(arrays, **zipped):
  """What torch.save writes of a state dict, made without PyTorch."""
  entries = ''
  for i, (name, array) in enumerate(arrays.items()):
    strides = [s // array.itemsize for s in np.ascontiguousarray(array).strides]
    entries += f'V{name}\n{tensor(i, array.dtype.name, array.size, array.shape, strides)}s'
  return torch_zip(f'ccollections\nOrderedDict\n)R{entries}.', arrays.values(), **zipped)


class Opcodes(str):
  """A part of a pickle."""


def torch_checkpoint(value):
  """What torch.save writes of nested dicts of arrays and plain values, made without PyTorch."""
  storages = []
  return torch_zip(_opcodes(value, storages) + '.', storages)


def _opcodes(value, storages):
  match value:
    case Opcodes():
      return value
    case dict():
      entries = (_opcodes(k, storages) + _opcodes(v, storages) + 's' for k, v in value.items())
      return '}' + ''.join(entries)
    case np.ndarray():
      storages.append(value)
      strides = [s // value.itemsize for s in np.ascontiguousarray(value).strides]
      return tensor(len(storages) - 1, value.dtype.name, value.size, value.shape, strides)
    case list():
      return '(' + ''.join(_opcodes(each, storages) for each in value) + 'l'
    case _:
      return f'{"V" if isinstance(value, str) else "I"}{value}\n'


def tensor(key, dtype, count, shape, strides, offset=0):
  """Pickle opcodes for a tensor in storage `key` of `count` values."""
  shape, strides = ('(' + ''.join(f'I{n}\n' for n in numbers) + 't' for numbers in (shape, strides))
  storage = f'(Vstorage\nctorch\n{_STORAGES[dtype]}\nV{key}\nVcpu\nI{count}\ntQ'
  hooks = 'ccollections\nOrderedDict\n)R'
  return f'ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{shape}{strides}I00\n{hooks}tR'


def torch_zip(opcodes, storages=(), root='archive', order='little'):
  """The zip archive of torch.save around a pickle and the bytes of its tensors."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr(f'{root}/data.pkl', opcodes.encode('latin-1'))
    archive.writestr(f'{root}/byteorder', order)
    for i, array in enumerate(storages):
      archive.writestr(f'{root}/data/{i}', array.tobytes())
    archive.writestr(f'{root}/version', '3\n')
  return buffer.getvalue()


def equal(actual, wanted):
  """Two trees are the same, to the bit."""
  assert jax.tree.structure(actual) == jax.tree.structure(wanted)
  for a, w in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == w.dtype and a.shape == w.shape and a.tobytes() == w.tobytes()
