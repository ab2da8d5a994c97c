from collections import Counter
from itertools import islice
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from mixer import input
from mixer.errors import InputError
from mixer.input import order
from mixer.input.sources import arrays
import sets


def of(images, labels, class_names, **arguments):
  return arrays.Arrays(lambda: (images, labels, class_names), **arguments)


def numbered(n=10, *, batch_size=4, shift_pixels=0, height=5, width=7, channels=2):
  """Random images of `n` classes, image i of class i; (images, the input)."""
  images = np.random.default_rng(0).integers(1, 256, (n, height, width, channels), np.uint8)
  names = [f'class{i}' for i in range(n)]
  data = of(images, np.arange(n), names, batch_size=batch_size, shift_pixels=shift_pixels)
  return images, data


def test_says_what_it_holds():
  _, data = numbered()
  assert data.num_examples == 10 and data.num_classes == 10 and data.batch_size == 4
  assert data.class_names[9] == 'class9'
  assert data.image_size == (5, 7) and data.channels == 2


def test_training_goes_through_all_examples_epoch_after_epoch():
  images, data = numbered(n=10, batch_size=4)
  batches = list(islice(data.train_batches(0, seed=3), 10))  # 4 epochs of 2.5 batches
  labels = np.concatenate([batch['label'] for batch in batches])
  assert labels.dtype == np.int32
  assert (np.sort(labels.reshape(4, 10)) == np.arange(10)).all()
  assert len({tuple(epoch) for epoch in labels.reshape(4, 10)}) == 4
  pixels = np.concatenate([batch['image'] for batch in batches])
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels, images[labels])


def test_a_batch_larger_than_the_set():
  images, data = numbered(n=3, batch_size=8)
  batch = next(data.train_batches(0, seed=0))
  np.testing.assert_array_equal(batch['image'], images[batch['label']])
  assert sorted(Counter(batch['label'].tolist()).values()) == [2, 3, 3]


@pytest.mark.parametrize('first', [1, 2, 3, 7])
def test_batches_from_any_number_on_are_the_tail_of_all(first):
  _, data = numbered(shift_pixels=2)
  whole = list(islice(data.train_batches(0, seed=1), 12))
  sets.assert_same(list(islice(data.train_batches(first, seed=1), 12 - first)), whole[first:])


def test_other_seeds_give_other_batches():
  _, data = numbered(shift_pixels=2)
  a, b = (next(data.train_batches(0, seed)) for seed in (0, 1))
  assert (a['label'] != b['label']).any()


@pytest.mark.parametrize('num_shards', [2, 4])
def test_shards_put_together_are_the_global_batch(num_shards):
  _, data = numbered(n=11, batch_size=8, shift_pixels=2)
  whole = list(islice(data.train_batches(2, seed=1), 5))
  shards = [
    list(islice(data.train_batches(2, 1, shard, num_shards), 5)) for shard in range(num_shards)
  ]
  sets.assert_same(sets.join(shards), whole)


def test_shift_moves_an_image_and_fills_up_with_zeros():
  reach = 2
  images, data = numbered(n=6, batch_size=6, shift_pixels=reach)
  for number, batch in enumerate(islice(data.train_batches(0, seed=4), 8)):
    words = order.draws(6 * number, 6, seed=4)
    for image, label, row in zip(batch['image'], batch['label'], words):
      down, right = (int(word) % (2 * reach + 1) - reach for word in row[:2])
      expected = np.zeros_like(image)
      for y in range(5):
        for x in range(7):
          if 0 <= y + down < 5 and 0 <= x + right < 7:
            expected[y, x] = images[label, y + down, x + right]
      np.testing.assert_array_equal(image, expected)


def test_every_shift_is_as_likely():
  image = np.zeros((1, 3, 3, 1), np.uint8)
  image[0, 1, 1] = 255
  data = of(image, np.zeros(1, int), ['dot'], batch_size=9000, shift_pixels=1)
  counts = next(data.train_batches(0, seed=0))['image'].astype(int).sum(0).ravel() / 255
  assert counts.sum() == 9000
  assert ((counts - 1000) ** 2 / 1000).sum() < 26.1  # chi2, 8 degrees of freedom, p = 0.001


@pytest.mark.parametrize('batch_size', [4, 8, 16, 12])
@pytest.mark.parametrize('num_shards', [1, 2, 4])
def test_evaluation_has_every_example_once_and_unshifted(batch_size, num_shards):
  images, data = numbered(n=10, batch_size=4, shift_pixels=2)
  seen = []
  for shard in range(num_shards):
    for batch in data.eval_batches(batch_size, shard, num_shards):
      assert batch['image'].shape == (batch_size // num_shards, 5, 7, 2)
      assert batch['mask'].dtype == bool
      mask = batch['mask']
      np.testing.assert_array_equal(batch['image'][mask], images[batch['label'][mask]])
      seen += batch['label'][mask].tolist()
  assert sorted(seen) == list(range(10))


def test_digits_splits_are_all_of_sklearns_digits_once():
  bunch = datasets.load_digits()
  expected = Counter(zip([i.tobytes() for i in bunch.images], bunch.target.tolist()))
  found = Counter()
  for split, size in (('train', 1437), ('test', 360)):
    data = input.build(source='digits', split=split, batch_size=size)
    assert data.num_examples == size and data.num_classes == 10
    assert data.class_names == tuple('0123456789')
    assert data.image_size == (8, 8) and data.channels == 1
    batch = next(data.eval_batches(size))
    assert batch['image'].max() == 255
    images = np.round(batch['image'][..., 0] / 255 * 16)  # back to sklearn's 0 to 16
    found += Counter(zip([i.tobytes() for i in images], batch['label'].tolist()))
  assert found == expected and found.total() == 1797


def test_digits_splits_are_fixed():
  """Other digits in 'test' would make results incomparable."""
  data = input.build(source='digits', split='test', batch_size=360)
  labels = next(data.eval_batches(360))['label']
  assert labels[:16].tolist() == [4, 6, 3, 0, 6, 2, 9, 2, 5, 2, 3, 7, 1, 6, 2, 3]
  assert np.bincount(labels).tolist() == [39, 28, 31, 45, 31, 33, 47, 30, 28, 48]


def test_digits_need_no_tensorflow():
  code = (
    "import sys; from mixer import input; d = input.build(source='digits', split='test', "
    "batch_size=4); next(d.train_batches(0, 0)); print('tensorflow' in sys.modules)"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == 'False\n'


IMAGES = 'images are uint8 (n, height, width, channels) with as many labels; '


@pytest.mark.parametrize(
  ('images', 'labels', 'got'),
  [
    (np.zeros((2, 4, 4, 1)), 2, 'got float64 (2, 4, 4, 1) and 2 labels.'),
    (np.zeros((2, 4, 4), np.uint8), 2, 'got uint8 (2, 4, 4) and 2 labels.'),
    (np.zeros((2, 4, 4, 1), np.uint8), 3, 'got uint8 (2, 4, 4, 1) and 3 labels.'),
  ],
)
def test_wrong_arrays(images, labels, got):
  with pytest.raises(InputError, match=f'^{re.escape(IMAGES + got)}$'):
    of(images, np.zeros(labels), ['a'], batch_size=1)


def labels_of(data, epochs=1):
  """Those of whole epochs of batches of 1."""
  return [int(b['label'][0]) for b in islice(data.train_batches(0, 0), epochs * data.num_examples)]


def part(fraction, seed=0, n=200):
  images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
  names = [str(i) for i in range(n)]
  return of(images, np.arange(n), names, batch_size=1, subset_fraction=fraction, subset_seed=seed)


def test_a_subset_is_all_there_is():
  data = part(0.1)
  assert data.num_examples == 20 and data.num_classes == 200
  two_epochs = labels_of(data, epochs=2)
  assert sorted(two_epochs[:20]) == sorted(two_epochs[20:]) and len(set(two_epochs)) == 20
  images = next(data.train_batches(0, 0))
  assert images['image'][0, 0, 0, 0] == images['label'][0]
  assert sum(b['mask'].sum() for b in data.eval_batches(8)) == 20


def test_subsets_are_nested_and_of_their_seed():
  parts = [set(labels_of(part(fraction))) for fraction in (0.03, 0.1, 0.3, 1.0)]
  assert [len(one) for one in parts] == [6, 20, 60, 200]
  assert parts[0] < parts[1] < parts[2] < parts[3]
  assert parts[1] == set(labels_of(part(0.1))) != set(labels_of(part(0.1, seed=1)))
  assert sorted(parts[0]) == [5, 20, 47, 59, 65, 146]  # by hand from NumPy's Philox


def test_the_whole_is_no_subset():
  assert labels_of(part(1.0)) == labels_of(numbered(n=200, batch_size=1)[1])


def test_processes_share_a_subset():
  _, data = numbered(n=40, batch_size=4)
  data = of(
    *[np.zeros((40, 2, 2, 1), np.uint8), np.arange(40)], [str(i) for i in range(40)],
    batch_size=4, subset_fraction=0.5,
  )  # fmt: skip
  shards = [list(islice(data.train_batches(0, 0, shard, 2), 10)) for shard in (0, 1)]
  sets.assert_same(sets.join(shards), list(islice(data.train_batches(0, 0), 10)))


def test_parts_of_the_digits():
  def of_part(split):
    data = input.build(source='digits', split=split, batch_size=1)
    return next(iter(data.eval_batches(2000)))

  whole, first, rest = (of_part(f'train{part}') for part in ('', '[:1197]', '[1197:]'))
  assert (first['mask'].sum(), rest['mask'].sum()) == (1197, 240)
  for key in ('image', 'label'):
    both = [part[key][part['mask']] for part in (first, rest)]
    np.testing.assert_array_equal(np.concatenate(both), whole[key][whole['mask']])


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    (
      {'source': 'digits', 'split': 'val', 'batch_size': 1},
      "digits has no split 'val'; use one of ['test', 'train'], or a part such as "
      '"train[:1000]" and "train[90%:]".',
    ),
    (
      {'source': 'digits', 'split': 'train[:1438]', 'batch_size': 1},
      "digits, split 'train[:1438]', is not a part of the 1437 images.",
    ),
    (
      {'source': 'mnist', 'batch_size': 1},
      "unknown input source 'mnist'; use one of ['arrays', 'digits', 'folder', 'idx', "
      "'shards', 'synthetic', 'table', 'tfds', 'vtab'].",
    ),
    (
      {'source': 'digits', 'split': 'test', 'batchsize': 1},
      "input source 'digits': nothing reads 'batchsize' (did you mean 'batch_size'?); "
      "'batch_size' is missing. It takes ['batch_size', 'flip', 'image_size', 'shift_pixels', "
      "'split', 'subset_fraction', 'subset_seed'].",
    ),
    (
      {'source': 'digits', 'split': 'train', 'batch_size': 1, 'subset_fraction': 3.0},
      "input source 'digits': subset_fraction is 3.0; use a number above 0 and up to 1.",
    ),
    (
      {'source': 'digits', 'split': 'train', 'batch_size': 1, 'subset_fraction': 1e-4},
      'subset_fraction=0.0001 selects none of 1437 examples; use a larger one.',
    ),
  ],
)
def test_wrong_arguments(arguments, text):
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    input.build(**arguments)


def test_a_source_whose_package_is_not_installed(monkeypatch):
  monkeypatch.setitem(input.SOURCES, 'tfds', ('no_such_package.source:Source',))
  text = (
    "the input source 'tfds' needs a package that is not installed: "
    "No module named 'no_such_package'. Install requirements.txt."
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    input.build(source='tfds')


# Files of arrays


@pytest.fixture
def held():
  rng = np.random.default_rng(0)
  return {
    'images': rng.integers(0, 256, (10, 6, 5, 3), np.uint8),
    'labels': rng.permutation(10).astype(np.int16),
  }


@pytest.fixture
def npz(tmp_path, held):
  np.savez(tmp_path / 'set.npz', **held)
  return str(tmp_path / 'set.npz')


def files(**arguments):
  return input.build(source='arrays', **{'batch_size': 5} | arguments)


def test_a_npz_and_two_npys(npz, held, tmp_path):
  for key, array in held.items():
    np.save(tmp_path / f'{key}.npy', array)
  one = files(images=npz, num_classes=10)
  two = files(images=f'{tmp_path}/images.npy', labels=f'{tmp_path}/labels.npy', num_classes=10)
  (batch,) = one.eval_batches(10)
  np.testing.assert_array_equal(batch['image'], held['images'])
  assert batch['label'].tolist() == held['labels'].tolist() and batch['label'].dtype == np.int32
  assert one.class_names == tuple('0123456789') and one.image_size == (6, 5)
  sets.assert_same(list(two.eval_batches(10)), [batch])
  sets.assert_same(*(list(islice(data.train_batches(1, 2), 4)) for data in (one, two)))
  assert one.host_bytes(1)['arrays'] == 10 * 6 * 5 * 3 + 40
  assert two.host_bytes(1)['arrays'] == 40  # the images stay on the disk


def test_a_subset_of_an_array_on_the_disk_stays_there(held, tmp_path):
  for key, array in held.items():
    np.save(tmp_path / f'{key}.npy', array)
  data = files(
    images=f'{tmp_path}/images.npy', labels=f'{tmp_path}/labels.npy', num_classes=10,
    first=2, subset_fraction=0.5,
  )  # fmt: skip
  assert data.host_bytes(1)['arrays'] == 4 * (8 + 4)  # the number and the label of each
  (batch,) = data.eval_batches(4)
  numbers = np.argsort(held['labels'])[batch['label']]
  assert (numbers >= 2).all() and len(set(numbers)) == 4
  np.testing.assert_array_equal(batch['image'], held['images'][numbers])


def test_a_part_of_the_arrays(npz, held):
  for bound in (7, 0.7):
    first, rest = (files(images=npz, num_classes=10, **part) for part in (
      {'last': bound}, {'first': bound}))  # fmt: skip
    assert next(first.eval_batches(7))['label'].tolist() == held['labels'][:7].tolist()
    assert next(rest.eval_batches(3))['label'].tolist() == held['labels'][7:].tolist()


def test_class_names_in_the_file(tmp_path, held):
  names = np.array(['cat', 'dog'])
  np.savez(tmp_path / 'set.npz', **held | {'labels': held['labels'] % 2, 'class_names': names})
  data = files(images=f'{tmp_path}/set.npz')
  assert data.class_names == ('cat', 'dog') and data.num_classes == 2


def test_labels_of_several_classes(tmp_path, held):
  hot = np.random.default_rng(0).integers(0, 2, (10, 4)).astype(bool)
  np.savez(tmp_path / 'set.npz', **held | {'labels': hot})
  batch = next(files(images=f'{tmp_path}/set.npz', num_classes=4).eval_batches(10))
  assert batch['label'].dtype == np.uint8
  np.testing.assert_array_equal(batch['label'], hot)


def test_flips_are_half_of_the_time_and_mirror(npz, held):
  data = files(images=npz, num_classes=10, flip=True, batch_size=2000)
  batch = next(data.train_batches(0, seed=5))
  plain = held['images'][np.argsort(held['labels'])][batch['label']]
  flipped = (batch['image'] != plain).any(axis=(1, 2, 3))
  np.testing.assert_array_equal(batch['image'][flipped], plain[flipped][:, :, ::-1])
  assert abs(flipped.mean() - 0.5) < 0.04  # 3.6 standard deviations


@pytest.mark.parametrize(
  ('change', 'arguments', 'text'),
  [
    ({}, {}, '{path} names 0 classes and num_classes is None; give num_classes.'),
    (
      {'class_names': np.array(['a', 'b'])},
      {'num_classes': 3},
      '{path} names 2 classes and num_classes is 3; they differ.',
    ),
    (
      {},
      {'num_classes': 9},
      'image 8 has the label 9; there are 9 classes, counted from 0; label_offset shifts them.',
    ),
    (
      {'labels': np.full((10, 2), 3)},
      {'num_classes': 2},
      'image 0 has the label 3; there are 2 classes, each 0 or 1.',
    ),
    (
      {'labels': np.zeros(10)},
      {'num_classes': 2},
      'labels are ints (n,) or, of 2 classes, zeros and ones (n, 2); got float64 (10,).',
    ),
    ({'labels': np.zeros(9, int)}, {'num_classes': 2}, IMAGES + 'got uint8 (10, 6, 5, 3) and 9...'),
    ({'images': np.uint8(3)}, {'num_classes': 2}, IMAGES + 'got uint8 () and 10 labels.'),
    (
      {},
      {'num_classes': 10, 'first': 10},
      '{path}: first=10 and last=None are not a part of the 10 examples; ...',
    ),
    (
      {},
      {'num_classes': 10, 'labels': 'x.npy'},
      "images='{path}' with labels='x.npy': give one .npz with both, or two .npy files.",
    ),
  ],
)
def test_arrays_that_do_not_do(tmp_path, held, change, arguments, text):
  path = f'{tmp_path}/set.npz'
  np.savez(path, **held | change)
  pattern = '.*'.join(re.escape(part) for part in text.format(path=path).split('...'))
  with pytest.raises(InputError, match=f'^{pattern}$'):
    files(images=path, **arguments)


def test_array_files_that_are_not_there_or_damaged(npz, tmp_path):
  with pytest.raises(InputError, match=f'^no file {tmp_path}/absent.npz.$'):
    files(images=f'{tmp_path}/absent.npz', num_classes=10)
  np.savez(tmp_path / 'other.npz', images=np.zeros((2, 4, 4, 1), np.uint8))
  with pytest.raises(InputError, match=r"other.npz has no array \['labels'\]; it has \['images'\]"):
    files(images=f'{tmp_path}/other.npz', num_classes=10)
  content = (tmp_path / 'set.npz').read_bytes()
  for damaged in (content[:-40], b'', b'other'):
    (tmp_path / 'set.npz').write_bytes(damaged)
    with pytest.raises(InputError, match='^.*set.npz is not a readable .npy or .npz file: '):
      files(images=npz, num_classes=10)
