"""Random access to the records of TFRecord and ArrayRecord files."""

from collections.abc import Sequence
import os
import resource
import struct
import threading

import numpy as np

from mixer.errors import InputError

_HEADER = struct.Struct('<QI')  # length of the record, checksum of the length
_FOOTER_BYTES = 4  # checksum of the record
_OPEN_FILES = 10_240  # asked for; the usual limit is 1,024, and ImageNet alone has as many


class TFRecords:
  """The records skip...skip + take of each TFRecord file, as one sequence.

  Opening walks the headers of all the files (3 to 5 microseconds a record from memory, one small
  read each from a cold disk) and keeps 16 bytes a record.
  """

  def __init__(self, parts: Sequence[tuple[str, int, int]]):
    _allow_open_files()
    self._files = [_open(path) for path, _, _ in parts]
    spans = [
      _spans(file, path)[skip : skip + take]
      for file, (path, skip, take) in zip(self._files, parts, strict=True)
    ]
    self._spans = np.concatenate(spans)
    self._file_of = np.repeat(np.arange(len(parts), dtype=np.int32), [len(s) for s in spans])

  def __len__(self) -> int:
    return len(self._spans)

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """The records at `indices`; may be called from several threads."""
    return [
      self._files[self._file_of[i]].read(int(self._spans[i, 0]), int(self._spans[i, 1]))
      for i in indices
    ]


class ArrayRecords:
  """The same for ArrayRecord files, which carry an index of their own."""

  def __init__(self, parts: Sequence[tuple[str, int, int]]):
    from array_record.python.array_record_module import ArrayRecordReader

    _allow_open_files()
    self._readers = [ArrayRecordReader(path) for path, _, _ in parts]
    for reader, (path, skip, take) in zip(self._readers, parts, strict=True):
      if reader.num_records() < skip + take:  # 0 for a file without its end, which has the index
        raise InputError(
          f'{path} is cut short: it holds {reader.num_records()} records of {skip + take}. '
          'Copy or prepare it again.'
        )
    self._lock = threading.Lock()
    self._first = [skip for _, skip, _ in parts]
    self._ends = np.cumsum([take for _, _, take in parts])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """The records at `indices`; may be called from several threads."""
    indices = np.asarray(indices)
    files = np.searchsorted(self._ends, indices, side='right')
    starts = np.concatenate([[0], self._ends])[files]
    with self._lock:
      return [
        self._readers[file].read([int(self._first[file] + index - start)])[0]
        for file, index, start in zip(files, indices, starts, strict=True)
      ]


class _LocalFile:
  def __init__(self, path: str):
    self._descriptor = os.open(path, os.O_RDONLY)
    self.size = os.fstat(self._descriptor).st_size

  def read(self, offset: int, length: int) -> bytes:
    return os.pread(self._descriptor, length, offset)


class _RemoteFile:
  """A file of any filesystem that TensorFlow knows, such as gs://."""

  def __init__(self, path: str):
    import tensorflow as tf

    self._file, self._lock = tf.io.gfile.GFile(path, 'rb'), threading.Lock()
    self.size = self._file.size()

  def read(self, offset: int, length: int) -> bytes:
    with self._lock:
      self._file.seek(offset)
      return self._file.read(length)


def _allow_open_files() -> None:
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open(path: str) -> _LocalFile | _RemoteFile:
  return _RemoteFile(path) if '://' in path else _LocalFile(path)


def _spans(file: _LocalFile | _RemoteFile, path: str) -> np.ndarray:
  """(offset, length) of every record's payload: int64 (n, 2)."""
  spans, position = [], 0
  while position < file.size:
    header = file.read(position, _HEADER.size)
    length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else file.size
    start = position + _HEADER.size
    position = start + length + _FOOTER_BYTES
    if position > file.size:
      raise InputError(
        f'{path} is cut short: its record {len(spans)} ends at byte {position}, the file at '
        f'{file.size}. Copy or prepare it again.'
      )
    spans.append((start, length))
  return np.array(spans, dtype=np.int64).reshape(-1, 2)
