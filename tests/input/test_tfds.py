from itertools import islice
import json
import os
import re
import socket

import jax
import numpy as np
import pytest

from mixer import input
from mixer.errors import InputError
from mixer.input import order
import sets

pytest.importorskip('mixer.input.sources.tfds', reason='needs TensorFlow and TFDS')

N = 40  # training examples; each has a class of its own, so that a label names its example
SETS = {'tfrecord': 'numbers', 'array_record': 'numbers_array'}
FORMATS = pytest.mark.parametrize('file_format', list(SETS))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  def refuse(*_):
    raise AssertionError('the network was asked for')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('sets')
  for file_format, name in SETS.items():
    sets.write(
      path,
      name,
      {'train': N, 'validation': 13},
      num_classes=N,
      file_format=file_format,
      num_shards=3,
    )
  sets.write(path, 'many_labels', {'train': 12}, num_classes=6, label_sequence=True)
  return path


@pytest.fixture
def open_set(data_dir):
  def build(**arguments):
    given = {'name': 'numbers', 'split': 'train', 'batch_size': 8, 'image_size': 16}
    given |= {'crop': 'inception', 'data_dir': str(data_dir)}
    return input.build(source='tfds', **given | arguments)

  return build


@pytest.fixture
def copy(tmp_path):
  """A set of its own to damage: (its data_dir, its files)."""

  def write(file_format='tfrecord'):
    sets.write(tmp_path, 'broken', {'train': 20}, file_format=file_format, num_shards=4)
    return str(tmp_path), sorted((tmp_path / 'broken' / '1.0.0').glob('broken-train*'))

  return write


def small(size=16, resize=20):
  return {'crop': 'resize_small', 'image_size': size, 'resize': resize}


def take(batches, count):
  return list(islice(batches, count))


def labels(batches):
  return np.concatenate([batch['label'] for batch in batches])


def stored_labels(data_dir, split, name='numbers'):
  """In the order of the files, by TFDS's own reading."""
  import tensorflow_datasets as tfds

  config = tfds.ReadConfig(interleave_cycle_length=1)
  decoders = {'image': tfds.decode.SkipDecoding()}
  data = tfds.load(
    name, split=split, data_dir=data_dir, read_config=config, decoders=decoders, shuffle_files=False
  )
  return np.array([example['label'] for example in data.as_numpy_iterator()])


@FORMATS
def test_says_what_it_holds(open_set, file_format):
  data = open_set(name=SETS[file_format], image_size=[16, 24], batch_size=4)
  assert data.num_examples == N and data.num_classes == N and data.batch_size == 4
  assert data.class_names == tuple(str(i) for i in range(N))
  assert data.image_size == (16, 24) and data.channels == 3
  assert data.preprocessing == {
    'name': 'inception', 'resize': None, 'crop': (16, 24), 'value_range': [-1, 1]
  }  # fmt: skip
  batch = next(data.train_batches(0, seed=0))
  assert batch['image'].shape == (4, 16, 24, 3) and batch['image'].dtype == np.uint8
  assert batch['label'].shape == (4,) and batch['label'].dtype == np.int32


def test_both_file_formats_give_the_same_batches(open_set):
  for options in ({}, small()):
    a, b = (open_set(name=name, **options) for name in SETS.values())
    sets.assert_same(take(a.train_batches(2, seed=5), 9), take(b.train_batches(2, seed=5), 9))


def test_training_order_is_the_permutation_of_the_files_order(open_set, data_dir):
  stored = stored_labels(data_dir, 'train')
  found = labels(take(open_set().train_batches(0, seed=9), 15))  # three epochs
  for epoch, part in enumerate(found.reshape(3, N)):
    np.testing.assert_array_equal(part, stored[order.permutation(N, 9, epoch)])


def test_each_epoch_has_every_example_once(open_set):
  found = labels(take(open_set(batch_size=16).train_batches(0, seed=0), 10)).reshape(4, N)
  assert (np.sort(found) == np.arange(N)).all()  # batches 2, 5 and 7 lie in two epochs
  assert len({tuple(epoch) for epoch in found}) == 4


def test_a_batch_larger_than_the_set(open_set):
  found = labels([next(open_set(batch_size=100).train_batches(0, seed=0))])
  assert sorted(np.bincount(found, minlength=N)) == [2] * 20 + [3] * 20


@FORMATS
def test_batches_from_any_number_on_are_the_tail_of_all(open_set, file_format):
  data = open_set(name=SETS[file_format], batch_size=12)
  whole = take(data.train_batches(0, seed=1), 11)  # 3.3 epochs
  for first in (1, 3, 4, 10):  # within an epoch, and on both sides of the first one's end
    sets.assert_same(take(data.train_batches(first, seed=1), 11 - first), whole[first:])
  again = open_set(name=SETS[file_format], batch_size=12)
  sets.assert_same(take(again.train_batches(0, seed=1), 11), whole)


@pytest.mark.parametrize('num_shards', [2, 4])
def test_shards_put_together_are_the_global_batch(open_set, num_shards):
  data = open_set(batch_size=12)
  whole = take(data.train_batches(2, seed=1), 8)
  shards = [take(data.train_batches(2, 1, shard, num_shards), 8) for shard in range(num_shards)]
  sets.assert_same(sets.join(shards), whole)


def test_randaugment_changes_pixels_and_resumes_and_shards_like_all_else(open_set):
  plain, data = open_set(), open_set(randaugment_layers=2, randaugment_magnitude=15)
  whole = take(data.train_batches(0, seed=1), 7)
  for batch, before in zip(whole, plain.train_batches(0, seed=1)):
    np.testing.assert_array_equal(batch['label'], before['label'])
    assert (batch['image'] != before['image']).any(axis=(1, 2, 3)).sum() >= 6  # of 8
  shards = [take(data.train_batches(4, 1, shard, 2), 3) for shard in range(2)]
  sets.assert_same(sets.join(shards), whole[4:])


def test_randaugment_left_to_the_device(open_set):
  """The host hands over crop and flip alone, and with them what the step has to do."""
  facts = dict(randaugment_layers=2, randaugment_magnitude=15)
  there, plain = open_set(**facts, randaugment_on='device'), open_set()
  sets.assert_same(take(there.train_batches(0, 5), 2), take(plain.train_batches(0, 5), 2))
  images = next(there.train_batches(0, 5))['image']
  keys = jax.random.split(jax.random.key(0), len(images))
  assert (np.asarray(there.augment(images, keys)) != images).any(axis=(1, 2, 3)).mean() > 0.5
  assert plain.augment is None and open_set(**facts).augment is None
  with pytest.raises(InputError, match=r"randaugment_on is 'gpu'; use one of \['device', 'host'\]"):
    open_set(**facts, randaugment_on='gpu')


def test_an_example_is_cropped_anew_in_every_epoch_and_with_every_seed(open_set):
  data = open_set(batch_size=N)
  seen = {}
  for seed in (0, 1):
    for batch in take(data.train_batches(0, seed), 2):
      for image, label in zip(batch['image'], batch['label']):
        seen.setdefault(int(label), set()).add(image.tobytes())
  assert all(len(crops) == 4 for crops in seen.values())


def test_training_without_randomness_in_the_crop(open_set):
  data = open_set(**small(), batch_size=N)
  first, second = (
    {label: image.tobytes() for image, label in zip(batch['image'], batch['label'])}
    for batch in take(data.train_batches(0, seed=0), 2)
  )
  assert first == second


@pytest.mark.parametrize(
  ('split', 'size'),
  [
    ('train[:50%]+train[90%:]', 24),
    ('train[10:31]', 21),
    ('train+validation', 53),
    ('validation[-5:]', 5),
  ],
)
@FORMATS
def test_sub_splits(open_set, data_dir, file_format, split, size):
  data = open_set(name=SETS[file_format], split=split, **small())
  assert data.num_examples == size
  found = labels(take(data.eval_batches(size), 1))
  np.testing.assert_array_equal(found, stored_labels(data_dir, split))
  trained = labels(take(data.train_batches(0, seed=0), 7))[:size]
  assert sorted(trained) == sorted(found)


@pytest.mark.parametrize(('batch_size', 'num_shards'), [(4, 4), (16, 1), (20, 2), (64, 4)])
def test_evaluation_has_every_example_once_in_the_order_of_the_files(
  open_set, data_dir, batch_size, num_shards
):
  data = open_set(**small(), batch_size=batch_size)
  shards = [
    take(data.eval_batches(batch_size, shard, num_shards), 100) for shard in range(num_shards)
  ]
  whole = sets.join(shards)
  assert len(whole) == -(-N // batch_size)
  assert {batch['image'].shape for batch in whole} == {(batch_size, 16, 16, 3)}
  mask = np.concatenate([batch['mask'] for batch in whole])
  assert mask.dtype == bool
  np.testing.assert_array_equal(labels(whole)[mask], stored_labels(data_dir, 'train'))


def test_images_and_labels_belong_together(tmp_path):
  """Every image is of one grey, ten times its label."""
  greys = [(np.full((20, 20, 3), 10 * i, np.uint8), i) for i in range(20)]
  rows = [(sets.encode(image, ('PNG', 'JPEG')[i % 2]), i) for image, i in greys]
  sets.write_examples(tmp_path, 'greys', {'train': rows}, num_classes=20)
  common = {'source': 'tfds', 'name': 'greys', 'split': 'train', 'batch_size': 8}
  random = input.build(**common, data_dir=str(tmp_path), crop='inception', image_size=8)
  fixed = input.build(**common, data_dir=str(tmp_path), **small(8, 10))
  for batch in [*take(random.train_batches(0, seed=0), 5), *fixed.eval_batches(8)]:
    expected = np.broadcast_to(10 * batch['label'][:, None, None, None], (8, 8, 8, 3))
    np.testing.assert_array_equal(batch['image'], expected)


def test_evaluation_pixels(tmp_path):
  """Shorter side 20 to 20, then the centre: the PNG's own pixels."""
  images = [np.random.default_rng(i).integers(0, 256, (20, 31, 3), np.uint8) for i in range(6)]
  rows = [(sets.encode(image), i) for i, image in enumerate(images)]
  sets.write_examples(tmp_path, 'noise', {'test': rows}, num_classes=6)
  data = input.build(
    source='tfds', name='noise', split='test', batch_size=6, data_dir=str(tmp_path), **small()
  )
  (batch,) = data.eval_batches(6)
  for image, label in zip(batch['image'], batch['label']):
    np.testing.assert_array_equal(image, images[label][2:18, 7:23])


def test_several_labels_become_a_vector(open_set):
  """Example i has the i % 4 labels from i % 6 on."""
  data = open_set(name='many_labels', **small())
  (batch,) = data.eval_batches(12)
  assert data.num_classes == 6
  assert batch['label'].shape == (12, 6) and batch['label'].dtype == np.uint8
  expected = np.zeros((12, 6), int)
  for i in range(12):
    for j in range(i % 4):
      expected[i, (i + j) % 6] = 1
  assert sorted(batch['label'].tolist()) == sorted(expected.tolist())
  trained = labels(take(data.train_batches(0, seed=0), 3))
  assert sorted(trained[:12].tolist()) == sorted(expected.tolist())


@FORMATS
@pytest.mark.parametrize(
  ('name', 'version', 'num_classes'),
  [('imagenet2012', '5.1.0', 1000), ('imagenet2012', '5.0.0', 1000), ('cifar10', '3.0.2', 10)],
)
def test_sets_that_tfds_knows_open_by_their_plain_name(
  tmp_path, name, version, num_classes, file_format
):
  """In the version that TFDS's own code has, or in an older one."""
  options = {'version': version, 'file_format': file_format, 'num_classes': num_classes}
  sets.write(tmp_path, name, {'train': 9}, **options)
  for written in (name, f'{name}:{version}', f'{name}:*.*.*'):
    data = input.build(
      source='tfds', name=written, split='train', batch_size=9, data_dir=str(tmp_path), **small()
    )
    assert data.num_examples == 9 and data.num_classes == num_classes
    assert sorted(next(data.train_batches(0, 0))['label']) == list(range(9))


def test_the_newest_version_on_disk(tmp_path):
  for version, size in (('1.9.0', 3), ('1.10.0', 4)):
    sets.write(tmp_path, 'grown', {'train': size}, version=version)
  for name, size in (('grown', 4), ('grown:1.9.0', 3)):
    data = input.build(
      source='tfds', name=name, split='train', batch_size=1, data_dir=str(tmp_path), **small()
    )
    assert data.num_examples == size


def test_data_dir_under_the_home_folder(data_dir, open_set, monkeypatch):
  monkeypatch.setenv('HOME', str(data_dir.parent))
  assert open_set(data_dir=f'~/{data_dir.name}').num_examples == N


# What goes wrong


def test_evaluations_of_other_classes_than_trainings(data_dir, open_set, tmp_path):
  """As many classes with other names are not the same classes."""
  sets.write(tmp_path, 'few', {'train': 2}, num_classes=6)
  for name in ('ant', 'bee'):
    (tmp_path / f'photos/{name}').mkdir(parents=True)
    (tmp_path / f'photos/{name}/1.png').write_bytes(sets.encode(np.zeros((9, 9, 3), np.uint8)))
  trained = open_set(name='numbers')
  common = {'source': 'tfds', 'split': 'train', 'batch_size': 2, **small()}
  good = {'input': common | {'name': 'numbers', 'data_dir': str(data_dir)}}
  few = {'input': common | {'name': 'few', 'data_dir': str(tmp_path)}}
  text = 'config.evals.b.input and config.train_input differ in num_classes: 6 and 40.'
  fails_with(text, lambda: input.open_evals({'a': good, 'b': few}, trained))
  photos = {'source': 'folder', 'path': f'{tmp_path}/photos', 'split': 'train', 'val_fraction': 0}
  other = {'input': {**photos, 'batch_size': 2, **small()}}
  names = open_set(name='numbers')
  names.num_classes = 2
  text = "config.evals.a.input and config.train_input differ in class_names: ('ant', 'bee') and ..."
  fails_with(text, lambda: input.open_evals({'a': other}, names))


def fails_with(text, build, **arguments):
  """The whole message is `text`, in which ... stands for anything."""
  pattern = '.*'.join(re.escape(part) for part in text.split('...'))
  with pytest.raises(InputError, match=re.compile(f'^{pattern}$', re.DOTALL)):
    build(**arguments)


def test_a_set_that_is_not_there(open_set, data_dir):
  found = "['many_labels', 'numbers', 'numbers_array']"
  fails_with(
    f"no prepared data set 'pets' in {data_dir}, which holds {found}.\n"
    f'  To prepare it:       python -m mixer.input.prepare --name=pets --data_dir={data_dir} '
    '--split=SPLIT --images=FOLDER_OF_CLASS_FOLDERS\n'
    '  If it is elsewhere:  --config...data_dir=DIR, or set TFDS_DATA_DIR\n'
    '  To run without it:   python train.py --config=configs/digits.py --workdir=...',
    open_set,
    name='pets',
  )


@pytest.mark.parametrize(
  ('name', 'more'),
  [
    ('imagenet2012', ' --manual_dir=FOLDER_OF_ITS_ARCHIVES'),
    ('imagenet2012:5.1.0', ' --manual_dir=FOLDER_OF_ITS_ARCHIVES'),
    ('eurosat/rgb', '   (downloads)'),
  ],
)
def test_a_set_that_is_not_there_but_tfds_knows(open_set, data_dir, name, more):
  fails_with(
    f"no prepared data set '{name}' in {data_dir}, which holds [...].\n"
    f'  To prepare it:       python -m mixer.input.prepare --name={name} --data_dir={data_dir}'
    f'{more}\n...',
    open_set,
    name=name,
  )


@pytest.mark.parametrize('name', ['numbers:2.0.0', 'Not-A-Name', 'numbers/config', 'a:b:c'])
def test_another_version_or_a_name_that_tfds_refuses(open_set, data_dir, name):
  fails_with(f"no prepared data set '{name}' in {data_dir}, which holds ...", open_set, name=name)


def test_folders_that_are_empty_or_not_there(open_set, tmp_path):
  text = "no prepared data set 'numbers' in {}, which {}.\n..."
  fails_with(text.format(tmp_path, 'holds nothing'), open_set, data_dir=str(tmp_path))
  absent = str(tmp_path / 'absent')
  fails_with(text.format(absent, 'does not exist'), open_set, data_dir=absent)


def test_looks_where_the_environment_says(open_set, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  fails_with(
    f"no prepared data set 'pets' in {tmp_path}, which holds nothing.\n...",
    open_set,
    name='pets',
    data_dir=None,
  )


@pytest.mark.parametrize(
  ('split', 'fault'),
  [
    ('test', "Unknown split 'test'. Should be one of ['train', 'validation']."),
    ('train[:50', "Error parsing split 'train[:50'..."),
    ('train[:800]', 'Requested slice [:800] incompatible with 40 examples.'),
  ],
)
def test_a_split_that_is_not_there(open_set, split, fault):
  text = (
    f"numbers/1.0.0 has no split '{split}'; it has {{'train': 40, 'validation': 13}} ({fault})."
  )
  fails_with(text, open_set, split=split)


@pytest.mark.parametrize('split', ['train[:0]', 'train[30:20]'])
def test_an_empty_split(open_set, split):
  fails_with(f'numbers/1.0.0, split {split!r}: empty.', open_set, split=split)


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    (
      {'image_key': 'picture'},
      "numbers/1.0.0 has no feature ['picture']; it has [...'image'...].",
    ),
    (
      {'image_key': 'picture', 'label_key': 'class'},
      "numbers/1.0.0 has no feature ['picture', 'class']; it has [...].",
    ),
    (
      {'label_key': 'file_name'},
      "numbers/1.0.0: 'image' must be an Image and 'file_name' a ClassLabel or a Sequence of it; "
      'they are Image(...) and Text(...).',
    ),
    (
      {'image_key': 'label', 'label_key': 'image'},
      "numbers/1.0.0: 'label' must be an Image and 'image' a ClassLabel or a Sequence of it; "
      'they are ClassLabel(...) and Image(...).',
    ),
  ],
)
def test_features_that_are_not_there(open_set, arguments, text):
  fails_with(text, open_set, **arguments)


@pytest.mark.parametrize('resize', [None, 20])
def test_a_crop_that_does_not_exist(open_set, resize):
  text = (
    "input source 'tfds': crop is 'centre'; use one of ['direct', 'direct_flip', 'inception', "
    "'resize', 'resize_random', 'resize_random_unflipped', 'resize_small', 'resize_small_random']."
  )
  fails_with(text, open_set, crop='centre', resize=resize)


@pytest.mark.parametrize(('crop', 'resize'), [('inception', 20), ('resize_small', None)])
def test_crops_and_resizes_that_do_not_go_together(open_set, crop, resize):
  text = (
    f"crop={crop!r} with resize={resize!r}: use one of ['direct', 'direct_flip', 'inception'] "
    "without or one of ['resize', 'resize_random', 'resize_random_unflipped', 'resize_small', "
    "'resize_small_random'] with it."
  )
  fails_with(text, open_set, crop=crop, resize=resize)


@pytest.mark.parametrize(('size', 'resize'), [(16, 15), ((16, 24), 20), (16, (20, 8))])
def test_a_crop_larger_than_the_resized_image(open_set, size, resize):
  text = f'a crop of {size} pixels needs resize >= it; got resize={resize}.'
  fails_with(text, open_set, **small(size, resize))


def test_an_evaluation_with_the_random_crop(open_set):
  text = 'an evaluation needs a crop without randomness; use crop="resize_small".'
  fails_with(text, open_set(crop='inception').eval_batches, batch_size=8)


def test_a_set_half_written(open_set, copy):
  data_dir, files = copy()
  (files[0].parent / 'dataset_info.json').unlink()
  fails_with(
    f"no prepared data set 'broken' in {data_dir}, which holds ['broken'].\n...",
    open_set,
    name='broken',
    data_dir=data_dir,
  )


@FORMATS
def test_files_that_are_missing(open_set, copy, file_format):
  data_dir, files = copy(file_format)
  files[1].unlink()
  files[3].unlink()
  fails_with(
    f"broken/1.0.0, split 'train': 2 of 4 files are missing, the first {files[1]}.",
    open_set,
    name='broken',
    data_dir=data_dir,
  )


@FORMATS
def test_a_file_cut_short(open_set, copy, file_format):
  data_dir, files = copy(file_format)
  os.truncate(files[2], files[2].stat().st_size - 1)
  fails_with(
    f'{files[2]} is truncated: .... Copy or prepare it again.',
    open_set,
    name='broken',
    data_dir=data_dir,
  )


def test_fewer_records_than_promised(open_set, copy):
  data_dir, files = copy()
  files[2].write_bytes(b'')
  fails_with(
    "broken/1.0.0, split 'train': the files hold 15 records, dataset_info.json promises 20. "
    'Prepare the set again.',
    open_set,
    name='broken',
    data_dir=data_dir,
  )


def test_a_file_format_without_random_access(open_set, copy):
  data_dir, files = copy()
  info = files[0].parent / 'dataset_info.json'
  info.write_text(json.dumps(json.loads(info.read_text()) | {'fileFormat': 'riegeli'}))
  for file in files:
    file.rename(str(file).replace('tfrecord', 'riegeli'))
  fails_with(
    'broken/1.0.0 is stored as ...; prepare it as tfrecord or array_record.',
    open_set,
    name='broken',
    data_dir=data_dir,
  )
