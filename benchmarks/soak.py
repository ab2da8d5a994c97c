"""Trains repeatedly under random events, and reports whether anything went wrong.

  python benchmarks/soak.py --minutes=10 --workdir=DIR [--seed=0] [--steps=300] [--lanes=2]

The digits config at the size of the tests, through train.py in separate processes. An
undisturbed run comes first; then, in each lane, one run after the other is stopped, killed and
starved of disk at moments of chance and started again until its steps are done. Every other run
changes its layout (processes x devices of each x fsdp) at each start. What is drawn depends on the
seed, the run and the attempt alone. After the minutes, the runs under way are left to finish.

Exit status 0 if nothing was wrong, else 1; the verdict is DIR/soak.json too. The checks, with their
bounds, are in soak_checks.py. The logs of attempts with faults stay in DIR/logs.
"""

from collections import Counter
from collections.abc import Iterator
import concurrent.futures
import contextlib
import itertools
import json
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from absl import app, flags
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

from benchmarks import soak_checks as checks  # noqa: E402
from benchmarks.soak_watch import CALM, Event, Watch, last_step  # noqa: E402
import runs  # noqa: E402

HOME = '1x1x1'  # of the undisturbed run
LAYOUTS = (HOME, '1x2x1', '1x4x2', '1x8x1', '1x8x8', '2x1x1', '2x2x2')
KEPT = 2  # newest checkpoints; the best one stays too
# So low a rate that rounding is not amplified from step to step; the batches, mixup and dropout
# of a step still change its loss by far more than the tolerance.
OVERRIDES = (
  *runs.TINY,
  '--config.model.num_blocks=1',
  '--config.optim.learning_rate=1e-4',
  '--config.every.evaluate=100',
  f'--config.checkpoints.keep_last={KEPT}',
)

if __name__ == '__main__':  # tests import this beside train.py, which has a --workdir too
  _MINUTES = flags.DEFINE_float(
    'minutes', 10.0, 'To disturb for, after the undisturbed run.', lower_bound=0
  )
  _WORKDIR = flags.DEFINE_string('workdir', None, 'Where all is written.', required=True)
  _SEED = flags.DEFINE_integer('seed', 0, 'Of the events.')
  _STEPS = flags.DEFINE_integer('steps', 300, 'Of each run.', lower_bound=100)
  _LANES = flags.DEFINE_integer('lanes', 2, 'Runs at work at the same time.', lower_bound=1)


class Plan(NamedTuple):
  layout: str
  event: Event


class Attempt(NamedTuple):
  """The result of one start of train.py."""

  first_step: int
  statuses: tuple[int, ...]
  faults: list[str]


def main(_) -> None:
  folder = pathlib.Path(_WORKDIR.value).absolute()
  if folder.exists() and any(folder.iterdir()):
    sys.exit(f'--workdir={folder} is not empty; give a new one.')
  result = Soak(folder, seed=_SEED.value, steps=_STEPS.value).run(_MINUTES.value, _LANES.value)
  (folder / 'soak.json').write_text(json.dumps(result, indent=1))
  print(checks.describe(result))
  sys.exit(0 if result['passed'] else 1)


def plan(seed: int, run: int, attempt: int, steps: int) -> Plan:
  """Layout and event of an attempt; an even run stays on the layout of the undisturbed one."""
  chance = random.Random(f'{seed}-{run}-{attempt}')
  layout = chance.choice(LAYOUTS) if run % 2 and attempt else HOME
  count = int(layout[0])
  # Events during a start are for runs of one process; otherwise others wait for the missing one.
  kinds = [kind for kind in checks.EVENTS if count == 1 or 'start' not in kind]
  kind = chance.choice(kinds)
  event = Event(
    kind=kind,
    steps=chance.randint(3, steps // 3),
    share=chance.random(),
    delay_seconds=chance.uniform(0.0, 0.1) if 'save' in kind else 0.0,
    victim=0 if 'disk' in kind else chance.randrange(count),
  )
  return Plan(layout, event)


class Soak:
  """One soak in `folder`, with what it has found so far."""

  def __init__(self, folder: pathlib.Path, *, seed: int, steps: int):
    self._folder, self._seed, self._steps = folder, seed, steps
    self._end = 0.0  # of all events
    self._logs = folder / 'logs'
    self._logs.mkdir(parents=True)
    (folder / 'marks').mkdir()
    self._faults, self._events, self._runs = [], Counter(), []
    self._longest: list[checks.Sample] = []
    self._start_seconds = 0.0  # of the undisturbed run, which compiles

  def run(self, minutes: float, lanes: int) -> dict:
    """Soaks, and returns the verdict."""
    straight = self._folder / 'undisturbed'
    done = self._attempt(straight, 'undisturbed', Plan(HOME, CALM))
    if not done.faults:
      self._faults += [f'undisturbed: {fault}' for fault in self._finished(straight)]
    if not self._faults:
      self._end = time.time() + 60 * minutes
      with concurrent.futures.ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lambda lane: self._lane(lane, lanes, straight), range(lanes)))
    faults, leak = checks.leak_faults(self._longest)
    return checks.verdict([*self._faults, *faults], self._events, self._runs, leak)

  def _lane(self, first: int, lanes: int, straight: pathlib.Path) -> None:
    for number in itertools.count(first, lanes):
      if time.time() > self._end:
        return
      self._one_run(number, straight)

  def _one_run(self, number: int, straight: pathlib.Path) -> None:
    """Starts one run until it is done, and compares it with the undisturbed one."""
    workdir, left, faults = self._folder / f'run-{number}', None, []
    for attempt in range(10_000):
      drawn = plan(self._seed, number, attempt, self._steps)
      done = self._attempt(workdir, f'run-{number}-{attempt}', drawn)
      if drawn.layout != HOME and left is None:
        left = done.first_step
      if done.faults or set(done.statuses) == {0}:
        break
    else:
      faults.append('was not done after 10,000 attempts')
    if not done.faults:
      exact_to = self._steps if left is None else left
      found, worst = checks.loss_faults(learned(workdir), learned(straight), exact_to)
      faults += [*self._finished(workdir), *found]
      if left is None:
        faults += model_faults(workdir, straight)
      self._runs.append({
        'steps': self._steps, 'attempts': attempt + 1, 'layout_changed_after': left,
        'worst_deviation': worst,
      })  # fmt: skip
    self._faults += [f'{workdir.name}: {fault}' for fault in faults]
    if not faults and not done.faults:
      shutil.rmtree(workdir)

  def _finished(self, workdir: pathlib.Path) -> list[str]:
    """What is wrong with the steps and files of a run that is done."""
    names = [str(p.relative_to(workdir)) for p in workdir.rglob('*') if not p.is_dir()]
    names += [f'{p.relative_to(workdir)}/' for p in workdir.glob('checkpoints/*') if p.is_dir()]
    rows = runs.rows(workdir)
    faults = [f'step {row["step"]} waits for its evaluation' for row in rows if 'postponed' in row]
    faults += checks.step_faults([row['step'] for row in rows], self._steps)
    return faults + checks.file_faults(names, KEPT + 1)

  def _attempt(self, workdir: pathlib.Path, name: str, drawn: Plan) -> Attempt:
    """Starts the processes, lets the event come, waits for their end and looks at what is left."""
    before, begin = runs.saved_steps(workdir), time.time()
    with self._started(workdir, name, drawn.layout) as processes:
      watch = Watch(workdir, processes, drawn.event, self._start_seconds, self._end)
      faults = watch.until_the_end()
    self._start_seconds = self._start_seconds or watch.start_seconds
    statuses = tuple(status(process) for process in processes)
    complete = (workdir / 'model.npz').exists()
    after, rows = runs.saved_steps(workdir), last_step(workdir)
    logs = [(self._logs / f'{name}.{i}').read_text() for i in range(len(processes))]
    event = checks.event_in(watch.event, logs)
    faults += checks.status_faults(event, statuses, drawn.event.victim, complete)
    faults += checks.save_faults(event if set(statuses) == {75} else '', before, after, rows)
    faults += checks.start_faults(logs[0], before)
    faults += stray_faults(processes)
    self._events[event, statuses] += 1
    self._longest = max(self._longest, watch.samples, key=checks.length)
    print(
      f'{name} on {drawn.layout}: steps {before[-1] if before else 0} to {rows}, {event}: '
      f'{statuses}, {time.time() - begin:.0f} s {"; ".join(faults)}', flush=True,
    )  # fmt: skip
    if not faults:
      for path in self._logs.glob(f'{name}.*'):
        path.unlink()
    self._faults += [f'{name}: {fault}' for fault in faults]
    first = before[-1] if before else 0
    return Attempt(first, statuses, faults)

  @contextlib.contextmanager
  def _started(self, workdir, name: str, layout: str) -> Iterator[list[subprocess.Popen]]:
    """The processes of an attempt; afterwards none is left, and their output is in the logs."""
    count, devices, fsdp = map(int, layout.split('x'))
    env = runs.environment(
      self._folder / 'cache',
      XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
      JAX_DISABLE_MOST_OPTIMIZATIONS='1',  # it compiles more than it runs
      MARKS=str(self._folder / 'marks'),
      PYTHONPATH=str(ROOT),
    )
    own = (f'--config.total_steps={self._steps}', f'--config.mesh.fsdp={fsdp}')
    # All parameters are below the size from which fsdp shards them.
    program = ['train.py'] if fsdp == 1 else ['tests/faulty.py', 'shards_everything', 'train.py']
    processes, copies = [], []
    for i, place in enumerate(runs.places(count, heartbeat_timeout=60) if count > 1 else [()]):
      command = [*program, *runs.train_flags(workdir, *OVERRIDES, *own), *place]
      process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,  # no file, which a full disk would end
      )  # fmt: skip
      copies.append(threading.Thread(target=copy, args=(process, self._logs / f'{name}.{i}')))
      copies[-1].start()
      processes.append(process)
    try:
      yield processes
    finally:
      for process, thread in zip(processes, copies):
        process.kill()
        process.wait()
        thread.join()


def copy(process: subprocess.Popen, path: pathlib.Path) -> None:
  with process.stdout as output, path.open('wb') as log:
    shutil.copyfileobj(output, log)


def status(process: subprocess.Popen) -> int:
  """The exit status as a shell reports it."""
  return process.returncode if process.returncode >= 0 else 128 - process.returncode


def learned(workdir: pathlib.Path) -> list[dict]:
  return [runs.learned(row) for row in runs.rows(workdir)]


def stray_faults(processes: list[subprocess.Popen]) -> list[str]:
  """Has an attempt left processes of its sessions?"""
  sessions, faults = {process.pid for process in processes}, []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):  # it has just ended
      name, rest = path.read_text().split('(', 1)[1].rsplit(')', 1)
      if int(rest.split()[3]) in sessions:
        faults.append(f'process {path.parent.name} ({name}) was left behind')
  return faults


def model_faults(workdir: pathlib.Path, straight: pathlib.Path) -> list[str]:
  """Are the parameters those of the undisturbed run, to the last bit?"""
  with np.load(workdir / 'model.npz') as a, np.load(straight / 'model.npz') as b:
    if a.files != b.files:
      return ['model.npz has other names than that of the undisturbed run']
    return [f'model.npz: {n} differs' for n in a.files if a[n].tobytes() != b[n].tobytes()]


if __name__ == '__main__':
  app.run(main)
