"""The directory of a run: is it usable, and is it this run's?"""

from collections.abc import Mapping
import json
import os
import shutil

from etils import epath

from mixer import files, settings
from mixer.errors import InputError

CONFIG_FILE = 'config.json'
# Where a computation runs, not what it computes: these may change when a run goes on.
_MAY_CHANGE = ('mesh.',)


def prepare(path: str) -> epath.Path:
  """The absolute workdir, made and tried out by writing, reading and removing a file.

  Raises:
    InputError: it cannot be made, written or read.
  """
  workdir = epath.Path(path if '://' in path else os.path.abspath(os.path.expanduser(path)))
  probe = workdir / f'.probe-{os.getpid()}'
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe.write_text('probe')
    found = probe.read_text()
    probe.unlink()
  except Exception as fault:  # each filesystem behind epath has exceptions of its own
    raise InputError(
      f'cannot write in --workdir={workdir}: {fault}. Give a directory that can be written to.'
    ) from fault
  if found != 'probe':
    raise InputError(f'--workdir={workdir} does not give back what is written to it.')
  return workdir


def check_space(workdir: epath.Path, needed: int) -> None:
  """Raises InputError if a local disk has less free space than `needed` bytes."""
  if '://' in str(workdir):
    return
  free = shutil.disk_usage(workdir).free
  if free < needed:
    raise InputError(
      f'--workdir={workdir}: {free / 1e6:,.1f} MB are free, and the checkpoints to keep take up to '
      f'{needed / 1e6:,.1f} MB. Free some, choose another disk, or lower '
      'config.checkpoints.keep_last.'
    )


def claim(workdir: epath.Path, config: Mapping, *, started: bool) -> None:
  """Records `config`; in the workdir of a run that has `started` with another, InputError."""
  path = workdir / CONFIG_FILE
  if not path.exists() or not started:
    files.write(path, json.dumps(config, indent=1, sort_keys=True).encode())
    return
  old, new = settings.flatten(json.loads(path.read_text())), settings.flatten(jsonable(config))
  absent = '(absent)'
  differing = [
    f'  {key}: {old.get(key, absent)!r} there, {new.get(key, absent)!r} now'
    for key in sorted(old.keys() | new.keys())
    if old.get(key, absent) != new.get(key, absent) and not key.startswith(_MAY_CHANGE)
  ]
  if differing:
    raise InputError(
      f'{workdir} belongs to a run with another config:\n'
      + '\n'.join(differing)
      + '\nGive each run its own --workdir, or the same config to go on with this one.'
    )


def jsonable(config: Mapping) -> dict:
  """The config as it comes back from its JSON file (tuples as lists)."""
  return json.loads(json.dumps(config))
