"""Manifests: the size and CRC-32 of every file of a checkpoint, so that damage to it is noticed."""

from collections.abc import Iterator
import json
import zlib

from etils import epath

FILE = 'manifest.json'
# Orbax stamps the time of the commit into this file after the manifest is made.
_NOT_LISTED = (FILE, '_CHECKPOINT_METADATA')


def content(root: epath.Path) -> bytes:
  """A manifest: JSON with [size, CRC-32] of every file below `root`, by its path relative to it."""
  listed = {
    str(path.relative_to(root)): _size_and_crc(path)
    for path in _files(root)
    if path.name not in _NOT_LISTED
  }
  return json.dumps(listed, indent=1).encode()


def damage(root: epath.Path) -> str | None:
  """What is wrong with the checkpoint at `root`, or None."""
  try:
    found = json.loads((root / FILE).read_text())
    listed = [(name, size, crc) for name, (size, crc) in found.items()]
  except (OSError, AttributeError, TypeError, ValueError) as fault:
    return f'no readable {FILE}: {fault}'
  for name, size, crc in listed:
    try:
      found_size, found_crc = _size_and_crc(root / name)
    except FileNotFoundError:
      return f'{name} is missing'
    except OSError as fault:
      return f'{name} cannot be read: {fault}'
    if found_size != size:
      return f'{name} has {found_size} bytes instead of {size}'
    if found_crc != crc:
      return f'{name} has changed since it was written'
  return None


def _files(root: epath.Path) -> Iterator[epath.Path]:
  for path in sorted(root.iterdir()):
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def _size_and_crc(path: epath.Path) -> tuple[int, int]:
  size = crc = 0
  with path.open('rb') as file:
    while chunk := file.read(1 << 22):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return size, crc
