"""Data sets made here, prepared, checked and trained on through train.py; minutes long."""

import io
import json
import re
import tarfile

import numpy as np
from PIL import Image
import pytest

import runs
import sets
from test_configs import load

registered = pytest.importorskip('mixer.input.registered')
pytestmark = pytest.mark.slow

SMALL = {'num_blocks': 2, 'hidden_dim': 64, 'tokens_mlp_dim': 32, 'channels_mlp_dim': 128}


def picture(label: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
  """Noise on a ground of the class's colour, with a class's number of bright stripes."""
  colour = np.random.default_rng(label).integers(40, 200, 3)
  image = np.broadcast_to(colour, (height, width, 3)) + rng.normal(0, 25, (height, width, 3))
  image[:, :: max(width // (label + 2), 1)] += 60
  return np.clip(image, 0, 255).astype(np.uint8)


def run(config, workdir) -> list[dict]:
  runs.train_here(config, workdir)
  assert (workdir / 'model.npz').exists()
  return runs.rows(workdir)


def shrink(config, steps: int, batch_size: int) -> None:
  with config.unlocked():
    config.model.update(SMALL)
  config.total_steps = steps
  config.train_input.batch_size = batch_size
  config.optim.schedule.warmup_steps = 10
  config.every.update(log=steps // 4, evaluate=0, checkpoint=0)


@pytest.mark.parametrize('on_bad_image', ['fail', 'skip'])
def test_two_thousand_jpegs_in_a_folder(tmp_path, on_bad_image):
  rng = np.random.default_rng(0)
  photos = tmp_path / 'photos'
  for i in range(2000):
    path = photos / f'class{i % 5}' / f'{i:04}.{("jpg", "JPG", "jpeg")[i % 3]}'
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = rng.integers(200, 500, 2)
    Image.fromarray(picture(i % 5, height, width, rng)).save(path, 'JPEG', quality=85)
  if on_bad_image == 'skip':
    for i in (0, 1, 2):
      path = photos / f'class{i}' / f'{i:04}.{("jpg", "JPG", "jpeg")[i % 3]}'
      path.write_bytes(path.read_bytes()[:700])
  status, output = runs.run_module(
    'mixer.input.check', '--source=folder', f'--path={photos}', env=runs.environment()
  )
  bad = 3 if on_bad_image == 'skip' else 0
  assert status == (1 if bad else 0), output
  assert f'train: 2,000 images, {bad} bad; 5 classes of ' in output

  config = load('finetune', f'model=S/16,data={photos},resolution=64')
  shrink(config, steps=80, batch_size=32)
  config.train_input.on_bad_image = on_bad_image
  rows = run(config, tmp_path / 'run')
  assert rows[-1]['step'] == 80 and rows[-1]['test/n'] == 200
  assert rows[-1]['test/top1'] > 0.9
  # Of 2,560 draws from 1,800 images all but one or two of the bad ones have come.
  assert rows[-1].get('bad_images', 0) >= bad - 1
  assert json.loads((tmp_path / 'run' / 'classes.json').read_text()) == [
    f'class{i}' for i in range(5)
  ]


def prepare(monkeypatch, data_dir, name, splits, file_format='tfrecord'):
  """The set under its real name, by its own builder, from examples in place of a download."""
  import tensorflow_datasets as tfds

  real = tfds.builder

  def build(*arguments, **named):
    builder = real(*arguments, **named)
    builder._split_generators = lambda _: {split: iter(of) for split, of in splits.items()}
    return builder

  monkeypatch.setattr(tfds, 'builder', build)
  registered.prepare(
    name, manual_dir=None, data_dir=str(data_dir), file_format=file_format, verify=False
  )
  monkeypatch.setattr(tfds, 'builder', real)


def test_cifar10(tmp_path, monkeypatch):
  rng = np.random.default_rng(1)
  splits = {
    split: [
      (i, {'id': str(i), 'label': i % 10, 'image': picture(i % 10, 32, 32, rng)})
      for i in range(size)
    ]
    for split, size in (('train', 500), ('test', 101))
  }
  prepare(monkeypatch, tmp_path / 'sets', 'cifar10', splits, 'array_record')
  config = load('finetune', 'model=S/16,data=cifar10,resolution=32')
  shrink(config, steps=120, batch_size=32)
  config.train_input.data_dir = str(tmp_path / 'sets')
  row = run(config, tmp_path / 'run')[-1]
  assert row['test/n'] == 101 and row['test/top1'] > 0.8


def test_oxford_iiit_pet(tmp_path, monkeypatch):
  rng = np.random.default_rng(2)

  def pets(size):
    for i in range(size):
      file = sets.encode(picture(i % 37, *rng.integers(200, 500, 2), rng), 'JPEG')
      yield (
        i,
        {
          'image': io.BytesIO(file),
          'label': i % 37,
          'species': i % 2,
          'file_name': f'{i}.jpg',
          'segmentation_mask': np.ones((4, 4, 1), np.uint8),
          'head_bbox': [0.0, 0.0, 1.0, 1.0],
        },
      )

  import tensorflow_datasets as tfds

  def boxed(examples):
    for key, example in examples:
      yield key, {**example, 'head_bbox': tfds.features.BBox(*example['head_bbox'])}

  splits = {'train': boxed(pets(370)), 'test': boxed(pets(75))}
  prepare(monkeypatch, tmp_path / 'sets', 'oxford_iiit_pet', splits)
  config = load('finetune', 'model=S/32,data=oxford_iiit_pet,resolution=64,stage=dev')
  shrink(config, steps=40, batch_size=32)
  config.train_input.data_dir = str(tmp_path / 'sets')
  rows = run(config, tmp_path / 'run')
  assert rows[-1]['dev/n'] == 37
  assert rows[-1]['train/loss'] < rows[0]['train/loss']
  names = json.loads((tmp_path / 'run' / 'classes.json').read_text())
  assert len(names) == 37 and names[0] == 'Abyssinian'


def test_imagenet2012_from_its_tars(tmp_path):
  """The two archives in their official layout, through the command that a user types."""
  lines = (runs.ROOT / 'mixer/labels/imagenet1k.txt').read_text().splitlines()
  synsets = [line.split('\t')[0] for line in lines]
  rng = np.random.default_rng(3)
  tars = tmp_path / 'tars'
  tars.mkdir()
  with tarfile.open(tars / 'ILSVRC2012_img_train.tar', 'w') as archive:
    for number in range(0, 1000, 25):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode='w') as of_synset:
        for i in range(5):
          file = sets.encode(picture(number, *rng.integers(80, 200, 2), rng), 'JPEG')
          add(of_synset, f'{synsets[number]}_{i}.JPEG', file)
      add(archive, f'{synsets[number]}.tar', inner.getvalue())
  with tarfile.open(tars / 'ILSVRC2012_img_val.tar', 'w') as archive:
    for i in range(1, 22):
      file = sets.encode(picture(i, 90, 100, rng), 'JPEG')
      add(archive, f'ILSVRC2012_val_{i:08}.JPEG', file)
  status, output = runs.run_module(
    'mixer.input.prepare', '--name=imagenet2012', f'--manual_dir={tars}', '--noverify',
    f'--data_dir={tmp_path}/sets', env=runs.environment(),
  )  # fmt: skip
  assert status == 0, output
  assert re.search('imagenet2012/5.1.0: train 200, validation 21\n$', output)

  config = load('mixer_s32', 'imagenet2012')
  shrink(config, steps=12, batch_size=16)
  config.train_input.update(data_dir=f'{tmp_path}/sets', image_size=64)
  del config.evals['fewshot_imagenet']  # its pool is of 65,000 images
  for section in config.evals.values():
    section.input.resize = 73
  rows = run(config, tmp_path / 'run')
  assert rows[-1]['val/n'] == 21 and rows[-1]['minival/n'] == 2
  assert all(np.isfinite(row['train/loss']) for row in rows)
  assert json.loads((tmp_path / 'run' / 'classes.json').read_text()) == synsets


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
  info = tarfile.TarInfo(name)
  info.size = len(content)
  archive.addfile(info, io.BytesIO(content))
