"""Folders of class folders: what is read of them, and in which order."""

import io
from itertools import islice
import json
import logging
import os
import re

import numpy as np
from PIL import Image
import pytest

from mixer import input
from mixer.errors import InputError
from mixer.input import folders, image_files, order, single_images
from mixer.training import loop
import runs
import sets
from test_configs import load

folder = pytest.importorskip('mixer.input.sources.folder', reason='needs TensorFlow')

N = 20  # training examples of `numbers`, each of a class of its own, so that a label names it


@pytest.fixture(scope='module')
def numbers(tmp_path_factory):
  """N classes of one training image each, textured; JPEGs and PNGs in turn."""
  root = tmp_path_factory.mktemp('numbers')
  rng = np.random.default_rng(0)
  for i in range(N):
    image = sets.smooth(rng, *rng.integers(24, 49, 2))
    file = sets.encode(image, ('PNG', 'JPEG')[i % 2])
    put(root, f'train/{i:02}/image.{("png", "jpg")[i % 2]}', file)
  return root


def put(root, name, content=b'x'):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return str(path)


def put_all(root, names):
  for name in names.split():
    if name.endswith('/'):
      (root / name).mkdir(parents=True)
    else:
      put(root, name)


def build(root, split='train', **arguments):
  given = {'batch_size': 6, 'image_size': 16, 'crop': 'resize_random', 'resize': 20}
  return input.build(source='folder', path=str(root), split=split, **given | arguments)


def find(root, split='train', val_fraction=0.1):
  """(class names, [(path below root, class number)])."""
  classes, paths, labels = folder.find(str(root), split, val_fraction)
  return classes, [(os.path.relpath(p, root), n) for p, n in zip(paths, labels, strict=True)]


def take(batches, count):
  return list(islice(batches, count))


def labels(batches):
  return np.concatenate([batch['label'] for batch in batches])


def fails_with(text, call, *arguments, **named):
  """The whole message is `text`, in which ... stands for anything."""
  pattern = '.*'.join(re.escape(part) for part in text.split('...'))
  with pytest.raises(InputError, match=re.compile(f'^{pattern}$', re.DOTALL)):
    call(*arguments, **named)


# Order


def test_says_what_it_holds(numbers):
  data = build(numbers, image_size=(16, 24), resize=(20, 30))
  assert data.num_examples == data.num_classes == N and data.batch_size == 6
  assert data.class_names == tuple(f'{i:02}' for i in range(N))
  assert data.image_size == (16, 24) and data.channels == 3
  assert data.preprocessing == {
    'name': 'resize_random', 'resize': (20, 30), 'crop': (16, 24), 'value_range': [-1, 1]
  }  # fmt: skip
  batch = next(data.train_batches(0, seed=0))
  assert batch['image'].shape == (6, 16, 24, 3) and batch['image'].dtype == np.uint8
  assert batch['label'].shape == (6,) and batch['label'].dtype == np.int32


def test_training_order_resumes_and_shards_as_every_source_does(numbers):
  whole = take(build(numbers).train_batches(0, seed=9), 10)  # three epochs
  for epoch, part in enumerate(labels(whole).reshape(3, N)):
    np.testing.assert_array_equal(part, order.permutation(N, 9, epoch))
  crops = {image.tobytes() for batch in whole for image in batch['image']}
  assert len(crops) > 2.5 * N  # of 50 crops of an image, two epochs may draw the same
  data = build(numbers)
  for first in (3, 7):
    sets.assert_same(take(data.train_batches(first, seed=9), 10 - first), whole[first:])
  shards = [take(data.train_batches(2, 9, shard, 3), 8) for shard in range(3)]
  sets.assert_same(sets.join(shards), whole[2:])


@pytest.mark.parametrize(('batch_size', 'num_shards'), [(6, 2), (64, 4)])
def test_evaluation_has_every_example_once(numbers, batch_size, num_shards):
  data = build(numbers, crop='resize_small')
  shards = [take(data.eval_batches(batch_size, i, num_shards), 100) for i in range(num_shards)]
  whole = sets.join(shards)
  mask = np.concatenate([batch['mask'] for batch in whole])
  np.testing.assert_array_equal(labels(whole)[mask], np.arange(N))
  assert len(mask) == -(-N // batch_size) * batch_size


# What is read


def test_the_folders_of_splits(tmp_path):
  put_all(tmp_path, 'train/b/2.jpg train/b/10.jpg train/a/1.jpg validation/a/3.jpg')
  put_all(tmp_path, 'validation/b/4.jpg test/b/5.jpg test/a/6.jpg')
  assert find(tmp_path) == (
    ('a', 'b'),
    [('train/a/1.jpg', 0), ('train/b/10.jpg', 1), ('train/b/2.jpg', 1)],
  )
  for split in ('val', 'validation'):
    assert find(tmp_path, split)[1] == [('validation/a/3.jpg', 0), ('validation/b/4.jpg', 1)]
  assert find(tmp_path, 'test')[1] == [('test/a/6.jpg', 0), ('test/b/5.jpg', 1)]


def test_a_class_without_images_outside_training_keeps_its_number(tmp_path, caplog):
  put_all(
    tmp_path, 'train/a/1.jpg train/b/1.jpg train/c/1.jpg test/b/1.jpg test/c/1.jpg val/c/1.jpg'
  )
  put_all(tmp_path, 'val/a/')
  with caplog.at_level(logging.WARNING, 'absl'):
    assert find(tmp_path, 'test') == (('a', 'b', 'c'), [('test/b/1.jpg', 1), ('test/c/1.jpg', 2)])
    assert find(tmp_path, 'val') == (('a', 'b', 'c'), [('val/c/1.jpg', 2)])
  assert caplog.messages == [
    f"{tmp_path}/test has no images of the classes ['a'].",
    f"{tmp_path}/val has no images of the classes ['a', 'b'].",
  ]


def test_all_endings_in_any_case_and_the_rest_is_told(tmp_path, caplog):
  put_all(tmp_path, 'a/1.jpg a/2.JPG a/3.jpeg a/4.JPEG a/5.Png a/6.bmp a/7.GIF a/8.webp b/1.WEBP')
  with caplog.at_level(logging.WARNING, 'absl'):
    assert len(find(tmp_path, val_fraction=0)[1]) == 9
  assert not caplog.messages
  put_all(tmp_path, 'a/.DS_Store a/._1.jpg a/x.tga b/notes.txt b/more/.1.jpg README .git/config')
  with caplog.at_level(logging.WARNING, 'absl'):
    assert len(find(tmp_path, val_fraction=0)[1]) == 9
  assert caplog.messages == [
    f'{tmp_path}: 7 files or folders are left out, since they are no images '
    f'({", ".join(image_files.ENDINGS)}) in class folders: '
    '.git, README, a/.DS_Store, a/._1.jpg, a/x.tga, ...'
  ]


def test_images_in_the_folders_of_a_class_are_its_own(tmp_path, caplog):
  put_all(tmp_path, 'a/2.jpg a/2/10.jpg a/2/deep/1.png a/odd.jpg/1.jpg b/all/of/them/1.jpg')
  (tmp_path / 'b/all/again').symlink_to(tmp_path / 'b')  # leads to itself
  (tmp_path / 'b/link').symlink_to(tmp_path / 'a/2')
  with caplog.at_level(logging.WARNING, 'absl'):
    found = find(tmp_path, val_fraction=0)[1]
  names = 'a/2.jpg a/2/10.jpg a/2/deep/1.png a/odd.jpg b/all/of/them/1.jpg b/link/10.jpg'
  assert [path for path, _ in found] == [*names.split(), 'b/link/deep/1.png']
  assert '1 files or folders are left out' in caplog.messages[0]
  assert caplog.messages[0].endswith(': b/all/again')


LEFTOVERS = '.ipynb_checkpoints .Trash-0 __MACOSX @eaDir #recycle $RECYCLE.BIN lost+found .thumbs'


def test_leftovers_of_systems_and_programs_are_no_classes_and_no_images(tmp_path, caplog):
  for name in LEFTOVERS.split():
    put_all(tmp_path, f'{name}/a/1.jpg {name}/2.jpg a/{name}/3.jpg b/more/{name}/4.jpg')
  put_all(tmp_path, 'a/5.jpg b/more/6.jpg Thumbs.db a/desktop.ini')
  with caplog.at_level(logging.WARNING, 'absl'):
    assert find(tmp_path, val_fraction=0) == (('a', 'b'), [('a/5.jpg', 0), ('b/more/6.jpg', 1)])
  count = 3 * len(LEFTOVERS.split()) + 2
  assert caplog.messages[0].startswith(f'{tmp_path}: {count} files or folders are left out')
  assert [path.name for path in single_images.find([tmp_path])] == ['5.jpg', '6.jpg']


def test_an_image_without_a_decoder_is_named(tmp_path, caplog, monkeypatch):
  put_all(tmp_path, 'a/1.jpg a/2.HEIC b/1.jpg b/more/3.heif a/4.avif')
  monkeypatch.setattr(image_files, 'ENDINGS', ('.jpg',))
  without = dict.fromkeys(('.heic', '.heif', '.avif'), False)
  monkeypatch.setattr(image_files, '_WITH_DECODER', without)
  with caplog.at_level(logging.WARNING, 'absl'):
    assert len(find(tmp_path, val_fraction=0)[1]) == 2
  (message,) = caplog.messages
  put_all(tmp_path, 'drawing.svg notes.md')
  caplog.clear()
  assert len(list(single_images.find([tmp_path]))) == 2  # for a prediction, only images are told
  assert caplog.messages == [message, caplog.messages[1]]
  assert caplog.messages[1].endswith(' in class folders: drawing.svg')
  assert message == (
    f'{tmp_path}: 3 images are left out, since no decoder for .avif, .heic, .heif is installed '
    '(HEIC: pip install pillow-heif; AVIF: pip install -U Pillow): a/2.HEIC, a/4.avif, '
    'b/more/3.heif'
  )


@pytest.mark.parametrize(
  ('train', 'val', 'test'),
  [
    ('train', 'valid', 'test'),
    ('Train', 'Val', 'TEST'),
    ('training_set', 'dev', 'test_set'),
    ('TrainingData', 'validation-set', 'testing'),
    ('train images', 'eval', 'Test Images'),
  ],
)
def test_other_names_of_splits(tmp_path, train, val, test):
  for folder_name, number in ((train, 1), (val, 2), (test, 3)):
    for name in 'ab':
      put(tmp_path, f'{folder_name}/{name}/{number}.jpg')
  for split, folder_name in {'train': train, 'val': val, 'validation': val, 'test': test}.items():
    paths = [path for path, _ in find(tmp_path, split)[1]]
    number = {train: 1, val: 2, test: 3}[folder_name]
    assert paths == [f'{folder_name}/{name}/{number}.jpg' for name in 'ab']
  assert folder.splits(str(tmp_path)) == ['train', 'val', 'test']


def test_two_folders_of_one_split_and_what_is_no_split_are_told(tmp_path, caplog):
  put_all(tmp_path, 'train/a/1.jpg train/b/1.jpg val/a/1.jpg valid/b/2.jpg extra/a/1.jpg x.jpg')
  with caplog.at_level(logging.WARNING, 'absl'):
    assert find(tmp_path, 'val')[1] == [('val/a/1.jpg', 0)]
  assert "the split 'val' is val, and not ['valid']." in caplog.messages[1]
  assert caplog.messages[0].endswith(' in class folders: extra, x.jpg')


def test_classes_called_as_splits_with_folders_in_them(tmp_path):
  put_all(tmp_path, 'train/1.jpg train/old/2.jpg bus/1.jpg tram/3.jpg')
  assert find(tmp_path, val_fraction=0)[0] == ('bus', 'train', 'tram')


def test_parts_of_the_training_split(tmp_path):
  """Three parts that have no image in common, whatever the layout."""
  for root in ('plain', 'divided/train'):
    put_all(tmp_path, ' '.join(f'{root}/{name}/{i}.jpg' for name in 'ab' for i in range(20)))
  put_all(tmp_path, 'divided/test/a/1.jpg divided/test/b/2.jpg')
  for root, last in (('plain', 'val'), ('divided', 'test')):
    whole, first, second, held_out = (
      set(find(tmp_path / root, split)[1])
      for split in ('train', 'train[:80%]', 'train[80%:]', last)
    )
    assert first | second == whole and not first & second and not whole & held_out
    assert len(second) == {'plain': 8, 'divided': 8}[root] and first and held_out
  put_all(tmp_path, 'few/a/1.jpg few/b/1.jpg')
  fails_with(
    f"{tmp_path}/few, split 'train[90%:]', is empty. Each class needs two training images.",
    find, tmp_path / 'few', 'train[90%:]', 0,
  )  # fmt: skip


def test_the_classes_of_a_model(tmp_path, caplog):
  """Of a folder to evaluate on, which may have fewer; all of its images count."""
  put_all(tmp_path, 'set/b/1.jpg set/d/2.jpg set/d/3.jpg parts/test/d/1.jpg')
  names = ('a', 'b', 'c', 'd')

  def opened(path, split, classes=names):
    given = {'val_fraction': 1.0, 'class_names': classes}
    return folder.ImageFolder(path=str(tmp_path / path), split=split, **given)

  for split in ('val', 'test'):
    data = opened('set', split)
    assert data.class_names == names and data.num_examples == 3
    assert [int(label) for label in data._labels] == [1, 3, 3]
  assert opened('parts', 'test').num_examples == 1
  fails_with(
    f"{tmp_path}/set has classes that the model does not have: ['d']. Remove them, or train a "
    'model on them.', opened, 'set', 'val', ('a', 'b'),
  )  # fmt: skip


def test_what_a_folder_is_known_by(tmp_path):
  """Its images' names below the class folders, and not its own."""
  for root in ('one', 'two', 'other'):
    put_all(tmp_path, f'{root}/a/1.jpg {root}/b/1.jpg {root}/b/2.jpg')
  put_all(tmp_path, 'other/b/3.jpg')
  of = {
    root: folder.ImageFolder(path=str(tmp_path / root), split='train', val_fraction=0).fingerprint
    for root in ('one', 'one/', 'two', 'other')
  }
  assert of['one'] == of['one/'] == of['two'] != of['other']


def test_a_class_may_be_called_as_a_split(tmp_path):
  put_all(tmp_path, 'train/1.jpg train/2.jpg bus/1.jpg bus/2.jpg')
  assert find(tmp_path)[0] == ('bus', 'train')


SIZES = {'a': 1, 'b': 2, 'c': 7, 'd': 40}


@pytest.mark.parametrize(
  ('fraction', 'held_out'),
  [(0.1, [0, 1, 1, 4]), (0.25, [0, 1, 2, 10]), (0.99, [0, 1, 6, 39])],
)
def test_a_fraction_of_each_class_is_held_out(tmp_path, caplog, fraction, held_out):
  for name, size in SIZES.items():
    put_all(tmp_path, ' '.join(f'{name}/{i}.jpg' for i in range(size)))
  classes, training = find(tmp_path, 'train', fraction)
  with caplog.at_level(logging.WARNING, 'absl'):
    validation = find(tmp_path, 'val', fraction)[1]
  assert caplog.messages == [f"{tmp_path}, split 'val', has no images of the classes ['a']."]
  assert classes == tuple(SIZES)
  assert sorted(training + validation) == find(tmp_path, 'train', 0)[1]
  assert not set(training) & set(validation)
  assert [sum(n == i for _, n in validation) for i in range(4)] == held_out
  assert find(tmp_path, 'validation', fraction)[1] == validation


def test_the_same_images_are_held_out_for_ever(tmp_path):
  """Typed here: whatever changes this list changes the runs of users."""
  for root in (tmp_path / 'one', tmp_path / 'two'):
    put_all(root, ' '.join(f'{name}/{i}.jpg' for name in 'ab' for i in range(20)))
    assert [path for path, _ in find(root, 'val')[1]] == HELD_OUT
  put_all(tmp_path / 'two', 'a/20.jpg')
  assert len({path for path, _ in find(tmp_path / 'two', 'val')[1]} - set(HELD_OUT)) <= 1


HELD_OUT = ['a/15.jpg', 'a/6.jpg', 'b/10.jpg', 'b/9.jpg']


def test_paths_with_a_scheme_and_under_the_home_folder(numbers, monkeypatch):
  monkeypatch.setenv('HOME', str(numbers.parent))
  want = next(build(numbers, crop='direct', resize=None).eval_batches(N))
  for path in (f'file://{numbers}', f'~/{numbers.name}'):
    data = input.build(
      source='folder', path=path, split='train', batch_size=N, image_size=16, crop='direct'
    )
    sets.assert_same([next(data.eval_batches(N))], [want])


# Odd images


def picture():
  """uint8 (32, 32, 3): blocks of 8 pixels, which a JPEG keeps."""
  blocks = np.random.default_rng(1).integers(0, 256, (4, 4, 3), np.uint8)
  return blocks.repeat(8, axis=0).repeat(8, axis=1)


def saved(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def odd_images():
  """{file name: its bytes}."""
  image = Image.fromarray(picture())
  clear = image.copy()
  clear.putalpha(Image.linear_gradient('L').resize((32, 32)))
  turned = Image.Exif()
  turned[0x0112] = 6  # a quarter turn, which is ignored
  frames = {'save_all': True, 'append_images': [image.rotate(90), image.rotate(180)]}
  files = {
    f'{mode}.{kind}': saved(image.convert(mode), kind)
    for kind, modes in {'png': '1 L LA P RGB RGBA', 'bmp': '1 L P RGB RGBA', 'gif': 'L P'}.items()
    for mode in modes.split()
  }
  files |= {
    f'{mode}.jpg': saved(image.convert(mode), 'JPEG', quality=95) for mode in ('RGB', 'L', 'CMYK')
  }
  return files | {
    'progressive.jpg': saved(image, 'JPEG', quality=95, progressive=True),
    'clear.png': saved(clear, 'PNG'),
    'clear.webp': saved(clear, 'WEBP', lossless=True, exact=True),
    'still.webp': saved(image, 'WEBP', lossless=True),
    'lossy.WEBP': saved(image, 'WEBP'),
    'moving.webp': saved(image, 'WEBP', lossless=True, **frames),
    'moving.gif': saved(image, 'GIF', **frames),
    'turned.jpg': saved(image, 'JPEG', quality=95, exif=turned),
    'png_in_truth.jpg': saved(image, 'PNG'),
    'jpeg_in_truth.PNG': saved(image, 'JPEG', quality=95),
    'webp_in_truth.gif': saved(image, 'WEBP', lossless=True),
    'RGB.jfif': saved(image, 'JPEG', quality=95),
    'RGB.JPE': saved(image, 'JPEG', quality=95),
    'RGB.tif': saved(image, 'TIFF'),
    'CMYK.TIFF': saved(image.convert('CMYK'), 'TIFF', compression='tiff_lzw'),
    'RGB.avif': saved(image, 'AVIF'),
    'RGB.jp2': saved(image, 'JPEG2000'),
    'L.pgm': saved(image.convert('L'), 'PPM'),
    'RGB.ppm': saved(image, 'PPM'),
  }


def test_odd_images_are_read_as_pillow_reads_them(tmp_path):
  files = odd_images()
  for name, content in files.items():
    put(tmp_path, f'train/{name}/{name}', content)
  deep = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)
  put(tmp_path, 'train/~16/grey.png', saved(Image.fromarray(deep), 'PNG'))
  data = build(tmp_path, image_size=32, crop='direct', resize=None)
  (batch,) = data.eval_batches(data.num_examples)
  decode = single_images.decoder(data.preprocessing, (32, 32), 3)
  for found, number in zip(batch['image'], batch['label']):
    name = data.class_names[number]
    if name == '~16':
      expected = np.stack([deep // 256] * 3, axis=-1)  # where Pillow clips
    else:
      expected = np.asarray(Image.open(io.BytesIO(files[name])).convert('RGB')).astype(int)
    jpeg = files.get(name, b'').startswith(b'\xff\xd8')  # TensorFlow takes the faster transform
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 if jpeg else 0, err_msg=name)
    if name in files:  # `mixer.predict` sees the same
      np.testing.assert_array_equal(decode(files[name]), found, err_msg=name)
  random = build(tmp_path, batch_size=data.num_examples, crop='inception', resize=None)
  assert next(random.train_batches(0, seed=0))['image'].shape == (data.num_examples, 16, 16, 3)


# What goes wrong


@pytest.fixture
def damaged(tmp_path):
  """Twelve good images and seven bad ones of as many kinds: (root, paths of the bad)."""
  for i in range(12):
    put(tmp_path, f'{"ab"[i % 2]}/{i}.png', sets.encode(picture()))
  image = Image.fromarray(picture())
  whole = {
    'jpg': saved(image, 'JPEG'),
    'png': saved(image, 'PNG'),
    'gif': saved(image, 'GIF'),
    'webp': saved(image, 'WEBP'),
    'bmp': saved(image.convert('P'), 'BMP'),
  }
  bad = {f'a/cut.{kind}': file[: len(file) // 2] for kind, file in whole.items()}
  bad |= {'b/empty.jpg': b'', 'b/page.jpg': b'<!DOCTYPE html><title>404</title>'}
  return tmp_path, [put(tmp_path, name, content) for name, content in bad.items()]


def test_bad_images_stop_an_evaluation_with_their_paths(damaged):
  root, bad = damaged
  data = build(root, val_fraction=0, crop='resize')
  lines = ''.join(f'\n  {path}: ...' for path in sorted(bad))
  fails_with(
    f'7 bad images in one batch; replace or remove them. (...){lines}',
    take,
    data.eval_batches(19),
    1,
  )
  with pytest.raises(InputError) as error:
    take(data.eval_batches(19), 1)
  text = str(error.value)
  assert 'cut.jpg: jpeg::Uncompress failed. Invalid JPEG data or crop window.\n' in text
  assert 'page.jpg: Unknown image file format.' in text
  assert '{{' not in text and '[Op:' not in text


def test_a_bad_image_stops_training_at_its_own_batch(damaged):
  root, bad = damaged
  for path in bad[1:]:
    os.remove(path)
  data = build(root, val_fraction=0, batch_size=2, crop='resize_random')
  paths = folder.find(str(root), 'train', 0)[1]
  first = int(np.flatnonzero(order.permutation(13, 3, 0) == paths.index(bad[0]))[0]) // 2
  for begin in {0, first}:
    batches = data.train_batches(begin, seed=3)
    assert len(take(batches, first - begin)) == first - begin
    fails_with(
      f'1 bad images in one batch; replace or remove them. (...)\n  {bad[0]}: jpeg::Uncompress '
      'failed. Invalid JPEG data or crop window.',
      next,
      batches,
    )


def test_a_file_that_goes_away(tmp_path):
  paths = [put(tmp_path, f'{name}/1.png', sets.encode(picture())) for name in 'ab']
  data = build(tmp_path, val_fraction=0, crop='resize')
  os.remove(paths[1])
  fails_with(
    f'1 bad images in one batch; replace or remove them. (...)\n  {paths[1]}: [Errno 2] No such '
    f"file or directory: '{paths[1]}'",
    next,
    data.eval_batches(2),
  )


def test_pipes_and_devices_are_bad_and_are_not_read(tmp_path):
  paths = [put(tmp_path, f'{name}/1.png', sets.encode(picture())) for name in 'ab']
  pipe, device = tmp_path / 'a/2.jpg', tmp_path / 'b/2.png'
  os.mkfifo(pipe)
  device.symlink_to('/dev/zero')
  data = build(tmp_path, val_fraction=0, crop='resize')
  reason = 'it is a pipe, a socket or a device, and no file'
  fails_with(
    f'2 bad images in one batch; replace or remove them. (...)\n  {pipe}: {reason}\n  {device}: '
    f'{reason}',
    next,
    data.eval_batches(4),
  )
  assert not single_images.remarks([pipe, device], {'name': 'resize'})
  good = [folders.read_file(path) for path in map(str, paths)]
  assert good == [sets.encode(picture())] * 2


@pytest.mark.parametrize(
  ('names', 'split', 'text'),
  [
    ('a/1.jpg b/1.jpg', 'dev',
     "unknown split 'dev' of a folder; use one of ['train', 'val', 'validation', 'test'], or a "
     'part such as "train[:90%]" and "train[90%:]".'),
    ('test/a/1.jpg val/b/1.jpg', 'test',
     '{root} holds [\'test\', \'val\'] with class folders in them, but no "train" with class '
     'folders, from which the classes are taken.'),
    ('train/a/1.jpg train/b/1.jpg test/a/1.jpg', 'val',
     "{root} has no split 'val' with class folders; it has ['test', 'train']. To evaluate on one "
     'of these, give its split, as in --config.evals.NAME.input.split=test. To hold out a fraction '
     'of the training images as "val", give {root}/train as the path, as in '
     '--config.train_input.path={root}/train.'),
    ('train/a/1.jpg train/b/1.jpg val/a/1.jpg val/c/1.jpg val/B/1.jpg', 'val',
     "{root}/val has classes that {root}/train does not have: ['B', 'c']. Remove them, or add "
     'training images.'),
    ('train/a/1.jpg train/b/x.tga train/c/', 'train',
     f'{{root}}/train has class folders without images ({", ".join(image_files.ENDINGS)}): '
     "['b', 'c']. Remove them, or add images."),
    ('a/1.jpg b/', 'val',
     '{root} has class folders without images (...): [\'b\']. Remove them, or add images.'),
    ('train/a/1.jpg train/b/1.jpg val/a/ val/b/', 'val',
     "{root}/val has class folders without images (...): ['a', 'b']. Remove them, or add images."),
    ('a/1.jpg b/1.jpg', 'test',
     "{root} has no split 'test': it holds the class folders themselves, which are split into "
     '"train" and "val". For others, make PATH/train/CLASS, PATH/val/CLASS and PATH/test/CLASS.'),
    ('a/1.jpg b/1.jpg', 'val',
     "{root}, split 'val', is empty with val_fraction=0.1. Give another fraction."),
    ('1.jpg 2.jpg', 'train',
     '{root} must hold one folder per class, at least two; it holds []. PATH is the '
     'folder of PATH/CLASS/image.jpg or of PATH/train/CLASS/image.jpg. Where a CSV or '
     'JSON-lines file has the labels, give that file, as source="table".'),
    ('set/a/1.jpg set/b/1.jpg', 'train',
     "{root} must hold one folder per class, at least two; it holds ['set']. ..."),
    ('train/1.jpg test/1.jpg', 'train',
     "{root} holds ['test', 'train'] without class folders in them; images belong in "
     'PATH/train/CLASS/image.jpg.'),
  ],
)  # fmt: skip
def test_folders_that_are_not_as_they_should_be(tmp_path, names, split, text):
  put_all(tmp_path, names)
  fails_with(text.format(root=tmp_path), build, tmp_path, split)


def test_a_folder_that_is_not_there(tmp_path):
  fails_with(f'no folder {tmp_path}/none.', build, tmp_path / 'none')


@pytest.mark.parametrize('fraction', [-0.1, 1.01, 10])
def test_a_fraction_that_is_none(tmp_path, fraction):
  text = f"input source 'folder': val_fraction is {fraction}; use a number from 0 to 1."
  fails_with(text, build, tmp_path, val_fraction=fraction)


def test_a_fraction_of_a_folder_that_is_divided(tmp_path, caplog):
  put_all(tmp_path, 'train/a/1.png train/b/1.png val/a/1.png val/b/1.png')
  assert build(tmp_path, val_fraction=0.1).num_examples == 2 and not caplog.messages
  build(tmp_path, val_fraction=0.3)
  told = f"{tmp_path} is divided into ['train', 'val'], so val_fraction=0.3 has no effect."
  assert caplog.messages == [told]


def test_randaugment_after_a_crop_without_randomness(tmp_path):
  fails_with(
    "randaugment_layers=2 after crop='resize', which has no randomness: use one of "
    "['direct_flip', 'inception', 'resize_random', 'resize_random_unflipped', "
    "'resize_small_random'], or 0 layers.",
    build,
    tmp_path,
    crop='resize',
    randaugment_layers=2,
  )


@pytest.mark.parametrize('crop', ['inception', 'resize_random', 'resize_small_random'])
def test_an_evaluation_with_a_random_crop(numbers, crop):
  data = build(numbers, crop=crop, resize=None if crop == 'inception' else 20)
  text = 'an evaluation needs a crop without randomness; use crop="resize_small".'
  fails_with(text, data.eval_batches, 8)


# A run


def test_train_py_on_a_folder(tmp_path):
  """The digits' config with another input, through train.py itself."""
  rng = np.random.default_rng(0)
  for name in ('cat', 'dog', 'emu'):
    for i in range(6):
      put(tmp_path, f'pets/{name}/{i}.jpg', sets.encode(sets.smooth(rng, 30, 40), 'JPEG'))
  config = load('digits')
  section = {'source': 'folder', 'path': str(tmp_path / 'pets'), 'batch_size': 8, 'image_size': 16}
  with config.unlocked():
    config.train_input = {**section, 'split': 'train', 'crop': 'resize_random', 'resize': 20}
    config.evals.test.input = {**section, 'split': 'val', 'crop': 'resize', 'resize': 20}
  config.model.update(num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
  config.total_steps = 2
  runs.train_here(config, tmp_path / 'run')
  row = runs.rows(tmp_path / 'run')[-1]
  assert row['step'] == 2 and row['test/n'] == 3 and np.isfinite(row['train/loss'])
  described = json.loads((tmp_path / 'run' / 'model.json').read_text())
  assert described['class_names'] == ['cat', 'dog', 'emu']
  assert described['preprocessing'] == {
    'name': 'resize', 'resize': [20, 20], 'crop': [16, 16], 'value_range': [-1, 1]
  }  # fmt: skip
  assert json.loads((tmp_path / 'run' / 'classes.json').read_text()) == ['cat', 'dog', 'emu']
  put(tmp_path, 'pets/bee/1.jpg', sets.encode(sets.smooth(rng, 30, 40), 'JPEG'))
  fails_with(
    '...belongs to a run with other classes: 3 there, 4 now; 1 new (bee). ...',
    runs.train_here,
    config,
    tmp_path / 'run',
  )


@pytest.mark.slow
def test_train_py_that_skips_bad_images(tmp_path, capsys, monkeypatch):
  """Stopped after three steps of six and started again, it ends with the same numbers."""
  rng = np.random.default_rng(0)
  for name in ('cat', 'dog'):
    for i in range(9):
      put(tmp_path, f'pets/train/{name}/{i}.jpg', sets.encode(sets.smooth(rng, 30, 40), 'JPEG'))
  put(tmp_path, 'pets/train/dog/x.jpg')
  put(tmp_path, 'pets/val/dog/x.jpg', sets.encode(sets.smooth(rng, 30, 40), 'JPEG'))
  config = load('digits')
  section = {'source': 'folder', 'path': str(tmp_path / 'pets'), 'batch_size': 8, 'image_size': 16}
  with config.unlocked():
    config.train_input = {**section, 'split': 'train', 'crop': 'inception', 'on_bad_image': 'skip'}
    config.evals.test.input = {**section, 'split': 'val', 'crop': 'direct'}
    config.total_steps = 6
  config.model.update(num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
  config.every.update(log=1, checkpoint=2, evaluate=6)
  runs.train_here(config, tmp_path / 'run')
  rows = runs.rows(tmp_path / 'run')
  assert rows[-1]['bad_images'] == 1
  assert '1 bad images were replaced by others since the start' in capsys.readouterr().out

  def cut(state, *, batches, **named):
    return fit(state, batches=islice(batches, 3), **named)

  fit = loop.fit
  for fitting in (cut, fit):  # the second goes on from the checkpoint of step 2
    monkeypatch.setattr(loop, 'fit', fitting)
    runs.train_here(config, tmp_path / 'again')
  assert [*map(runs.learned, runs.rows(tmp_path / 'again'))] == [*map(runs.learned, rows)]
