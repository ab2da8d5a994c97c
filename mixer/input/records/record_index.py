"""The offsets of the records of a TFRecord file, found by one scan of the file and then stored.

The index of DIR/FILE is stored as DIR/.record_index/FILE.npz or, if DIR is remote or not writable,
under $XDG_CACHE_HOME or ~/.cache. It holds the size and modification time of the file, so that
another file under the same name is scanned again.
"""

import hashlib
import io
import os
import struct
from typing import Protocol

from absl import logging
from etils import epath
import google_crc32c
import numpy as np

from mixer import files
from mixer.errors import InputError

HEADER_BYTES, FOOTER_BYTES = 12, 4  # length and its checksum; checksum of the payload
_LENGTH_BYTES = 8
_HEADER = struct.Struct('<QI')
_FRAME_BYTES = HEADER_BYTES + FOOTER_BYTES


def masked_crc(payload: bytes) -> int:
  """The checksum of some bytes as a TFRecord file stores it: CRC-32C, rotated, plus a constant."""
  crc = google_crc32c.value(payload)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class File(Protocol):
  """A file open for reading at any offset."""

  path: str
  size: int
  changed: int  # nanoseconds since 1970

  def read(self, offset: int, length: int) -> bytes:
    """`length` bytes, or fewer at the end of the file."""


def load(file: File) -> np.ndarray:
  """The offsets of the records, and the size of the file: uint32 or uint64 (records + 1,).

  Raises:
    InputError: the file is truncated, or is not a TFRecord file.
  """
  places = _places(file.path)
  for place in places:
    bounds = _kept(place, file)
    if bounds is not None:
      return bounds
  bounds = _walk(file)
  _keep(places, file, bounds)
  return bounds


def _places(path: str) -> list[epath.Path]:
  """The possible paths of the index, the preferred one first."""
  folder, name = os.path.split(path if '://' in path else os.path.abspath(path))
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache')
  own = hashlib.sha256(folder.encode()).hexdigest()[:16]
  places = [epath.Path(cache).expanduser() / 'mixer' / 'record_index' / own]
  if '://' not in path:
    places.insert(0, epath.Path(folder) / '.record_index')
  return [place / f'{name}.npz' for place in places]


def _kept(place: epath.Path, file: File) -> np.ndarray | None:
  """The stored index if it is of this file and intact; warns of a damaged one."""
  try:
    content = place.read_bytes()
  except OSError:  # missing, or not readable
    return None
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as kept:
      key, bounds = kept['key'], kept['bounds']  # a zip file: each has its checksum
  except Exception as fault:  # its kind depends on the damage
    logging.warning('the record index %s is damaged, and is made again: %s', place, fault)
    return None
  return bounds if key.tolist() == [file.size, file.changed] else None


def _keep(places: list[epath.Path], file: File, bounds: np.ndarray) -> None:
  content = io.BytesIO()
  np.savez(content, key=np.array([file.size, file.changed], np.int64), bounds=bounds)
  for place in places:
    try:
      place.parent.mkdir(parents=True, exist_ok=True)
      files.write(place, content.getvalue())
      return
    except OSError as fault:  # read-only or full
      if _kept(place, file) is not None:  # another thread or process has written it meanwhile
        return
      reason = fault
  text = 'the record index of %s, and maybe of other files, is not stored: %s'
  logging.log_first_n(logging.WARNING, text, 1, file.path, reason)


def _walk(file: File) -> np.ndarray:
  """The bounds, from the headers of all records; 3 to 5 microseconds each if the file is cached."""
  bounds = [0]
  while bounds[-1] < file.size:
    header = file.read(bounds[-1], HEADER_BYTES)
    if len(header) < HEADER_BYTES:
      bounds.append(bounds[-1] + _FRAME_BYTES + file.size)
      break
    length, check = _HEADER.unpack(header)
    if check != masked_crc(header[:_LENGTH_BYTES]):
      raise InputError(
        f'{file.path}: the header of record {len(bounds) - 1}, at byte {bounds[-1]}, is damaged, '
        'or this is not a TFRecord file (compressed ones are not read). Copy or prepare it again.'
      )
    bounds.append(bounds[-1] + _FRAME_BYTES + length)
  if bounds[-1] > file.size:
    raise InputError(
      f'{file.path} is truncated: its record {len(bounds) - 2} ends at byte {bounds[-1]}, the file '
      f'at {file.size}. Copy or prepare it again.'
    )
  return np.array(bounds, np.uint32 if file.size < 2**32 else np.uint64)
