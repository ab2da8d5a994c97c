"""Weights in the clone, their card, and weights/release.py, which makes both."""

import hashlib
import importlib.util
import json
import re

from etils import epath
import jax
import numpy as np
from PIL import Image, ImageOps
import pytest

from mixer import models, predict, pretrained
from mixer.errors import InputError
from mixer.input import single_images
import runs

FOLDER = runs.ROOT / 'weights' / 'fashion_mnist_mixer_m'
EXAMPLES = sorted((runs.ROOT / 'weights' / 'examples').glob('*.png'))


@pytest.fixture(scope='module')
def release():
  spec = importlib.util.spec_from_file_location('release', runs.ROOT / 'weights' / 'release.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def guess():
  """A function from image files to the names of their classes, as mixer.predict prepares them."""
  trained = pretrained.open(FOLDER)
  found = trained.describe()
  decode = single_images.decoder(found.preprocessing, found.image_size, found.channels)
  classify = predict.classifier(trained, found, top=1)

  def names(paths):
    images = np.stack([decode(path.read_bytes()) for path in paths])
    padded = np.concatenate([images, np.zeros((10 - len(images), *images.shape[1:]), np.uint8)])
    return [name for ((_, _, name, _),) in classify(padded, len(images))]

  return names


def file_name(class_name):
  return re.sub(r'\W+', '-', class_name.lower())


def test_the_folder_is_small_and_has_the_weights_of_its_card():
  assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3_000_000
  content = (FOLDER / 'model.npz').read_bytes()
  card = (FOLDER / 'README.md').read_text()
  assert hashlib.sha256(content).hexdigest() in card and f'{len(content):,} bytes' in card
  rows = re.findall(r'^\| [^|]+ \| 1000 \| ([\d.]+)% \| [\d.]+% \|$', card, re.M)
  total = float(re.search(r'([\d.]+)% of 10,000', card)[1])
  assert len(rows) == 10 and np.mean([float(row) for row in rows]) == pytest.approx(total, abs=0.02)


def test_it_recognizes_the_examples(guess):
  assert len(EXAMPLES) == 10
  names = guess(EXAMPLES)
  assert sum(file_name(name) == path.stem for name, path in zip(names, EXAMPLES)) >= 8


def test_what_the_card_does_to_a_photo(guess, tmp_path, monkeypatch):
  """A large picture in colour, on a white background, gets the class of the small one."""
  card = (FOLDER / 'README.md').read_text()
  code = re.search(r'  ```python\n(.*?)  ```', card, re.DOTALL)[1].replace('\n  ', '\n').strip()
  monkeypatch.chdir(tmp_path)
  sneaker = runs.ROOT / 'weights' / 'examples' / 'sneaker.png'
  large = Image.open(sneaker).resize((560, 560), Image.Resampling.BICUBIC)
  photo = ImageOps.invert(ImageOps.expand(large, (200, 100), fill=0)).convert('RGB')
  photo.save('shoe.jpg', quality=95)
  exec(code, {})
  assert guess([tmp_path / 'shoe.png']) == guess([sneaker]) == ['Sneaker']


def write_run(run, config, data):
  """What a finished run has, with random parameters."""
  model = {**config['model'], 'num_classes': data.num_classes}
  rng = np.random.default_rng(0)
  shapes = models.shapes(models.build(**model), data.image_size, data.channels)
  params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.3, x.shape)), shapes)
  facts = {
    'model': model, 'image_size': data.image_size, 'channels': data.channels, 'loss': 'softmax',
    'class_names': data.class_names, 'preprocessing': data.preprocessing,
  }  # fmt: skip
  pretrained.save_model(epath.Path(run), params, facts)
  (run / 'config.json').write_text(json.dumps(config))


def test_release(release, tmp_path):
  """The accuracy by class of the card, counted here by hand."""
  config, run = runs.small_digits(), tmp_path / 'run'
  data = release.inputs.build(**config['evals']['test']['input'])
  write_run(run, config, data)
  output = tmp_path / 'weights' / 'small'
  changes = ['--config=configs/digits.py', '--config.total_steps=6']
  release.release(run, output, config, changes)

  card = (output / 'README.md').read_text()
  assert 'python train.py --config=configs/digits.py \\\n    --config.total_steps=6 \\\n' in card
  (batch,) = data.eval_batches(360)
  model = models.build(**pretrained.open(output).describe().model)
  pixels = batch['image'] / np.float32(127.5) - 1
  logits = models.apply_function(model)(pretrained.load(output), pixels)
  labels, guesses = batch['label'], np.argmax(logits, axis=1)
  for i, name in enumerate(data.class_names):
    right, guessed = np.sum((labels == i) & (guesses == i)), np.sum(guesses == i)
    precision = f'{right / guessed:.1%}' if guessed else ''
    row = f'| {name} | {np.sum(labels == i)} | {right / np.sum(labels == i):.1%} | {precision} |'
    assert row in card
    pixels = np.asarray(Image.open(tmp_path / 'weights' / 'examples' / f'{name}.png'))
    assert np.array_equal(pixels, batch['image'][np.flatnonzero(labels == i)[0], ..., 0])

  (run / 'model.npz').unlink()
  with pytest.raises(InputError, match=r'run has no model\.npz: give a finished run'):
    release.check(run, config)


def test_another_config_is_refused(release, tmp_path):
  (tmp_path / 'model.npz').touch()
  (tmp_path / 'config.json').write_text('{"seed": 0, "optim": {"learning_rate": 0.1}}')
  with pytest.raises(InputError, match=r'it was trained with optim\.learning_rate=0\.1$'):
    release.check(tmp_path, {'seed': 0, 'optim': {'learning_rate': 0.2}})
  release.check(tmp_path, {'seed': 0, 'optim': {'learning_rate': 0.1}})
