"""Watches one attempt of a soak, and lets its event come at the moment that was drawn for it."""

import contextlib
import json
import os
import pathlib
import resource
import signal
import time
from typing import NamedTuple

from benchmarks import soak_checks as checks

DISK_BYTES = 12_000  # the size beyond which no file grows on a full disk: far below a checkpoint
HUNG_SECONDS = 900


class Event(NamedTuple):
  """What befalls an attempt: when `steps` are done, or after `share` of a start's seconds."""

  kind: str
  steps: int
  share: float
  delay_seconds: float
  victim: int


CALM = Event('none', 0, 0.0, 0.0, 0)


class Watch:
  """Waits for the end of an attempt; meanwhile it samples process 0 and lets the event come."""

  def __init__(self, workdir, processes, event: Event, start_seconds: float, end: float):
    self._workdir, self._processes, self._drawn = workdir, processes, event
    self._early_at, self._end = event.share * start_seconds, end
    self._begin, self._before = time.time(), inode(workdir)
    self._unfinished = set(unfinished(workdir))
    self._first, self._sampled, self._due_at = None, 0.0, None
    self.start_seconds, self.samples, self.event = 0.0, [], 'none'

  def until_the_end(self) -> list[str]:
    last_news = time.time()
    while any(process.poll() is None for process in self._processes):
      step = self._look()
      if self.samples and self.samples[-1].step != step:
        last_news = time.time()
      if self.event == 'none' and time.time() < self._end and self._due(step):
        self._strike(started=step is not None)
      if time.time() - last_news > HUNG_SECONDS:
        return [f'nothing happened for {HUNG_SECONDS} s, after {self.event}']
      time.sleep(0.002 if self._due_at else 0.05)
    return []

  def _look(self) -> int | None:
    """The last step written, or None while the attempt has not come to training."""
    if self._first is None and inode(self._workdir) in (None, self._before):
      return None
    step = last_step(self._workdir)
    if self._first is None:
      self._first, self.start_seconds = step, time.time() - self._begin
    if time.time() - self._sampled > 0.25:
      self._sampled = time.time()
      with contextlib.suppress(OSError, StopIteration):  # it has just ended
        self.samples.append(sample(self._processes[0].pid, step))
    return step

  def _due(self, step: int | None) -> bool:
    """Whether the event is to come now."""
    if self._drawn.kind == 'none':
      return False
    if 'start' in self._drawn.kind:
      return step is not None or time.time() - self._begin >= self._early_at
    if step is None or step < self._first + self._drawn.steps:
      return False
    if 'save' not in self._drawn.kind:
      return True
    if self._due_at is None or self._due_at == float('inf'):
      started = set(unfinished(self._workdir)) - self._unfinished
      self._due_at = time.time() + self._drawn.delay_seconds if started else float('inf')
    return time.time() >= self._due_at

  def _strike(self, *, started: bool) -> None:
    victim = self._processes[self._drawn.victim]
    self.event = self._drawn.kind
    if started:  # the start was quicker than the first one
      self.event = self.event.removesuffix(' during the start')
    if 'disk' in self.event:
      # No file of this process can grow any more, as on a full disk or at the end of a quota.
      with contextlib.suppress(ProcessLookupError):
        limits = (DISK_BYTES, resource.RLIM_INFINITY)
        resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, limits)
    else:
      victim.send_signal(signal.SIGTERM if 'TERM' in self.event else signal.SIGKILL)


def last_step(workdir: pathlib.Path) -> int:
  """The step of the last whole row, or 0; quick for a long file."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return 0
  with path.open('rb') as file:
    file.seek(max(path.stat().st_size - 8192, 0))
    whole = file.read().split(b'\n')[:-1]
  return json.loads(whole[-1])['step'] if whole else 0


def inode(workdir: pathlib.Path) -> int | None:
  """That of metrics.jsonl, which every start rewrites when training begins."""
  path = workdir / 'metrics.jsonl'
  return path.stat().st_ino if path.exists() else None


def unfinished(workdir: pathlib.Path) -> list[pathlib.Path]:
  return list(workdir.glob('checkpoints/*.orbax-checkpoint-tmp*'))


def sample(pid: int, step: int) -> checks.Sample:
  lines = pathlib.Path(f'/proc/{pid}/status').read_text(encoding='utf-8').splitlines()
  kib = next(int(line.split()[1]) for line in lines if line.startswith('VmRSS:'))
  return checks.Sample(step, len(os.listdir(f'/proc/{pid}/fd')), kib / 1024)
