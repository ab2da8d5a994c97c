"""What a run tells of its own pace: stalled steps, slow processes, and profiles on request."""

from collections.abc import Iterator
import contextlib
import faulthandler
import sys
import threading
import time

from absl import logging
from etils import epath
import jax

from mixer import console
from mixer.cluster import coordination
from mixer.errors import InputError

_REMEMBERED_STEPS = 8  # logged ones, to find one that all processes have told of


class Pace:
  """Notes when this process comes to its boundaries, and says who is late.

  A thread looks for boundaries that do not come; nothing here waits for a device.
  """

  def __init__(self, directory: epath.Path, *, stall_seconds: float):
    self._path = directory / f'stall-{jax.process_index()}.txt'
    self._stall_seconds = stall_seconds
    self._step, self._since = 0, time.monotonic()
    self._dispatched: dict[int, float] = {}  # logged step -> time of day

  def boundary(self, step: int | None = None) -> None:
    """A step or, without a number, a part of an evaluation has been dispatched."""
    self._step, self._since = step or self._step, time.monotonic()
    coordination.sign['step'] = self._step

  def lags(self, step: int) -> dict[str, float]:
    """Notes a logged step; how far apart the processes were at the latest one all have told of.

    By the clocks of their machines: a process that is late to dispatch a step, as when it waits
    for its input, keeps all others waiting.
    """
    if not coordination.several():
      return {}
    self._dispatched = dict([*self._dispatched.items(), (step, time.time())][-_REMEMBERED_STEPS:])
    coordination.sign['dispatched'] = self._dispatched
    if jax.process_index() != 0:
      return {}
    told = [coordination.heard.get(i, {}).get('dispatched', {}) for i in range(jax.process_count())]
    common = set.intersection(*map(set, told))
    if not common:
      return {}
    times = [times[max(common, key=int)] for times in told]
    return {'lag_seconds': max(times) - min(times), 'slowest_process': times.index(max(times))}

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """While this lasts, a boundary that does not come is told of."""
    self.boundary()
    done = threading.Event()
    watcher = threading.Thread(target=self._watch, args=(done,), name='stalls', daemon=True)
    if self._stall_seconds > 0:
      watcher.start()
    try:
      yield
    finally:
      done.set()

  def _watch(self, done: threading.Event) -> None:
    told = None
    while not done.wait(min(1.0, self._stall_seconds / 4)):
      since = self._since
      if since != told and time.monotonic() - since > self._stall_seconds:
        self._tell()
        told = since

  def _tell(self) -> None:
    where = ''
    if coordination.several():
      steps = {i: sign.get('step', 0) for i, sign in sorted(coordination.signs().items())}
      behind = [str(i) for i, step in steps.items() if step == min(steps.values())]
      where = f' Furthest behind: process {", ".join(behind)}, at step {min(steps.values())}.'
    logging.warning(
      'nothing has come after step %d for %g s.%s The stacks of all threads are in %s; the run '
      'goes on.', self._step, self._stall_seconds, where, self._path,
    )  # fmt: skip
    faulthandler.dump_traceback(sys.__stderr__)
    with contextlib.suppress(OSError), open(self._path, 'a') as file:
      file.write(f'--- after step {self._step}, {time.strftime("%F %T")}\n')
      file.flush()
      faulthandler.dump_traceback(file)


class Profile:
  """A trace of some steps, written below a directory by process 0, for TensorBoard or Perfetto."""

  def __init__(self, directory: epath.Path, steps: str | None):
    """`steps` is FIRST:LAST, or None for no trace."""
    first, _, last = (steps or '0:0').partition(':')
    known = first.isdigit() and last.isdigit()
    if steps is not None and not (known and 1 <= int(first) <= int(last)):
      raise InputError(f'--profile_steps={steps}: write FIRST:LAST, as in 10:15; steps begin at 1.')
    self._directory, self._first, self._last = directory, int(first), int(last)
    self._wanted, self._running = steps is not None and jax.process_index() == 0, False

  def boundary(self, step: int) -> None:
    """Begins when the step before the first, and ends when the one after the last, is dispatched.

    A step has certainly run when its successor's boundary comes.
    """
    if self._wanted and not self._running and self._first - 1 <= step < self._last:
      jax.profiler.start_trace(str(self._directory))
      self._running = True
    elif self._running and step > self._last:
      self.close()

  def close(self) -> None:
    if self._running:
      jax.profiler.stop_trace()
      console.print_line(f'profile: {self._directory}')
    elif self._wanted:
      logging.warning('no profile: none of the steps %d to %d was made.', self._first, self._last)
    self._running = self._wanted = False
