"""Files of MNIST's format, written here by hand; and Fashion-MNIST where Debian's package is."""

import gzip
import hashlib
from itertools import islice
from pathlib import Path
import re
import struct

import numpy as np
import pytest

from mixer import input
from mixer.errors import InputError, MissingData
from mixer.input import registered
from mixer.input.sources import idx

N = {'train': 40, 't10k': 12}
RNG = np.random.default_rng(0)
IMAGES = {part: RNG.integers(0, 256, (n, 6, 5), np.uint8) for part, n in N.items()}
LABELS = {part: np.arange(n, dtype=np.uint8) % 10 for part, n in N.items()}


def file_of(array) -> bytes:
  """An IDX file: https://www.fon.hum.uva.nl/praat/manual/IDX_file_format.html"""
  return struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
  for part in N:
    (tmp_path / f'{part}-images-idx3-ubyte.gz').write_bytes(gzip.compress(file_of(IMAGES[part])))
    (tmp_path / f'{part}-labels-idx1-ubyte').write_bytes(file_of(LABELS[part]))
  return tmp_path


def opened(path, split='train', **arguments):
  return input.build(source='idx', path=str(path), split=split, batch_size=4, **arguments)


def held(data):
  """(images, labels) of an input in its order."""
  parts = [(b['image'][b['mask']], b['label'][b['mask']]) for b in data.eval_batches(16)]
  return tuple(map(np.concatenate, zip(*parts)))


@pytest.mark.parametrize(
  ('split', 'part', 'chosen'),
  [
    ('train', 'train', slice(None)),
    ('test', 't10k', slice(None)),
    ('train[:33]', 'train', slice(33)),
    ('train[33:]', 'train', slice(33, None)),
    ('train[5:-3]', 'train', slice(5, 37)),
    ('train[:90%]', 'train', slice(36)),
    ('train[-10%:]', 'train', slice(36, None)),
    ('test[25%:75%]', 't10k', slice(3, 9)),
  ],
)
def test_images_of_a_split(folder, split, part, chosen):
  images, labels = held(opened(folder, split))
  np.testing.assert_array_equal(images, IMAGES[part][chosen, ..., None])
  np.testing.assert_array_equal(labels, LABELS[part][chosen])


def test_other_names_classes_and_sizes(folder):
  for file in folder.glob('t10k-*'):  # as archives of Kaggle have them
    file.rename(folder / re.sub('-(idx.)', r'.\1', file.name))
  assert held(opened(folder, 'test'))[1].tolist() == LABELS['t10k'].tolist()
  assert opened(folder).class_names == tuple('0123456789')
  names = tuple('abcdefghij')
  assert opened(folder, class_names=names).class_names == names
  (folder / 't10k-labels.idx1-ubyte').write_bytes(file_of(LABELS['t10k'] + np.uint8(1)))
  shifted = opened(folder, 'test', num_classes=11, label_offset=1)
  assert held(shifted)[1].tolist() == LABELS['t10k'].tolist()

  large = opened(folder, image_size=(12, 20), shift_pixels=1, flip=True)
  assert large.image_size == (12, 20) and next(large.train_batches(0, 0))['image'].shape[1:3] == (
    12, 20
  )  # fmt: skip
  # Bilinear: between the centres of two pixels the values are mixed by their distances.
  at = np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5)
  column = IMAGES['train'][0].astype(float)
  rows = (
    column[np.floor(at).astype(int)] * (1 - at % 1)[:, None]
    + column[np.ceil(at).astype(int)] * (at % 1)[:, None]
  )
  across = np.clip((np.arange(20) + 0.5) / 4 - 0.5, 0, 4)
  expected = rows[:, np.floor(across).astype(int)] * (1 - across % 1)
  expected += rows[:, np.ceil(across).astype(int)] * (across % 1)
  np.testing.assert_allclose(held(large)[0][0, ..., 0], expected, atol=1.01)


def test_bad_files(folder):
  images, labels = folder / 'train-images-idx3-ubyte', folder / 'train-labels-idx1-ubyte'
  packed = folder / 'train-images-idx3-ubyte.gz'
  whole, right = gzip.decompress(packed.read_bytes()), labels.read_bytes()

  def fails(text, split='train', **arguments):
    with pytest.raises(InputError, match=f'^{re.escape(text)}'):
      opened(folder, split, **arguments)

  fails(f"{folder}, split 'train[40:]', is not a part of the 40 images.", 'train[40:]')
  fails(f"{folder} has no split 'val'; use one of ['test', 'train'], or a part such as", 'val')
  fails('image 9 has the label 9; there are 9 classes', num_classes=9)
  for damaged in (packed.read_bytes()[:-20], packed.read_bytes()[:60] + b'123' * 50):
    packed.write_bytes(damaged)
    fails(f'{packed} is unreadable, damaged or truncated: ')
  images.write_bytes(whole[:-1])  # which comes before the compressed file
  fails(f'{images} declares 40 x 6 x 5 bytes after a header of 16 and has 1215 in all; it is trunc')
  images.write_bytes(right)
  fails(f'{images} begins with the bytes 00000801; images begin with 00000803, IDX of uint8 with 3')
  images.write_bytes(b'')
  fails(f'{images} is empty.')
  images.write_bytes(file_of(IMAGES['train'][1:]))
  fails(f'{images} has 39 images and {labels} 40 labels; they are of different sets.')
  labels.unlink()
  with pytest.raises(MissingData, match=f'no {labels.name} or {labels.name}.gz in {folder}, which'):
    opened(folder)
  with pytest.raises(MissingData, match='which does not exist. Give the folder of the files as pa'):
    opened(folder / 'none')


def test_archives_without_a_name_become_the_official_ones(tmp_path):
  """A name and a time in the header of a gzip file are what some packages leave out."""
  times = registered.PACKED_AT['fashion_mnist']
  official, plain = {}, {}
  for name, time in times.items():
    with gzip.GzipFile(tmp_path / name, 'wb', mtime=time) as file:
      file.write(name.encode() * 20)
    official[name] = (tmp_path / name).read_bytes()
    head, title = official[name][:10], name.removesuffix('.gz').encode() + b'\0'
    plain[name] = head[:3] + b'\0' + b'\1\2\3\4' + head[8:] + official[name][10 + len(title) :]
  with registered.named(tmp_path, times) as same:
    assert same == tmp_path
  (tmp_path / 'train-images-idx3-ubyte.gz').write_bytes(plain['train-images-idx3-ubyte.gz'])
  with registered.named(tmp_path, times) as changed:
    assert {path.name: path.read_bytes() for path in changed.iterdir()} == official
  with registered.named(None, times) as none:
    assert none is None


@pytest.mark.skipif(not Path(idx.FASHION_MNIST).exists(), reason='needs dataset-fashion-mnist')
def test_fashion_mnist():
  data = input.build(source='idx', split='train', batch_size=8)
  assert (data.num_examples, data.image_size, data.channels) == (60_000, (28, 28), 1)
  labels = np.concatenate([b['label'] for b in islice(data.eval_batches(1000), 60)])
  assert np.bincount(labels).tolist() == [6000] * 10 and labels[:4].tolist() == [9, 0, 0, 3]
  tfds = pytest.importorskip('tensorflow_datasets')
  builder = tfds.builder('fashion_mnist')
  assert data.class_names == tuple(builder.info.features['label'].names)
  assert input.build(source='idx', split='test', batch_size=8).class_names == data.class_names
  folder = Path(idx.FASHION_MNIST)
  with registered.named(folder, registered.PACKED_AT['fashion_mnist']) as official:
    for info in builder.url_infos.values():
      content = (official / info.filename).read_bytes()
      assert hashlib.sha256(content).hexdigest() == info.checksum
