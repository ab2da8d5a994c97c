"""Preparing the sets that TFDS knows, with its own builders; nothing is downloaded."""

import io
import re
import socket
import tarfile

import numpy as np
import pytest

from mixer import input
from mixer.errors import InputError
from mixer.input import registered
import sets

tfds = pytest.importorskip('tensorflow_datasets', reason='needs TFDS')

FORMATS = pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  def refuse(*_):
    raise OSError('Network is unreachable')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)


@pytest.fixture
def prepare(tmp_path, capsys):
  """Runs it: what it prints."""

  def run(name, **arguments):
    given = {'manual_dir': None, 'data_dir': str(tmp_path / 'sets'), 'file_format': 'tfrecord'}
    registered.prepare(name, **given | {'verify': True} | arguments)
    return capsys.readouterr().out

  return run


@pytest.fixture
def without_download(monkeypatch):
  """TFDS's builders, given what they would make of their downloads: {split: examples}."""
  real = tfds.builder

  def replace(splits):
    def build(*arguments, **named):
      builder = real(*arguments, **named)
      builder._split_generators = lambda _: {k: iter(v) for k, v in splits.items()}
      return builder

    monkeypatch.setattr(tfds, 'builder', build)

  return replace


def image(i, kind='JPEG'):
  return sets.encode(sets.smooth(np.random.default_rng(i), 32, 32), kind)


def tar(path, files):
  """Writes {name: content}."""
  with tarfile.open(path, 'w') as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return path


SYNSETS = ('n01440764', 'n01443537', 'n15075141')  # classes 0, 1 and 999


def official_tars(folder):
  """The layout of ILSVRC 2012: two images of each of three synsets, and four for validation."""
  folder.mkdir()
  synsets = {
    f'{synset}.tar': tar(
      folder / 'synset', {f'{synset}_{i}.JPEG': image(10 * n + i) for i in range(2)}
    ).read_bytes()
    for n, synset in enumerate(SYNSETS)
  }
  tar(folder / 'ILSVRC2012_img_train.tar', synsets)
  (folder / 'synset').unlink()
  validation = {f'ILSVRC2012_val_{i:08}.JPEG': image(i) for i in range(1, 5)}
  tar(folder / 'ILSVRC2012_img_val.tar', validation)
  return str(folder)


@FORMATS
def test_imagenet_from_its_two_tars(prepare, tmp_path, file_format):
  manual = {'manual_dir': official_tars(tmp_path / 'tars'), 'file_format': file_format}
  with pytest.raises(InputError) as error:
    prepare('imagenet2012', **manual)
  assert re.fullmatch(
    r'imagenet2012: archives in .* are incomplete or not the official ones:\n'
    r'  ILSVRC2012_img_train.tar: [\d,]+ bytes, and the official one has 147,897,477,120\n'
    r'  ILSVRC2012_img_val.tar: [\d,]+ bytes, and the official one has 6,744,924,160\n'
    'Download them again, or give --noverify to use them as they are.',
    str(error.value),
  )
  printed = prepare('imagenet2012', **manual, verify=False)
  assert printed.endswith('imagenet2012/5.1.0: train 6, validation 4\n')

  common = {'source': 'tfds', 'name': 'imagenet2012', 'data_dir': str(tmp_path / 'sets')}
  common |= {'batch_size': 6, 'image_size': 16, 'crop': 'direct'}
  train = input.build(**common, split='train')
  assert train.num_classes == 1000 and train.class_names[999] == SYNSETS[2]
  (batch,) = train.eval_batches(6)
  assert sorted(batch['label']) == [0, 0, 1, 1, 999, 999] and batch['mask'].all()
  assert input.build(**common, split='validation').num_examples == 4

  with pytest.raises(InputError) as error:
    prepare('imagenet2012', **manual)
  assert str(error.value) == (
    f'imagenet2012/5.1.0 in {tmp_path}/sets/imagenet2012/5.1.0 is not the official set:\n'
    '  train: 6 examples, and officially 1,281,167\n'
    '  validation: 4 examples, and officially 50,000\n'
    'An archive was incomplete, or the set was changed. Remove that folder and prepare it again, '
    'or give --noverify to use it as it is.'
  )


def test_tars_that_are_missing(prepare, tmp_path):
  files = (
    '\n  ILSVRC2012_img_train.tar   147,897,477,120 bytes'
    '\n  ILSVRC2012_img_val.tar   6,744,924,160 bytes\nTFDS says: manual_dir should contain two'
  )
  for given, said in (
    (None, 'imagenet2012 must be downloaded by hand; give the folder of its files as '
           '--manual_dir. It must hold'),
    (f'{tmp_path}/none', 'imagenet2012 must be downloaded by hand; give the folder of its files '
                         f'as --manual_dir ({tmp_path}/none is not a folder). It must hold'),
    (str(tmp_path), f"imagenet2012: {tmp_path} lacks ['ILSVRC2012_img_train.tar', "
                    "'ILSVRC2012_img_val.tar']. It must hold"),
  ):  # fmt: skip
    with pytest.raises(InputError) as error:
      prepare('imagenet2012', manual_dir=given)
    assert str(error.value).startswith(said + files)
  tar(tmp_path / 'ILSVRC2012_img_val.tar', {})
  with pytest.raises(InputError, match=re.escape(f"{tmp_path} lacks ['ILSVRC2012_img_train.tar']")):
    prepare('imagenet2012', manual_dir=str(tmp_path))


@pytest.mark.parametrize(
  ('name', 'wanted'),
  [
    ('resisc45', 'NWPU-RESISC45'),
    ('imagenet2012_real', 'ILSVRC2012_img_val.tar   6,744,924,160 bytes'),
    ('diabetic_retinopathy_detection/btgraham-300', 'sample\n  train\n  test\n  trainLabels.csv'),
  ],
)
def test_other_sets_that_are_downloaded_by_hand(prepare, name, wanted):
  with pytest.raises(InputError, match=re.escape(f'{name} must be downloaded by hand')) as error:
    prepare(name)
  assert f'It must hold\n  {wanted}\nTFDS says: ' in str(error.value)


@FORMATS
def test_a_set_is_made_and_its_counts_verified(
  prepare, without_download, monkeypatch, tmp_path, file_format
):
  splits = {
    split: [(i, {'image': sets.smooth(np.random.default_rng(i), 32, 32), 'label': i, 'id': str(i)})
            for i in range(size)]
    for split, size in (('train', 6), ('test', 3))
  }  # fmt: skip
  without_download(splits)
  with pytest.raises(InputError, match='train: 6 examples, and officially 50,000\n  test: 3 exam'):
    prepare('cifar10', file_format=file_format)
  monkeypatch.setitem(registered.COUNTS, 'cifar10', {'train': 6, 'test': 3})
  printed = prepare('cifar10', file_format=file_format)
  assert printed.endswith(
    f'cifar10/3.0.2 is prepared already, in {tmp_path}/sets/cifar10/3.0.2.\n'
    'cifar10/3.0.2: train 6, test 3\nThe numbers of examples are the official ones.\n'
  )
  files = [path.name for path in (tmp_path / 'sets/cifar10/3.0.2').glob(f'*{file_format}*')]
  assert len(files) == 2
  monkeypatch.delitem(registered.COUNTS, 'cifar10')
  assert prepare('cifar10').endswith('are not known here, so these were not verified.\n')


def test_without_a_network(prepare):
  with pytest.raises(InputError) as error:
    prepare('cifar10')
  assert re.fullmatch(
    'cifar10/3.0.2 cannot be downloaded from here: .*\nOn a machine with a network, download\n'
    '  cifar-10-binary.tar.gz   170,052,171 bytes   https://\\S+/cifar-10-binary.tar.gz\n'
    'into a folder, and use it as --manual_dir.',
    str(error.value),
  )


def test_an_archive_by_hand_that_is_another(prepare, tmp_path):
  (tmp_path / 'cifar-10-binary.tar.gz').write_bytes(b'an error page')
  with pytest.raises(InputError, match=r'cifar10/3.0.2 was not prepared: .*[Cc]hecksum'):
    prepare('cifar10', manual_dir=str(tmp_path))


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('cifar11', "TFDS does not know a set 'cifar11' (...); close to it are [...'cifar10'...]. To "
     'make a set of a folder of class folders, give --images=FOLDER.'),
    ('eurosat/green', "TFDS does not know a set 'eurosat/green' (...BuilderConfig green not ..."),
  ],
)  # fmt: skip
def test_a_set_that_tfds_does_not_know(prepare, name, text):
  with pytest.raises(InputError, match='.*'.join(re.escape(part) for part in text.split('...'))):
    prepare(name)
