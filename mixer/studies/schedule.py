"""Runs many programs, several at a time, each on one core, and goes on after a stop."""

from collections.abc import Iterable, Sequence
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import time

from etils import epath

from mixer import console, files, shipped, sweep
from mixer.errors import InputError, Interrupted

_POLL, _REPORT = 0.2, 60.0  # seconds
_LOG, _COMMAND = 'output.txt', 'command.json'  # in the directory of a run
_LINES = 15  # of the output of a run that failed


@dataclasses.dataclass(frozen=True)
class Run:
  """One start of train.py or evaluate.py.

  `name` is that of its directory, which is the workdir of train.py; evaluate.py writes its results
  to `result.json` there. `after` has the runs that must have ended first. `work` is its share of
  the time, in any unit. A run that is `alone` has the machine to itself.
  """

  name: str
  arguments: tuple[str, ...]
  after: tuple['Run', ...] = ()
  work: float = 1.0
  alone: bool = False
  evaluates: bool = False

  def result(self, workdir: epath.Path) -> epath.Path:
    """The file that is there when the run has ended."""
    return workdir / self.name / ('result.json' if self.evaluates else 'model.npz')

  def command(self, workdir: epath.Path) -> list[str]:
    if self.evaluates:
      program, target = shipped.EVALUATE, f'--output={self.result(workdir)}'
    else:
      program, target = shipped.TRAIN, f'--workdir={workdir / self.name}'
    return [str(program), target, *self.arguments]


@dataclasses.dataclass
class _Active:
  run: Run
  process: subprocess.Popen
  core: int | None
  held: contextlib.ExitStack


def with_needed(runs: Iterable[Run]) -> list[Run]:
  """The runs, each once and behind those that it needs."""
  found = {}
  for run in runs:
    found |= dict.fromkeys((*with_needed(run.after), run))
  return list(found)


def run_all(runs: Sequence[Run], workdir: epath.Path, *, jobs: int) -> None:
  """Makes those of `runs`, and of the runs that they need, that have not ended.

  At most `jobs` run at a time. Each has one core. A run whose program was killed is resumed.

  Raises:
    InputError: a run failed, or was started with other arguments before.
    Interrupted: a run was stopped.
  """
  runs = with_needed(runs)
  waiting = [run for run in runs if not _has_ended(run, workdir)]
  progress = _Progress(runs, waiting)
  free, active = _cores(jobs), []
  try:
    while waiting or active:
      for one in [one for one in active if one.process.poll() is not None]:
        active.remove(one)
        one.held.close()
        free.append(one.core)
        _check(one, workdir)
        progress.ended(one.run)
      for run in [*waiting]:
        if free and _can_start(run, [one.run for one in active], workdir):
          waiting.remove(run)
          active.append(_start(run, workdir, free.pop()))
      progress.report([one.run.name for one in active])
      time.sleep(_POLL)
  except BaseException:  # Ctrl-C and SIGTERM among them: train.py saves a checkpoint
    for one in active:
      one.process.terminate()
    for one in active:
      one.process.wait()
    raise


def _can_start(run: Run, active: Sequence[Run], workdir: epath.Path) -> bool:
  """Whether a run can start beside those that are active."""
  if active and (run.alone or any(other.alone for other in active)):
    return False
  return all(other not in active and other.result(workdir).exists() for other in run.after)


def _cores(jobs: int) -> list[int | None]:
  """A core for each of `jobs` runs, so that its numbers do not depend on the number of cores."""
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [None]
  return [cores[i % len(cores)] for i in range(jobs)]


def _start(run: Run, workdir: epath.Path, core: int | None) -> _Active:
  folder = workdir / run.name
  held = contextlib.ExitStack()
  inherited = held.enter_context(sweep.lock(folder))
  command = run.command(workdir)
  files.write(folder / _COMMAND, json.dumps(command[1:]).encode())
  with (folder / _LOG).open('a', encoding='utf-8') as output:
    process = subprocess.Popen(
      [sys.executable, *command],
      stdout=output,
      stderr=output,
      pass_fds=inherited,
    )
  if core is not None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
      os.sched_setaffinity(process.pid, {core})
  return _Active(run, process, core, held)


def _has_ended(run: Run, workdir: epath.Path) -> bool:
  """Whether the run's result is there; raises InputError if it is that of other arguments."""
  file, command = workdir / run.name / _COMMAND, run.command(workdir)[1:]
  if file.exists():
    before = files.read_json(file, list, advice=f'Delete {workdir / run.name}, and start again.')
    if before != command:
      changed = ' '.join(sorted(set(before) ^ set(command)))
      raise InputError(
        f'{workdir / run.name} has a run with other arguments ({changed}); give another --workdir, '
        'or delete that folder.'
      )
  return run.result(workdir).exists()


def _check(one: _Active, workdir: epath.Path) -> None:
  name, status, result = one.run.name, one.process.returncode, one.run.result(workdir)
  log = workdir / name / _LOG
  where = f'its last lines are above, all in {log}.'
  if not result.exists() and status != Interrupted.status:
    console.print_line('\n'.join(log.read_text().splitlines()[-_LINES:]), error=True)
  sweep.check_status(status, f'the run {name}', where)
  if not result.exists():
    raise InputError(f'the run {name} ended without {result.name}; {where}')


class _Progress:
  """Prints how many runs have ended, and about how long the others will take."""

  def __init__(self, runs: Sequence[Run], waiting: Sequence[Run]):
    self._total, self._left = len(runs), {run.name: run.work for run in waiting}
    self._done, self._begin, self._next = 0.0, time.monotonic(), 0.0

  def ended(self, run: Run) -> None:
    self._done += self._left.pop(run.name)
    self._next = 0.0

  def report(self, active: Sequence[str]) -> None:
    now = time.monotonic()
    if now < self._next or not self._left:
      return
    self._next = now + _REPORT
    left = 'time left unknown'
    if self._done:
      minutes = sum(self._left.values()) * (now - self._begin) / self._done / 60
      left = f'about {math.ceil(minutes)} min left'
    console.print_line(
      f'{self._total - len(self._left)} of {self._total} runs done, {left}; '
      f'active: {", ".join(active)}'
    )
