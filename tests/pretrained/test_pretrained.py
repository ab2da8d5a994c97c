"""Parameter files: what is written is what numpy reads, and a wrong file is told in words."""

import gzip
import hashlib
import io
import json
import pickle
import re
import resource
import zipfile

from etils import epath
import jax
import ml_dtypes
import numpy as np
import pytest

from mixer import models, pretrained
from mixer.errors import InputError
from mixer.models import scanning
from mixer.pretrained import __main__ as program
from mixer.pretrained import formats, released
import reference
import weights
from weights import equal, tree


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
  params = tree()
  stored = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.flat(params).items()}
  stored['head/bias'] = params['head']['bias'].astype(np.float64)
  np.savez(tmp_path / 'half.npz', **stored)
  with np.load(tmp_path / 'half.npz') as arrays:
    assert arrays['head/kernel'].dtype == np.dtype('V2')
  loaded = weights.flat(pretrained.load(tmp_path / 'half.npz'))
  for name, array in stored.items():
    assert loaded[name].dtype == np.float32
    np.testing.assert_array_equal(loaded[name], array.astype(np.float32))
  np.testing.assert_allclose(loaded['head/kernel'], params['head']['kernel'], rtol=2**-8)


def test_saving_again(tmp_path):
  """A newer file takes the older one's place."""
  for seed in (0, 1):
    pretrained.save(tmp_path / 'model.npz', tree(seed=seed))
  equal(pretrained.load(tmp_path / 'model.npz'), tree(seed=1))


def test_a_failed_save_leaves_the_older_file(tmp_path):
  pretrained.save(tmp_path / 'model.npz', tree())
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(OSError, match=r'model\.npz cannot be written: .*File too large'):
      pretrained.save(tmp_path / 'model.npz', tree(seed=1))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  equal(pretrained.load(tmp_path / 'model.npz'), tree())


def test_save_model(tmp_path):
  description = {'model': {'name': 'Mixer-B/16'}, 'class_names': ['a', 'b'], 'metrics': {'n': 1}}
  pretrained.save_model(epath.Path(tmp_path), tree(), description)
  assert json.loads((tmp_path / 'model.json').read_text()) == description
  equal(pretrained.load(tmp_path / 'model.npz'), tree())


# --- Containers and layouts ----------------------------------------------------------------


CONTAINERS = {
  'npz': weights.npz,
  'compressed npz': lambda arrays: weights.npz(arrays, np.savez_compressed),
  'safetensors': weights.safetensors_bytes,
  'pth': weights.pth,
}
LAYOUTS = {
  'released': weights.flat,
  'older': weights.older,
  'scanned': weights.scanned,
  'timm': weights.timm,
  'params': lambda params: weights.flat(params, 'params/'),
  'opt/target': lambda params: weights.flat(params, 'opt/target/'),
}


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_in_every_container(tmp_path, layout, container):
  """The same tree comes back, to the bit, whatever the file's name ends in."""
  params, path = tree(blocks=11), tmp_path / 'weights.bin'
  path.write_bytes(CONTAINERS[container](LAYOUTS[layout](params)))
  loaded = pretrained.load(path)
  equal(loaded, params)
  assert all(leaf.flags.c_contiguous and leaf.flags.writeable for leaf in jax.tree.leaves(loaded))


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('container', ['npz', 'safetensors', 'pth'])
def test_half_precision(tmp_path, container, dtype):
  params, path = tree(), tmp_path / 'half'
  half = {name: array.astype(dtype) for name, array in weights.timm(params).items()}
  path.write_bytes(CONTAINERS[container](half))
  equal(pretrained.load(path), jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params))
  assert f'arrays of {np.dtype(dtype)}' in program.summarize(path)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_logits_equal_numpy(tmp_path, layout):
  params, path = tree(), tmp_path / 'weights'
  path.write_bytes(weights.npz(LAYOUTS[layout](params)))
  images = np.float32(np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 3)))
  model = models.build('Mixer', 5, num_blocks=3, **weights.SIZES)
  actual = jax.jit(models.apply_function(model))(pretrained.load(path), images)
  _, wanted = reference.forward(params, images, (4, 4))
  np.testing.assert_allclose(np.asarray(actual), wanted, rtol=1e-5, atol=1e-5)


def test_optimizer_state_beside_the_parameters(tmp_path, caplog):
  params = tree()
  for wrapper, state in (('params/', 'opt/mu/'), ('opt/target/', 'opt/state/param_states/')):
    path = tmp_path / 'whole.npz'
    beside = {'step': np.int64(7), **weights.flat(params, state)}
    path.write_bytes(weights.npz(weights.flat(params, wrapper) | beside))
    caplog.clear()
    equal(pretrained.load(path), params)
    left_out = f'{path}: left out beside the parameters: 42 arrays in opt, step\n'
    assert left_out in caplog.text


def test_tensors_that_share_a_storage(tmp_path):
  """Offsets and strides as PyTorch keeps them: a transposed view, and one in the middle."""
  storage = np.arange(20, dtype=np.float32)
  index = (
    '}Va\n' + weights.tensor(0, 'float32', 20, (3, 2), (1, 3), offset=4)
    + 'sVb\n' + weights.tensor(0, 'float32', 20, (5,), (2,), offset=1)
    + 'sVc\n' + weights.tensor(0, 'float32', 20, (), ()) + 's.'
  )  # fmt: skip
  path = epath.Path(tmp_path / 'views.pth')
  path.write_bytes(weights.torch_zip(index, [storage]))
  kind, found, *_ = formats.parse(path.read_bytes(), 'x')
  assert kind == '.pth'
  np.testing.assert_array_equal(found['a'], [[4, 7], [5, 8], [6, 9]])
  np.testing.assert_array_equal(found['b'], [1, 3, 5, 7, 9])
  assert found['c'].shape == () and found['c'] == 0


# --- Wrong files ---------------------------------------------------------------------------


def npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=True)
  return buffer.getvalue()


def foreign_zip():
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('hello.txt', 'hello')
  return buffer.getvalue()


def torch_of(value, **zipped):
  return weights.torch_zip(f'}}Va\n{value}s.', [np.float32([1, 2])], **zipped)


GOOD = weights.npz({'a/b': np.arange(6, dtype=np.float32), 'c': np.ones((3, 3), np.float32)})
GOOD_TENSORS = weights.safetensors_bytes({'a': np.arange(6, dtype=np.float32)})
OBJECTS = np.array([{'a': 1}], dtype=object)
FLIPPED = GOOD.replace(np.float32(5).tobytes(), np.float32(7).tobytes())
PAGE = b'<!DOCTYPE html><html><head><title>Error 404</title></head></html>'
DENIED = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code></Error>"
PROGRAM = b'<\x00\x00\x008\x00d\x00b'
ANSWER = b'{"error": {"code": 403, "message": "no access"}}'
ASK = 'The server answered with a message instead of the file; read it, and fetch the file again.'
RUNS = 'reading it would run whatever code it brings'
# kind -> (its bytes, the text after '<path> (<size> bytes')
WRONG = {
  'a page': (
    PAGE, f') is an HTML or XML page, not parameters; it begins with {PAGE[:60]!r}. {ASK}'
  ),
  'StableHLO': (
    PROGRAM,
    f') is not a file of parameters; it begins with {PROGRAM!r}. Give an .npz, .safetensors or '
    '.pth file, or the workdir of a run.',
  ),
  'an XML page': (
    DENIED, f') is an HTML or XML page, not parameters; it begins with {DENIED[:60]!r}. {ASK}'
  ),
  'JSON': (
    ANSWER,
    f') is JSON, not parameters; it begins with {ANSWER!r}. The server may have answered with an '
    'error; read it, and fetch the file again.',
  ),
  'empty': (b'', ') is empty. Fetch it again.'),
  'a pointer': (
    b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
    ') is a pointer of git-lfs, not the file it points to. Fetch the file itself with '
    '`git lfs pull`.',
  ),
  'an npy': (
    npy(OBJECTS),
    ') is a single array (.npy), not a set of named ones. Give the .npz with all parameters.',
  ),
  'a pickle': (
    pickle.dumps({'a': 1}),
    f') is a Python pickle: {RUNS}. Where you trust it, load it where it was made and write the '
    'arrays with numpy.savez.',
  ),
  'a legacy pth': (
    pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps({'a': 1}),
    f') is a .pth of before PyTorch 1.6, which is one pickle: {RUNS}. Where you trust it, load it '
    'in PyTorch and write its state dict again with torch.save or safetensors.torch.save_file.',
  ),
  'gzip': (
    gzip.compress(GOOD),
    ') is a compressed archive. Unpack it, and give the file with the parameters.',
  ),
  'HDF5': (
    b'\x89HDF\r\n\x1a\n',
    ') is an HDF5 file, as Keras writes. Give an .npz, .safetensors or .pth file.',
  ),
  'noise': (
    b'\x00\x01\x02',
    ") is not a file of parameters; it begins with b'\\x00\\x01\\x02'. Give an .npz, "
    '.safetensors or .pth file, or the workdir of a run.',
  ),
  'half a zip': (
    GOOD[: len(GOOD) // 2],
    ') is a truncated or damaged zip archive, as .npz and .pth files are: File is not a zip file. '
    'Fetch it again.',
  ),
  'half a safetensors': (
    GOOD_TENSORS[:-4],
    ', .safetensors) is damaged or partial: Error while deserializing: incomplete metadata, '
    'file not fully covered. Fetch it again.',
  ),
  'a flipped value': (
    FLIPPED,
    ", .npz) is damaged or partial: Bad CRC-32 for file 'a/b.npy'. Fetch it again.",
  ),
  'objects in an npz': (
    weights.npz({'a': OBJECTS}),
    f", .npz) holds Python objects under 'a': {RUNS}. Write arrays of numbers alone.",
  ),
  'words in an npz': (
    weights.npz({'a': np.array(['word'])}),
    ", .npz) holds <U4 under 'a'. Write arrays of numbers alone.",
  ),
  'another zip': (
    foreign_zip(),
    ", .npz) holds 'hello.txt', which is no array. Give a file of parameters alone.",
  ),
  'nothing in an npz': (weights.npz({}), ', .npz) has no array in it.'),
  'code in a pth': (
    weights.torch_zip('cposix\nsystem\n(Vtouch ran\ntR.'),
    f', .pth) asks for posix.system, and {RUNS}. Where you trust it, load it in PyTorch and save '
    'model.state_dict() alone.',
  ),
  'numbers in a pth': (
    torch_of('I3\n'), ', .pth) holds a that are no tensors. Save model.state_dict() alone.'
  ),
  'a storage cut short': (
    torch_of(weights.tensor(0, 'float32', 3, (3,), (1,))),
    ', .pth) is damaged or partial: buffer is smaller than requested size. Fetch it again.',
  ),
  'a tensor beyond its storage': (
    torch_of(weights.tensor(0, 'float32', 2, (2, 2), (1, 1))),
    ', .pth) is damaged or partial: a tensor of shape (2, 2) up to 2 in a storage of 2. '
    'Fetch it again.',
  ),
  'a tensor that runs backwards': (
    torch_of(weights.tensor(0, 'float32', 2, (2,), (-1,), offset=1)),
    ', .pth) is damaged or partial: a tensor of shape (2,), strides (-1,), offset 1. '
    'Fetch it again.',
  ),
  'the other byte order': (
    torch_of(weights.tensor(0, 'float32', 2, (2,), (1,)), order='big'),
    ', .pth) is of a big-endian machine. Save it again on a little-endian one.',
  ),
}  # fmt: skip


@pytest.mark.parametrize('kind', WRONG)
def test_wrong_files(tmp_path, kind, monkeypatch):
  """No code in them runs, and none of the texts talks the reader into loading pickles."""
  monkeypatch.chdir(tmp_path)
  content, text = WRONG[kind]
  path = tmp_path / 'model.npz'
  path.write_bytes(content)
  wanted = f'{path} ({len(content)} bytes{text}'
  with pytest.raises(InputError, match=f'^{re.escape(wanted)}$') as caught:
    pretrained.load(path)
  assert 'allow_pickle' not in str(caught.value)
  assert [file.name for file in tmp_path.iterdir()] == ['model.npz']


def test_no_file(tmp_path):
  path = tmp_path / 'model.npz'
  text = (
    f'no file {path}; give the path of an .npz, .safetensors or .pth file with parameters, or the '
    'workdir of a run.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    pretrained.load(path)


def test_directory_without_a_checkpoint(tmp_path):
  text = f'{tmp_path} is a directory without an intact checkpoint; give a workdir of train.py'
  with pytest.raises(InputError, match=f'^{re.escape(text)} or a file\\.$'):
    pretrained.load(tmp_path)
  pretrained.save(tmp_path / 'a.npz', tree())
  with pytest.raises(InputError, match=f'^{re.escape(text)}, or one of its files, a\\.npz\\.$'):
    pretrained.load(tmp_path)


def test_layout_of_another_network(tmp_path):
  path = tmp_path / 'vit.npz'
  path.write_bytes(weights.npz({'cls': np.ones(3), 'embedding/kernel': np.ones(3)}))
  with pytest.raises(
    InputError, match=f'^{re.escape(str(path))}: the 2 parameters are in no known'
  ):
    pretrained.load(path)


@pytest.mark.parametrize('write', ['npz', 'compressed npz', 'safetensors', 'pth'])
def test_any_damage_is_an_input_error(write):
  """Every cut, and a flip in every byte: an InputError or, in a byte that is idle, no harm."""
  good = CONTAINERS[write]({'c': np.arange(40, dtype=np.float32)})
  cuts = [good[:n] for n in range(len(good))]
  flips = [good[:n] + bytes([good[n] ^ 0xFF]) + good[n + 1 :] for n in range(len(good))]
  refused = 0
  for content in cuts + flips:
    try:
      found = formats.parse(content, 'model').arrays
    except InputError:
      refused += 1
    else:
      assert write == 'safetensors' or content in flips  # it has no checksum
      if write != 'safetensors':
        for leaf in found.values():
          np.testing.assert_array_equal(leaf, np.arange(40))
  assert refused >= len(cuts)


# --- What a file is ------------------------------------------------------------------------


def test_describe(tmp_path):
  params, path = tree(), tmp_path / 'weights'
  params['head']['kernel'] *= 0
  path.write_bytes(weights.npz(weights.older(params)))
  content = path.read_bytes()
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert program.summarize(path).splitlines() == [
    f'file        {path}',
    'kind        .npz',
    'layout      older',
    'model       Mixer of another size',
    'sizes       num_blocks 3, hidden_dim 8, tokens_mlp_dim 6, channels_mlp_dim 16',
    'patches     4 x 4 pixels, 3 channels, 4 tokens, as of images of 8 x 8',
    'head        5 classes, ALL ZEROS: it was never trained, and classifies nothing',
    f'parameters  {count:,} in 42 arrays of float32',
    f'bytes       {len(content):,}',
    f'sha256      {hashlib.sha256(content).hexdigest()}',
    'known as    unknown file; JFT-300M weights, H/14 of any kind and a B/16 or L/16 fine-tuned '
    'from ImageNet-21k to ImageNet were never released',
  ]


def test_describe_without_a_head_or_a_square(tmp_path):
  params = tree(image_size=(8, 12), num_classes=None)
  pretrained.save(tmp_path / 'a.npz', params)
  text = program.summarize(tmp_path / 'a.npz')
  assert '3 channels, 6 tokens, which make no square' in text and 'head        none' in text


def sizes_of(name):
  """What the shapes determine of a released model at 224 pixels, by the paper's table 1."""
  blocks, width = {'S': (8, 512), 'B': (12, 768), 'L': (24, 1024)}[name[0]]
  patch = int(name[2:])
  return dict(num_blocks=blocks, hidden_dim=width, patch_size=(patch, patch),
              tokens=(224 // patch) ** 2)  # fmt: skip


def test_released_files_are_as_large_as_their_parameters():
  """The listed size of each is 4 bytes a parameter and some 0.3 KiB of zip an array."""
  for entry in released.RELEASED:
    size = entry.path.split('Mixer-')[1].removesuffix('.npz').replace('_', '/')
    shapes = models.shapes(models.build(f'Mixer-{size}', entry.num_classes), 224)
    leaves = jax.tree.leaves(shapes)
    overhead = entry.mib * 2**20 - 4 * sum(leaf.size for leaf in leaves)
    assert 0.2 < overhead / len(leaves) / 1024 < 0.4, entry.path
    found = {**sizes_of(size), 'num_classes': entry.num_classes}
    name, folder = entry.path.split('/')[::-1]
    assert released.match(name, folder, round(entry.mib * 2**20), found) == [entry]
    assert released.match(name, folder, round((entry.mib + 0.02) * 2**20), found) == []


def test_released_files_that_look_alike():
  found, size = {**sizes_of('B/16'), 'num_classes': 1000}, round(228.47 * 2**20)
  folders = ['imagenet1k', 'sam', 'gsam']
  entries = released.match('Mixer-B_16.npz', 'Downloads', size, found)
  assert [entry.path for entry in entries] == [f'{f}/Mixer-B_16.npz' for f in folders]
  text = released.describe('Mixer-B_16.npz', 'Downloads', size, found)
  assert text.startswith('unknown file, of the same size and shapes as these released ones:\n')
  text = released.describe('Mixer-B_16.npz', 'imagenet1k', size, found)
  assert text.splitlines() == [
    'by name, size and shapes (no checksum was published) the released file',
    '  https://storage.googleapis.com/mixer_models/imagenet1k/Mixer-B_16.npz',
    '    upstream data: ImageNet, from scratch; head: 1000 classes; 224 pixels; '
    'pixels in [-1, 1] (not the ImageNet mean and deviation)',
    '    expected accuracy: ImageNet top-1 76.44 in the paper, 76.6 in timm; '
    'timm tags it goog_in21k_ft_in1k; it never saw ImageNet-21k',
  ]


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
  stacked = scanning.stack_blocks(params)
  assert set(stacked) == {'stem', 'pre_head_layer_norm', 'head', 'MixerBlocks'}
  kernel = stacked['MixerBlocks']['token_mixing']['Dense_0']['kernel']
  assert kernel.shape == (12, 4, 6)
  for i in range(12):
    wanted = params[f'MixerBlock_{i}']['token_mixing']['Dense_0']['kernel']
    np.testing.assert_array_equal(kernel[i], wanted)
  equal(jax.tree.map(np.asarray, scanning.unstack_blocks(stacked)), params)
  equal(scanning.unstack_blocks(params), params)


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
