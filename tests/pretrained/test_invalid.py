"""Parameters that cannot be right: an error wherever they are opened, unless asked for."""

import contextlib
import io
import json
import re
import zipfile

from etils import epath
import jax
import ml_dtypes
import numpy as np
import pytest

from mixer import convert, pretrained
from mixer.checkpoints import manager
from mixer.errors import InputError
from mixer.pretrained import __main__ as program
from mixer.pretrained import formats
import weights
from weights import equal, tree

ADVICE = (
  'The file is damaged, or its training diverged: use another one or an earlier checkpoint. To '
  'look at these, give --allow_invalid to mixer.pretrained or mixer.visualize.'
)
TINY_BLOCK = 'MixerBlock_1/channel_mixing/Dense_0/bias'


def set_values(values, dtype=None, name=TINY_BLOCK):
  """The parameters by name, of which the first values of one are these."""
  flat = weights.flat(tree())
  array = flat[name].astype(dtype or np.float32)
  array.ravel()[: len(values)] = values
  return flat | {name: array}


@pytest.mark.parametrize(
  ('values', 'dtype', 'fault'),
  [
    ([np.nan], None, '1 NaN of 16'),
    ([np.inf, -np.inf, np.nan], None, '1 NaN, 2 infinite of 16'),
    ([np.nan, np.nan], np.float16, '2 NaN of 16'),
    ([np.inf], ml_dtypes.bfloat16, '1 infinite of 16'),
    ([1e300, -3.5e38], np.float64, '2 float64 beyond the range of float32 of 16'),
    ([3], np.int8, 'it is of int8, and parameters are floating-point numbers'),
    ([1], np.bool_, 'it is of bool, and parameters are floating-point numbers'),
  ],
)
def test_values(tmp_path, values, dtype, fault):
  path = tmp_path / 'a.npz'
  path.write_bytes(weights.npz(set_values(values, dtype)))
  text = f'{path} has 1 invalid parameters:\n  {TINY_BLOCK}: {fault}\n{ADVICE}'
  for use in (pretrained.open, pretrained.load, program.summarize):
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      use(path)
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    convert.convert(path, tmp_path / 'b.npz')
  found = pretrained.open(path, allow_invalid=True)
  assert found.faults == (f'{TINY_BLOCK}: {fault}',)
  described = program.summarize(path, allow_invalid=True)
  assert described.endswith(f'INVALID     {TINY_BLOCK}: {fault}')


def test_the_largest_values_are_valid(tmp_path):
  largest = [np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal]
  (tmp_path / 'a.npz').write_bytes(weights.npz(set_values(largest, np.float64)))
  found = pretrained.load(tmp_path / 'a.npz')
  assert found['MixerBlock_1']['channel_mixing']['Dense_0']['bias'][:2].tolist() == largest


def test_many_invalid_parameters(tmp_path):
  """In every container and layout, by their released names; the state of an optimizer may be so."""
  broken = {name: np.full_like(array, np.nan) for name, array in weights.flat(tree()).items()}
  for write in (weights.npz, weights.safetensors_bytes, weights.pth):
    (tmp_path / 'x').write_bytes(write(weights.timm(pretrained.nest(broken))))
    with pytest.raises(
      InputError, match=r'has 42 invalid parameters:\n  MixerBlock_0/LayerNorm_0/bias: 8 NaN'
    ):
      pretrained.open(tmp_path / 'x')
  beside = {f'opt_state/mu/{name}': array for name, array in broken.items()}
  (tmp_path / 'y.npz').write_bytes(weights.npz(weights.flat(tree(), 'params/') | beside))
  equal(pretrained.load(tmp_path / 'y.npz'), tree())


def test_a_checkpoint_of_a_run(tmp_path):
  saved = manager.Checkpoints(epath.Path(tmp_path) / 'checkpoints')
  params = jax.tree.map(jax.numpy.asarray, pretrained.nest(set_values([np.nan])))
  saved.save(3, {'params': params, 'step': np.int32(3)})
  saved.close()
  with pytest.raises(InputError, match=f'^{tmp_path}, step 3 has 1 invalid parameters:\n'):
    pretrained.open(tmp_path)


# --- Names ---------------------------------------------------------------------------------


def npz_of(members):
  """An archive of (name, array) in which a name may come twice."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name, array in members:
      content = io.BytesIO()
      np.save(content, array)
      doubled = name in archive.NameToInfo
      with pytest.warns(UserWarning) if doubled else contextlib.nullcontext():
        archive.writestr(name, content.getvalue())
  return buffer.getvalue()


def test_two_members_of_one_name(tmp_path):
  """The last one is what a study sees."""
  path, flat = tmp_path / 'a.npz', weights.flat(tree())
  members = [(f'{name}.npy', array) for name, array in flat.items()]
  path.write_bytes(npz_of([('head/bias.npy', np.ones(5, np.float32)), *members]))
  text = f'{path} has 1 invalid parameters:\n  head/bias: several arrays have this name\n{ADVICE}'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    pretrained.open(path)
  equal(pretrained.open(path, allow_invalid=True).params, tree())


def test_two_entries_of_one_name_in_a_safetensors_file():
  entry = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}

  def content(*entries):
    header = '{' + ','.join(f'"{name}": {json.dumps(value)}' for name, value in entries) + '}'
    header += ' ' * (-len(header) % 8)
    return len(header).to_bytes(8, 'little') + header.encode() + b'\0' * 8

  assert formats.parse(content(('a', entry)), 'x').doubled == ()
  assert formats.parse(content(('a', entry), ('a', entry)), 'x').doubled == ('a',)
  halves = [{**entry, 'shape': [1], 'data_offsets': [n, n + 4]} for n in (0, 4)]
  with pytest.raises(InputError, match=r'^x \(.*\) has several arrays named a\.$'):
    formats.parse(content(*(('a', half) for half in halves)), 'x')


def test_two_tensors_of_one_name_in_a_pth_file():
  entry = 'Va\n' + weights.tensor(0, 'float32', 2, (2,), (1,)) + 's'
  ordered = f'ccollections\nOrderedDict\n)R{entry}{entry}.'
  content = weights.torch_zip(ordered, [np.float32([1, 2])])
  assert formats.parse(content, 'x').doubled == ('a',)


def test_two_names_of_one_parameter(tmp_path):
  """With and without a prefix; and an array within another one."""
  flat, path = weights.timm(tree()), tmp_path / 'a'
  for names, text in (
    (
      {'blocks.0._orig_mod.norm1.bias': 'blocks.0.norm1.bias'},
      'two arrays for blocks.0.norm1.bias',
    ),
    ({'head': 'head.bias'}, 'there is an array head'),
    ({'stem/kernel': 'stem.proj.weight'}, 'two arrays for stem/kernel: the names mix layouts'),
  ):
    more = {name: flat[of] for name, of in names.items()}
    path.write_bytes(weights.safetensors_bytes(flat | more))
    with pytest.raises(InputError, match=f'^{path}: {text}'):
      pretrained.open(path)
