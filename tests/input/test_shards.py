from itertools import islice
import re

import numpy as np
import pytest

from mixer import input
from mixer.errors import InputError
import sets

pytest.importorskip('mixer.input.sources.shards', reason='needs TensorFlow')

N = 40
NAMES = ['cat', 'dog', 'red fox', 'n01440764', 'owl']


@pytest.fixture(scope='module')
def rows():
  return sets.numbered(N, sides=(16, 20))


@pytest.fixture
def write(tmp_path, rows):
  """Writes the images with `label(i)` in two files and returns their glob; **more features."""

  def to_files(label=lambda i: i, image_key='image/encoded', **more):
    for part in range(2):
      records = [
        sets.example(
          **{image_key: rows[i][0], 'image/class/label': label(i)},
          **{key: value(i) for key, value in more.items()},
        )
        for i in range(part * N // 2, (part + 1) * N // 2)
      ]
      sets.write_records(tmp_path / f'part-{part}', records)
    return str(tmp_path / 'part-*')

  return to_files


def build(files, **arguments):
  given = {'num_classes': N, 'batch_size': 8, 'crop': 'direct', 'image_size': 16}
  return input.build(source='shards', files=files, **given | arguments)


def everything(data):
  return next(data.eval_batches(data.num_examples))


def fails_with(text, files, **arguments):
  """The whole message is `text`, in which ... stands for anything."""
  pattern = '.*'.join(re.escape(part) for part in text.split('...'))
  with pytest.raises(InputError, match=re.compile(f'^{pattern}$', re.DOTALL)):
    build(files, **arguments)


def test_says_what_it_holds(write):
  data = build(write(), crop='inception', image_size=(16, 24))
  assert data.num_examples == N and data.num_classes == N and data.batch_size == 8
  assert data.class_names == tuple(str(i) for i in range(N))
  assert data.image_size == (16, 24) and data.channels == 3 and not data.for_evaluation


def test_images_and_labels_in_the_order_of_the_files(write, tmp_path):
  greys = [np.full((20, 20, 3), 6 * i, np.uint8) for i in range(10)]
  for name, part in (('b', range(6, 10)), ('a', range(6))):
    records = [
      sets.example(picture=sets.encode(greys[i], ('PNG', 'JPEG')[i % 2]), number=i) for i in part
    ]
    sets.write_records(tmp_path / name, records)
  keys = {'image_key': 'picture', 'label_key': 'number', 'num_classes': 10}
  for files in (str(tmp_path / '[ab]'), [str(tmp_path / 'b'), str(tmp_path / 'a')]):
    batch = everything(build(files, **keys))
    assert batch['label'].tolist() == list(range(10)) and batch['label'].dtype == np.int32
    assert (batch['image'] == 6 * batch['label'][:, None, None, None]).all()


def test_several_labels_become_a_vector(write):
  labels = lambda i: [(i + j) % 10 for j in range(i % 3)]  # noqa: E731
  batch = everything(build(write(labels), num_classes=10, multi_label=True))
  expected = np.zeros((N, 10), np.uint8)
  for i in range(N):
    expected[i, labels(i)] = 1
  assert batch['label'].dtype == np.uint8
  np.testing.assert_array_equal(batch['label'], expected)


@pytest.fixture
def class_names(tmp_path):
  path = tmp_path / 'classes.txt'
  path.write_text('cat\ndog\nred fox\nn01440764 tench, Tinca tinca\nowl\n')
  return str(path)


def test_text_labels_are_looked_up(write, class_names):
  files = write(lambda i: NAMES[i % 5].encode())
  data = build(files, num_classes=5, class_names=class_names)
  assert data.class_names == tuple(NAMES)
  assert everything(data)['label'].tolist() == [i % 5 for i in range(N)]
  several = write(lambda i: [name.encode() for name in NAMES[: i % 3]])
  data = build(several, num_classes=5, class_names=class_names, multi_label=True)
  expected = [[int(j < i % 3) for j in range(5)] for i in range(N)]
  assert everything(data)['label'].tolist() == expected


def test_numbers_with_class_names(write, class_names):
  data = build(write(lambda i: i % 5), num_classes=5, class_names=class_names)
  assert data.class_names == tuple(NAMES)
  assert everything(data)['label'].tolist() == [i % 5 for i in range(N)]


def test_a_part_and_the_rest_are_all(write):
  files = write()
  for bound in (15, 0.375):
    held, rest = build(files, last=bound), build(files, first=bound)
    assert everything(held)['label'].tolist() == list(range(15))
    assert everything(rest)['label'].tolist() == list(range(15, N))
    trained = np.concatenate([b['label'] for b in islice(rest.train_batches(0, 0), 4)])[:25]
    assert sorted(trained) == list(range(15, N))


def test_parts_that_there_are_not(write):
  fails_with(
    "'...part-*' (2 files): first=0 and last=41 are not a part of the 40 examples; use counts such "
    'as first=0, last=1000, or fractions such as first=0.0, last=0.99.',
    write(),
    last=N + 1,
  )


# What goes wrong


@pytest.mark.parametrize('files', [None, '', []])
def test_no_files_given(files):
  text = 'files is {!r}; give a glob, such as --config.train_input.files="/data/train-*".'
  fails_with(text.format(files), files)


def test_a_glob_that_matches_nothing(write, tmp_path):
  write()
  (tmp_path / 'other').mkdir()
  for pattern in ('train-*', 'oth*'):  # a folder is no file
    fails_with(f"no file matches '{tmp_path}/{pattern}'.", [write(), f'{tmp_path}/{pattern}'])


def test_files_without_records(tmp_path):
  sets.write_records(tmp_path / 'empty', [])
  fails_with("'...empty' (1 files): the files hold no records.", f'{tmp_path}/empty')


def test_files_that_are_no_records(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(sets.encode(np.zeros((9, 9, 3), np.uint8), 'JPEG'))
  fails_with(
    '...a.jpg: the header of record 0, at byte 0, is damaged, or this is not a TFRecord file '
    '(compressed ones are not read). Copy or prepare it again.',
    f'{tmp_path}/*.jpg',
  )


def test_records_that_are_no_examples(tmp_path):
  sets.write_records(tmp_path / 'a', [b'\xff\xff\xff'])
  fails_with('...a, record 0 is not a tf.train.Example: ...', f'{tmp_path}/a')


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    (
      {'image_key': 'image'},
      "...part-0, record 0 has no feature ['image']; it has {'image/class/label': 'int64', "
      "'image/encoded': 'bytes', 'name': 'bytes', 'weight': 'float'}.",
    ),
    (
      {'image_key': 'image', 'label_key': 'label'},
      "...part-0, record 0 has no feature ['image', 'label']; it has {...}.",
    ),
    (
      {'label_key': 'label', 'multi_label': True},
      "no record of 32 has a feature 'label'; they have ['image/class/label', 'image/encoded', "
      "'name', 'weight'].",
    ),
    (
      {'label_key': 'weight'},
      "'image/encoded' must hold bytes and 'weight' int64 or bytes; they hold bytes and float.",
    ),
    (
      {'image_key': 'image/class/label'},
      "'image/class/label' must hold bytes and 'image/class/label' int64 or bytes; they hold int64 "
      'and int64.',
    ),
    (
      {'image_key': 'name'},
      "'name' holds no image files (JPEG, PNG, GIF, BMP, WebP) in 32 records; it begins with "
      "b'image0'.",
    ),
    (
      {'label_key': 'name'},
      "'name' holds text; give the file with the classes as class_names.",
    ),
    (
      {'num_classes': 39},
      "...part-1, record 19 has the label 39 in 'image/class/label', which is not a class of 39 "
      'counted from 0; see num_classes. If the labels begin at 1, give label_offset=1.',
    ),
    (
      {'num_classes': 0},
      "input source 'shards': num_classes is 0; use an int from 1 to 2**31 - 1.",
    ),
  ],
)
def test_features_and_classes(write, arguments, text):
  files = write(name=lambda i: f'image{i}'.encode(), weight=lambda i: 0.5)
  fails_with(text, files, **arguments)


@pytest.mark.parametrize('count', [0, 2])
def test_other_than_one_label(write, count):
  fails_with(
    f"...part-0, record 0 has {count} labels in 'image/class/label'; with multi_label=True images "
    'may have any number.',
    write(lambda i: [1] * count),
  )


def test_names_that_are_no_classes(write, class_names):
  files = write(lambda i: b'wolf' if i == N - 1 else b'owl')
  fails_with(
    "...part-1, record 19 has the label b'wolf' in 'image/class/label', which is not a class of 5; "
    'see class_names.',
    files,
    num_classes=5,
    class_names=class_names,
  )


def test_class_names_of_another_number(write, class_names):
  fails_with(
    'the label map ... has 5 classes, and the head 40....', write(), class_names=class_names
  )


def test_classes_of_the_same_name(write, tmp_path):
  (tmp_path / 'classes').write_text('crane\nowl\ncrane\n')
  path = str(tmp_path / 'classes')
  fails_with(
    f"{path} has classes of the same name, such as 'crane'.",
    write(lambda i: b'owl'),
    num_classes=3,
    class_names=path,
  )


UNSEEN = 4  # by the sample of 32 records out of 40


@pytest.mark.parametrize('multi_label', [False, True])
def test_a_label_out_of_range_that_the_sample_missed_is_named(write, multi_label):
  data = build(write(lambda i: 10 if i == UNSEEN else 1), num_classes=10, multi_label=multi_label)
  text = f'part-0, record {UNSEEN}: .*image/class/label is not a class of 10:.*10'
  with pytest.raises(InputError, match=text):
    everything(data)
  with pytest.raises(InputError, match=text):
    list(islice(data.train_batches(0, 0), 5))


def test_a_name_that_the_sample_missed_is_named(write, class_names):
  files = write(lambda i: b'wolf' if i == UNSEEN else b'owl')
  data = build(files, num_classes=5, class_names=class_names)
  with pytest.raises(InputError, match=f'part-0, record {UNSEEN}: .*is not a class of 5:.*wolf'):
    everything(data)


def test_a_damaged_record_is_named(write, tmp_path, rows):
  files = write()
  stored = bytearray((tmp_path / 'part-0').read_bytes())
  stored[stored.find(rows[0][0]) + 100] ^= 1
  (tmp_path / 'part-0').write_bytes(stored)
  data = build(files)  # the sample has it and leaves it to what comes
  with pytest.raises(InputError, match='part-0, record 0.* does not match its checksum'):
    everything(data)


def test_nothing_but_damaged_records(write, tmp_path):
  files = write()
  for path in tmp_path.glob('part-*'):
    stored = path.read_bytes().replace(b'image/class/label', b'image/class/lebal')
    path.write_bytes(stored)
  fails_with('...record 19: the record does not match its checksum. ...', files)
