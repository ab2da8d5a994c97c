"""SIGTERM and Ctrl-C: a run saves at its next boundary, the same one on all processes, and ends.

Boundaries are the ends of steps and, within evaluations, of batches. They are counted, and all
processes reach the same ones in the same order. A process that gets a signal announces it; each
process then publishes the boundary that it has reached, and all stop at the one after the furthest.
That takes no collective, and costs nothing until a signal arrives.
"""

from collections.abc import Callable, Iterator
import os
import signal
import socket
import threading

from mixer import console
from mixer.cluster import coordination
from mixer.errors import Interrupted

_NAMES = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'SIGINT'}
_BARRIER_MS = 60_000


class StopRequests:
  """Handles SIGTERM and SIGINT while it is entered; outside the main thread it handles none.

  Enter it before the cluster, so that a signal at the very end of a run does not kill it, and
  `attach` the cluster as soon as it is joined.
  """

  def __init__(self, *, exit_early: bool = False):
    """With `exit_early`, a signal before the first step ends the process at once.

    That is for a program: while it loads or compiles, nothing has to be saved. Otherwise the run
    stops at its first boundary.
    """
    self._exit_early, self._attached = exit_early, False
    self._cluster = coordination.SINGLE
    self._requested = threading.Event()  # this process got a signal
    self._lock = threading.Lock()  # held while the processes agree, so that none passes a boundary
    self._passed = 0  # boundaries
    self._stop_at: int | None = None  # the boundary agreed upon
    self._handlers: dict[int, object] = {}  # those that were installed before
    self._sockets: tuple[socket.socket, ...] = ()

  def __enter__(self) -> 'StopRequests':
    if threading.current_thread() is threading.main_thread():
      reader, writer = self._sockets = socket.socketpair()
      writer.setblocking(False)
      self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
      for number in _NAMES:  # the thread handles it: the main one may be compiling
        self._handlers[number] = signal.signal(number, lambda *_: None)
      threading.Thread(
        target=self._handle_signals, args=(reader,), name='signals', daemon=True
      ).start()
    return self

  def __exit__(self, *_) -> None:
    if self._sockets:
      signal.set_wakeup_fd(self._wakeup)
      for number, handler in self._handlers.items():
        signal.signal(number, handler)
      self._sockets[1].close()  # ends the thread

  def attach(self, cluster: coordination.Cluster) -> None:
    """From now on, a signal to one process stops all processes of `cluster`."""
    self._cluster, self._attached = cluster, True
    if cluster.is_multiprocess:
      cluster.on_announcement('stop', self._agree)

  def reached(self) -> bool:
    """At a boundary: whether to stop here. All processes call it equally often."""
    with self._lock:
      self._passed += 1
      if self._cluster.is_multiprocess:
        return self._stop_at is not None and self._passed >= self._stop_at
      return self._requested.is_set()

  def _handle_signals(self, reader: socket.socket) -> None:
    """The thread that handles signals while the main one is busy."""
    with reader:
      while received := reader.recv(1):
        if (number := received[0]) in _NAMES:
          self._handle(number)

  def _handle(self, number: int) -> None:
    if self._exit_early and not self._attached:  # as without a handler
      console.print_line(f'error: stopped by {_NAMES[number]}.', error=True)
      console.flush()
      os._exit(128 + number)
    if self._exit_early and not self._passed:
      text = f'{_NAMES[number]} before the first step: nothing had to be saved.'
      console.print_line(f'stopped: {text}')
      if self._cluster.is_multiprocess:
        self._cluster.abort(Interrupted.status, text)
      console.flush()
      os._exit(Interrupted.status)
    if self._requested.is_set():
      if number == signal.SIGINT:
        os._exit(128 + signal.SIGINT)
      return
    self._requested.set()
    console.print_line(f'{_NAMES[number]}: the run saves at the next boundary and ends.')
    if self._cluster.is_multiprocess:
      try:
        self._cluster.announce('stop', _NAMES[number])
      except Exception as fault:  # if process 0 has ended, JAX ends this one
        console.print_line(
          f'the other processes did not get the announcement ({fault}); send the signal again.',
          error=True,
        )
        self._requested.clear()

  def _agree(self, process: int, text: str) -> None:
    """Handles the announcement: sets a boundary that no process has passed."""
    cluster = self._cluster
    if process != cluster.process_id:
      console.print_line(f'process {process} got {text}: the run saves at a boundary and ends.')
    with self._lock:
      cluster.client.key_value_set(f'mixer/boundary/{cluster.process_id}', str(self._passed))
      cluster.client.wait_at_barrier('mixer/boundary', _BARRIER_MS)
      found = cluster.client.key_value_dir_get('mixer/boundary/')
      self._stop_at = max(int(value) for _, value in found) + 1


class Interruptible:
  """An input whose evaluation raises Interrupted at the batch where the run is to stop."""

  def __init__(self, data, stop: StopRequests, *, on_batch: Callable[[], None]):
    """Wraps `data`; `on_batch` is called at every batch."""
    self._data, self._stop, self._on_batch = data, stop, on_batch

  def __getattr__(self, name: str):
    return getattr(self._data, name)

  def eval_batches(self, *args, **kwargs) -> Iterator[dict]:
    for batch in self._data.eval_batches(*args, **kwargs):
      self._on_batch()
      if self._stop.reached():
        raise Interrupted('the evaluation was not finished')
      yield batch
