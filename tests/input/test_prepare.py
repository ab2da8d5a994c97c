"""`python -m mixer.input.prepare`, as a user runs it; nothing may ask for the network."""

from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from mixer import input
from mixer.input import image_files
import runs
import sets

ROOT = Path(__file__).parents[2]
NO_NETWORK = """
import socket
def refuse(*_):
  raise AssertionError('the network was asked for')
socket.socket.connect = socket.getaddrinfo = refuse
"""


@pytest.fixture
def prepare(tmp_path):
  """Runs it with the given flags: (exit status, stdout, stderr)."""

  def run(*arguments, **environment):
    guard = tmp_path / 'guard'
    guard.mkdir(exist_ok=True)
    (guard / 'sitecustomize.py').write_text(NO_NETWORK)
    environment = runs.environment(PYTHONPATH=str(guard), **environment)
    command = [sys.executable, '-m', 'mixer.input.prepare', *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    runs.check_no_greeting(done.stdout + done.stderr)
    return done.returncode, done.stdout, done.stderr

  return run


@pytest.fixture
def folder(tmp_path):
  """Writes images, each a random one of its own, and other files as they are."""

  def write(files):
    for i, name in enumerate(files):
      path = tmp_path / 'images' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      kinds = {
        '.webp': 'WEBP',
        '.jpg': 'JPEG',
        '.jpeg': 'JPEG',
        '.png': 'PNG',
        '.bmp': 'BMP',
        '.gif': 'GIF',
      }
      kind = kinds.get(path.suffix.lower())
      image = sets.smooth(np.random.default_rng(i), 20, 20 + i)
      path.write_bytes(sets.encode(image, kind) if kind else b'no image')
    return tmp_path / 'images'

  return write


def test_a_folder_of_class_folders_becomes_a_set(prepare, folder, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  expected = {
    'ant/one.jpg': 0, 'ant/two.JPEG': 0, 'ant/deep/er/three.PNG': 0,
    'ant/four.webp': 0,
    'Zebra/one.jpg': None, '10/a.bmp': None, 'bee/one.jpg': None, 'bee/b.GIF': None,
  }  # fmt: skip
  classes = ['10', 'Zebra', 'ant', 'bee']
  expected = {name: classes.index(name.split('/')[0]) for name in expected}
  images = folder([*expected, 'ant/notes.txt', 'README.md', 'bee/Thumbs.db'])
  status, printed, errors = prepare(
    '--name=insects', '--split=full', f'--images={images}', '--data_dir=~/sets', HOME=str(tmp_path)
  )
  assert status == 0, errors
  assert f'{images}: 2 files or folders are left out' in errors
  assert 'bee/Thumbs.db' in errors and 'ant/notes.txt' in errors
  assert f'{images}: 1 files or folders are left out' in errors and ': README.md\n' in errors
  assert printed.endswith("insects: 8 images of 4 classes in split 'full'.\n")

  data_dir = str(tmp_path / 'sets')
  decoders = {'image': tfds.decode.SkipDecoding()}
  stored = tfds.load('insects', split='full', data_dir=data_dir, decoders=decoders)
  found = {e['file_name'].decode(): e for e in stored.as_numpy_iterator()}
  assert {name: e['label'] for name, e in found.items()} == expected
  for name, example in found.items():
    assert example['image'] == (images / name).read_bytes()

  data = input.build(
    source='tfds', name='insects', split='full', batch_size=8, data_dir=data_dir,
    crop='resize_small', image_size=16, resize=20,
  )  # fmt: skip
  assert data.class_names == tuple(classes) and data.num_examples == 8
  (batch,) = data.eval_batches(8)
  assert sorted(batch['label']) == sorted(expected.values()) and batch['mask'].all()


def test_a_set_that_is_there_already(prepare, folder, tmp_path):
  sets.write(tmp_path, 'taken', {'train': 2})
  images = folder(['ant/one.jpg'])
  status, _, errors = prepare('--name=taken', f'--images={images}', f'--data_dir={tmp_path}')
  folder_there = tmp_path / 'taken' / '1.0.0'
  text = f'error: taken exists; use another name, or remove {folder_there}.\n'
  assert status == 2 and errors.endswith(text)


FORMATS = ', '.join(image_files.ENDINGS)


@pytest.mark.parametrize(
  ('files', 'fault'),
  [
    (['ant/one.jpg', 'bee/notes.txt', 'cow/deep/b.svg'], "no such file in ['bee', 'cow']."),
    (
      ['one.jpg', 'two.png'],
      'it holds none. Where a CSV or JSON-lines file has the labels, give that file.',
    ),
  ],
)
def test_a_folder_that_is_none_of_class_folders(prepare, folder, files, fault):
  images = folder(files)
  status, _, errors = prepare('--name=insects', f'--images={images}')
  assert status == 2
  assert (
    errors
    == f'error: {images} must hold one folder or .tar per class with {FORMATS} files; {fault}\n'
  )


def test_no_folder(prepare, tmp_path):
  status, _, errors = prepare('--name=insects', f'--images={tmp_path}/absent')
  assert status == 2 and errors == f'error: no folder {tmp_path}/absent.\n'


@pytest.mark.parametrize('name', ['ImageNet21k', 'image-net'])
def test_a_name_that_tfds_could_not_open_again(prepare, folder, name):
  status, _, errors = prepare(f'--name={name}', f'--images={folder(["ant/one.jpg"])}')
  assert status == 2
  text = f'error: the name {name!r} must be lower-case letters, digits and _ for TFDS to open.\n'
  assert errors == text


def test_flags_that_are_missing_or_do_not_go_together(prepare, folder):
  status, _, errors = prepare('--images=folder')
  assert status == 2 and 'Flag --name must have a value other than None.' in errors
  status, _, errors = prepare('--name=cifar10', '--split=train')
  text = 'error: --split needs --images; the data sets of TFDS have their own splits.\n'
  assert status == 2 and errors == text
  status, _, errors = prepare('--name=own', '--images=folder', '--manual_dir=there')
  text = 'error: --manual_dir is for the data sets of TFDS; do not give it with --images.\n'
  assert status == 2 and errors == text
