"""Atomic writes, JSON files, locks, and names of files."""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import socket
from typing import IO, Any

from absl import logging
from etils import epath

from mixer.errors import DiskError, InputError

# Of a workdir:
CONFIG_FILE, CLASSES_FILE, INPUT_FILE = 'config.json', 'classes.json', 'input.json'
DATA_FILE = 'data.json'  # `mixer.input.movable` of its run


def absolute(path: str) -> epath.Path:
  """The path from the root, with '~' expanded; a path with '://' stays as it is.

  Raises:
    InputError: a URL of an unknown filesystem.
  """
  try:
    return epath.Path(path if '://' in path else os.path.abspath(os.path.expanduser(path)))
  except KeyError as fault:
    raise InputError(
      f'{path}: no filesystem of this kind can be reached from here. Give a path on this machine; '
      'fetch a file first.'
    ) from fault


def write(path: epath.Path, content: bytes) -> None:
  """Writes a file under a temporary name and renames it, so that it is never seen half-written.

  Makes its directory if that is missing.

  Raises:
    DiskError: the file cannot be written there.
  """
  with explained(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    partial.write_bytes(content)
    partial.replace(path)


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[Callable[[str], None]]:
  """Yields a function that appends text to a file, which gets its name at the end of the block.

  So a long file is written without being held in memory, and as `write_text` writes it. If the
  block raises, an older file stays as it is.
  """
  with replacing(path) as file:

    def append(text: str) -> None:
      with explained(path):
        file.write(text.encode(errors='backslashreplace'))

    yield append


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[IO[bytes]]:
  """The same for bytes: yields the file. Errors of its methods are to be `explained`."""
  partial = path.with_name(path.name + '.partial')
  with explained(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = partial.open('wb')
  try:
    yield file
    with explained(path):
      file.close()
      partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      file.close()
    with contextlib.suppress(OSError):
      partial.unlink()
    raise


@contextlib.contextmanager
def explained(path: epath.Path) -> Iterator[None]:
  """Raises DiskError for an OSError in the block, which writes the file."""
  try:
    yield
  except OSError as fault:
    raise DiskError(
      f'{path} cannot be written: {fault}. Free disk space (quotas count too), or give a place '
      'that can be written to.'
    ) from fault


def is_writable(directory: epath.Path) -> bool:
  """Whether files can be written in a directory, which is made if it is missing."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    check_writable(directory / f'.probe-{socket.gethostname()}-{os.getpid()}')
  except (InputError, OSError):
    return False
  return True


def check_writable(path: epath.Path) -> None:
  """Raises InputError if `write` cannot write this file; an older one stays as it is."""
  partial = path.with_name(path.name + '.partial')
  try:
    if path.is_dir():
      raise IsADirectoryError(0, 'it is a directory')
    partial.write_bytes(b'')
    partial.unlink()
  except OSError as fault:
    raise InputError(
      f'{path} cannot be written: {fault.strerror or fault}. Give a file in a directory that can '
      'be written to.'
    ) from fault


def write_text(path: epath.Path, text: str) -> None:
  """Writes UTF-8 as `write` does; bytes of names that are no text are escaped, as in \\udcff."""
  write(path, text.encode(errors='backslashreplace'))


def write_csv(path: epath.Path, rows: Sequence[Mapping]) -> None:
  """Writes rows that all have the keys of the first, as `write` does, with a header."""
  write_text(path, csv_text([rows[0], *([row[key] for key in rows[0]] for row in rows)]))


def policy_source(text: str) -> str:
  """By which a Content-Security-Policy permits this script or style within a page."""
  return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def csv_text(rows: Iterable[Iterable]) -> str:
  """Lines of a CSV file."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  return text.getvalue()


def read_json(path: epath.Path, kind: type = dict, *, advice: str) -> Any:
  """The content of a JSON file, which is a `kind`.

  Raises:
    InputError: it is something else, or cannot be read; names the line, and ends with `advice`.
  """
  return _parse(path, _content(path), kind, 1, advice)


def read_json_lines(path: epath.Path, *, advice: str) -> list[tuple[int, dict]]:
  """(its line number, its object) of each line of a file; empty lines are left out.

  So is a last line without its end, as a kill leaves it. Errors are those of `read_json`.
  """
  lines = enumerate(_content(path).split(b'\n')[:-1], start=1)
  return [(i, _parse(path, line, dict, i, advice)) for i, line in lines if line.strip()]


def damaged(path: epath.Path, line: int, fault: str, advice: str) -> InputError:
  return InputError(f'{path} is damaged in line {line}: {fault}. {advice}')


def _content(path: epath.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as fault:
    raise InputError(f'{path} cannot be read: {fault.strerror or fault}.') from fault


def _parse(path: epath.Path, content: bytes, kind: type, first_line: int, advice: str) -> Any:
  line = 1
  try:
    found = json.loads(content.decode('utf-8-sig'))  # editors may add a byte order mark
    fault = None if isinstance(found, kind) else f'a JSON {_JSON_NAMES[kind]} is expected'
  except json.JSONDecodeError as error:
    line, fault = error.lineno, f'{error.msg.removesuffix(" at")}, at character {error.colno}'
    fault = fault if content.strip() else 'it is empty'
  except UnicodeDecodeError as error:
    line, fault = content.count(b'\n', 0, error.start) + 1, 'this is not UTF-8 text'
  except RecursionError:
    fault = 'it is nested too deeply'
  if fault:
    raise damaged(path, first_line + line - 1, fault, advice)
  return found


_JSON_NAMES = {dict: 'object', list: 'list'}


@contextlib.contextmanager
def lock(path: epath.Path, when_locked: Callable[[IO[str]], None]) -> Iterator[IO[str] | None]:
  """Holds the exclusive lock of a file, made if missing; yields it, or None for a remote path.

  The system releases the lock when this process, and each that has inherited the file, has ended.

  Args:
    path: remote paths (with '://') have no lock.
    when_locked: called with the file if another process holds the lock; raises, or returns to wait
      for it.
  """
  if '://' in str(path):
    yield None
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      when_locked(file)
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as fault:  # some network filesystems have no locks
      logging.warning(
        'cannot lock %s (%s): make sure that no other run uses this directory.', path, fault
      )
    yield file
