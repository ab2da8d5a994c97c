"""The directory of a run: is it writable, locked, large enough, and of the same config?"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
import re
import shutil
import socket

from etils import epath
import jax

from mixer import files, settings
from mixer.errors import InputError

LOCK_FILE = '.lock'
# Keys that may change when a run resumes: they say where and in which parts it computes and what it
# keeps. `on_bad_image` may, because a run that fails at a bad image has used none.
_MAY_CHANGE = re.compile(
  r'(mesh|every|checkpoints)\..*|microbatches|model\.remat|.*\.data_dir|.*\.on_bad_image'
)
_NAMED = 10  # classes in a message


def prepare(path: str) -> epath.Path:
  """The absolute workdir, made if missing, after a test file was written, read and removed.

  Raises:
    InputError: it cannot be made, written or read.
  """
  try:
    workdir = files.absolute(path)
    probe = workdir / f'.probe-{socket.gethostname()}-{os.getpid()}'
    workdir.mkdir(parents=True, exist_ok=True)
    probe.write_text('probe')
    found = probe.read_text()
    probe.unlink()
  except Exception as fault:  # each filesystem behind epath has its own exceptions
    raise InputError(
      f'cannot write in --workdir={path}: {fault}. Give a directory that can be written to.'
    ) from fault
  if found != 'probe':
    raise InputError(f'--workdir={workdir} returns other content than was written to it.')
  return workdir


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
  """Process 0 holds the lock of `workdir`, which the system releases however the process ends.

  Raises:
    InputError: another process trains there.
  """

  def refuse(file):
    file.seek(0)
    raise InputError(
      f'--workdir={workdir} is locked by another run: {file.read() or "unknown"}. Wait for it to '
      'end, stop it, or give this run another directory.'
    )

  if jax.process_index():
    yield
    return
  with files.lock(workdir / LOCK_FILE, refuse) as file:
    if file:
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}')
      file.flush()
    yield


def check_space(workdir: epath.Path, needed: int) -> None:
  """Raises InputError if a local disk has less free space than `needed` bytes."""
  if '://' in str(workdir):
    return
  free = shutil.disk_usage(workdir).free
  if free < needed:
    raise InputError(
      f'--workdir={workdir}: {free / 1e6:,.1f} MB are free, and the checkpoints to keep take up to '
      f'{needed / 1e6:,.1f} MB. Free disk space, choose another disk, or lower '
      'config.checkpoints.keep_last.'
    )


def claim(workdir: epath.Path, config: Mapping, *, started: bool, finished: bool = False) -> None:
  """Writes `config`; raises InputError in the workdir of a run `started` with another config.

  Its model can be trained further if it is `finished`, which the message says.
  """
  path = workdir / files.CONFIG_FILE
  old = json.loads(path.read_text()) if started and path.exists() else config
  old, new = settings.flatten(jsonable(old)), settings.flatten(jsonable(config))
  absent = '(absent)'
  unread = {'total_epochs'} if new.get('total_steps') is not None else set()
  differing = [
    f'  {key}: {old.get(key, absent)!r} in the workdir, {new.get(key, absent)!r} now'
    for key in sorted((old.keys() | new.keys()) - unread)
    if old.get(key, absent) != new.get(key, absent) and not _MAY_CHANGE.fullmatch(key)
  ]
  if differing:
    init = f'--config.init.path={workdir}/model.npz'
    raise InputError(
      f'{workdir} belongs to a run with another config:\n'
      + '\n'.join(differing)
      + '\nGive each run its own --workdir, or use the same config to resume this run.'
      + f' To train its model further, give a new --workdir and {init}.' * finished
    )
  files.write(path, json.dumps(config, indent=1, sort_keys=True).encode())


def claim_classes(workdir: epath.Path, class_names: Sequence[str], *, started: bool) -> None:
  """Writes the class names; raises InputError in the workdir of a run `started` with others."""
  path, now = workdir / files.CLASSES_FILE, list(class_names)
  if started and path.exists():
    then = json.loads(path.read_text())
    if then != now:
      raise InputError(
        f'{workdir} belongs to a run with other classes: {_difference(then, now)}. Restore '
        'the training data, or give the new ones their own --workdir.'
      )
  else:
    files.write(path, json.dumps(now, indent=1).encode())


def _difference(then: Sequence[str], now: Sequence[str]) -> str:
  """How two lists of classes differ."""
  parts = []
  for word, some in (('new', set(now) - set(then)), ('missing', set(then) - set(now))):
    if some:
      named = sorted(some)[:_NAMED]
      parts.append(f'{len(some)} {word} ({", ".join(named)}{", ..." * (len(some) > _NAMED)})')
  if not parts:
    place = next(i for i, (old, new) in enumerate(zip(then, now, strict=True)) if old != new)
    parts = [f'the order differs from number {place} on ({then[place]} there, {now[place]} now)']
  return f'{len(then)} there, {len(now)} now; {", ".join(parts)}'


def jsonable(config: Mapping) -> dict:
  """The config as it is read from a JSON file (tuples are lists)."""
  return json.loads(json.dumps(config))
