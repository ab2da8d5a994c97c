"""Files of other programs: prefixes, training checkpoints, several sets, other networks."""

import re

from flax import serialization
import numpy as np
import pytest

from mixer import pretrained
from mixer.errors import InputError
import weights
from weights import Opcodes, equal, tree

NAMESPACE = Opcodes('\x80\x02cargparse\nNamespace\n)\x81}Vmodel\nVmixer_b16_224\nsb')
RUNS = 'reading it would run whatever code it brings'


def write(path, value):
  path.write_bytes(weights.torch_checkpoint(value))
  return path


def state(seed=0, prefix='', layout=weights.timm):
  return {prefix + name: array for name, array in layout(tree(seed=seed)).items()}


# --- Prefixes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'prefix',
  ['module.', '_orig_mod.', 'model.', 'module._orig_mod.', '_orig_mod.module.', 'model.module.',
   'net.', 'backbone.', 'encoder.0.', 'student.model.', '_forward_module.model.'],
)  # fmt: skip
def test_prefixes_of_torch(tmp_path, prefix):
  (tmp_path / 'a').write_bytes(weights.safetensors_bytes(state(prefix=prefix)))
  equal(pretrained.load(tmp_path / 'a'), tree())
  equal(pretrained.load(write(tmp_path / 'b', {'state_dict': state(prefix=prefix)})), tree())


@pytest.mark.parametrize('prefix', ['model/', 'params/params/', 'target/', 'state/params/', '0.'])
def test_prefixes_of_flax(tmp_path, prefix):
  for layout in (weights.flat, weights.older, weights.scanned):
    (tmp_path / 'a').write_bytes(weights.npz(state(prefix=prefix, layout=layout)))
    equal(pretrained.load(tmp_path / 'a'), tree())


def test_modules_around_each_block(tmp_path):
  """As torch.compile, FSDP and activation checkpoints of single blocks name them."""
  names = {
    re.sub(r'^(blocks\.\d+\.)', r'\1_fsdp_wrapped_module._checkpoint_wrapped_module.', n): array
    for n, array in state(prefix='').items()
  }
  names['_orig_mod.norm.weight'] = names.pop('norm.weight')
  (tmp_path / 'a').write_bytes(weights.safetensors_bytes(names))
  equal(pretrained.load(tmp_path / 'a'), tree())


def test_a_name_beside_the_prefix(tmp_path):
  """A head that wraps the backbone is understood, and anything else stays for the check."""
  flat = {'backbone.' + k: v for k, v in weights.timm(tree(num_classes=None)).items()}
  flat |= {k: v for k, v in weights.timm(tree()).items() if k.startswith('head.')}
  (tmp_path / 'a').write_bytes(weights.safetensors_bytes(flat | {'neck.weight': np.ones(2)}))
  found = weights.flat(pretrained.load(tmp_path / 'a'))
  assert found.keys() - weights.flat(tree()).keys() == {'neck.weight'}
  np.testing.assert_array_equal(found['head/kernel'], tree()['head']['kernel'])


# --- Training checkpoints ------------------------------------------------------------------


def test_a_checkpoint_of_timm_has_an_average(tmp_path, caplog):
  """As timm's train.py saves it, with the arguments of the program, of which no code is run."""
  path = write(tmp_path / 'a.pth', {
    'epoch': 3, 'arch': 'mixer_b16_224', 'state_dict': state(1), 'args': NAMESPACE,
    'optimizer': {'state': {0: {'exp_avg': np.full(3, np.nan, np.float32)}}, 'param_groups': [1]},
    'state_dict_ema': state(2, 'module.'), 'metric': 0,
  })  # fmt: skip
  found = pretrained.open(path)
  equal(found.params, tree(seed=2))
  assert found.layout == "timm under 'state_dict_ema/module.'"
  assert caplog.messages == [
    f"{path}: the running average (EMA) of the parameters is taken, 'state_dict_ema/module.', and "
    "not ['state_dict/']. To use others, write them to a file of their own.",
    f'{path}: left out beside the parameters: 42 arrays in state_dict, 1 arrays in optimizer, '
    'epoch (int), arch (str), args (argparse.Namespace), metric (int)',
  ]


@pytest.mark.parametrize('key', ['state_dict', 'model', 'model_state_dict', 'net', 'ema'])
def test_a_checkpoint_with_one_set(tmp_path, key, caplog):
  path = write(tmp_path / 'a.pth', {'args': NAMESPACE, key: state(1), 'rng': np.ones(2, np.uint8)})
  equal(pretrained.load(path), tree(seed=1))
  assert caplog.messages == [
    f'{path}: left out beside the parameters: rng, args (argparse.Namespace)'
  ]


@pytest.mark.parametrize(
  ('keys', 'taken'),
  [
    (('model', 'model_ema'), 'model_ema'),
    (('ema_params', 'params'), 'ema_params'),
    (('student', 'teacher'), None),
    (('model_ema', 'params_ema', 'model'), None),
    (('schema', 'model'), None),
  ],
)
def test_several_sets(tmp_path, keys, taken, caplog):
  """Nothing is chosen in silence, and only an average in place of the plain ones."""
  sets = {key: state(i) for i, key in enumerate(keys)}
  flat = {f'{key}/{n}': a for key, arrays in sets.items() for n, a in arrays.items()}
  (tmp_path / 'b.npz').write_bytes(weights.npz(flat))
  for path in (write(tmp_path / 'a.pth', sets), tmp_path / 'b.npz'):
    caplog.clear()
    if taken:
      equal(pretrained.load(path), tree(seed=keys.index(taken)))
      assert (
        f"{path}: the running average (EMA) of the parameters is taken, '{taken}/'"
        in (caplog.messages[0])
      )
      continue
    listed = [f'{key}/' for key in keys]
    text = (
      f'{path}: there are several sets of parameters, under {listed}. Write the one to use to a '
      'file of its own.'
    )
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      pretrained.load(path)


def test_a_set_with_and_without_a_prefix(tmp_path):
  path = tmp_path / 'a.npz'
  path.write_bytes(weights.npz(state(1, layout=weights.flat) | state(2, 'params/', weights.flat)))
  with pytest.raises(InputError, match=r"several sets of parameters, under \['', 'params/'\]"):
    pretrained.load(path)
  path.write_bytes(weights.npz(state(1, layout=weights.flat) | state(2, 'ema/', weights.flat)))
  equal(pretrained.load(path), tree(seed=2))


CODE = {
  'call': Opcodes('cposix\nsystem\n(Vtouch ran\ntR'),
  'new': Opcodes('\x80\x02csubprocess\nPopen\n(Vtouch\ntR'),
  'state': Opcodes('c__main__\nThing\n)R}Vcommand\nVtouch ran\nsb'),
  'attribute': Opcodes('c__builtin__\ngetattr\n(cos\nsystem\nVpopen\ntR(Vtouch ran\ntR'),
  'items': Opcodes('ccollections\ndefaultdict\n)R(I1\nI2\nu'),
}


@pytest.mark.parametrize('kind', CODE)
def test_code_beside_the_parameters_does_not_run(tmp_path, kind, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = write(tmp_path / 'a.pth', {'model': state(1), 'args': CODE[kind], 'more': [CODE[kind]]})
  equal(pretrained.load(path), tree(seed=1))
  for only in ({'model': CODE[kind]}, CODE[kind]):
    with pytest.raises(InputError, match=f'asks for .*, and {RUNS}. Where you trust it, load it'):
      pretrained.load(write(tmp_path / 'b.pth', only))
  assert sorted(file.name for file in tmp_path.iterdir()) == ['a.pth', 'b.pth']


# --- Other networks ------------------------------------------------------------------------

# The first names of their state dicts, in timm unless they are told.
NETWORKS = {
  'ResMLP': ['stem.proj.weight', 'blocks.0.ls1', 'blocks.0.linear_tokens.weight'],
  'ResMLP of deit': ['patch_embed.proj.weight', 'blocks.0.gamma_1', 'blocks.0.attn.weight'],
  'gMLP': ['stem.proj.weight', 'blocks.0.norm.weight', 'blocks.0.mlp_channels.gate.proj.weight'],
  'ConvMixer': ['stem.0.weight', 'blocks.0.0.fn.0.weight'],
  'ConvMixer of its authors': ['0.weight', '3.0.fn.0.weight', '3.0.fn.2.running_mean'],
  'BEiT': ['cls_token', 'patch_embed.proj.weight', 'blocks.0.attn.q_bias'],
  'ViT of transformers': ['vit.encoder.layer.0.attention.attention.query.weight'],
  'Swin': ['patch_embed.proj.weight', 'layers.0.blocks.0.attn.qkv.weight'],
  'ResNet': ['conv1.weight', 'bn1.running_mean', 'layer1.0.conv1.weight'],
  'a hybrid of ResNet and ViT': ['gn_root/scale', 'embedding/kernel'],
  'ConvNeXt': ['stem.0.weight', 'stages.0.blocks.0.conv_dw.weight'],
}


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('prefix', ['', 'state_dict/module.'])
def test_another_network_is_called_by_its_name(tmp_path, network, prefix):
  flat = {prefix + name: np.ones(2, np.float32) for name in NETWORKS[network]}
  (tmp_path / 'a.npz').write_bytes(weights.npz(flat))
  text = (
    f'{tmp_path}/a.npz: the {len(flat)} parameters are in no known layout. They are the '
    f'parameters of {network.partition(" of ")[0]}'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}') as caught:
    pretrained.load(tmp_path / 'a.npz')
  assert str(caught.value).endswith(
    'This code has Mixer, ViT and BiT, in the layouts of docs/weights.md.'
  )


def test_gmixer(tmp_path):
  """Its names are those of Mixer; the second layers take half of what the first ones give."""
  flat = state()
  for name in [name for name in flat if name.endswith('fc2.weight')]:
    flat[name] = flat[name][:, ::2]
  (tmp_path / 'a').write_bytes(weights.safetensors_bytes(flat))
  text = (
    f'{tmp_path}/a: these are the parameters of gMixer: the MLPs are gated, '
    'blocks.0.mlp_channels.fc1.weight has 16 outputs and fc2 takes 8. This code has'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}'):
    pretrained.load(tmp_path / 'a')


# --- Flax msgpack --------------------------------------------------------------------------


@pytest.mark.parametrize('wrapped', [False, True])
def test_the_two_lines_for_a_msgpack_file(tmp_path, wrapped):
  """They make an .npz that can be read."""
  content = {'params': tree(), 'step': 3} if wrapped else tree()
  path = tmp_path / 'flax_model.msgpack'
  path.write_bytes(serialization.to_bytes(content))
  with pytest.raises(InputError, match='is a Flax msgpack file. Turn it into an .npz') as caught:
    pretrained.load(path)
  lines = str(caught.value).splitlines()
  assert len(lines) == 4 and lines[3] == 'and give that file.'
  exec('\n'.join(line.strip() for line in lines[1:3]))
  equal(pretrained.load(f'{path}.npz'), tree())
