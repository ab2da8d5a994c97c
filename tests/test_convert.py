"""Conversions: what other programs get, and that its outputs were compared."""

import json
import re
import subprocess
import sys

from etils import epath
import jax
import numpy as np
import pytest
import safetensors.numpy

from mixer import convert, models, pretrained
from mixer.checkpoints import manager
from mixer.errors import InputError
from mixer.models import scanning
from mixer.pretrained import __main__ as program
from mixer.pretrained import layouts
import reference
import runs
import weights
from weights import equal, tree


def test_npz_to_timm_and_back(tmp_path):
  """The same file, to the byte."""
  paths = [tmp_path / name for name in ('a.npz', 'b.safetensors', 'c.npz')]
  pretrained.save(paths[0], tree(blocks=11))
  line = convert.convert(paths[0], paths[1])
  assert line.startswith(f'{paths[0]} -> {paths[1]}: logits of 3 random images differ by 0 at most')
  convert.convert(paths[1], paths[2])
  assert paths[2].read_bytes() == paths[0].read_bytes()
  state = safetensors.numpy.load_file(paths[1])
  for name, array in weights.timm(tree(blocks=11)).items():
    np.testing.assert_array_equal(state[name], array)
  assert len(state) == 6 + 12 * 11


@pytest.mark.parametrize('layout', ['older', 'scanned', 'timm'])
def test_any_layout_becomes_the_released_one(tmp_path, layout):
  (tmp_path / 'in').write_bytes(weights.npz(getattr(weights, layout)(tree())))
  convert.convert(tmp_path / 'in', tmp_path / 'out.npz')
  with np.load(tmp_path / 'out.npz') as arrays:
    assert {name: arrays[name].tobytes() for name in arrays.files} == {
      name: array.tobytes() for name, array in weights.flat(tree()).items()
    }


RUN_STABLEHLO = """
import sys
import jax, jax.export, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
assert program.platforms == ('cpu', 'cuda', 'tpu')
images = np.load(sys.argv[2])
np.save(sys.argv[3], np.concatenate([program.call(images[:1]), program.call(images[1:])]))
assert not [name for name in sys.modules if name.split('.')[0] in ('mixer', 'flax')]
"""


@pytest.mark.parametrize('num_classes', [5, None])
def test_stablehlo_runs_without_this_code(tmp_path, num_classes):
  """In a process of its own, elsewhere, in batches of 1 and 4, against NumPy."""
  params = tree(image_size=(8, 12), num_classes=num_classes)
  pretrained.save(tmp_path / 'a.npz', params)
  line = convert.convert(tmp_path / 'a.npz', tmp_path / 'a.stablehlo', image_size=(8, 12))
  assert ('pre-logits of 3' if num_classes is None else ': logits of 3') in line
  images = np.float32(np.random.default_rng(1).uniform(-1, 1, (5, 8, 12, 3)))
  np.save(tmp_path / 'images.npy', images)
  paths = [str(tmp_path / name) for name in ('a.stablehlo', 'images.npy', 'logits.npy')]
  environment = runs.environment()
  environment.pop('PYTHONPATH', None)
  command = [sys.executable, '-c', RUN_STABLEHLO, *paths]
  subprocess.run(command, check=True, cwd=tmp_path, env=environment)
  _, wanted = reference.forward(params, images, (4, 4))
  np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), wanted, rtol=1e-5, atol=1e-5)


def test_outputs_that_differ_are_an_error(tmp_path, monkeypatch):
  pretrained.save(tmp_path / 'a.npz', tree())
  true = layouts.to_timm

  def swapped(flat):
    state = true(flat)
    state['norm.bias'] = state['norm.bias'] + np.float32(1)
    return state

  monkeypatch.setattr(layouts, 'to_timm', swapped)
  with pytest.raises(InputError, match=r'was written, but its logits differ from those of .* by '):
    convert.convert(tmp_path / 'a.npz', tmp_path / 'a.safetensors')


def test_wrong_requests(tmp_path):
  source = tmp_path / 'a.npz'
  pretrained.save(source, tree(image_size=(8, 12)))
  words = {
    'a.pb': "give a name that ends in one of ['.npz', '.safetensors', '.stablehlo', '.onnx', '/'].",
    'a.npz': f'{source} is the input too; give the output another name.',
    'none/b.npz': f'there is no directory {tmp_path}/none.',
    'b.npz': f'{source}: its parameters do not determine the size of the images; give '
    '--image_size=HEIGHT,WIDTH.',
  }
  for name, text in words.items():
    with pytest.raises(InputError, match=f'{re.escape(text)}$'):
      convert.convert(source, tmp_path / name)
  with pytest.raises(InputError, match='does not fit the model in 9 of 42'):
    convert.convert(source, tmp_path / 'b.npz', image_size=(8, 8))
  flat = weights.flat(tree()) | {'surplus/kernel': np.ones(2)}
  (tmp_path / 'c.npz').write_bytes(weights.npz(flat))
  with pytest.raises(InputError, match=r'surplus   surplus/kernel \(2,\)'):
    convert.convert(tmp_path / 'c.npz', tmp_path / 'd.npz')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.npz', 'c.npz']


@pytest.mark.parametrize(
  ('target', 'text'),
  [
    ('out.npz', ': it is a directory; give the name of a file.'),
    ('https://x.org/b.npz', ': no filesystem of this kind can be reached from here.'),
    ('/proc/b.npz', ': No such file or directory.'),
    ('a.npz/b.npz', ': there is no directory '),
  ],
)
def test_outputs_that_cannot_be_written(tmp_path, monkeypatch, target, text):
  monkeypatch.chdir(tmp_path)
  pretrained.save('a.npz', tree())
  epath.Path('out.npz').mkdir()
  with pytest.raises(InputError, match=f'^cannot write {target}{re.escape(text)}'):
    convert.convert('a.npz', target)


def test_a_run_is_read_and_converted(tmp_path):
  """Its newest intact checkpoint, here of stacked blocks."""
  saved = manager.Checkpoints(epath.Path(tmp_path) / 'checkpoints', keep_last=2)
  for step in (10, 20):
    stacked = jax.tree.map(jax.numpy.asarray, scanning.stack_blocks(tree(seed=step)))
    saved.save(step, {'params': stacked, 'step': np.int32(step)})
  saved.close()
  equal(pretrained.load(tmp_path), tree(seed=20))
  identity = pretrained.open(tmp_path).identity
  assert identity['step'] == 20 and len(identity['sha256']) == 64
  assert identity['bytes'] > sum(leaf.nbytes for leaf in jax.tree.leaves(tree()))
  described = program.summarize(tmp_path)
  assert f'file        {tmp_path}, step 20\nkind        workdir of a run\n' in described
  assert 'layout      scanned' in described
  convert.convert(tmp_path, tmp_path / 'a.safetensors')
  equal(pretrained.load(tmp_path / 'a.safetensors'), tree(seed=20))
  files = [path for path in (tmp_path / 'checkpoints' / '20').rglob('*') if path.is_file()]
  max(files, key=lambda path: path.stat().st_size).write_bytes(b'')
  equal(pretrained.load(tmp_path), tree(seed=10))


DESCRIBED = {
  'image_size': (8, 12),
  'channels': 3,
  'preprocessing': {'name': 'none', 'value_range': [-1, 1]},
  'loss': 'softmax',
}
MODELS = {
  'Mixer': {'name': 'Mixer', 'num_blocks': 3, **weights.SIZES, 'dtype': 'bfloat16'},
  'untied': {'name': 'Mixer', 'num_blocks': 3, **weights.SIZES, 'untie_tokens': True},
  'BiT': {'name': 'BiT', 'stage_sizes': (1,), 'width': 8, 'groups': 4},
  # The number of heads is in no shape of timm's names.
  'ViT': {
    'name': 'ViT', 'num_blocks': 2, 'hidden_dim': 12, 'mlp_dim': 8, 'num_heads': 3, 'patch_size': 4,
  },
}  # fmt: skip


def described_model(folder, name):
  """(the model, its random parameters) of MODELS, which are written to `folder` as a run does."""
  net = models.build(**MODELS[name], num_classes=5)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), models.shapes(net, (8, 12))
  )
  facts = {**DESCRIBED, 'model': {**MODELS[name], 'num_classes': 5}}
  pretrained.save_model(epath.Path(folder), params, facts)
  return net.clone(dtype='float32'), params


@pytest.mark.parametrize('name', MODELS)
def test_a_described_model(tmp_path, name):
  """What its run has recorded is used: any model, any image size; computed in float32."""
  net, params = described_model(tmp_path, name)
  source = tmp_path / 'model.npz'
  for ending in ('npz', 'stablehlo'):
    line = convert.convert(source, tmp_path / f'out.{ending}')
    assert line.startswith(f'{source} -> {tmp_path}/out.{ending}: logits of 3 random images differ')
  equal(pretrained.load(tmp_path / 'out.npz'), params)
  converted = pretrained.open(tmp_path / 'out.npz').description
  recorded = pretrained.open(source).description
  assert converted.image_size == recorded.image_size and converted.loss == recorded.loss
  assert converted.preprocessing == recorded.preprocessing
  assert {**converted.model, 'num_classes': 5} == {**recorded.model, 'num_classes': 5}
  assert not (tmp_path / 'out.stablehlo.json').exists()
  images = np.float32(np.random.default_rng(1).uniform(-1, 1, (2, 8, 12, 3)))
  run = jax.export.deserialize(bytearray((tmp_path / 'out.stablehlo').read_bytes())).call
  wanted = models.apply_function(net)(params, images)
  np.testing.assert_allclose(run(images), wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
  if name == 'untied':
    with pytest.raises(InputError, match=r"timm's Mixer has no place for "):
      convert.convert(source, tmp_path / 'out.safetensors')
  else:
    line = convert.convert(source, tmp_path / 'out.safetensors')
    assert line.endswith(convert.GELU_NOTE) == (name != 'BiT')
    equal(pretrained.load(tmp_path / 'out.safetensors'), params)
  with pytest.raises(InputError, match=r"model.json describes .*; leave out \['--image_size'\]"):
    convert.convert(source, tmp_path / 'out.npz', image_size=(12, 8))


def test_onnx_without_jax2onnx(tmp_path, monkeypatch):
  described_model(tmp_path, 'Mixer')
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(InputError, match=r"needs jax2onnx: pip install '\.\[onnx\]'"):
    convert.convert(tmp_path / 'model.npz', tmp_path / 'a.onnx')


@pytest.mark.filterwarnings('ignore')  # of jax2onnx and what it imports
@pytest.mark.parametrize('name', ['Mixer', 'ViT', 'BiT'])
def test_onnx(tmp_path, name):
  """ONNX Runtime gives the logits for a batch of any size."""
  runtime = pytest.importorskip('onnxruntime')
  pytest.importorskip('jax2onnx')
  net, params = described_model(tmp_path, name)
  with jax.numpy_rank_promotion('allow'):  # by which jax2onnx replaces layers of Flax
    line = convert.convert(tmp_path / 'model.npz', tmp_path / 'a.onnx')
  assert line.startswith(f'{tmp_path}/model.npz -> {tmp_path}/a.onnx: logits of 3 random images')
  session = runtime.InferenceSession(tmp_path / 'a.onnx', providers=['CPUExecutionProvider'])
  assert session.get_inputs()[0].shape == ['batch', 8, 12, 3]
  images = np.float32(np.random.default_rng(1).uniform(-1, 1, (7, 8, 12, 3)))
  wanted = np.asarray(models.apply_function(net)(params, images))
  (logits,) = session.run(['logits'], {'images': images})
  np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


CONFIG = {
  'train_input': {'source': 'digits', 'split': 'train'},
  'evals': {},
  'model': {'name': 'Mixer', 'num_blocks': 3, **weights.SIZES},
  'loss': 'softmax',
  'checkpoints': {'keep_best': 'val/top1'},
}


def test_the_best_checkpoint_of_a_stopped_run(tmp_path):
  """With what the run has recorded, also as the run's own model.npz."""
  run = tmp_path / 'run'
  saved = manager.Checkpoints(epath.Path(run) / 'checkpoints', keep_last=2, keep_best='val/top1')
  for step, score in ((10, 0.7), (20, 0.6)):
    params = jax.tree.map(jax.numpy.asarray, tree(seed=step))
    saved.save(step, {'params': params, 'step': np.int32(step)})
    saved.add_results(step, {'val/top1': score})
  saved.close()
  (run / 'config.json').write_text(json.dumps(CONFIG))
  (run / 'classes.json').write_text(json.dumps(list('abcde')))
  line = convert.convert(run, tmp_path / 'best.npz', which='best')
  assert line.startswith(f'{run}, step 10 -> {tmp_path}/best.npz: ')
  found = pretrained.open(tmp_path / 'best.npz')
  equal(found.params, tree(seed=10))
  described = found.describe()
  assert described.class_names == tuple('abcde') and described.loss == 'softmax'
  assert described.image_size == (8, 8) and described.preprocessing['name'] == 'none'
  convert.convert(run, run / 'model.npz', which='20')
  found = pretrained.open(run)
  equal(found.params, tree(seed=20))
  assert found.description == pretrained.open(run / 'model.npz').description
  text = f'{run}/config.json would describe {run}/config.npz, and is another file: move it away.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    convert.convert(run, run / 'config.npz')
  with pytest.raises(InputError, match=f'^{run}/classes.json is damaged in line 1: a JSON object'):
    convert.convert(run, run / 'classes.npz')
  assert json.loads((run / 'classes.json').read_text()) == list('abcde')


def test_a_model_of_permuted_images_is_refused(tmp_path):
  section = {'kind': 'global', 'seed': 3, 'patch_size': 4}
  pretrained.save_model(epath.Path(tmp_path), tree(), {**DESCRIBED, 'permutation': section})
  text = (
    f'{tmp_path}/model.npz was trained with the input permutation {section}, which '
    f'{tmp_path}/x.npz cannot contain, and the parameters need it. Use mixer.predict or '
    'evaluate.py.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    convert.convert(tmp_path / 'model.npz', tmp_path / 'x.npz')
  assert not (tmp_path / 'x.npz').exists()


@pytest.mark.slow
def test_programs(tmp_path):
  """On the command line: what is printed, what is kept, and how a mistake ends."""
  env = runs.environment()
  sizes = dict(hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32, patch_size=2)
  model = models.build('Mixer', 10, num_blocks=2, **sizes)
  params = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), models.shapes(model, 8, 1))
  source, target = tmp_path / 'a.npz', tmp_path / 'a.safetensors'
  source.write_bytes(weights.npz(weights.flat(params, 'params/')))

  def run(*arguments):
    command = [sys.executable, '-m', 'mixer.convert', *map(str, arguments)]
    return subprocess.run(command, cwd=runs.ROOT, env=env, text=True, capture_output=True)

  done = run(source, target)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'{source} -> {target}: logits of 3 random images differ by 0 at')
  assert done.stdout.endswith(f'\n{convert.GELU_NOTE}\n')
  wrong = run(source)
  assert (wrong.returncode, wrong.stderr) == (
    2,
    f"error: the positional arguments are ['{source}']; wanted: SOURCE TARGET. "
    '--help lists the flags.\n',
  )
  wrong = run(source, tmp_path / 'b.npz', '--image_size=8,x')
  assert (wrong.returncode, wrong.stderr) == (
    2, 'error: --image_size=8,x: give SIDE or HEIGHT,WIDTH in pixels, as in 224.\n'
  )  # fmt: skip
  flags = [flag for flag in runs.TINY if 'model' in flag]
  config = f'--config={runs.ROOT}/configs/digits.py'
  status, output = runs.run('evaluate.py', config, f'--checkpoint={target}', *flags, env=env)
  assert status == 0, output
  sha256 = pretrained.open(target).identity['sha256']
  assert f'sha256 {sha256}' in output
  assert json.loads((tmp_path / 'a.evaluation' / 'digits.json').read_text())['sha256'] == sha256
