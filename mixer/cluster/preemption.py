"""SIGTERM and Ctrl-C: a run saves at its next boundary, the same one on all processes, and ends.

Boundaries are the ends of steps and, within evaluations, of batches. They are counted, and all
processes come to the same ones in the same order. A process that is told to stop tells the others;
each then says which boundary it has come to, and all stop at the one after the furthest. That takes
no collective, and nothing at all until somebody is told to stop.
"""

from collections.abc import Callable, Iterator
import os
import signal
import socket
import threading

import jax

from mixer import console
from mixer.cluster import coordination
from mixer.errors import Interrupted

_NAMES = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'SIGINT'}
_BARRIER_MS = 60_000
_asked = threading.Event()  # this process has been told to stop
_lock = threading.Lock()  # held while the processes agree, so that none passes a boundary meanwhile
_passed = 0  # boundaries
_stop_at: int | None = None  # the boundary agreed upon


def listen() -> None:
  """From now on SIGTERM and SIGINT stop the run in good order. For the main thread."""
  awake, wakes = socket.socketpair()
  wakes.setblocking(False)
  signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
  for number in _NAMES:
    signal.signal(number, lambda *_: None)  # the thread does it: the main one may be compiling
  if coordination.several():
    coordination.on_notice('stop', _agree)
  threading.Thread(target=_heed, args=(awake, wakes), name='signals', daemon=True).start()


def reached() -> bool:
  """At a boundary: whether to stop here. All processes call it equally often."""
  global _passed
  with _lock:
    _passed += 1
    if coordination.several():
      return _stop_at is not None and _passed >= _stop_at
    return _asked.is_set()


class Interruptible:
  """An input whose evaluation ends in Interrupted at the batch where the run is to stop."""

  def __init__(self, data, *, passed: Callable[[], None]):
    """Wraps `data`; `passed` is called at every batch."""
    self._data, self._passed = data, passed

  def __getattr__(self, name: str):
    return getattr(self._data, name)

  def eval_batches(self, *args, **kwargs) -> Iterator[dict]:
    for batch in self._data.eval_batches(*args, **kwargs):
      self._passed()
      if reached():
        raise Interrupted('the evaluation was left')
      yield batch


def _heed(awake: socket.socket, _wakes: socket.socket) -> None:
  """The thread that handles signals, whatever the main one is busy with."""
  while True:
    number = awake.recv(1)[0]
    if number not in _NAMES:
      continue
    if not _passed:
      text = f'{_NAMES[number]} before the first step: nothing had to be saved.'
      console.print_line(f'stopped: {text}')
      if coordination.several():
        coordination.end_all(Interrupted.status, text)
      os._exit(Interrupted.status)
    if _asked.is_set():
      if number == signal.SIGINT:
        os._exit(128 + signal.SIGINT)
      continue
    _asked.set()
    console.print_line(f'{_NAMES[number]}: the run saves at the next boundary and ends.')
    if coordination.several():
      try:
        coordination.announce('stop', _NAMES[number])
      except Exception as fault:  # where process 0 has gone, JAX ends this one
        console.print_line(
          f'the other processes were not told ({fault}); send it again.', error=True
        )
        _asked.clear()


def _agree(process: int, text: str) -> None:
  """In a thread of the notice: settles on a boundary that no process has passed."""
  global _stop_at
  if process != jax.process_index():
    console.print_line(
      f'process {process} has had {text}: the run saves at a boundary to come and ends.'
    )
  store = coordination.store()
  with _lock:
    store.key_value_set(f'mixer/boundary/{jax.process_index()}', str(_passed))
    store.wait_at_barrier('mixer/boundary', _BARRIER_MS)
    found = store.key_value_dir_get('mixer/boundary/')
    _stop_at = max(int(value) for _, value in found) + 1
