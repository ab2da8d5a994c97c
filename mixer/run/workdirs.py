"""The directory of a run: is it writable, locked, large enough, and of the same config?"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
import re
import shutil
import socket

from absl import logging
from etils import epath
import jax

from mixer import files, settings
from mixer.errors import InputError
from mixer.run import build

LOCK_FILE = '.lock'
_TEACHER_FILE = 'teacher.json'
# Keys that may change when a run resumes: they say where and in which parts it computes and what it
# keeps. `on_bad_image` and `max_pixels` may, because a run that fails at a bad image has used none.
# `claim_teacher` compares the teacher itself.
_MAY_CHANGE = re.compile(
  r'(mesh|every|checkpoints)\..*|microbatches|model\.remat|(ema\.)?export|'
  r'distill\.(path|which)|'
  r'evals\.[^.]*\.details|.*\.(data_dir|on_bad_image|max_pixels)'
)
# Keys that say where the data are.
_PLACE = re.compile(r'(train_input|evals\..*\.(?:train_)?input)\.(path|files|images|labels)')
_NAMED = 10  # classes in a message
_WRITTEN_ANEW = (
  'Restore it from a copy. Without one, delete it: it is written anew, without a check that the '
  'config and the classes given now are those of the run.'
)


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


def claim(
  workdir: epath.Path,
  config: Mapping,
  *,
  started: bool,
  finished: bool = False,
  data: Mapping[str, str] | None = None,
) -> None:
  """Writes `config` and `data`; InputError in the workdir of a run `started` with others.

  Data that moved are the same. Evaluations may be added or renamed.

  Args:
    workdir: of the run.
    config: nested plain dicts.
    started: whether the run has begun, so that the files in `workdir` are its own.
    finished: whether its model can be trained further, which the message says.
    data: `mixer.input.movable` of the run.
  """
  path, known = workdir / files.CONFIG_FILE, workdir / files.DATA_FILE
  old = files.read_json(path, advice=_WRITTEN_ANEW) if started and path.exists() else config
  then = files.read_json(known, advice=_WRITTEN_ANEW) if started and known.exists() else {}
  data = data or {}
  old, new = _comparable(old), _comparable(config)
  kept = [name for name, section in old['evals'].items() if section in new['evals'].values()]
  added = new['evals'].keys() - old['evals'].keys()
  for sections, dropped in ((old['evals'], kept), (new['evals'], {*kept, *added})):
    for name in dropped:
      sections.pop(name, None)
  old, new = (
    settings.flatten({key: value for key, value in config.items() if key != 'evals' or value})
    for config in (old, new)
  )
  absent = '(absent)'
  unread = {'total_epochs'} if new.get('total_steps') is not None else set()
  differing = [
    f'  {key}: {old.get(key, absent)!r} in the workdir, {new.get(key, absent)!r} now'
    for key in sorted((old.keys() | new.keys()) - unread)
    if old.get(key, absent) != new.get(key, absent)
    and not _MAY_CHANGE.fullmatch(key)
    and not _has_moved(key, old.get(key), new.get(key), then, data)
  ]
  if differing:
    init = f'--config.init.path={workdir}/model.npz'
    raise InputError(
      f'{workdir} belongs to a run with another config:\n'
      + '\n'.join(differing)
      + '\nGive each run its own --workdir, or use the same config to resume this run.'
      + f' To train its model further, give a new --workdir and {init}.' * finished
    )
  for key in then.keys() & data.keys():
    if then[key] != data[key]:
      weighted = key == 'config.train_input' and config.get('class_weights') == 'balanced'
      logging.warning(
        '%s: THE IMAGES ARE NOT THOSE OF THE RUN SO FAR: %s; now %s. It goes on with the new '
        'ones%s.', key, then[key], data[key],
        ", and with their weights for config.class_weights='balanced'" if weighted else '',
      )  # fmt: skip
  files.write(path, json.dumps(config, indent=1, sort_keys=True).encode())
  if data:
    files.write(known, json.dumps(data, indent=1).encode())


def _comparable(config: Mapping) -> dict:
  """The config as JSON, in which a key that is left out has its default value."""
  found = jsonable(build.with_defaults(config))
  return {**found, 'evals': found.get('evals') or {}}


def _has_moved(key: str, old, new, then: Mapping[str, str], now: Mapping[str, str]) -> bool:
  """Whether a key says where data are, and these are the same."""
  place = _PLACE.fullmatch(key)
  if not place:
    return False
  section = f'config.{place[1]}'
  if section in then and then[section] == now.get(section):
    return True
  local = isinstance(old, str) and isinstance(new, str) and '://' not in old + new
  return local and _real(old) == _real(new)


def _real(path: str) -> str:
  return os.path.realpath(os.path.expanduser(path))


def begin(
  workdir: epath.Path, checkpoints: epath.Path, *, logged: int, interval: int, finished: bool
) -> None:
  """Makes the directory of the checkpoints of a run that begins at step 0.

  Args:
    workdir: of the run.
    checkpoints: the directory.
    logged: the last step in metrics.jsonl.
    interval: steps between two checkpoints; 0 for the last step only.
    finished: whether the workdir has a model.npz.

  Raises:
    InputError: a run there had checkpoints, so that this one would replace its results.
  """
  is_remote = '://' in str(workdir)  # and has no empty directories
  # The directory is made before the first step, and a save waits for the one before it.
  had_directory = logged and not is_remote and not checkpoints.exists()
  if finished or had_directory or 0 < 2 * interval < logged:
    there = f'{logged} steps in metrics.jsonl'
    if finished:
      there = f'{workdir}/model.npz and metrics.jsonl'
    raise InputError(
      f'{workdir} has the results of a run, {there}, and no checkpoint to resume from: training '
      f'would begin at step 0 and replace them. Give another --workdir, restore {checkpoints}, or '
      f'remove {workdir} to train again.'
    )
  if not is_remote:
    checkpoints.mkdir(exist_ok=True)


def claim_classes(workdir: epath.Path, class_names: Sequence[str], *, started: bool) -> None:
  """Writes the class names; raises InputError in the workdir of a run `started` with others."""
  path, now = workdir / files.CLASSES_FILE, list(class_names)
  if started and path.exists():
    then = files.read_json(path, list, advice=_WRITTEN_ANEW)
    if then != now:
      raise InputError(
        f'{workdir} belongs to a run with other classes: {_difference(then, now)}. Restore '
        'the training data, or give the new ones their own --workdir.'
      )
  else:
    files.write(path, json.dumps(now, indent=1).encode())


def claim_teacher(workdir: epath.Path, identity: Mapping, *, started: bool) -> None:
  """Writes what the teacher is; raises InputError in the workdir of a run `started` with another.

  A teacher that has moved is the same one.
  """
  path = workdir / _TEACHER_FILE
  if started and path.exists():
    then = files.read_json(path, advice=_WRITTEN_ANEW)
    if any(then.get(key) != identity.get(key) for key in ('sha256', 'parameters')):
      raise InputError(
        f'{workdir} belongs to a run with another teacher: {json.dumps(then)} there, '
        f'{json.dumps(identity)} now. Give config.distill.path the same file, and of a run also '
        'config.distill.which; or give this teacher its own --workdir.'
      )
  files.write(path, json.dumps(identity, indent=1).encode())


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
