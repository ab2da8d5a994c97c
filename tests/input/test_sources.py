"""What holds for every source: order, resuming, processes, evaluation, memory."""

from itertools import islice
import os
import re

import numpy as np
import pytest

from mixer import hardware, input
from mixer.errors import InputError
import sets

pytest.importorskip('mixer.input.sources.tfds', reason='needs TensorFlow and TFDS')

N = 24  # examples, each with a class of its own, so that a label names its example
AUGMENT = {'randaugment_layers': 1, 'randaugment_magnitude': 15}
TRAIN = {'crop': 'inception', 'image_size': (16, 24)}
EVALUATE = {'crop': 'resize_small', 'resize': (20, 28), 'image_size': (16, 24)}
SOURCES = ['arrays', 'folder', 'shards', 'shards_array', 'tfds', 'tfds_array']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The same images for every source."""
  path = tmp_path_factory.mktemp('sources')
  rows = sets.numbered(N)
  for name, file_format in (('tfds', 'tfrecord'), ('tfds_array', 'array_record')):
    sets.write_examples(
      path, name, {'train': rows}, num_classes=N, file_format=file_format, num_shards=3
    )
  for name, file_format in (('shards', 'tfrecord'), ('shards_array', 'array_record')):
    (path / name).mkdir()
    for part in range(3):
      records = [
        sets.example(**{'image/encoded': file, 'image/class/label': i})
        for file, i in rows[part * N // 3 : (part + 1) * N // 3]
      ]
      sets.write_records(path / name / f'train-{part}-of-3', records, file_format)
  for file, i in rows:
    (path / 'folder' / 'train' / f'{i:02}').mkdir(parents=True)
    (path / 'folder' / 'train' / f'{i:02}' / 'image').with_suffix(
      '.png' if i % 2 else '.jpg'
    ).write_bytes(file)
  images = np.random.default_rng(0).integers(0, 256, (N, 16, 24, 3), np.uint8)
  np.savez(path / 'arrays.npz', images=images, labels=np.arange(N))
  return path


@pytest.fixture
def opened(folder):
  def build(source: str, *, training: bool = True, augment: bool = False, batch_size: int = 8):
    crop = (TRAIN if training else EVALUATE) | (AUGMENT if augment else {})
    own = {
      'tfds': {'name': source, 'split': 'train', 'data_dir': str(folder), **crop},
      'shards': {'files': str(folder / source / 'train-*'), 'num_classes': N, **crop},
      'folder': {'path': str(folder / 'folder'), 'split': 'train', **crop},
      'arrays': {
        'images': str(folder / 'arrays.npz'), 'num_classes': N, 'shift_pixels': 2, 'flip': True
      },
    }  # fmt: skip
    kind = source.removesuffix('_array')
    return input.build(source=kind, batch_size=batch_size, **own[kind])

  return build


IMAGES = (
  'batch_size bits_per_channel crop exif_orientation image_size max_pixels on_bad_image '
  'randaugment_layers randaugment_magnitude randaugment_on resize subset_fraction subset_seed'
)
ARRAYS = 'batch_size flip image_size shift_pixels subset_fraction subset_seed'


@pytest.mark.parametrize(
  ('source', 'missing', 'own', 'shared'),
  [
    ('arrays', 'images', 'first images label_offset labels last num_classes', ARRAYS),
    ('digits', 'split', 'split', ARRAYS),
    ('folder', 'path split', 'class_names path split val_fraction', IMAGES),
    ('idx', 'split', 'class_names label_offset num_classes path split', ARRAYS),
    (
      'shards',
      'files num_classes',
      'class_names files first image_key label_key label_offset last multi_label num_classes',
      IMAGES,
    ),
    ('synthetic', 'num_classes num_examples image_size', 'channels image_size multi_label '
     'num_classes num_examples', 'batch_size'),
    ('tfds', 'name split', 'data_dir image_key label_key label_offset name split', IMAGES),
    ('vtab', 'task split', 'data_dir split task', IMAGES),
  ],
)  # fmt: skip
def test_all_faults_of_the_arguments_in_one_message(source, missing, own, shared):
  """Those of the source and of the pipeline that it uses, before anything is opened."""
  pipeline = {IMAGES: 'batch_size image_size crop'}.get(shared, 'batch_size')
  faults = ''.join(f"; '{name}' is missing" for name in f'{missing} {pipeline}'.split())
  text = (
    f"input source '{source}': nothing reads 'btach_size' (did you mean 'batch_size'?){faults}. "
    f'It takes {sorted(f"{own} {shared}".split())}.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    input.build(source=source, btach_size=8)


@pytest.mark.parametrize('batch_size', [0, -8, 2.5, 'many', None])
def test_a_batch_size_that_is_none(opened, batch_size):
  text = f"input source 'folder': batch_size is {batch_size!r}; use an int from 1 to 2**31 - 1."
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    opened('folder', batch_size=batch_size)


@pytest.mark.parametrize('size', [0, (16, -1), (1, 2, 3), 2.5, 'ab', ()])
@pytest.mark.parametrize('key', ['image_size', 'resize'])
def test_a_size_that_is_none(folder, key, size):
  section = {'path': str(folder / 'folder'), 'split': 'train', 'batch_size': 8, **EVALUATE}
  none = ', or None' if key == 'resize' else ''
  text = f'{key} is {size!r}; use a positive int or a tuple (height, width){none}.'
  text = f"input source 'folder': {text}"
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    input.build(source='folder', **section | {key: size})


def take(batches, count):
  return list(islice(batches, count))


@pytest.mark.parametrize('source', [name for name in SOURCES if name != 'shards_array'])
def test_a_run_goes_on_bit_for_bit_with_another_number_of_processes(opened, source):
  """With RandAugment, whose graph takes its time: the second of two processes stands for both."""
  whole = take(opened(source, augment=True).train_batches(0, 1), 6)  # two epochs
  second = take(opened(source, augment=True).train_batches(2, 1, 1, 2), 4)
  sets.assert_same(second, [{key: x[4:] for key, x in batch.items()} for batch in whole[2:]])


@pytest.mark.parametrize('source', SOURCES)
def test_processes_share_every_epoch_without_overlap(opened, source):
  data, again = opened(source), opened(source)
  whole = take(again.train_batches(0, 1), 3)
  sets.assert_same(take(again.train_batches(2, 1), 1), whole[2:])
  for num_shards in (2, 4):
    shards = [take(data.train_batches(0, 1, shard, num_shards), 3) for shard in range(num_shards)]
    assert {batch['label'].shape for of in shards for batch in of} == {(8 // num_shards,)}
    found = np.concatenate([batch['label'] for of in shards for batch in of])
    assert sorted(found) == list(range(N))  # N examples are three batches: each example once
    sets.assert_same(sets.join(shards), whole)


@pytest.mark.parametrize(('batch_size', 'num_shards'), [(5, 1), (14, 2), (100, 2)])
@pytest.mark.parametrize('source', SOURCES)
def test_evaluation_has_every_example_once(opened, source, batch_size, num_shards):
  data = opened(source, training=False)
  shards = [list(data.eval_batches(batch_size, shard, num_shards)) for shard in range(num_shards)]
  assert {len(of) for of in shards} == {-(-N // batch_size)}
  seen = []
  for batch in (batch for of in shards for batch in of):
    assert batch['image'].shape == (batch_size // num_shards, 16, 24, 3)
    seen += batch['label'][batch['mask']].tolist()
  assert sorted(seen) == list(range(N))


@pytest.mark.parametrize('source', SOURCES)
def test_a_batch_that_does_not_divide_into_the_processes(opened, source):
  text = 'a batch of 8 does not divide into 3 processes; use a multiple of 3.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    next(opened(source).train_batches(0, 1, 0, 3))
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    next(opened(source, training=False).eval_batches(8, 0, 3))


@pytest.mark.parametrize('pair', [('shards', 'shards_array'), ('tfds', 'tfds_array')])
def test_file_formats_give_the_same_batches(opened, pair):
  a, b = (take(opened(source).train_batches(1, 3), 3) for source in pair)
  sets.assert_same(a, b)


@pytest.mark.parametrize('source', SOURCES)
def test_memory_by_hand(opened, source, folder):
  data = opened(source)
  parts = data.host_bytes(2)
  assert parts['order'] == 32 * N  # the sort: numbers and words of 8 bytes; two older epochs
  image, label = 16 * 24 * 3, 4
  if source == 'arrays':
    assert parts['batches'] == 2 * 4 * image
    assert parts['arrays'] == N * image + N * 4
    return
  assert parts['batches'] == 5 * 4 * (image + (data.num_classes if data.multi_label else label))
  paths = [path for path in (folder / source).rglob('*') if path.suffix not in ('.json', '.npz')]
  stored = sum(path.stat().st_size for path in paths if path.is_file())
  assert parts['read-ahead'] == pytest.approx(64 * stored / N, rel=0.02)
  index = {'folder': (80, 300), 'shards': (4, 5), 'tfds': (4, 5)}.get(source, (8, 8))
  assert index[0] * N <= parts['index'] <= index[1] * N


def test_memory_is_told_and_too_much_of_it_is_warned_of(opened, monkeypatch, caplog):
  data, test = opened('shards'), opened('tfds', training=False, batch_size=16)
  mib = 2**20
  parts = {'index': 3 * mib, 'order': 5 * mib, 'read-ahead': 7 * mib, 'batches': 11 * mib}
  monkeypatch.setattr(data, 'host_bytes', lambda num_shards: parts)
  monkeypatch.setattr(test, 'host_bytes', lambda num_shards: parts)
  monkeypatch.setattr(hardware, 'host_memory', lambda: 48 * mib)
  expected = (
    'input: about {} MiB of {}, without libraries: 3.0 MiB index, 5.0 MiB order, '
    '7.0 MiB read-ahead, 11.0 MiB batches, {} MiB evaluations'
  )
  # Of two evaluations both indexes stay, and the batches of one are there at a time.
  told = input.describe_memory(data, {'a': {'data': test}, 'b': {'data': test}}, 1)
  assert told == expected.format('50.0', 48, '24.0')
  assert 'THE INPUT NEEDS ABOUT 0.0 GiB, AND THIS HOST HAS 0.0.' in caplog.text
  caplog.clear()
  assert input.describe_memory(data, {'a': {'data': test}}, 1) == expected.format(
    '47.0', 48, '21.0'
  )
  assert not caplog.text


def test_host_memory_is_that_of_the_machine_at_most():
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  assert 2**28 < hardware.host_memory() <= total
