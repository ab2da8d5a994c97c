"""Where the wall-clock time of a run went, over all of its starts; goodput is the share trained."""

import bisect
from collections.abc import Iterator, Mapping
import dataclasses

from mixer.report.run_files import Run

_HOUR = 3600  # seconds
_NEEDED = ('core_hours', 'images_per_sec', 'images_per_sec_per_device')


@dataclasses.dataclass(frozen=True)
class Times:
  """Hours of a run from its first start to its last row.

  Attributes:
    starts: how many.
    wall: from the first start to the last row. If `is_bound`, what is logged of it, which is less.
    trained: in steps that the run has kept, without `waited`.
    waited: of the steps' time, for which the device may have waited for input.
    evaluated: in the training loop but not in steps: evaluations, and saves that are waited for.
    started: from a start to its first step: opening data, restoring, compilation.
    is_bound: times are not logged (by an earlier version), so that only the time in the loop and
      of compilation is known.
  """

  starts: int
  wall: float
  trained: float
  waited: float
  evaluated: float
  started: float
  is_bound: bool

  @property
  def lost(self) -> float:
    """When no process ran, or steps ran that a later start did again."""
    return max(0.0, self.wall - self.trained - self.waited - self.evaluated - self.started)


@dataclasses.dataclass(frozen=True)
class Interval:
  """The seconds of the training loop that a row is about."""

  row: Mapping
  loop: float
  steps: float
  is_first: bool  # since a start
  start: Mapping | None  # the last one before


def intervals(run: Run) -> Iterator[Interval]:
  """Those of the rows that have the cost and the rate."""
  times = [start['time'] for start in run.starts]
  batch_size = run.config['train_input'].get('batch_size', 0)
  hours, step, last = 0.0, None, None
  for row in run.rows:
    if not all(row.get(name) for name in _NEEDED):
      continue
    place = bisect.bisect_right(times, row['time']) if 'time' in row else 0
    start = run.starts[place - 1] if place else None
    is_first = start is not last if start else step is None or 'compile_seconds' in row
    cores = start['cores'] if start else row['images_per_sec'] / row['images_per_sec_per_device']
    since = max(step or 0, start['step'] if start else 0)
    yield Interval(
      row,
      loop=(row['core_hours'] - hours) * _HOUR / cores,
      steps=(row['step'] - since) * batch_size / row['images_per_sec'],
      is_first=is_first,
      start=start,
    )
    hours, step, last = row['core_hours'], row['step'], start


def times(run: Run) -> Times | None:
  """None for a run that has logged no cost."""
  found = list(intervals(run))
  if not found:
    return None
  loop = sum(one.loop for one in found)
  steps = sum(one.steps for one in found)
  waited = sum(one.steps * one.row.get('input_wait', 0.0) for one in found)
  complete = run.starts and run.starts[0]['step'] == 0 and all(one.start for one in found)
  if complete:
    wall = found[-1].row['time'] - run.starts[0]['time']
    started = sum(one.row['time'] - one.loop - one.start['time'] for one in found if one.is_first)
  else:
    started = sum(one.row.get('compile_seconds', 0.0) for one in found)
    wall = loop + started
  return Times(
    starts=len(run.starts) if complete else sum(one.is_first for one in found),
    wall=wall / _HOUR,
    trained=(steps - waited) / _HOUR,
    waited=waited / _HOUR,
    evaluated=max(0.0, loop - steps) / _HOUR,
    started=started / _HOUR,
    is_bound=not complete,
  )


def hours(run: Run) -> dict[int, float]:
  """{step: hours in the training loop so far}, of the rows that have them."""
  found, total = {}, 0.0
  for one in intervals(run):
    total += one.loop / _HOUR
    found[one.row['step']] = total
  return found
