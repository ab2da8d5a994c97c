"""`python -m mixer.input.prepare`, as a user runs it; nothing may ask for the network."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from mixer import input
import sets

ROOT = Path(__file__).parents[1]
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
    environment = os.environ | {'PYTHONPATH': str(guard)} | environment
    command = [sys.executable, '-m', 'mixer.input.prepare', *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr

  return run


@pytest.fixture
def folder(tmp_path):
  """Writes images, each a random one of its own, and other files as they are."""

  def write(files):
    for i, name in enumerate(files):
      path = tmp_path / 'images' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      kinds = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.bmp': 'BMP', '.gif': 'GIF'}
      kind = kinds.get(path.suffix.lower())
      image = sets.smooth(np.random.default_rng(i), 20, 20 + i)
      path.write_bytes(sets.encode(image, kind) if kind else b'no image')
    return tmp_path / 'images'

  return write


def test_a_folder_of_class_folders_becomes_a_set(prepare, folder, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  expected = {
    'ant/one.jpg': 0, 'ant/two.JPEG': 0, 'ant/deep/er/three.PNG': 0,
    'Zebra/one.jpg': None, '10/a.bmp': None, 'bee/one.jpg': None, 'bee/b.GIF': None,
  }  # fmt: skip
  classes = ['10', 'Zebra', 'ant', 'bee']
  expected = {name: classes.index(name.split('/')[0]) for name in expected}
  images = folder([*expected, 'ant/notes.txt', 'README.md', 'bee/Thumbs.db'])
  status, printed, errors = prepare(
    '--name=insects', '--split=full', f'--images={images}', '--data_dir=~/sets', HOME=str(tmp_path)
  )
  assert status == 0, errors
  assert printed.endswith("insects: 7 images of 4 classes in split 'full'.\n")

  data_dir = str(tmp_path / 'sets')
  decoders = {'image': tfds.decode.SkipDecoding()}
  stored = tfds.load('insects', split='full', data_dir=data_dir, decoders=decoders)
  found = {e['file_name'].decode(): e for e in stored.as_numpy_iterator()}
  assert {name: e['label'] for name, e in found.items()} == expected
  for name, example in found.items():
    assert example['image'] == (images / name).read_bytes()

  data = input.build(
    source='tfds', name='insects', split='full', batch_size=7, data_dir=data_dir,
    crop='resize_small', image_size=16, resize=20,
  )  # fmt: skip
  assert data.class_names == tuple(classes) and data.num_examples == 7
  (batch,) = data.eval_batches(7)
  assert sorted(batch['label']) == sorted(expected.values()) and batch['mask'].all()


def test_a_set_that_is_there_already(prepare, folder, tmp_path):
  sets.write(tmp_path, 'taken', {'train': 2})
  images = folder(['ant/one.jpg'])
  status, _, errors = prepare('--name=taken', f'--images={images}', f'--data_dir={tmp_path}')
  folder_there = tmp_path / 'taken' / '1.0.0'
  text = f'error: taken is there already; take another name, or remove {folder_there}.\n'
  assert status == 2 and errors.endswith(text)


FORMATS = '.bmp, .gif, .jpeg, .jpg, .png'


@pytest.mark.parametrize(
  ('files', 'fault'),
  [
    (['ant/one.jpg', 'bee/notes.txt', 'cow/deep/b.webp'], "without any: ['bee', 'cow']."),
    (['one.jpg', 'two.png'], 'it holds no folder.'),
  ],
)
def test_a_folder_that_is_none_of_class_folders(prepare, folder, files, fault):
  images = folder(files)
  status, _, errors = prepare('--name=insects', f'--images={images}')
  assert status == 2
  assert (
    errors
    == f'error: {images} is to hold one folder a class with {FORMATS} files in each; {fault}\n'
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
  assert status == 1 and 'Flag --name must have a value other than None.' in errors
  status, _, errors = prepare('--name=cifar10', '--split=train')
  text = 'error: --split is for a set made from --images; TFDS sets have their own splits.\n'
  assert status == 2 and errors == text
  status, _, errors = prepare('--name=own', '--images=folder', '--manual_dir=there')
  text = 'error: --images makes a set from a folder, --manual_dir is for those TFDS knows.\n'
  assert status == 2 and errors == text


def test_imagenet_21k_from_archives_and_folders_of_synsets(prepare, folder, tmp_path):
  """A class has its number in Google's list, however many are there."""
  import tensorflow_datasets as tfds

  names = ['n00005787/a.JPEG', 'n00005787/b.JPEG', 'n04399382x/c.JPEG', 'n01440764/d.JPEG']
  images = folder(names)
  for synset in ('n00005787', 'n01440764'):
    with tarfile.open(images / f'{synset}.tar', 'w') as archive:
      archive.add(images / synset, arcname='.')
  shutil.rmtree(images / 'n00005787')
  flags = ('--name=imagenet21k', f'--images={images}', f'--data_dir={tmp_path}')
  more = ('--file_format=array_record',)
  status, _, errors = prepare(*flags, *more)
  assert status == 2 and errors == (
    f"error: {images} holds a folder and a .tar of ['n01440764']; keep one of them.\n"
  )
  (images / 'n01440764.tar').unlink()
  status, _, errors = prepare(*flags, *more)
  assert status == 2 and errors == (
    f'error: {images} holds 1 folders or archives that are no class of ImageNet-21k, such as '
    "['n04399382x']; a class is called by its WordNet id, as in n01440764. Move the others away, "
    'or take another --name.\n'
  )
  shutil.rmtree(images / 'n04399382x')
  status, printed, errors = prepare(*flags, *more)
  assert status == 0, errors
  assert 'no images of 21841 of the 21843 classes, which stay empty: n00004475, ' in printed
  assert printed.endswith("imagenet21k: 3 images of 21843 classes in split 'full'.\n")

  lines = (ROOT / 'mixer/labels/imagenet21k.txt').read_text().splitlines()
  builder = tfds.builder('imagenet21k', data_dir=tmp_path)
  assert builder.info.features['label'].names == [line.split('\t')[0] for line in lines]
  data = input.build(
    source='tfds', name='imagenet21k', split='full', batch_size=3, data_dir=str(tmp_path),
    crop='direct', image_size=16,
  )  # fmt: skip
  (batch,) = data.eval_batches(3)
  numbers = {line.split('\t')[0]: i for i, line in enumerate(lines)}
  assert sorted(batch['label']) == [1, 1, numbers['n01440764']]


def test_an_archive_cut_short(prepare, folder, tmp_path):
  images = folder(['ant/one.jpg', 'bee/one.jpg', 'bee/two.jpg'])
  with tarfile.open(images / 'bee.tar', 'w') as archive:
    archive.add(images / 'bee', arcname='.')
  shutil.rmtree(images / 'bee')
  whole = (images / 'bee.tar').read_bytes()
  flags = ('--name=insects', f'--images={images}', f'--data_dir={tmp_path}')
  for content, fault in (
    (whole[:2000], f'{images}/bee.tar is cut short: it does not end as an archive does. Copy it '
                   'again.'),
    (b'no archive' + bytes(1024), f'{images} holds a .tar that is none: bad checksum.'),
  ):  # fmt: skip
    (images / 'bee.tar').write_bytes(content)
    status, _, errors = prepare(*flags)
    assert (status, errors) == (2, f'error: {fault}\n')
