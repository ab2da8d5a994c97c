"""Parameter files: what is written is what numpy reads, and a wrong file is told in words."""

import io
import json
import re
import zipfile

from etils import epath
import jax
import ml_dtypes
import numpy as np
import pytest

from mixer import models, pretrained
from mixer.errors import InputError


def tree(blocks=3, seed=0):
  """Parameters of a Mixer in the released layout, random."""
  model = models.build(
    'Mixer', 5, num_blocks=blocks, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=16,
    patch_size=4,
  )  # fmt: skip
  shapes = jax.eval_shape(lambda key: models.init(model, key, 8), jax.random.key(0))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def names_of(blocks):
  names = ['stem/kernel', 'stem/bias', 'head/kernel', 'head/bias']
  names += ['pre_head_layer_norm/scale', 'pre_head_layer_norm/bias']
  for i in range(blocks):
    names += [f'MixerBlock_{i}/LayerNorm_{j}/{k}' for j in (0, 1) for k in ('scale', 'bias')]
    names += [
      f'MixerBlock_{i}/{mixing}/Dense_{j}/{k}'
      for mixing in ('token_mixing', 'channel_mixing')
      for j in (0, 1)
      for k in ('kernel', 'bias')
    ]
  return set(names)


def equal(actual, wanted):
  assert jax.tree.structure(actual) == jax.tree.structure(wanted)
  for a, w in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == w.dtype and a.shape == w.shape and a.tobytes() == w.tobytes()


# --- Files ---------------------------------------------------------------------------------


def test_round_trip(tmp_path):
  params = tree()
  pretrained.save(tmp_path / 'model.npz', params)
  equal(pretrained.load(tmp_path / 'model.npz'), params)
  assert [path.name for path in tmp_path.iterdir()] == ['model.npz']


def test_numpy_alone_reads_the_file(tmp_path):
  params = tree(blocks=11)
  pretrained.save(tmp_path / 'model.npz', params)
  with np.load(tmp_path / 'model.npz', allow_pickle=False) as arrays:
    assert set(arrays.files) == names_of(11)
    assert {arrays[name].dtype for name in arrays.files} == {np.dtype('float32')}
    for name in ('stem/kernel', 'MixerBlock_10/token_mixing/Dense_1/kernel'):
      leaf = params
      for part in name.split('/'):
        leaf = leaf[part]
      np.testing.assert_array_equal(arrays[name], leaf)


def test_released_file(tmp_path):
  """A file as Google's bucket has it: float32, '/'-joined names, not compressed."""
  flat = {name: np.float32([i, i + 0.5]) for i, name in enumerate(sorted(names_of(2)))}
  np.savez(tmp_path / 'Mixer-B_16.npz', **flat)
  loaded = pretrained.load(str(tmp_path / 'Mixer-B_16.npz'))
  assert set(loaded) == {'stem', 'head', 'pre_head_layer_norm', 'MixerBlock_0', 'MixerBlock_1'}
  np.testing.assert_array_equal(
    loaded['MixerBlock_1']['channel_mixing']['Dense_0']['bias'],
    flat['MixerBlock_1/channel_mixing/Dense_0/bias'],
  )


def test_scanned_parameters_are_saved_in_released_names(tmp_path):
  """Twelve blocks: by number, for 'MixerBlock_10' sorts before 'MixerBlock_2'."""
  params = tree(blocks=12)
  stacked = {name: params[name] for name in ('stem', 'pre_head_layer_norm', 'head')}
  stacked['MixerBlocks'] = jax.tree.map(
    lambda *rows: np.stack(rows), *(params[f'MixerBlock_{i}'] for i in range(12))
  )
  pretrained.save(tmp_path / 'model.npz', stacked)
  equal(pretrained.load(tmp_path / 'model.npz'), params)


def test_bfloat16_file(tmp_path):
  """numpy's format has no bfloat16: such arrays lie in a file as two-byte void."""
  values = np.float32([[1.0, -2.5], [3e38, 1e-30]])
  stored = values.astype(ml_dtypes.bfloat16)
  np.savez(tmp_path / 'half.npz', **{'head/kernel': stored, 'head/bias': np.float64([1.5])})
  with np.load(tmp_path / 'half.npz') as arrays:
    assert arrays['head/kernel'].dtype == np.dtype('V2')
  head = pretrained.load(tmp_path / 'half.npz')['head']
  assert head['kernel'].dtype == head['bias'].dtype == np.float32
  np.testing.assert_array_equal(head['kernel'], stored.astype(np.float32))
  np.testing.assert_allclose(head['kernel'], values, rtol=2**-8)
  np.testing.assert_array_equal(head['bias'], [1.5])


def test_saving_again(tmp_path):
  """A newer file takes the older one's place."""
  for seed in (0, 1):
    pretrained.save(tmp_path / 'model.npz', tree(seed=seed))
  equal(pretrained.load(tmp_path / 'model.npz'), tree(seed=1))


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
  pretrained.save(tmp_path / 'model.npz', tree())

  def half(self, content):
    with open(self, 'wb') as file:
      file.write(content[: len(content) // 2])
    raise OSError('No space left on device')

  monkeypatch.setattr(type(epath.Path(tmp_path)), 'write_bytes', half)
  with pytest.raises(OSError, match='No space left'):
    pretrained.save(tmp_path / 'model.npz', tree(seed=1))
  monkeypatch.undo()
  equal(pretrained.load(tmp_path / 'model.npz'), tree())


def test_save_model(tmp_path):
  description = {'model': {'name': 'Mixer-B/16'}, 'class_names': ['a', 'b'], 'metrics': {'n': 1}}
  pretrained.save_model(epath.Path(tmp_path), tree(), description)
  assert json.loads((tmp_path / 'model.json').read_text()) == description
  equal(pretrained.load(tmp_path / 'model.npz'), tree())


# --- Wrong files ---------------------------------------------------------------------------


def npz(save=np.savez, **arrays):
  buffer = io.BytesIO()
  save(buffer, **arrays)
  return buffer.getvalue()


def npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=True)
  return buffer.getvalue()


def foreign_zip():
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('hello.txt', 'hello')
  return buffer.getvalue()


GOOD = npz(**{'a/b': np.arange(6, dtype=np.float32), 'c': np.ones((3, 3), np.float32)})
OBJECTS = np.array([{'a': 1}], dtype=object)
FLIPPED = GOOD.replace(np.float32(5).tobytes(), np.float32(7).tobytes())
PAGE = b'<!DOCTYPE html><html><head><title>Error 404</title></head></html>'
AGAIN = 'It may be a partial download or an error page; fetch it again.'
WRONG = {
  'a page': (PAGE, f'is not an .npz file: its 65 bytes begin with {PAGE[:60]!r}. {AGAIN}'),
  'empty': (b'', f"is not an .npz file: its 0 bytes begin with b''. {AGAIN}"),
  'objects in an npy': (
    npy(OBJECTS),
    f'is not an .npz file: its {len(npy(OBJECTS))} bytes begin with {npy(OBJECTS)[:60]!r}. {AGAIN}',
  ),
  'half a zip': (
    GOOD[: len(GOOD) // 2],
    f'({len(GOOD) // 2} bytes) is a damaged or foreign .npz: File is not a zip file. '
    'Fetch it again.',
  ),
  'a flipped value': (
    FLIPPED,
    f"({len(GOOD)} bytes) is a damaged or foreign .npz: Bad CRC-32 for file 'a/b.npy'. "
    'Fetch it again.',
  ),
  'objects in an npz': (
    npz(a=OBJECTS),
    f'({len(npz(a=OBJECTS))} bytes) is a damaged or foreign .npz: it holds Python objects. '
    'Fetch it again.',
  ),
  'another zip': (
    foreign_zip(),
    f'({len(foreign_zip())} bytes) is a damaged or foreign .npz: '
    "it holds b'hello' where an array is due. Fetch it again.",
  ),
}


@pytest.mark.parametrize('kind', WRONG)
def test_wrong_files(tmp_path, kind):
  """None of the texts talks the reader into loading pickles."""
  content, text = WRONG[kind]
  path = tmp_path / 'model.npz'
  path.write_bytes(content)
  with pytest.raises(InputError, match=f'^{re.escape(f"{path} {text}")}$') as caught:
    pretrained.load(path)
  assert 'pickle' not in str(caught.value)


def test_no_file(tmp_path):
  for path in (tmp_path / 'model.npz', tmp_path):
    text = f'no file {path}; give the path of an .npz with parameters.'
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      pretrained.load(path)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_any_damage_is_an_input_error(tmp_path, save):
  """Every cut, and a flip in every byte: an InputError or, in a byte that is idle, no harm."""
  good, path = npz(save, c=np.arange(40, dtype=np.float32)), tmp_path / 'model.npz'
  damaged = [good[:n] for n in range(len(good))]
  damaged += [good[:n] + bytes([good[n] ^ 0xFF]) + good[n + 1 :] for n in range(len(good))]
  refused = 0
  for content in damaged:
    path.write_bytes(content)
    try:
      loaded = pretrained.load(path)
    except InputError:
      refused += 1
    else:
      for leaf in jax.tree.leaves(loaded):
        np.testing.assert_array_equal(leaf, np.arange(40))
  assert refused > len(good) + 2 * len(good) // 5


# --- Trees ---------------------------------------------------------------------------------


def test_flatten_and_nest():
  nested = {'a': {'b': {'c': np.ones(1)}, 'd': np.ones(2)}, 'e': np.ones(3)}
  flat = pretrained.flatten(nested)
  assert {name: leaf.shape for name, leaf in flat.items()} == {
    'a/b/c': (1,), 'a/d': (2,), 'e': (3,)
  }  # fmt: skip
  equal(pretrained.nest(flat), nested)


def test_stack_and_unstack():
  """Row i of each stacked leaf is block i, for more than ten blocks too."""
  params = tree(blocks=12)
  stacked = pretrained.stack_blocks(params)
  assert set(stacked) == {'stem', 'pre_head_layer_norm', 'head', 'MixerBlocks'}
  kernel = stacked['MixerBlocks']['token_mixing']['Dense_0']['kernel']
  assert kernel.shape == (12, 4, 4)
  for i in range(12):
    wanted = params[f'MixerBlock_{i}']['token_mixing']['Dense_0']['kernel']
    np.testing.assert_array_equal(kernel[i], wanted)
  equal(jax.tree.map(np.asarray, pretrained.unstack_blocks(stacked)), params)
  equal(pretrained.unstack_blocks(params), params)


def test_check_passes():
  params = tree()
  pretrained.check(params, jax.eval_shape(lambda: params), 'model.npz')


def test_check_lists_every_fault_at_once():
  params, expected = tree(), tree()
  del params['stem']['bias']
  params['pre_logits'] = {'kernel': np.zeros((8, 8)), 'bias': np.zeros(8)}
  params['head']['kernel'] = np.zeros((8, 1000))
  del params['MixerBlock_2']['LayerNorm_0']['scale']
  text = (
    'runs/a/model.npz does not fit the model in 5 of 42 parameters:\n'
    '  missing   MixerBlock_2/LayerNorm_0/scale (8,)\n'
    '  missing   stem/bias (8,)\n'
    '  surplus   pre_logits/bias (8,)\n'
    '  surplus   pre_logits/kernel (8, 8)\n'
    '  mismatch  head/kernel has (8, 1000), the model needs (8, 5)\n'
    'Choose the model, image size and class count that the file was made with.'
  )
  assert len(jax.tree.leaves(expected)) == 42
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    pretrained.check(params, expected, 'runs/a/model.npz')
