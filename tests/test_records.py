from concurrent.futures import ThreadPoolExecutor
import re
import resource

import numpy as np
import pytest

from mixer.errors import InputError
from mixer.input import records


def payloads(count, seed=0):
  """`count` distinct records of 0 to 300 bytes."""
  rng = np.random.default_rng(seed)
  return [rng.bytes(0 if i == 1 else rng.integers(8, 300)) for i in range(count)]


def write_tfrecord(path, content):
  import tensorflow as tf

  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in content:
      writer.write(record)


def write_array_record(path, content):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in content:
    writer.write(record)
  writer.close()


FORMATS = pytest.mark.parametrize(
  ('write', 'reader'),
  [(write_tfrecord, records.TFRecords), (write_array_record, records.ArrayRecords)],
)


@pytest.fixture
def files(tmp_path):
  """Writes three files of 9, 1 and 6 records: (their paths, their records)."""

  def write_all(write):
    paths = [str(tmp_path / f'file{i}') for i in range(3)]
    contents = [payloads(count, seed) for seed, count in enumerate((9, 1, 6))]
    for path, content in zip(paths, contents):
      write(path, content)
    return paths, contents

  return write_all


@FORMATS
def test_random_access_gives_what_was_written(files, write, reader):
  paths, contents = files(write)
  opened = reader([(path, 0, len(content)) for path, content in zip(paths, contents)])
  whole = sum(contents, [])
  assert len(opened) == 16
  assert opened.read(range(16)) == whole
  for _ in range(20):
    indices = np.random.default_rng(1).integers(0, 16, 30)
    assert opened.read(indices) == [whole[i] for i in indices]
  assert opened.read([]) == []


@FORMATS
def test_skip_and_take(files, write, reader):
  paths, (first, _, third) = files(write)
  opened = reader([(paths[2], 1, 3), (paths[0], 0, 2), (paths[0], 7, 2)])
  expected = third[1:4] + first[:2] + first[7:]
  assert len(opened) == len(expected)
  assert opened.read(range(7)) == expected


@FORMATS
def test_several_threads_read_at_once(files, write, reader):
  paths, contents = files(write)
  opened = reader([(path, 0, len(content)) for path, content in zip(paths, contents)])
  whole = sum(contents, [])
  orders = [np.random.default_rng(i).integers(0, 16, 64) for i in range(64)]
  with ThreadPoolExecutor(8) as pool:
    for indices, read in zip(orders, pool.map(opened.read, orders)):
      assert read == [whole[i] for i in indices]


@FORMATS
def test_more_files_than_a_process_may_open(tmp_path, write, reader):
  """ImageNet has 1,024 files, which is the usual limit."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  path = str(tmp_path / 'file')
  write(path, [b'only'])
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    assert reader([(path, 0, 1)] * 400).read([0, 399]) == [b'only', b'only']
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_tfrecords_equal_tensorflows_own_reading(files):
  import tensorflow as tf

  paths, contents = files(write_tfrecord)
  opened = records.TFRecords([(p, 0, len(c)) for p, c in zip(paths, contents)])
  assert opened.read(range(16)) == list(tf.data.TFRecordDataset(paths).as_numpy_iterator())


def test_tfrecords_through_tensorflows_filesystems(files):
  paths, contents = files(write_tfrecord)
  opened = records.TFRecords([(f'file://{paths[0]}', 2, 7)])
  assert opened.read([6, 0, 0]) == [contents[0][8], contents[0][2], contents[0][2]]


def test_tfrecord_of_no_records(files, tmp_path):
  paths, contents = files(write_tfrecord)
  write_tfrecord(tmp_path / 'empty', [])
  opened = records.TFRecords([(str(tmp_path / 'empty'), 0, 0), (paths[1], 0, 1)])
  assert opened.read([0]) == contents[1]


@pytest.mark.parametrize('missing', [1, 4, 5, 20, 24])  # 4 bytes of checksum, 20 of payload
def test_a_tfrecord_cut_short(tmp_path, missing):
  path = tmp_path / 'file'
  write_tfrecord(path, [b'a' * 20, b'b' * 20])
  content = path.read_bytes()
  assert len(content) == 72
  path.write_bytes(content[:-missing])
  text = (
    f'{path} is cut short: its record 1 ends at byte 72, the file at {72 - missing}. '
    'Copy or prepare it again.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    records.TFRecords([(str(path), 0, 2)])


def test_a_tfrecord_cut_within_the_last_header(tmp_path):
  path = tmp_path / 'file'
  write_tfrecord(path, [b'a' * 20, b'b' * 20])
  path.write_bytes(path.read_bytes()[:40])  # the length itself is gone
  with pytest.raises(
    InputError, match='is cut short: its record 1 ends at byte .*, the file at 40'
  ):
    records.TFRecords([(str(path), 0, 2)])


def test_a_tfrecord_cut_between_records_has_fewer(tmp_path):
  path = tmp_path / 'file'
  write_tfrecord(path, [b'a' * 20, b'b' * 20])
  path.write_bytes(path.read_bytes()[:36])
  assert len(records.TFRecords([(str(path), 0, 2)])) == 1  # Tfds compares it with the promise


@pytest.mark.parametrize('kept', [1.0, 0.5, 0.0])
def test_an_array_record_cut_short(tmp_path, kept):
  path = tmp_path / 'file'
  write_array_record(path, payloads(5))
  content = path.read_bytes()
  path.write_bytes(content[: int((len(content) - 1) * kept)])
  text = f'{path} is cut short: it holds 0 records of 5. Copy or prepare it again.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    records.ArrayRecords([(str(path), 0, 5)])


def test_an_array_record_with_too_few(tmp_path):
  path = tmp_path / 'file'
  write_array_record(path, payloads(5))
  text = f'{path} is cut short: it holds 5 records of 6. Copy or prepare it again.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    records.ArrayRecords([(str(path), 2, 4)])
