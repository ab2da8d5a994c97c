"""Random access to the records of TFRecord and ArrayRecord files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import os
import resource
import struct
import threading
import weakref

import numpy as np

from mixer import runtime
from mixer.errors import InputError
from mixer.input.records import record_index

_OPEN_FILES = 10_240  # the usual limit is 1,024, and ImageNet alone has 1,024 files
_OPENING = 8  # files at once, for disks of high latency
_ALL = np.iinfo(np.int64).max
_ARRAY_RECORD = bytes.fromhex('83af70d10d884a3f')  # the first bytes of every ArrayRecord file

Part = tuple[str, int, int | None]  # path, records to skip, records to take, or all that follow


class TFRecords:
  """The records skip...skip + take of each TFRecord file, as one sequence.

  Opening loads the indexes of the files (see `record_index`), usually 4 bytes per record. Reading a
  record verifies its checksum.
  """

  def __init__(self, parts: Sequence[Part]):
    _allow_open_files()
    self._skips = [skip for _, skip, _ in parts]
    with ThreadPoolExecutor(_OPENING) as pool:
      self._files = list(pool.map(_open, [path for path, _, _ in parts]))
      whole = pool.map(record_index.load, self._files)
      self._bounds = [
        bounds[skip : skip + (_ALL - skip if take is None else take) + 1]
        for bounds, (_, skip, take) in zip(whole, parts, strict=True)
      ]
    self._ends = np.cumsum([max(len(bounds) - 1, 0) for bounds in self._bounds])
    self.index_bytes = sum(bounds.nbytes for bounds in self._bounds)
    spans = [int(bounds[-1]) - int(bounds[0]) for bounds in self._bounds if len(bounds)]
    self.record_bytes = sum(spans) // max(len(self), 1)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """The records at `indices`; may be called from several threads.

    Raises:
      InputError: a record does not match its checksum; names the file and the record.
    """
    return [self._read(file, number) for file, number in _find(self._ends, indices)]

  def where(self, index: int) -> str:
    """The file of a record and its number in the file, for messages."""
    ((file, number),) = _find(self._ends, [index])
    return f'{self._files[file].path}, record {self._skips[file] + number}'

  def _read(self, file: int, number: int) -> bytes:
    begin, end = (int(bound) for bound in self._bounds[file][number : number + 2])
    begin += record_index.HEADER_BYTES
    length = end - begin - record_index.FOOTER_BYTES
    payload, footer = self._files[file].read_two(begin, length, record_index.FOOTER_BYTES)
    if footer != struct.pack('<I', record_index.masked_crc(payload)):
      raise InputError(
        f'{self._files[file].path}, record {self._skips[file] + number}: the record does not match '
        'its checksum. Copy or prepare the file again.'
      )
    return payload


class ArrayRecords:
  """The same for ArrayRecord files, whose own reader has an index and verifies checksums."""

  def __init__(self, parts: Sequence[Part]):
    from array_record.python.array_record_module import ArrayRecordReader

    _allow_open_files()
    self._paths = [path for path, _, _ in parts]
    self._readers = [ArrayRecordReader(path) for path in self._paths]
    held = [reader.num_records() for reader in self._readers]
    for records, (path, skip, take) in zip(held, parts, strict=True):
      wanted = skip + (1 if take is None else take)
      if records < wanted:  # 0 if the end of the file, which holds the index, is missing
        raise InputError(
          f'{path} is truncated: it holds {records} records of {wanted}'
          + (' or more' if take is None else '')
          + '. Copy or prepare it again.'
        )
    self._lock = threading.Lock()
    self._skips = [skip for _, skip, _ in parts]
    self._ends = np.cumsum(
      [
        records - skip if take is None else take
        for records, (_, skip, take) in zip(held, parts, strict=True)
      ]
    )
    self.index_bytes = 8 * sum(held)  # the offset of each chunk
    self.record_bytes = sum(_open(path).size for path in self._paths) // max(sum(held), 1)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """The records at `indices`; may be called from several threads.

    Raises:
      InputError: a record cannot be read; names the file and the record.
    """
    with self._lock:
      return [self._read(file, number) for file, number in _find(self._ends, indices)]

  def where(self, index: int) -> str:
    """The file of a record and its number in the file, for messages."""
    ((file, number),) = _find(self._ends, [index])
    return f'{self._paths[file]}, record {self._skips[file] + number}'

  def _read(self, file: int, number: int) -> bytes:
    try:
      return self._readers[file].read([self._skips[file] + number])[0]
    except (RuntimeError, ValueError, IndexError) as fault:
      raise InputError(
        f'{self._paths[file]}, record {self._skips[file] + number} cannot be read: {fault}. '
        'Copy or prepare the file again.'
      ) from fault


def open_files(paths: Sequence[str]) -> TFRecords | ArrayRecords:
  """All records of the files, whose format is recognised by their first bytes.

  Raises:
    InputError: a file is truncated or of neither format, or they are of both.
  """
  kinds = {path: _open(path).read(0, len(_ARRAY_RECORD)) == _ARRAY_RECORD for path in paths}
  if len(set(kinds.values())) > 1:
    one, other = (next(p for p in paths if kinds[p] is kind) for kind in (True, False))
    raise InputError(f'{one} is an ArrayRecord file and {other} is not; read them as two inputs.')
  reader = ArrayRecords if kinds[paths[0]] else TFRecords
  return reader([(path, 0, None) for path in paths])


def _find(ends: np.ndarray, indices: Sequence[int]) -> list[tuple[int, int]]:
  """(file, number of the record in its part) of each index, where file i's part ends at ends[i]."""
  indices = np.asarray(indices, np.int64)
  files = np.searchsorted(ends, indices, side='right')
  starts = np.concatenate([[0], ends])[files]
  return list(zip(files.tolist(), (indices - starts).tolist(), strict=True))


class _LocalFile:
  def __init__(self, path: str):
    self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
    weakref.finalize(self, os.close, self._descriptor)
    facts = os.fstat(self._descriptor)
    self.size, self.changed = facts.st_size, facts.st_mtime_ns

  def read(self, offset: int, length: int) -> bytes:
    return os.pread(self._descriptor, length, offset)

  def read_two(self, offset: int, length: int, more: int) -> tuple[bytes, bytes]:
    """`length` bytes, and the `more` after them."""
    return self.read(offset, length), self.read(offset + length, more)


class _RemoteFile:
  """A file of any filesystem that TensorFlow knows, such as gs://."""

  def __init__(self, path: str):
    tf = runtime.tensorflow()
    self.path, self._lock = path, threading.Lock()
    self._file = tf.io.gfile.GFile(path, 'rb')
    facts = tf.io.gfile.stat(path)
    self.size, self.changed = facts.length, facts.mtime_nsec

  def read(self, offset: int, length: int) -> bytes:
    with self._lock:
      self._file.seek(offset)
      return self._file.read(length)

  def read_two(self, offset: int, length: int, more: int) -> tuple[bytes, bytes]:
    both = self.read(offset, length + more)  # a copy costs less than a second request
    return both[:length], both[length:]


def _allow_open_files() -> None:
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open(path: str) -> _LocalFile | _RemoteFile:
  try:
    return _RemoteFile(path) if '://' in path else _LocalFile(path)
  except OSError as fault:
    raise InputError(f'{path} cannot be opened: {fault.strerror}.') from fault
