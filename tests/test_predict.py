"""mixer.predict as a user meets it, and what it makes of model files and of image files."""

import csv
import dataclasses
import glob
import io
import json
import re
import shutil
import subprocess
import sys
import time
import types

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from mixer import input as inputs
from mixer import labels, models, pretrained
from mixer import predict as program
from mixer.errors import InputError
from mixer.input import folders, image_files, single_images
from mixer.models import permutations
import reference
import runs
import sets
import weights

SMALL = dict(num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24, patch_size=16)


def predict(*words, env, input=''):
  """(exit status, standard output, standard error)."""
  done = subprocess.run(
    [sys.executable, '-m', 'mixer.predict', '--require=cpu', *map(str, words)],
    cwd=runs.ROOT, env=env, text=True, capture_output=True, timeout=300, input=input,
  )  # fmt: skip
  return done.returncode, done.stdout, done.stderr


def random_params(image_size, num_classes=1000, channels=3, **options):
  net = models.build('Mixer', num_classes, **SMALL, **options)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32),
    models.shapes(net, image_size, channels),
  )


def outputs(params, pixels, num_classes):
  """What the model returns for uint8 pixels."""
  patch = params['stem']['kernel'].shape[0]
  first = params['MixerBlock_0']
  net = models.build(
    'Mixer',
    num_classes,
    patch_size=patch,
    num_blocks=sum(name.startswith('MixerBlock_') for name in params),
    hidden_dim=len(params['stem']['bias']),
    tokens_mlp_dim=len(first['token_mixing']['Dense_0']['bias']),
    channels_mlp_dim=len(first['channel_mixing']['Dense_0']['bias']),
  )
  used = {k: v for k, v in params.items() if k != 'head' or num_classes}
  return np.asarray(net.apply({'params': used}, np.float32(pixels) / 127.5 - 1))


@pytest.fixture(scope='module')
def env():
  return runs.environment()


@pytest.fixture(scope='module')
def without_tensorflow(tmp_path_factory, env):
  path = tmp_path_factory.mktemp('site')
  (path / 'sitecustomize.py').write_text('import sys\nsys.modules["tensorflow"] = None\n')
  return {**env, 'PYTHONPATH': str(path)}


# --- A model of train.py -------------------------------------------------------------------


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, env):
  path = tmp_path_factory.mktemp('run') / 'digits'
  flags = runs.train_flags(
    path, *runs.TINY, '--config.total_steps=100', '--config.optim.schedule.warmup_steps=10',
    '--config.model.dropout=0.0',
    *(f'--config.every.{name}=100' for name in ('log', 'evaluate', 'checkpoint')),
  )  # fmt: skip
  status, output = runs.run('train.py', *flags, env=env)
  assert status == 0, output
  return path


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  """(folder of PNG files of the test digits, their pixels, their labels)."""
  folder = tmp_path_factory.mktemp('digits')
  data = inputs.build(source='digits', split='test', batch_size=360)
  batch = next(data.eval_batches(360, 0, 1))
  for i, image in enumerate(batch['image']):
    path = folder / f'{i // 100}' / f'{i:03}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image[..., 0]).save(path)
  return folder, batch['image'], batch['label']


def test_predictions_are_what_evaluation_counted(workdir, digits, without_tensorflow):
  folder, pixels, truth = digits
  status, output, errors = predict(
    f'--checkpoint={workdir}',
    '--json',
    '--batch_size=77',
    f'{folder}/**/*.png',
    env=without_tensorflow,
  )
  assert status == 0 and errors == ''
  found = [json.loads(line) for line in output.splitlines()]
  assert [line['file'] for line in found] == [str(p) for p in sorted(folder.glob('*/*.png'))]
  top1 = np.mean([line['top'][0]['index'] == label for line, label in zip(found, truth)])
  top5 = np.mean(
    [label in [guess['index'] for guess in line['top']] for line, label in zip(found, truth)]
  )
  row = runs.rows(workdir)[-1]
  assert (top1, top5) == (row['test/top1'], row['test/top5']) and 0.3 < top1 < 1

  logits = outputs(pretrained.load(workdir / 'model.npz'), pixels, 10)
  wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  for line, row in zip(found, wanted):
    indices = [guess['index'] for guess in line['top']]
    values = [guess['probability'] for guess in line['top']]
    np.testing.assert_allclose(values, np.sort(row)[::-1][:5], atol=1e-5)
    np.testing.assert_allclose(values, row[indices], atol=1e-5)
    assert [(g['synset'], g['name']) for g in line['top']] == [('', str(i)) for i in indices]


def test_the_table_and_what_is_skipped(workdir, digits, tmp_path, without_tensorflow):
  folder, pixels, _ = digits
  Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / 'b_tall.png')
  Image.fromarray(pixels[7, ..., 0]).convert('RGB').save(tmp_path / 'c_colour.png')
  (tmp_path / 'd_text.png').write_bytes(b'hello')
  (tmp_path / 'e_cut.png').write_bytes((folder / '0' / '000.png').read_bytes()[:60])
  (tmp_path / 'a.PNG').write_bytes((folder / '0' / '007.png').read_bytes())
  (tmp_path / '.hidden.png').write_bytes(b'')
  (tmp_path / 'notes.md').write_text('no image')
  status, output, errors = predict(
    f'--checkpoint={workdir / "model.npz"}', '--top=2', tmp_path, env=without_tensorflow
  )
  assert status == 2
  name, *lines = output.splitlines()
  assert name == f'{tmp_path}/a.PNG' and len(lines) == 8
  assert lines[2] == f'{tmp_path}/b_tall.png'
  assert lines[5:] == [f'{tmp_path}/c_colour.png', *lines[:2]]  # the same picture
  best = np.argmax(outputs(pretrained.load(workdir / 'model.npz'), pixels[7:8], 10))
  assert re.fullmatch(rf'  0\.\d{{6}}      {best}  {best}', lines[0])
  assert errors.splitlines()[0].startswith(
    f'skipped {tmp_path}/d_text.png: cannot identify image file'
  )
  assert errors.splitlines()[1].startswith(f'skipped {tmp_path}/e_cut.png: ')
  assert set(errors.splitlines()[2:4]) == {
    '1 of 5 images: resized to 8 x 8 pixels, without keeping its shape',
    '1 of 5 images: made grey of its colours, since the model takes one channel',
  }
  assert errors.splitlines()[4:] == ['error: 2 of 5 images could not be read, see above.']

  status, output, errors = predict(
    f'--checkpoint={workdir}', '--strict', tmp_path, env=without_tensorflow
  )
  assert (status, output) == (2, '')
  assert errors.startswith(f'error: {tmp_path}/d_text.png: cannot identify image file')


def test_features(workdir, digits, tmp_path, without_tensorflow):
  folder, pixels, _ = digits
  files = [folder / '0' / f'{i:03}.png' for i in (3, 1, 2)]
  status, output, errors = predict(
    f'--checkpoint={workdir}', f'--features={tmp_path}/out.npy', '--batch_size=2', files[0],
    tmp_path / 'gone.png', *files[1:], env=without_tensorflow,
  )  # fmt: skip
  assert (status, output) == (2, '')
  assert errors == f'error: no file or folder {tmp_path}/gone.png.\n'

  (tmp_path / 'bad.png').write_bytes(b'')
  names = [files[0], tmp_path / 'bad.png', '', tmp_path / 'gone.png', *files[1:]]
  status, output, errors = predict(
    f'--checkpoint={workdir}', f'--features={tmp_path}/out.npy', '--batch_size=2', '-',
    input='\n'.join(map(str, names)), env=without_tensorflow,
  )  # fmt: skip
  assert (status, output) == (2, '')
  assert errors.splitlines() == [
    f'skipped {tmp_path}/bad.png: cannot identify image file',
    f'skipped {tmp_path}/gone.png: No such file or directory',
    f'{tmp_path}/out.npy: 3 x 16; the files are named in out.txt',
    'error: 2 of 5 images could not be read, see above.',
  ]
  assert not list(tmp_path.glob('*.partial'))
  assert (tmp_path / 'out.txt').read_text().splitlines() == [str(path) for path in files]
  found = np.load(tmp_path / 'out.npy', allow_pickle=False)
  assert found.dtype == np.float32
  wanted = outputs(pretrained.load(workdir / 'model.npz'), pixels[[3, 1, 2]], None)
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_is_printed_in_another_place(workdir, digits, tmp_path, without_tensorflow):
  """Into a pipe whose reader ends, onto a full disk, in an encoding that lacks letters."""
  name = tmp_path / 'dígit \udcff.png'
  shutil.copy(digits[0] / '0' / '003.png', name)
  ascii_only = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONPATH': ''}
  command = f'{sys.executable} -m mixer.predict --require=cpu --checkpoint={workdir} '
  for more, env, wanted in (
    (f'{digits[0]} {digits[0]} | head -1', {}, (0, f'{digits[0]}/0/000.png\n', '')),
    (
      f'{digits[0]} >/dev/full', {},
      (2, '', 'error: the results cannot be printed: No space left on device.\n'),
    ),
    (f'"{name}" --top=1 | head -1', ascii_only, (0, f'{tmp_path}/dígit \\udcff.png\n', '')),
  ):  # fmt: skip
    done = subprocess.run(
      ['bash', '-o', 'pipefail', '-c', command + more], cwd=runs.ROOT, capture_output=True,
      env={**without_tensorflow, **env}, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == wanted


def without_its_end(workdir, tmp_path):
  """The workdir as it is before the run has finished."""
  path = tmp_path / 'unfinished'
  shutil.copytree(workdir, path)
  for name in ('model.npz', 'model.json'):
    (path / name).unlink()
  return path


def test_a_run_that_has_not_finished(workdir, digits, tmp_path, without_tensorflow):
  """Its newest checkpoint, as evaluate.py reads it, described by config.json and classes.json."""
  folder, _, truth = digits
  unfinished = without_its_end(workdir, tmp_path)
  status, output, errors = predict(
    f'--checkpoint={unfinished}', '--json', folder, env=without_tensorflow
  )
  assert status == 0 and errors == ''
  found = [json.loads(line)['top'] for line in output.splitlines()]
  top1 = np.mean([top[0]['index'] == label for top, label in zip(found, truth)])
  assert top1 == runs.rows(workdir)[-1]['test/top1']
  assert [guess['name'] for guess in found[0]] == [str(guess['index']) for guess in found[0]]

  finished, opened = (pretrained.open(path) for path in (workdir, unfinished))
  weights.equal(opened.params, finished.params)
  weights.equal(opened.params, pretrained.open(unfinished).params)  # of evaluate.py
  assert opened.source == f'{unfinished}, step 100'
  status, output, errors = predict(
    f'--checkpoint={unfinished}', '--which=best', '--csv', folder, env=without_tensorflow
  )
  assert (status, errors) == (0, '')
  rows = list(csv.DictReader(io.StringIO(output)))
  files = sorted(folder.glob('*/*.png'))
  assert rows == [
    {'file': str(file)} | {key: str(value) for key, value in guess.items()}
    for file, guesses in zip(files, found, strict=True)
    for guess in guesses
  ]
  changes = {'file': workdir / 'model.json', 'assumed': ()}
  assert dataclasses.replace(opened.describe(), **changes) == finished.describe()


def test_a_run_that_has_saved_nothing(tmp_path, workdir):
  (tmp_path / 'config.json').write_bytes((workdir / 'config.json').read_bytes())
  text = f'{tmp_path} is a directory without an intact checkpoint; give a workdir of train.py or a '
  with pytest.raises(InputError, match=f'^{re.escape(text)}file\\.$'):
    pretrained.open(tmp_path)


def test_a_model_of_permuted_images(tmp_path):
  """Probabilities and features are those of the images moved by hand, in NumPy."""
  section = {'kind': 'global', 'seed': 5, 'patch_size': 16}
  params = random_params(32, num_classes=4, channels=1)
  facts = {
    'model': {'name': 'Mixer', **SMALL, 'num_classes': 4}, 'image_size': 32, 'channels': 1,
    'permutation': section, 'preprocessing': {'name': 'none', 'value_range': [-1, 1]},
    'loss': 'softmax', 'class_names': 'abcd',
  }  # fmt: skip
  pretrained.save_model(epath.Path(tmp_path), params, facts)
  pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 1), np.uint8)
  moved = pixels.reshape(3, -1)[:, permutations.everywhere((32, 32), 16, 5)].reshape(pixels.shape)
  activations, logits = reference.forward(params, moved / 127.5 - 1, (16, 16))

  trained = pretrained.open(tmp_path)
  description = trained.describe()
  shown = {}
  batches = [(['x', 'y', 'z'], pixels)]
  program.classify(trained, description, iter(batches), top=4, show=shown.__setitem__)
  wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  for row, name in zip(wanted, 'xyz'):
    found = {class_name: probability for _, _, class_name, probability in shown[name]}
    np.testing.assert_allclose([found[c] for c in 'abcd'], row, atol=1e-5)
  program.write_features(
    epath.Path(tmp_path / 'f.npy'), trained, description, iter(batches)
  )  # fmt: skip
  np.testing.assert_allclose(np.load(tmp_path / 'f.npy'), activations['pre_logits'], atol=1e-5)


# --- A file in the released layout ---------------------------------------------------------


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  """(path, parameters) of a small Mixer for 32 x 32 pixels with 1000 classes."""
  path = tmp_path_factory.mktemp('released') / 'Mixer.npz'
  params = random_params(32)
  pretrained.save(path, params)
  return path, params


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """(folder of images of many shapes and kinds, what evaluation makes of them at 32 pixels)."""
  pytest.importorskip('tensorflow_datasets')
  folder = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(1)
  shapes = [(50, 40), (37, 90), (32, 32), (20, 31), (120, 100), (64, 48)]
  kinds = ['JPEG', 'PNG', 'BMP', 'JPEG', 'PNG', 'JPEG']
  contents = [sets.encode(sets.smooth(rng, *s), kind) for s, kind in zip(shapes, kinds)]
  for i, (kind, content) in enumerate(zip(kinds, contents)):
    (folder / f'{i}.{kind.lower()}').write_bytes(content)
  data_dir = tmp_path_factory.mktemp('sets')
  rows = [(content, i) for i, content in enumerate(contents)]
  sets.write_examples(data_dir, 'photos', {'test': rows}, num_classes=6)
  data = inputs.build(
    source='tfds', name='photos', split='test', batch_size=6, image_size=32, crop='resize_small',
    resize=37, data_dir=str(data_dir),
  )  # fmt: skip
  batch = next(data.eval_batches(6, 0, 1))
  return folder, batch['image'][np.argsort(batch['label'])], data.preprocessing


def test_the_pixels_are_those_of_evaluation(photos):
  folder, wanted, preprocessing = photos
  decode = single_images.decoder(json.loads(json.dumps(preprocessing)), [32, 32], 3)
  found = [decode(path.read_bytes()) for path in single_images.find([folder])]
  np.testing.assert_array_equal(found, wanted)


def test_a_released_file(released, photos, env, tmp_path):
  path, params = released
  folder, pixels, _ = photos
  (tmp_path / 'cut.jpg').write_bytes((folder / '0.jpeg').read_bytes()[:200])
  status, output, errors = predict(
    f'--checkpoint={path}', '--json', '--batch_size=4', '--top=3', folder, tmp_path, env=env
  )
  assert status == 2
  for line in (
    'assumed: the model is a Mixer of 2 blocks of width 16 (MLPs 24) on patches of 16 x 16 '
    'with a head of 1000 classes',
    'assumed: images of 32 x 32 pixels',
    'assumed: preprocessing: shorter side to 37, centre crop of 32, values in [-1, 1]',
    'assumed: loss: sigmoid, as in the released models',
    'assumed: classes: imagenet1k, from their number',
    f'skipped {tmp_path}/cut.jpg: jpeg::Uncompress failed. Invalid JPEG data or crop window.',
    'error: 1 of 7 images could not be read, see above.',
  ):
    assert line in errors.splitlines()
  found = [json.loads(line) for line in output.splitlines()]
  assert len(found) == 6
  wanted = 1 / (1 + np.exp(-outputs(params, pixels, 1000).astype(np.float64)))
  classes = labels.load('imagenet1k', 1000)
  for line, row in zip(found, wanted):
    indices = [guess['index'] for guess in line['top']]
    values = [guess['probability'] for guess in line['top']]
    np.testing.assert_allclose(values, np.sort(row)[::-1][:3], atol=1e-5)
    np.testing.assert_allclose(values, row[indices], atol=1e-5)
    assert [(g['synset'], g['name']) for g in line['top']] == [classes[i] for i in indices]


@pytest.mark.slow
def test_a_zero_head_gives_features_alone(tmp_path, photos, env):
  params = random_params(32, 21843)
  features = outputs(params, photos[1], None)
  params['head'] = jax.tree.map(np.zeros_like, params['head'])
  pretrained.save(tmp_path / 'zero.npz', params)
  words = (f'--checkpoint={tmp_path}/zero.npz', photos[0])
  status, output, errors = predict(*words, env=env)
  assert (status, output) == (2, '')
  assert errors.endswith(
    f'error: the head of {tmp_path}/zero.npz is all zeros, so it gives every image the same. '
    'Fine-tune it, use it for few-shot evaluation, or write its pre-logits with --features.\n'
  )
  status, output, errors = predict(*words, f'--features={tmp_path}/f.npy', env=env)
  assert (status, output) == (0, ''), errors
  np.testing.assert_allclose(np.load(tmp_path / 'f.npy'), features, atol=1e-5)


@pytest.mark.parametrize(
  ('num_classes', 'flags', 'message'),
  [
    (
      None,
      (),
      'PATH has no head, so it cannot classify. Fine-tune it, use it for few-shot evaluation, or '
      'write its pre-logits with --features.',
    ),
    (
      7,
      (),
      'the training loss of PATH, whose head has 7 classes, is not known; give --loss=sigmoid or '
      '--loss=softmax.',
    ),
    (7, ['--features=out.txt'], '--features=out.txt: give a name that ends in .npy.'),
    (7, ['--features=no/out.npy'], '--features=no/out.npy: there is no folder no.'),
    (
      7,
      ['--image_size=3,x'],
      '--image_size=3,x: give SIDE or HEIGHT,WIDTH in pixels, as in 224.',
    ),
  ],
)
def test_what_cannot_be_predicted(tmp_path, num_classes, flags, message, without_tensorflow):
  (tmp_path / 'a.png').write_bytes(b'')
  path = tmp_path / 'x.npz'
  pretrained.save(path, random_params(32, num_classes))
  status, output, errors = predict(f'--checkpoint={path}', tmp_path, *flags, env=without_tensorflow)
  assert (status, output) == (2, '')
  assert errors.endswith(f'error: {message}\n'.replace('PATH', str(path)))


def test_without_tensorflow_the_crop_says_what_is_missing(tmp_path, released, without_tensorflow):
  (tmp_path / 'a.png').write_bytes(b'')
  status, _, errors = predict(f'--checkpoint={released[0]}', tmp_path, env=without_tensorflow)
  assert status == 2
  assert "error: the preprocessing 'resize_small' needs a package that is not installed:" in errors


def test_parameters_that_are_not_finite(tmp_path, workdir, digits, without_tensorflow):
  params = pretrained.load(workdir / 'model.npz')
  params['stem']['bias'][0] = np.nan
  pretrained.save(tmp_path / 'model.npz', params)
  (tmp_path / 'model.json').write_bytes((workdir / 'model.json').read_bytes())
  status, output, errors = predict(
    f'--checkpoint={tmp_path}', digits[0] / '0' / '000.png', env=without_tensorflow
  )
  assert (status, output) == (2, '')
  assert errors.startswith(
    f'error: {tmp_path}/model.npz has 1 invalid parameters:\n  stem/bias: 1 NaN of 16\n'
  )


def test_words_without_a_flag_are_for_predict_alone(env):
  status, output = runs.run(
    'train.py', f'--config={runs.ROOT}/configs/digits.py', '--workdir=/dev/null/x', 'more', env=env
  )
  assert status == 2
  assert output.endswith(
    "error: the positional arguments are ['more']; wanted: none. --help lists the flags.\n"
  )


# --- Image files ---------------------------------------------------------------------------


def test_folders_are_walked_in_order(tmp_path):
  for name in ('b/z.png', 'b/a/1.Jpg', 'a.webp', 'c.GIF', 'd/e/f.bmp', 'x.JPEG', '.y.png', 'z.txt'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  found = single_images.find([tmp_path / 'z.txt', tmp_path, tmp_path / 'b' / 'z.png'])
  assert [str(path.relative_to(tmp_path)) for path in found] == [
    'z.txt', 'a.webp', 'b/a/1.Jpg', 'b/z.png', 'c.GIF', 'd/e/f.bmp', 'x.JPEG', 'b/z.png',
  ]  # fmt: skip


def stdin(monkeypatch, content):
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(content), 'utf-8'))


def test_patterns_match_what_glob_matches(tmp_path):
  for name in (
    'b/z.png', 'b/a/1.jpg', 'a.jpg', 'c/d/e/f.jpg', 'c/d/g.jpg', 'x[1].jpg', '.h/y.jpg', 'z.txt',
    'c/2.heif.txt', 'd.jpg/in.jpg',
  ):  # fmt: skip
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  for pattern in (
    '*', '*.jpg', '**/*.jpg', '**', '**/**/*.png', '?/*/*.jpg', '[ac]*/**/[!f].jpg', 'c/**/*.jpg',
    '*/d/**', 'b/a/*', 'b/../b/*.png',
  ):  # fmt: skip
    wanted = {
      epath.Path(path)
      for path in glob.glob(f'{tmp_path}/{pattern}', recursive=True)
      if path.endswith(('.jpg', '.png')) and not path.endswith('d.jpg/in.jpg')
    }
    found = list(single_images.find([f'{tmp_path}/{pattern}']))
    assert found == sorted(wanted) and found, pattern
  assert len(list(single_images.find([f'{tmp_path}/x[1].jpg']))) == 1  # the name of a file
  for pattern in ('*.gif', '*/*/*/*/*', 'z*'):
    with pytest.raises(InputError, match=rf'^no image matches {re.escape(str(tmp_path))}/.*: no .'):
      single_images.find([tmp_path / 'a.jpg', f'{tmp_path}/{pattern}'])
  with pytest.raises(InputError, match=f'the folder {tmp_path}/no cannot be read: No such file'):
    single_images.find([f'{tmp_path}/no/*.jpg'])


def test_folders_are_read_when_their_images_are_asked_for(tmp_path, monkeypatch):
  for name in ('a/1.png', 'b/c/2.png', 'd/3.png', 'e.png'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  entries, read = folders.entries, []
  monkeypatch.setattr(folders, 'entries', lambda path: read.append(path) or entries(path))
  found = single_images.find([tmp_path])
  assert len(set(read)) == 2 and next(found).name == '1.png'
  assert len(set(read)) == 2 and [path.name for path in found] == ['2.png', '3.png', 'e.png']
  assert len(set(read)) == 5
  read.clear()
  list(single_images.find([tmp_path / '*.png']))
  assert set(read) == {str(tmp_path)}  # since nothing deeper can match


def test_a_list_on_standard_input(monkeypatch):
  stdin(monkeypatch, b'a b.png\n\n./c.png\r\nd\xff.png')
  found = single_images.find(['-'])
  assert list(map(str, found)) == ['a b.png', 'c.png', 'd\udcff.png']
  stdin(monkeypatch, b'\n')
  with pytest.raises(InputError, match='^standard input names no image; give the name of a file'):
    list(single_images.find(['-']))


def test_only_some_images_are_in_memory():
  started = []
  values = (started.append(i) or i for i in range(500))
  for taken, pair in enumerate(program.map_ahead(lambda i: i * i, values, 7)):
    assert pair == (taken, taken**2) and len(started) == min(taken + 7, 500)
  assert taken == 499


def test_the_progress_bar(tmp_path, monkeypatch, capsys):
  for i in range(3):
    (tmp_path / f'{i}.png').write_bytes(b'')
  assert program.progress_bar([str(tmp_path)]).disable
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  with program.progress_bar([str(tmp_path)]) as bar:
    end = time.monotonic() + 60
    while bar.total is None and time.monotonic() < end:
      time.sleep(0.01)
    bar.update(3)
    program.note('skipped x')
  written = capsys.readouterr().err
  assert '3/3 [' in written and '\rskipped x\n' in written
  with program.progress_bar(['-']) as bar:
    assert bar.total is None and not bar.disable


def test_one_format_at_a_time(tmp_path, monkeypatch):
  given = types.SimpleNamespace(json=False, csv=True, features=f'{tmp_path}/f.npy')
  monkeypatch.setattr(program.flags, 'FLAGS', given)
  with pytest.raises(InputError, match='^give only one of --json, --csv and --features.$'):
    program.main(str(tmp_path))
  with pytest.raises(InputError, match='^--features=gs://a/f.npy: give a file on this machine.$'):
    program.check_output('gs://a/f.npy')


def test_nothing_to_look_at(tmp_path):
  with pytest.raises(InputError) as caught:
    single_images.find([])
  assert str(caught.value) == (
    'no image is given; name image files, folders of them, patterns, or - for a list on standard '
    'input.'
  )
  with pytest.raises(InputError) as caught:
    single_images.find([tmp_path])
  formats = ', '.join(image_files.ENDINGS)
  assert str(caught.value) == f'the folder {tmp_path} has no image: no {formats} file.'


@pytest.mark.parametrize(
  'preprocessing',
  [{'name': 'warp', 'value_range': [-1, 1]}, {'name': 'none', 'value_range': [0, 1]}],
)
def test_an_unknown_preprocessing(preprocessing):
  with pytest.raises(InputError) as caught:
    single_images.decoder(preprocessing, (8, 8), 1)
  assert str(caught.value) == (
    f'unknown preprocessing {preprocessing["name"]!r} to {preprocessing["value_range"]}; known are '
    "['direct', 'none', 'resize', 'resize_small', 'timm'] to [-1, 1]."
  )


def test_images_as_they_are(tmp_path):
  pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
  preprocessing = {'name': 'none', 'value_range': [-1, 1]}
  colour = single_images.decoder(preprocessing, (4, 5), 3, on_change=pytest.fail)
  np.testing.assert_array_equal(colour(sets.encode(pixels)), pixels)
  palette = Image.fromarray(pixels).quantize(256)
  palette.save(tmp_path / 'p.png')
  np.testing.assert_array_equal(
    colour((tmp_path / 'p.png').read_bytes()), np.asarray(palette.convert('RGB'))
  )
  grey = single_images.decoder(preprocessing, (4, 5), 1, on_change=pytest.fail)
  np.testing.assert_array_equal(grey(sets.encode(pixels[..., 0])), pixels[..., :1])
  Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / 'deep.png')
  with pytest.raises(InputError, match=r'it has 4 x 5 pixels of 1 channels \(I;16\), and the'):
    grey((tmp_path / 'deep.png').read_bytes())


RGB, RGBA = (200, 100, 50), (200, 100, 50, 30)
TALL = 'resized to 4 x 5 pixels, without keeping its shape'
GREY = 'made grey of its colours, since the model takes one channel'
EQUAL = 'made three equal channels of its grey, since the model takes colour'
OPAQUE = 'its transparency left out'


@pytest.mark.parametrize(
  ('mode', 'colour', 'shape', 'channels', 'wanted', 'told'),
  [
    ('RGB', RGB, (4, 5), 1, 124, [GREY]),  # 0.299 R + 0.587 G + 0.114 B
    ('RGBA', RGBA, (4, 5), 1, 124, [OPAQUE, GREY]),
    ('RGBA', RGBA, (9, 3), 3, RGB, [OPAQUE, TALL]),
    ('LA', (70, 30), (4, 5), 1, 70, [OPAQUE]),
    ('LA', (70, 30), (4, 5), 2, (70, 30), []),
    ('RGBA', (*RGB, 255), (40, 40), 4, (*RGB, 255), [TALL]),
    ('L', 70, (4, 5), 3, (70, 70, 70), [EQUAL]),
    ('1', 1, (1, 60), 1, 255, [TALL]),
    ('1', 1, (4, 5), 3, (255, 255, 255), [EQUAL]),
    ('P', 0, (4, 5), 1, 124, [GREY]),
  ],
)
def test_other_channels_and_sizes(mode, colour, shape, channels, wanted, told):
  image = Image.new(mode, shape[::-1], colour)
  if mode == 'P':
    image.putpalette(RGB)
  content = io.BytesIO()
  image.save(content, 'PNG')
  found = []
  decode = single_images.decoder(
    {'name': 'none', 'value_range': [-1, 1]}, (4, 5), channels, on_change=found.append
  )
  pixels = decode(content.getvalue())
  assert pixels.dtype == np.uint8 and pixels.shape == (4, 5, channels)
  assert (pixels == np.uint8(wanted)).all() and found == told


@pytest.mark.parametrize(
  ('mode', 'colour', 'kind', 'wanted', 'told'),
  [
    ('CMYK', (0, 255, 255, 0), 'JPEG', (254, 0, 0), ['made RGB of CMYK']),
    ('CMYK', (255, 255, 255, 255), 'TIFF', 0, ['made RGB of CMYK', GREY]),
    ('YCbCr', (90, 128, 128), 'TIFF', 90, ['made RGB of YCbCr', GREY]),
  ],
)
def test_other_colours(mode, colour, kind, wanted, told):
  content, found = io.BytesIO(), []
  Image.new(mode, (5, 4), colour).save(content, kind)
  channels = np.size(wanted)
  decode = single_images.decoder(
    {'name': 'none', 'value_range': [-1, 1]}, (4, 5), channels, on_change=found.append
  )
  pixels = decode(content.getvalue()).astype(int)
  assert pixels.shape == (4, 5, channels) and np.abs(pixels - wanted).max() <= 2
  assert found == told


@pytest.mark.parametrize(
  ('mode', 'channels'), [('L', 2), ('RGB', 4), ('LA', 4), ('RGB', 2), ('L', 5)]
)
def test_channels_that_cannot_be_made(mode, channels):
  content = io.BytesIO()
  Image.new(mode, (5, 4)).save(content, 'PNG')
  decode = single_images.decoder({'name': 'none', 'value_range': [-1, 1]}, (4, 5), channels)
  with pytest.raises(InputError, match=rf'it has .* \({mode}\), and the model takes {channels} of'):
    decode(content.getvalue())
