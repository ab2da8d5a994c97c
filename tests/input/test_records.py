from concurrent.futures import ThreadPoolExecutor
import os
import re
import resource

import numpy as np
import pytest

from mixer.errors import InputError
from mixer.input.records import readers, record_index


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


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


FORMATS = pytest.mark.parametrize(
  ('write', 'reader'),
  [(write_tfrecord, readers.TFRecords), (write_array_record, readers.ArrayRecords)],
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
  opened = readers.TFRecords([(p, 0, len(c)) for p, c in zip(paths, contents)])
  assert opened.read(range(16)) == list(tf.data.TFRecordDataset(paths).as_numpy_iterator())


def test_tfrecords_through_tensorflows_filesystems(files):
  paths, contents = files(write_tfrecord)
  opened = readers.TFRecords([(f'file://{paths[0]}', 2, 7)])
  assert opened.read([6, 0, 0]) == [contents[0][8], contents[0][2], contents[0][2]]


def test_tfrecord_of_no_records(files, tmp_path):
  paths, contents = files(write_tfrecord)
  write_tfrecord(tmp_path / 'empty', [])
  opened = readers.TFRecords([(str(tmp_path / 'empty'), 0, 0), (paths[1], 0, 1)])
  assert opened.read([0]) == contents[1]


@pytest.mark.parametrize('missing', [1, 4, 5, 20, 24])  # 4 bytes of checksum, 20 of payload
def test_a_tfrecord_cut_short(tmp_path, missing):
  path = tmp_path / 'file'
  write_tfrecord(path, [b'a' * 20, b'b' * 20])
  content = path.read_bytes()
  assert len(content) == 72
  path.write_bytes(content[:-missing])
  text = (
    f'{path} is truncated: its record 1 ends at byte 72, the file at {72 - missing}. '
    'Copy or prepare it again.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    readers.TFRecords([(str(path), 0, 2)])


def test_a_tfrecord_cut_within_the_last_header(tmp_path):
  path = tmp_path / 'file'
  write_tfrecord(path, [b'a' * 20, b'b' * 20])
  path.write_bytes(path.read_bytes()[:40])  # the length itself is gone
  with pytest.raises(
    InputError, match='is truncated: its record 1 ends at byte .*, the file at 40'
  ):
    readers.TFRecords([(str(path), 0, 2)])


def test_a_tfrecord_cut_between_records_has_fewer(tmp_path):
  path = tmp_path / 'file'
  write_tfrecord(path, [b'a' * 20, b'b' * 20])
  path.write_bytes(path.read_bytes()[:36])
  assert len(readers.TFRecords([(str(path), 0, 2)])) == 1  # Tfds compares it with the promise


@pytest.mark.parametrize('kept', [1.0, 0.5, 0.0])
def test_an_array_record_cut_short(tmp_path, kept):
  path = tmp_path / 'file'
  write_array_record(path, payloads(5))
  content = path.read_bytes()
  path.write_bytes(content[: int((len(content) - 1) * kept)])
  text = f'{path} is truncated: it holds 0 records of 5. Copy or prepare it again.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    readers.ArrayRecords([(str(path), 0, 5)])


def test_an_array_record_with_too_few(tmp_path):
  path = tmp_path / 'file'
  write_array_record(path, payloads(5))
  text = f'{path} is truncated: it holds 5 records of 6. Copy or prepare it again.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    readers.ArrayRecords([(str(path), 2, 4)])


# The index that is kept, and checksums


@pytest.fixture
def one_file(tmp_path):
  """(path of a TFRecord file, its five records, where its index is kept)."""
  (tmp_path / 'data').mkdir()
  path, content = tmp_path / 'data' / 'file', payloads(5)
  write_tfrecord(path, content)
  return path, content, tmp_path / 'data' / '.record_index' / 'file.npz'


def read_all(path):
  opened = readers.TFRecords([(str(path), 0, None)])
  return opened.read(range(len(opened)))


@pytest.fixture
def walks(monkeypatch):
  """The paths that were walked over."""
  walked, walk = [], record_index._walk

  def told(file):
    walked.append(file.path)
    return walk(file)

  monkeypatch.setattr(record_index, '_walk', told)
  return walked


def test_a_file_is_walked_once(one_file, walks, caplog):
  path, content, index = one_file
  assert len(readers.TFRecords([(str(path), 0, None)] * 2)) == 10
  assert index.exists() and walks
  walks.clear()
  assert read_all(path) == content
  assert not walks and not caplog.text


def test_the_index_says_where_the_records_begin(one_file):
  path, content, index = one_file
  read_all(path)
  with np.load(index) as kept:
    frames = [len(record) + 16 for record in content]
    assert kept['bounds'].tolist() == [0, *np.cumsum(frames)]
    assert kept['bounds'].dtype == np.uint32
    assert kept['key'].tolist() == [path.stat().st_size, path.stat().st_mtime_ns]


@pytest.mark.parametrize('same_size', [True, False])
def test_a_changed_file_is_walked_anew(one_file, walks, same_size):
  path, content, _ = one_file
  read_all(path)
  other = content[::-1] if same_size else payloads(7, seed=1)
  write_tfrecord(path, other)
  os.utime(path, ns=(0, 10**18))  # the clock of a file system may be too coarse to tell
  assert read_all(path) == other
  assert len(walks) == 2


@pytest.mark.parametrize('how', ['cut', 'flipped', 'empty', 'other'])
def test_a_damaged_index_is_made_anew_and_told_of(one_file, walks, caplog, how):
  path, content, index = one_file
  read_all(path)
  kept = bytearray(index.read_bytes())
  if how == 'flipped':
    where = kept.find(np.uint32(len(content[0]) + 16).tobytes())  # in the bounds
    kept[where] ^= 1
  damaged = {'cut': kept[:-30], 'flipped': kept, 'empty': b'', 'other': b'not an index'}[how]
  index.write_bytes(damaged)
  assert read_all(path) == content and len(walks) == 2
  assert f'the record index {index} is damaged, and is made again' in caplog.text
  assert read_all(path) == content and len(walks) == 2


@pytest.mark.parametrize('xdg', [True, False])
def test_where_the_folder_cannot_be_written_to(one_file, walks, monkeypatch, tmp_path, xdg, caplog):
  path, content, index = one_file
  index.parent.write_text('in the way')  # root may write anywhere, so permissions do not do
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache') if xdg else '')
  assert read_all(path) == read_all(path) == content
  assert len(walks) == 1
  cache = tmp_path / 'cache' if xdg else tmp_path / 'home' / '.cache'
  assert len(list((cache / 'mixer' / 'record_index').glob('*/file.npz'))) == 1
  assert not caplog.text


def test_where_nothing_can_be_written(one_file, monkeypatch, tmp_path, caplog):
  path, content, index = one_file
  index.parent.write_text('in the way')
  (tmp_path / 'file').write_text('in the way')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert read_all(path) == content
  assert f'the record index of {path}, and maybe of other files, is not stored: ' in caplog.text


def test_files_of_the_same_name_do_not_share_an_index(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  contents = {name: payloads(4, seed) for seed, name in enumerate('ab')}
  for name, content in contents.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / '.record_index').write_text('in the way')
    write_tfrecord(tmp_path / name / 'file', content)
    os.utime(tmp_path / name / 'file', ns=(0, 0))
  for _ in range(2):
    for name, content in contents.items():
      assert read_all(tmp_path / name / 'file') == content


@pytest.mark.parametrize('byte', [0, 50, -1])  # the payload's first and last, and in between
def test_a_damaged_tfrecord_is_named(one_file, byte):
  path, content, _ = one_file
  stored = bytearray(path.read_bytes())
  start = stored.find(content[3])
  stored[start + byte % len(content[3])] ^= 4
  path.write_bytes(stored)
  opened = readers.TFRecords([(str(path), 2, 3)])
  assert opened.read([0, 2]) == [content[2], content[4]]
  text = (
    f'{path}, record 3: the record does not match its checksum. Copy or prepare the file again.'
  )
  for indices in ([1], [0, 1, 2]):
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      opened.read(indices)
  assert opened.where(1) == f'{path}, record 3'


def test_a_file_that_shrinks_while_it_is_open(one_file):
  path, content, _ = one_file
  opened = readers.TFRecords([(str(path), 0, 5)])
  os.truncate(path, path.stat().st_size - 10)
  assert opened.read([3]) == [content[3]]
  with pytest.raises(InputError, match='record 4: the record does not match its checksum'):
    opened.read([4])


@pytest.mark.parametrize('byte', [0, 1, 8])  # of the length and of its checksum
def test_a_damaged_header(one_file, byte):
  path, content, _ = one_file
  stored = bytearray(path.read_bytes())
  begin = len(content[0]) + 16
  stored[begin + byte] ^= 1
  path.write_bytes(stored)
  text = (
    f'{path}: the header of record 1, at byte {begin}, is damaged, or this is not a TFRecord file'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}'):
    read_all(path)


def test_a_damaged_array_record_is_named(tmp_path):
  path, content = tmp_path / 'file', [np.random.default_rng(i).bytes(5000) for i in range(5)]
  write_array_record(path, content)
  stored = bytearray(path.read_bytes())
  stored[stored.find(content[2]) + 700] ^= 1
  path.write_bytes(stored)
  opened = readers.ArrayRecords([(str(path), 1, 4)])
  assert opened.read([0, 2]) == [content[1], content[3]]
  with pytest.raises(InputError, match=f'^{re.escape(str(path))}, record 2 cannot be read: .*hash'):
    opened.read([1])
  assert opened.where(1) == f'{path}, record 2'


@FORMATS
def test_the_format_is_told_by_the_first_bytes(files, write, reader):
  paths, contents = files(write)
  opened = readers.open_files(paths)
  assert isinstance(opened, reader) and opened.read(range(16)) == sum(contents, [])


def test_both_formats_at_once(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  write_tfrecord(a, payloads(2))
  write_array_record(b, payloads(2))
  text = f'{b} is an ArrayRecord file and {a} is not; read them as two inputs.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    readers.open_files([str(a), str(b)])


def test_a_file_that_is_not_there(tmp_path):
  text = f'{tmp_path}/absent cannot be opened: No such file or directory.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    readers.TFRecords([(f'{tmp_path}/absent', 0, None)])
