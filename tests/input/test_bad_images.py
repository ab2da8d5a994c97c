"""on_bad_image: where a bad image's place is taken by another, and where it stops the run."""

import errno
from itertools import islice
import logging
import os
import re

import numpy as np
import pytest

from mixer import input
from mixer.errors import InputError
from mixer.input import folders, order
import sets

pytest.importorskip('mixer.input.pipeline', reason='needs TensorFlow')

N, BATCH, SEED = 36, 12, 5
BAD = (0, 7, 8, 35)  # two of them neighbours, and the first and last: its place goes to number 1
SOURCES = pytest.mark.parametrize('source', ['folder', 'tfrecord', 'array_record'])


def files():
  """Images of N looks; the bad ones are of four kinds."""
  rng = np.random.default_rng(0)
  found = [sets.encode(sets.smooth(rng, 30, 40), ('JPEG', 'PNG')[i % 2]) for i in range(N)]
  for i, content in zip(BAD, (b'', found[7][:80], b'<!DOCTYPE html>', found[35][:60])):
    found[i] = content
  return found


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
  """{source: what it is built from}; the images in the same order for all."""
  root = tmp_path_factory.mktemp('sets')
  made = {'folder': {'source': 'folder', 'path': str(root / 'folder'), 'val_fraction': 0}}
  for i, content in enumerate(files()):
    path = root / f'folder/{i:02}/image.jpg'
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
  for file_format in ('tfrecord', 'array_record'):
    sets.write_examples(
      root, file_format, {'train': [(content, i) for i, content in enumerate(files())]},
      num_classes=N, file_format=file_format, num_shards=2,
    )  # fmt: skip
    made[file_format] = {'source': 'tfds', 'name': file_format, 'data_dir': str(root)}
  return made


@pytest.fixture
def build(roots):
  def with_arguments(source='folder', **arguments):
    given = {'split': 'train', 'batch_size': BATCH, 'image_size': 16, 'crop': 'inception'}
    return input.build(**roots[source] | given | {'on_bad_image': 'skip'} | arguments)

  return with_arguments


def take(batches, count):
  return list(islice(batches, count))


def stored(data):
  """The label of each example in the order of their numbers; a label names an image."""
  return [int(data.examples.parse(*(c[0] for c in data.examples.fetch([i])))[1]) for i in range(N)]


@SOURCES
def test_a_bad_images_place_goes_to_the_next_good_one(build, source):
  """By position: the labels are those of the permutation, each bad one moved on to a good one."""
  data = build(source)
  labels = stored(data)
  good = [label not in BAD for label in labels]
  takes = [next(j for j in range(i, i + N) if good[j % N]) % N for i in range(N)]
  found = np.concatenate([batch['label'] for batch in take(data.train_batches(0, SEED), 9)])
  for epoch, part in enumerate(found.reshape(3, N)):
    expected = [labels[takes[i]] for i in order.permutation(N, SEED, epoch)]
    np.testing.assert_array_equal(part, expected)
  assert data.bad_images == len(BAD)


@pytest.mark.parametrize(
  ('source', 'layers'),
  [('folder', 0), ('tfrecord', 0), ('folder', 1)],
)
def test_good_images_are_as_they_would_be_and_the_others_have_their_positions_draws(
  build, source, layers
):
  """Against a set whose bad images are replaced on disk: the same pixels in every place."""
  augment = {'randaugment_layers': layers, 'randaugment_magnitude': 15}
  data = build(source, **augment)
  labels = stored(data)
  mended = [data.examples.fetch([i]) for i in range(N)]
  for i, label in enumerate(labels):
    if label in BAD:
      mended[i] = mended[next(j % N for j in range(i, i + N) if labels[j % N] not in BAD)]
  batches = take(data.train_batches(0, SEED), 6)
  whole = build(source, **augment, on_bad_image='fail')
  columns = [np.concatenate(column) for column in zip(*mended)]
  whole._examples.fetch = lambda indices: tuple(column[indices] for column in columns)
  sets.assert_same(batches, take(whole.train_batches(0, SEED), 6))


@pytest.mark.parametrize('source', ['folder', 'array_record'])
def test_resuming_and_sharding(build, source):
  whole = take(build(source).train_batches(0, SEED), 7)
  for first in (2, 5):
    again = build(source).train_batches(first, SEED)
    sets.assert_same(take(again, 7 - first), whole[first:])
  shards = [take(build(source).train_batches(1, SEED, i, 3), 6) for i in range(3)]
  sets.assert_same(sets.join(shards), whole[1:])


def test_the_next_good_image_of_a_subset(build):
  data = build(subset_fraction=0.5, subset_seed=3, batch_size=6)
  chosen = order.subset(N, 0.5, 3).tolist()
  good = [i not in BAD for i in chosen]
  assert good.count(False) > 1
  takes = [next(j % 18 for j in range(i, i + 18) if good[j % 18]) for i in range(18)]
  found = np.concatenate([batch['label'] for batch in take(data.train_batches(0, SEED), 3)])
  expected = [chosen[takes[i]] for i in order.permutation(18, SEED, 0)]
  np.testing.assert_array_equal(found, expected)
  assert data.bad_images == good.count(False)


def test_of_very_many_images_no_list_is_made():
  """An array of as many numbers would not fit in any memory."""
  from mixer.input import pipeline

  content = sets.encode(sets.smooth(np.random.default_rng(0), 30, 40), 'PNG')

  class Examples:
    num_examples, num_classes, class_names, multi_label = 10**14, 7, tuple('0123456'), False
    dtypes, index_bytes, record_bytes = (pipeline.tf.string, pipeline.tf.int32), 0, 0

    def fetch(self, indices):
      files = [b'' if i % 4 == 0 else content for i in indices]
      return np.array(files, object), np.array([i % 7 for i in indices], np.int32)

    def parse(self, encoded, label):
      return encoded, label

    def describe(self, index):
      return str(index)

  data = pipeline.Images(
    Examples, batch_size=16, image_size=16, crop='inception', on_bad_image='skip'
  )
  (batch,) = take(data.train_batches(0, SEED), 1)
  numbers = order.examples(np.arange(16), 10**14, SEED)
  assert data.bad_images == (numbers % 4 == 0).sum() > 0
  np.testing.assert_array_equal(batch['label'], (numbers + (numbers % 4 == 0)) % 7)


def test_other_batch_sizes_have_the_same_rows(build):
  rows = [np.concatenate([b['image'] for b in take(build(batch_size=size).train_batches(0, SEED),
          72 // size)]) for size in (8, 36)]  # fmt: skip
  np.testing.assert_array_equal(rows[0], rows[1])


def test_another_crop(build):
  data = build(crop='resize_random', resize=20)
  np.testing.assert_array_equal(
    np.concatenate([b['label'] for b in take(data.train_batches(0, SEED), 3)]),
    np.concatenate([b['label'] for b in take(build().train_batches(0, SEED), 3)]),
  )


def test_a_jpeg_that_is_bad_where_the_window_lies_in_what_is_missing(build, tmp_path):
  """Its neighbour comes at those positions only, whatever came before them."""
  rng = np.random.default_rng(3)
  whole = [sets.encode(sets.smooth(rng, 400, 400), 'JPEG') for _ in range(4)]
  whole[1] = whole[1][: len(whole[1]) * 7 // 8]
  for i, content in enumerate(whole):
    (tmp_path / f'{i}').mkdir()
    (tmp_path / f'{i}/a.jpg').write_bytes(content)
  data = build(path=str(tmp_path), batch_size=40)
  batches = take(data.train_batches(0, SEED), 3)
  place = np.concatenate([order.permutation(4, SEED, epoch) for epoch in range(30)])
  found = np.concatenate([batch['label'] for batch in batches])
  np.testing.assert_array_equal(found[place != 1], place[place != 1])
  assert set(found[place == 1]) == {1, 2}
  again = build(path=str(tmp_path), batch_size=40)
  sets.assert_same(take(again.train_batches(2, SEED), 1), batches[2:])


def test_each_bad_image_is_told_once(build, roots, caplog):
  data = build()
  with caplog.at_level(logging.WARNING, 'absl'):
    take(data.train_batches(0, SEED), 9)
  path = roots['folder']['path']
  told = [re.fullmatch(r'bad image (\d), replaced by the next good one: (\S+): .+', message)
          for message in caplog.messages]  # fmt: skip
  assert [match[1] for match in told] == ['1', '2', '3', '4']
  assert {match[2] for match in told} == {f'{path}/{i:02}/image.jpg' for i in BAD}


def test_a_set_without_bad_images(build, tmp_path):
  sets.write(tmp_path, 'whole', {'train': 20})
  common = {'name': 'whole', 'data_dir': str(tmp_path)}
  skip, fail = (build('tfrecord', **common, on_bad_image=how) for how in ('skip', 'fail'))
  sets.assert_same(take(skip.train_batches(2, 1), 5), take(fail.train_batches(2, 1), 5))
  assert skip.bad_images == 0 and fail.bad_images is None


def test_a_file_that_goes_away(build, tmp_path):
  """It takes none of those with it that are read in the same call."""
  for i in range(20):
    (tmp_path / f'{i:02}').mkdir()
    (tmp_path / f'{i:02}/a.png').write_bytes(sets.encode(np.full((20, 20, 3), 9 * i, np.uint8)))
  data = build(path=str(tmp_path))
  os.remove(tmp_path / '04/a.png')
  found = np.concatenate([b['label'] for b in take(data.train_batches(0, SEED), 5)])
  expected = np.concatenate([order.permutation(20, SEED, epoch) for epoch in range(3)])
  np.testing.assert_array_equal(found, np.where(expected == 4, 5, expected))
  assert data.bad_images == 1


@pytest.fixture
def damaged(tmp_path, monkeypatch):
  """(folder, {path: what is told of it}): bad files of all kinds among 47 good images."""

  rng = np.random.default_rng(0)
  kinds = ('JPEG', 'PNG', 'WEBP')
  good = [sets.encode(sets.smooth(rng, 30, 40), kind) for kind in kinds]
  whole = {kind: sets.encode(sets.smooth(rng, 30, 40), kind) for kind in ('TIFF', 'GIF', 'BMP')}
  whole['WEBP'] = sets.encode(sets.smooth(rng, 30, 40), 'WEBP', lossless=True)
  files = {f'{"abc"[i % 3]}/{i:02}.{kinds[i % 3]}': good[i % 3] for i in range(47)}
  files |= {f'a/cut{kind}.{kind}': file[: len(file) // 2] for kind, file in whole.items()}
  files['a/cutTIFF.png'] = files.pop('a/cutTIFF.TIFF')  # read by its content
  large = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0'
  told = {
    **{f'a/cut{kind}': '' for kind in ('TIFF.png', 'GIF.GIF', 'BMP.BMP', 'WEBP.WEBP')},
    'a/empty.png': 'Input is empty.',
    'b/text.jpg': 'Unknown image file format',
    'b/start.jpg': 'jpeg::Uncompress failed',
    'b/header.png': '',
    'b/large.png': '65536 x 65536 pixels are more than 178956970, the limit',
    'c/link.jpg': '[Errno 2] No such file',
    'c/loop.jpg': '[Errno 40] Too many levels',
    'c/folder.jpg': '[Errno 21] Is a directory',
    'c/locked.jpg': '[Errno 13] Permission denied',
  }
  files |= {'a/empty.png': b'', 'b/text.jpg': b'a text', 'b/start.jpg': b'\xff\xd8\xff'}
  files |= {'b/header.png': good[1][:20], 'b/large.png': large, 'c/locked.jpg': good[0]}
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
  (tmp_path / 'c/link.jpg').symlink_to(tmp_path / 'nowhere')
  (tmp_path / 'c/loop.jpg').symlink_to(tmp_path / 'c/loop.jpg')
  (tmp_path / 'c/folder.jpg').mkdir()
  read = folders.read_file

  def read_what_is_permitted(path):  # the tests may run as root
    if path.endswith('locked.jpg'):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return read(path)

  monkeypatch.setattr(folders, 'read_file', read_what_is_permitted)
  return tmp_path, {f'{tmp_path}/{name}': text for name, text in told.items()}


def named(error):
  """{path: reason} in the lines of an error about a batch."""
  lines = str(error).splitlines()
  assert re.match(r'\d+ bad images in one batch; replace or remove them. ', lines[0])
  return dict(line.removeprefix('  ').split(': ', 1) for line in lines[1:])


@pytest.mark.parametrize('batch_size', [5, 16])  # of which the first shares chunks of reading
def test_every_kind_of_bad_file_is_named_in_the_batch_that_needs_it(build, damaged, batch_size):
  root, told = damaged
  common = {'path': str(root), 'batch_size': batch_size, 'on_bad_image': 'fail', 'resize': 20}
  data = build(**common, crop='resize_random')
  numbers = [data.examples.describe(i) for i in range(data.num_examples)]
  assert len(numbers) == 47 + len(told)
  found = {}
  for training in (True, False):
    sequence = order.permutation(len(numbers), SEED, 0) if training else range(len(numbers))
    places = [numbers[i] for i in sequence]
    for first in range(0, len(places), batch_size):
      wanted = set(told) & set(places[first : first + batch_size])
      if not training and first:
        break  # an evaluation always begins at its first image
      if len(places) - first < batch_size or not wanted:
        continue
      batches = (
        data.train_batches(first // batch_size, SEED)
        if training
        else build(**common, crop='resize').eval_batches(batch_size)
      )
      with pytest.raises(InputError) as error:
        next(batches)
      reasons = named(error.value)
      assert reasons.keys() == wanted
      found |= reasons
  assert len(found) > 8
  for path, reason in found.items():
    assert reason.startswith(told[path]) and reason and 'node' not in reason, (path, reason)


def test_every_kind_of_bad_file_is_skipped_and_counted(build, damaged, caplog):
  root, told = damaged
  for path in [*told][:4]:
    os.remove(path)  # at most ten
    del told[path]
  data = build(path=str(root), batch_size=7)
  with caplog.at_level(logging.WARNING, 'absl'):
    take(data.train_batches(0, SEED), 9)
  assert data.bad_images == len(told) == 9
  logged = [message.partition(': ')[2] for message in caplog.messages if 'replaced' in message]
  for path, reason in told.items():
    assert any(line.startswith(f'{path}: {reason}') for line in logged)


def test_check_and_predict_name_every_kind_of_bad_file(build, damaged):
  from mixer.input import inspection, single_images

  root, told = damaged
  data = build(path=str(root), on_bad_image='fail', crop='resize', resize=20)
  found = inspection.inspect(data.examples, 'train', data.conversion)
  reasons = {place['where']: place['reason'] for place in found.bad_places}
  assert reasons.keys() == told.keys()
  assert all(reason.startswith(told[path]) for path, reason in reasons.items())
  decode = single_images.decoder(data.preprocessing, (16, 16), 3)
  for path in told:
    if not path.startswith(f'{root}/c'):  # those can be read
      with open(path, 'rb') as file, pytest.raises(InputError) as error:
        decode(file.read())
      assert str(error.value).startswith(told[path]) and '\n' not in str(error.value)


@pytest.mark.parametrize('failures', [1, 3])
def test_a_file_that_cannot_be_read_for_a_while(build, damaged, monkeypatch, failures):

  root, told = damaged
  for path in told:
    os.rmdir(path) if os.path.isdir(path) else os.remove(path)
  data, read, left = build(path=str(root), on_bad_image='fail'), folders.read_file, [failures]
  wanted = take(data.train_batches(0, SEED), 3)

  def read_in_the_end(path):
    if path.endswith('/07.PNG') and left[0]:
      left[0] -= 1
      raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return read(path)

  monkeypatch.setattr(folders, 'read_file', read_in_the_end)
  if failures == 1:  # read again by itself
    sets.assert_same(take(data.train_batches(0, SEED), 3), wanted)
  else:
    left[0] = 2
    with pytest.raises(InputError, match='^a batch could not be made, .*: Input is empty. Start'):
      take(data.train_batches(0, SEED), 5)


# What is refused


def write_folder(root, good, bad):
  for name, count, content in (('a', good, sets.encode(np.zeros((9, 9, 3), np.uint8))),
                               ('b', bad, b'no image')):  # fmt: skip
    (root / name).mkdir(parents=True)
    for i in range(count):
      (root / f'{name}/{i:03}.png').write_bytes(content)
  return str(root)


@pytest.mark.parametrize('bad', [10, 11])
def test_at_most_ten_of_a_small_set(build, tmp_path, bad):
  data = build(path=write_folder(tmp_path, 100, bad))
  if bad == 10:
    take(data.train_batches(0, SEED), 20)
    assert data.bad_images == 10
    return
  text = (
    r'11 bad images among about the first \d+, the last is .*/b/\d+.png: Unknown image file format'
  )
  with pytest.raises(InputError, match=text):
    take(data.train_batches(0, SEED), 20)


def test_nothing_but_bad_images(build, tmp_path):
  """The pipeline, which drops them without a word, does not run on for ever."""
  root = write_folder(tmp_path, 3, 40)
  data = build(path=root, batch_size=4)
  for i in range(3):
    os.remove(f'{root}/a/{i:03}.png')
  with pytest.raises(InputError, match='11 bad images among about the first'):
    next(data.train_batches(0, SEED))


def test_few_images_that_are_all_bad(build, tmp_path):
  root = write_folder(tmp_path, 1, 3)
  data = build(path=root, batch_size=2)
  os.remove(f'{root}/a/000.png')
  with pytest.raises(InputError, match='none of the images can be decoded.'):
    next(data.train_batches(0, SEED))


def test_training_stops_where_it_is_told_to(build):
  with pytest.raises(InputError, match=r'1 bad images in one batch; .*on_bad_image="skip"'):
    take(build(on_bad_image='fail', batch_size=1).train_batches(0, SEED), N)


@pytest.mark.parametrize('source', ['tfrecord', 'array_record'])
def test_a_set_names_the_number_of_the_bad_example(build, source):
  data = build(source, crop='direct', on_bad_image='fail')
  with pytest.raises(InputError, match='4 bad images in one batch') as error:
    next(data.eval_batches(N))
  told = re.findall(rf"\n  {source}/1.0.0, split 'train', example (\d+): ", str(error.value))
  labels = stored(data)
  assert sorted(labels[int(number)] for number in told) == list(BAD)


def test_an_evaluation_skips_nothing(build):
  section = {'split': 'train', 'crop': 'direct', 'on_bad_image': 'skip'}
  data = build(**section)
  with pytest.raises(InputError, match='4 bad images in one batch; replace or remove them'):
    take(data.eval_batches(N), 1)


def test_an_evaluation_that_is_told_to_skip(roots):
  section = roots['folder'] | {
    'split': 'train', 'batch_size': 4, 'image_size': 16, 'crop': 'direct', 'on_bad_image': 'skip'
  }  # fmt: skip
  text = (
    'config.evals.val.input: an evaluation counts every image and skips none; '
    'leave out on_bad_image.'
  )
  with pytest.raises(InputError, match=re.escape(text)):
    input.open_evals({'val': {'kind': 'classification', 'input': section}})


def test_another_word(build):
  text = "on_bad_image is 'ignore'; use one of ['fail', 'skip']."
  with pytest.raises(InputError, match=re.escape(text)):
    build(on_bad_image='ignore')
