"""Atomic writes, locks, and names of files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import csv
import fcntl
import io
import os
import socket
from typing import IO

from absl import logging
from etils import epath

from mixer.errors import DiskError, InputError

CONFIG_FILE, CLASSES_FILE = 'config.json', 'classes.json'  # of a workdir
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
  partial = path.with_name(path.name + '.partial')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content)
    partial.replace(path)
  except OSError as fault:
    raise DiskError(
      f'{path} cannot be written: {fault}. Free disk space (quotas count too), or give a place '
      'that can be written to.'
    ) from fault


def is_writable(directory: epath.Path) -> bool:
  """Whether files can be written in a directory, which is made if it is missing."""
  probe = directory / f'.probe-{socket.gethostname()}-{os.getpid()}'
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe.write_text('probe')
    probe.unlink()
  except OSError:
    return False
  return True


def write_csv(path: epath.Path, rows: Sequence[Mapping]) -> None:
  """Writes rows that all have the keys of the first, as `write` does, with a header."""
  text = io.StringIO()
  writer = csv.DictWriter(text, rows[0], lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write(path, text.getvalue().encode())


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
  with open(path, 'a+') as file:
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
