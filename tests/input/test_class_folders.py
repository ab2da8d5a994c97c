"""Folders of class folders and archives that become TFDS sets."""

import io
import logging
import os
import shutil
import tarfile

import numpy as np
from PIL import Image
import pytest
from test_folder import odd_images, picture, put, saved

from mixer import input
from mixer.errors import InputError
import runs
import sets

class_folders = pytest.importorskip('mixer.input.class_folders')
pytest.importorskip('tensorflow_datasets', reason='needs TFDS')


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_odd_images_of_a_prepared_set_are_read_as_pillow_reads_them(tmp_path, file_format):
  deep = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)
  files = odd_images()
  for name, content in {**files, '~16.png': saved(Image.fromarray(deep), 'PNG')}.items():
    put(tmp_path, f'images/{name}/{name}', content)
  class_folders.prepare(
    'odd', f'{tmp_path}/images', split=None, data_dir=str(tmp_path), file_format=file_format
  )
  data = input.build(
    source='tfds', name='odd', split='train', batch_size=1, image_size=32, crop='direct',
    data_dir=str(tmp_path),
  )  # fmt: skip
  (batch,) = data.eval_batches(data.num_examples)
  assert data.num_examples == len(files) + 1
  for found, number in zip(batch['image'], batch['label']):
    name = data.class_names[number]
    if name == '~16.png':
      expected = np.stack([deep // 256] * 3, axis=-1)
    else:
      expected = np.asarray(Image.open(io.BytesIO(files[name])).convert('RGB')).astype(int)
    jpeg = files.get(name, b'').startswith(b'\xff\xd8')
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 if jpeg else 0, err_msg=name)


def test_a_bad_image_is_stored_and_stops_what_reads_it(tmp_path):
  for name, content in {'a/1.png': sets.encode(picture()), 'b/1.bmp': b'BM' + bytes(60)}.items():
    put(tmp_path, f'images/{name}', content)
  class_folders.prepare(
    'bad', f'{tmp_path}/images', split='full', data_dir=str(tmp_path), file_format='tfrecord',
    verify=False,
  )  # fmt: skip
  data = input.build(
    source='tfds', name='bad', split='full', batch_size=2, image_size=32, crop='direct',
    data_dir=str(tmp_path),
  )  # fmt: skip
  with pytest.raises(input.InputError, match=r"bad/1.0.0, split 'full', example [01]: "):
    next(data.eval_batches(2))


BAD = {
  'ant/cut.jpg': 'Input is empty.',
  'ant/gone.png': 'No such file or directory',
  'bee/7.jpg': 'Is a directory',
  'bee/page.webp': 'Unknown image file format.',
}


@pytest.fixture
def bad(tmp_path):
  """Three good images and as many bad ones as BAD names."""
  for name in ('ant/1.jpg', 'ant/2.webp', 'bee/1.jpg'):
    put(tmp_path, f'images/{name}', sets.encode(picture(), 'JPEG'))
  put(tmp_path, 'images/ant/cut.jpg', b'')
  (tmp_path / 'images/ant/gone.png').symlink_to('/nowhere')
  put(tmp_path, 'images/bee/7.jpg/inside.txt')
  put(tmp_path, 'images/bee/page.webp', b'<html>')
  return tmp_path


def prepare_bad(root, on_bad_image):
  class_folders.prepare(
    'bad', f'{root}/images', split=None, data_dir=str(root), file_format='tfrecord',
    on_bad_image=on_bad_image,
  )  # fmt: skip


def test_bad_images_are_named_before_anything_is_written(bad):
  with pytest.raises(InputError) as error:
    prepare_bad(bad, 'fail')
  first, *lines = str(error.value).splitlines()
  assert first == (
    '4 images cannot be read; replace or remove them, or leave them out with --on_bad_image=skip:'
  )
  for line, (name, reason) in zip(sorted(lines), BAD.items(), strict=True):
    assert line.startswith(f'  {bad}/images/{name}: {reason}')
  assert not list(bad.glob('bad/*/*.tfrecord*'))


def test_bad_images_are_left_out_if_asked(bad, capsys, caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    prepare_bad(bad, 'skip')
  assert capsys.readouterr().out.endswith("bad: 3 images of 2 classes in split 'train'.\n")
  (message,) = [text for text in caplog.messages if '4 images are left out' in text]
  assert all(f'\n  {bad}/images/{name}: {reason}' in message for name, reason in BAD.items())


@pytest.mark.parametrize('inside', ['images', 'Train/photos'])
def test_a_folder_of_one_class_is_told(prepare, tmp_path, caplog, inside):
  put(tmp_path, f'images/{inside}/1.jpg', sets.encode(picture(), 'JPEG'))
  with caplog.at_level(logging.WARNING, 'absl'):
    prepare('own')
  assert (
    f'{tmp_path}/images holds one class alone, {[inside.split("/")[-1]]}. Where a CSV or '
    'JSON-lines file has the labels, give that file.'
  ) in caplog.messages


def test_a_divided_folder_becomes_a_set_with_its_splits(prepare, tmp_path, capsys, caplog):
  """One understanding of a folder: that of source='folder'."""
  import tensorflow_datasets as tfds

  file = sets.encode(picture(), 'JPEG')
  for name in ('Train/cat/1', 'Train/cat/more/2', 'Train/dog/3', 'valid/dog/4', 'valid/__MACOSX/5'):
    put(tmp_path, f'images/{name}.jpg', file)
  put(tmp_path, 'images/Train/dog/6.webp', odd_images()['still.webp'])
  put(tmp_path, 'images/notes/list.txt')
  put(tmp_path, 'images/Train/dog/notes.txt')
  with caplog.at_level(logging.WARNING, 'absl'):
    class_folders.prepare(
      'own', f'{tmp_path}/images', split=None, data_dir=str(tmp_path), file_format='tfrecord'
    )
  assert capsys.readouterr().out.endswith(
    "own: 4 images of 2 classes in split 'train'.\nown: 1 images of 2 classes in split 'val'.\n"
  )
  told = '\n'.join(caplog.messages)
  assert all(f': {name}' in told for name in ('notes', '__MACOSX', 'dog/notes.txt'))
  builder = tfds.builder('own', data_dir=tmp_path)
  assert builder.info.features['label'].names == ['cat', 'dog']
  (example,) = tfds.load('own', split='val', data_dir=str(tmp_path)).as_numpy_iterator()
  assert example['label'] == 1 and example['file_name'] == b'dog/4.jpg'


@pytest.mark.parametrize(
  ('names', 'split', 'fault'),
  [
    ('train/a/1 val/a/1', 'full',
     "{0} holds the splits ['train', 'val'], so --split=full does not fit. Leave it out, or give "
     'one of these folders as --images.'),
    ('test/a/1 val/a/1', None,
     '{0} holds [\'test\', \'val\'] with class folders in them, but no "train" with class '
     'folders, from which the classes are taken.'),
    ('train/a/1 val/b/1', None,
     "{0}/val has classes that {0}/train does not have: ['b']. Remove them, or add training "
     'images.'),
    ('set/a/1 set/b/1', None,
     '{0} holds one folder, which holds others. If these are the classes, give --images={0}/set.'),
    ('train/a/1 Training/a/1', None,
     "{0} holds ['train', 'Training'] for one split; keep one of them."),
    ('train/1 val/1', None,
     "{0} holds ['train', 'val'] without class folders in them; images belong in "
     'PATH/train/CLASS/image.jpg.'),
    ('Validation/1 Training_Set/1', None,
     "{0} holds ['Training_Set', 'Validation'] without class folders in them; images belong in "
     'PATH/train/CLASS/image.jpg.'),
    ('cat/1 na\udcefve/1', None,
     "TFDS stores the names of classes as lines of UTF-8, which ['na\\udcefve'] are not; rename "
     'them.'),
    ('train/caf\udce9/1 train/dog/1 dev/dog/1', None,
     "TFDS stores the names of classes as lines of UTF-8, which ['caf\\udce9'] are not; rename "
     'them.'),
  ],
)  # fmt: skip
def test_divided_folders_that_make_no_set(tmp_path, names, split, fault):
  for name in names.split():
    put(tmp_path, f'{name}.jpg')
  with pytest.raises(InputError) as error:
    class_folders.prepare('x', str(tmp_path), split=split, data_dir=None, file_format='tfrecord')
  assert str(error.value) == fault.format(tmp_path)


def archive(folder, name):
  """Puts folder/name into folder/name.tar as well."""
  with tarfile.open(folder / f'{name}.tar', 'w') as into:
    into.add(folder / name, arcname='.')


@pytest.fixture
def prepare(tmp_path, capsys):
  """Makes a set of tmp_path/images: the last line printed, and all before it."""

  def run(name, file_format='tfrecord'):
    images = f'{tmp_path}/images'
    class_folders.prepare(name, images, split=None, data_dir=str(tmp_path), file_format=file_format)
    before, last = capsys.readouterr().out.rstrip().rsplit('\n', 1)
    return last, before

  return run


def refused(prepare, name, text):
  with pytest.raises(InputError) as error:
    prepare(name)
  assert str(error.value) == text


def test_imagenet_21k_from_archives_and_folders_of_synsets(prepare, tmp_path):
  """A class has its number in Google's list, however many are there."""
  import tensorflow_datasets as tfds

  images, file = tmp_path / 'images', sets.encode(picture(), 'JPEG')
  for name in ('n00005787/a', 'n00005787/b', 'n04399382x/c', 'n01440764/d'):
    put(images, f'{name}.JPEG', file)
  archive(images, 'n00005787')
  archive(images, 'n01440764')
  shutil.rmtree(images / 'n00005787')
  text = f"{images} holds a folder and a .tar of ['n01440764']; keep one of them."
  refused(prepare, 'imagenet21k', text)
  os.remove(images / 'n01440764.tar')
  refused(
    prepare,
    'imagenet21k',
    f'{images} holds 1 folders or archives that are not classes of ImageNet-21k, such as '
    "['n04399382x']; name each class by its WordNet id, as in n01440764. Remove the others, "
    'or use another --name.',
  )
  shutil.rmtree(images / 'n04399382x')
  last, before = prepare('imagenet21k', 'array_record')
  assert last == "imagenet21k: 3 images of 21843 classes in split 'full'."
  assert 'no images of 21841 of the 21843 classes, which remain empty: n00004475, ' in before

  lines = (runs.ROOT / 'mixer/labels/imagenet21k.txt').read_text().splitlines()
  synsets = [line.split('\t')[0] for line in lines]
  builder = tfds.builder('imagenet21k', data_dir=tmp_path)
  assert builder.info.features['label'].names == synsets
  data = input.build(
    source='tfds', name='imagenet21k', split='full', batch_size=3, data_dir=str(tmp_path),
    crop='direct', image_size=16,
  )  # fmt: skip
  (batch,) = data.eval_batches(3)
  assert sorted(batch['label']) == [1, 1, synsets.index('n01440764')]


def test_leftovers_in_an_archive(tmp_path, capsys, caplog):
  file = sets.encode(picture(), 'JPEG')
  for name in ('1.jpg', 'deep/2.JFIF', '__MACOSX/1.jpg', 'deep/.Trash-0/3.jpg', 'notes.txt'):
    put(tmp_path, f'images/ant/{name}', file)
  archive(tmp_path / 'images', 'ant')
  shutil.rmtree(tmp_path / 'images/ant')
  put(tmp_path, 'images/bee/1.jpe', file)
  with caplog.at_level(logging.WARNING, 'absl'):
    class_folders.prepare(
      'own', f'{tmp_path}/images', split=None, data_dir=str(tmp_path), file_format='tfrecord'
    )
  assert capsys.readouterr().out.endswith("own: 3 images of 2 classes in split 'train'.\n")
  (told,) = [text for text in caplog.messages if 'left out' in text]
  for name in ('__MACOSX/1.jpg', 'deep/.Trash-0/3.jpg', 'notes.txt'):
    assert f'ant.tar/{name}' in told


def test_archives_that_are_cut_short_or_none(prepare, tmp_path):
  images = tmp_path / 'images'
  for name in ('ant/1', 'bee/1', 'bee/2'):
    put(images, f'{name}.jpg', sets.encode(picture(), 'JPEG'))
  archive(images, 'bee')
  shutil.rmtree(images / 'bee')
  whole = (images / 'bee.tar').read_bytes()
  for content, fault in (
    (whole[:2000], f'{images}/bee.tar is truncated: it has no end of archive. Copy it '
                   'again.'),
    (b'no archive' + bytes(1024), f'{images} holds a .tar that cannot be read: bad checksum.'),
  ):  # fmt: skip
    (images / 'bee.tar').write_bytes(content)
    refused(prepare, 'insects', fault)
