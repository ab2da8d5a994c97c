"""Reports steps that stall, and which process is slow. No method waits for a device."""

from collections.abc import Iterator
import contextlib
import faulthandler
import sys
import threading
import time

from absl import logging
from etils import epath

from mixer.cluster import coordination

_REMEMBERED_STEPS = 8  # logged ones, to find one that all processes have reported


class Watchdog:
  """Is called at every boundary of this process, and reports those that do not come in time."""

  def __init__(
    self,
    directory: epath.Path,
    *,
    stall_seconds: float,
    cluster: coordination.Cluster = coordination.SINGLE,
  ):
    """Stacks of a stall are written to stall-<process>.txt in `directory`; 0 seconds: never."""
    self._path = directory / f'stall-{cluster.process_id}.txt'
    self._stall_seconds, self._cluster = stall_seconds, cluster
    self._step, self._since = 0, time.monotonic()
    self._dispatched: dict[int, float] = {}  # logged step -> time of day

  def boundary(self, step: int | None = None) -> None:
    """A step or, without a number, a batch of an evaluation has been dispatched."""
    self._step, self._since = step or self._step, time.monotonic()
    self._cluster.set_status(step=self._step)

  def lags(self, step: int) -> dict[str, float]:
    """Records a logged step; returns how far apart the processes were at the latest common one.

    By the clocks of their machines: a process that is late to dispatch a step, as when it waits
    for its input, keeps all others waiting. {} on other processes than process 0.
    """
    cluster = self._cluster
    if not cluster.is_multiprocess:
      return {}
    self._dispatched = dict([*self._dispatched.items(), (step, time.time())][-_REMEMBERED_STEPS:])
    cluster.set_status(dispatched=self._dispatched)
    if cluster.process_id != 0:
      return {}
    reported = [
      cluster.heartbeats.get(i, {}).get('dispatched', {}) for i in range(cluster.num_processes)
    ]
    common = set.intersection(*map(set, reported))
    if not common:
      return {}
    times = [times[max(common, key=int)] for times in reported]
    return {'lag_seconds': max(times) - min(times), 'slowest_process': times.index(max(times))}

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """While this is entered, a boundary that does not come in time is reported."""
    self.boundary()
    done = threading.Event()
    watcher = threading.Thread(target=self._watch, args=(done,), name='watchdog', daemon=True)
    if self._stall_seconds > 0:
      watcher.start()
    try:
      yield
    finally:
      done.set()

  def _watch(self, done: threading.Event) -> None:
    reported = None
    while not done.wait(min(1.0, self._stall_seconds / 4)):
      since = self._since
      if since != reported and time.monotonic() - since > self._stall_seconds:
        self._report()
        reported = since

  def _report(self) -> None:
    where = ''
    with contextlib.suppress(Exception):  # the coordination service may be what stalls
      where = self._furthest_behind()
    logging.warning(
      'no step was dispatched for %g s after step %d.%s The stacks of all threads are in %s; the '
      'run continues.', self._stall_seconds, self._step, where, self._path,
    )  # fmt: skip
    faulthandler.dump_traceback(sys.__stderr__)
    with contextlib.suppress(OSError), open(self._path, 'a', encoding='utf-8') as file:
      file.write(f'--- after step {self._step}, {time.strftime("%F %T")}\n')
      file.flush()
      faulthandler.dump_traceback(file)

  def _furthest_behind(self) -> str:
    """A sentence that names the processes at the earliest step; '' for a process alone."""
    if not self._cluster.is_multiprocess:
      return ''
    heartbeats = sorted(self._cluster.fetch_heartbeats().items())
    steps = {i: heartbeat.get('step', 0) for i, heartbeat in heartbeats}
    behind = [str(i) for i, step in steps.items() if step == min(steps.values())]
    return f' Furthest behind: process {", ".join(behind)}, at step {min(steps.values())}.'
