"""Receives the metrics of every step, and reports them: rows, trackers, progress, curves."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import math
import sys
import time
from typing import NamedTuple

from absl import logging
from etils import epath
import jax
import tqdm

from mixer import console, hardware
from mixer.cluster import coordination
from mixer.errors import Diverged
from mixer.run import metrics_log, trackers

# Rows have the means of these over the steps since the row before, the second with a teacher only.
_AVERAGED, _OF_TEACHER = ('loss', 'accuracy'), ('distill_loss',)
_SECONDS_BETWEEN_PICTURES = 60


class Workload(NamedTuple):
  """What a run computes: its length, and how steps become epochs, images and FLOPs."""

  total_steps: int
  batch_size: int
  num_examples: int
  flops_per_image: int


class Reporter:
  """Receives each step's metrics, checks them, and writes the rows that are to be kept.

  A step's metrics are fetched when the next step has been dispatched, so the device never waits
  for the host. A row has the last step's metrics, and the means of loss and accuracy over the
  steps since the row before.
  """

  def __init__(
    self,
    workdir: epath.Path,
    workload: Workload,
    *,
    first_step: int,
    cluster: coordination.Cluster = coordination.SINGLE,
    outputs: Mapping[str, trackers.Tracker] | None = None,
    draw: Callable[[list[dict]], None] | None = None,
    once: Mapping[str, float] | None = None,
    counts: Callable[[], dict[str, int]] = dict,
    lags: Callable[[int], dict[str, float]] = lambda step: {},
  ):
    """Opens the outputs of a run that starts after `first_step` in `workdir`.

    Args:
      workdir: where the rows are.
      workload: see there.
      first_step: the step of the checkpoint that the run resumes from, or 0.
      cluster: the processes of the run; process 0 writes.
      outputs: what else the rows are written to, by its name in messages.
      draw: called with all rows at the end, and at evaluations a minute or more apart.
      once: goes into the first row.
      counts: its result goes into every row.
      lags: (step) -> more values of a row, called when a step to be logged has been dispatched.
    """
    self._workdir, self._workload, self._cluster = workdir, workload, cluster
    self._counts, self._lags, self._draw = counts, lags, draw
    self._is_writer = cluster.process_id == 0
    self._log = metrics_log.MetricsLog(workdir, first_step=first_step, cluster=cluster)
    self._outputs = dict(outputs or {})
    self._bar = None
    if self._is_writer and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=workload.total_steps, initial=first_step, unit='step', dynamic_ncols=True
      )
    self._drawn = time.monotonic()
    self._core_hours = self._log.last.get('core_hours', 0.0)
    self._pending = None  # (step, device metrics, whether its row is kept)
    self._row = None  # the row of the pending step, once its metrics have been fetched
    self._once, self._more = dict(once or {}), {}
    self._averages = _Averages(self._log.read_partial())
    # Whether the evaluation of the last row is still to be made, since the run stopped before it.
    self.eval_deferred = self._log.last.get('postponed', False)
    if self.eval_deferred:
      self._pending = (first_step, {}, True)
      self._row = dict(self._log.last)
    self._last_step = self._first_step = first_step
    self._started = time.perf_counter()
    self._restart_clock(first_step)

  def timed(self, batches: Iterable[dict]) -> Iterator[dict]:
    """The same batches; counts the time for which the device may have waited for them.

    While the previous step still runs when the batch arrives, the device has not waited.
    """
    iterator = iter(batches)
    while True:
      begin = time.perf_counter()
      try:
        batch = next(iterator)
      except StopIteration:
        return
      if self._pending is None or all(value.is_ready() for value in self._pending[1].values()):
        self._waited += time.perf_counter() - begin
      yield batch

  def step(self, step: int, metrics: dict[str, jax.Array], *, keep: bool) -> None:
    """Takes a step that was just dispatched, and finishes the one before; `keep` makes a row."""
    more = self._lags(step) if keep else {}
    self.write()
    self._pending = (step, metrics, keep)
    self._more = more

  def defer_eval(self) -> None:
    """Checks the pending step, and marks its row: without `add`, the next start evaluates it."""
    self._fetch()
    self._row['postponed'] = True

  def add(self, results: dict[str, float]) -> None:
    """Adds the results of an evaluation to the pending row, or to the deferred one."""
    self._fetch()
    self._row.pop('postponed', None)
    self._row.update(results)

  def write(self, *, stopping: bool = False) -> None:
    """Checks the pending step and writes its row, if it has one.

    With `stopping`, also stores what has accumulated since the last row, for the next start.
    """
    self._fetch()
    if self._row:
      self._write_row(self._row)
    if not (self._row or {}).get('postponed'):
      self._pending = self._row = None
    if stopping and self._averages.count:
      self._log.write_partial(self._last_step, self._averages.to_json())

  @contextlib.contextmanager
  def pause_timer(self) -> Iterator[None]:
    """Time that does not count as training: evaluations and saves. Checks the pending step."""
    self._fetch()
    begin = time.perf_counter()
    yield
    self._paused += time.perf_counter() - begin

  def __enter__(self) -> 'Reporter':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    """Draws the last picture, and closes the progress bar and the outputs."""
    self._draw_picture()
    if self._bar is not None:
      self._bar.close()
    self._to_outputs(lambda output: output.close(kind is None))

  def _fetch(self) -> None:
    """Waits for the pending step; raises Diverged if its loss or gradient is not finite."""
    if self._pending is None or self._row is not None:
      return
    step, metrics, keep = self._pending
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    bad = [
      f'{name} = {values[name]}'
      for name in ('loss', 'grad_norm', 'update_norm', 'param_norm')
      if not math.isfinite(values[name])
    ]
    if bad:
      raise Diverged(
        f'step {step}: {" and ".join(bad)}, at learning rate {values["learning_rate"]:g}'
      )
    if self._bar is not None:
      self._bar.update(step - self._last_step)
    self._last_step = step
    self._averages.add(values)
    self._row = self._make_row(step, values) if keep else {}

  def _make_row(self, step: int, values: dict[str, float]) -> dict:
    load = self._workload
    seconds = time.perf_counter() - self._clock - self._paused
    rate = (step - self._clock_step) * load.batch_size / seconds
    flops = rate * load.flops_per_image / jax.device_count()
    peak = hardware.peak_flops(jax.devices()[0].device_kind)
    self._core_hours += hardware.core_count() * (time.perf_counter() - self._clock) / 3600
    row = {
      'step': step,
      'epoch': step * load.batch_size / load.num_examples,
      **{f'train/{name}': value for name, value in (values | self._averages.take()).items()},
      'images_per_sec': rate,
      'images_per_sec_per_device': rate / jax.device_count(),
      'input_wait': self._waited / seconds,
      'tflops_per_device': flops / 1e12,
      **({'mfu': flops / peak} if peak else {}),
      'core_hours': self._core_hours,
      'time': time.time(),
      **self._more,
      **self._once,
      **self._counts(),
    }
    self._once = {}
    self._restart_clock(step)
    return row

  def _write_row(self, row: dict) -> None:
    self._log.append(row, replace=self.eval_deferred)
    self.eval_deferred = row.get('postponed', False)
    if not self._is_writer or self.eval_deferred:
      return
    self._to_outputs(lambda output: output.write(row))
    if _results(row) and time.monotonic() - self._drawn > _SECONDS_BETWEEN_PICTURES:
      self._draw_picture()
    self._print(row)

  def _print(self, row: dict) -> None:
    if self._bar is None:
      total = self._workload.total_steps
      done, left = max(row['step'] - self._first_step, 1), total - row['step']
      eta = _duration((time.perf_counter() - self._started) / done * left)
      console.print_line(f'step {row["step"]}/{total} eta {eta} {_line(row)}')
    else:
      self._bar.set_postfix_str(_line(row), refresh=False)
      if _results(row):
        self._bar.write(f'step {row["step"]}: {_line(row)}', file=sys.stderr)

  def _to_outputs(self, send: Callable[[trackers.Tracker], None]) -> None:
    """Calls `send` with each output; one that fails is left out and does not end the run."""
    for name, output in [*self._outputs.items()]:
      try:
        send(output)
      except Exception as fault:  # of the output's own kinds
        del self._outputs[name]
        logging.warning(
          'no more %s output until the next start; metrics.jsonl continues: %s', name, fault
        )

  def _restart_clock(self, step: int) -> None:
    self._clock, self._clock_step = time.perf_counter(), step
    self._paused = self._waited = 0.0

  def _draw_picture(self) -> None:
    if self._draw is not None and self._is_writer:
      try:
        if rows := metrics_log.read_rows(self._workdir):
          self._draw(rows)
      except Exception as fault:  # of the disk, or matplotlib's
        logging.warning('the curves were not drawn: %s', fault)
    self._drawn = time.monotonic()


class _Averages:
  """Running sums of some metrics over steps, which continue exactly after a restart."""

  def __init__(self, stored: Mapping):
    """Continues what `to_json` returned; from anything else, starts anew."""
    self._start()
    sums = stored.get('sums')
    known = [set(_AVERAGED), {*_AVERAGED, *_OF_TEACHER}]
    if isinstance(sums, dict) and set(sums) in known and stored.get('count'):
      self.count, self._sums = int(stored['count']), {k: float(v) for k, v in sums.items()}

  def add(self, values: Mapping[str, float]) -> None:
    self.count += 1
    self._sums = {
      name: self._sums.get(name, 0.0) + values[name]
      for name in (*_AVERAGED, *_OF_TEACHER)
      if name in values
    }

  def take(self) -> dict[str, float]:
    """The means; starts new ones."""
    means = {name: total / self.count for name, total in self._sums.items()}
    self._start()
    return means

  def to_json(self) -> dict:
    """What continues these sums."""
    return {'count': self.count, 'sums': self._sums}

  def _start(self) -> None:
    self.count, self._sums = 0, {}


def _results(row: dict) -> dict[str, float]:
  """The results of evaluations in a row."""
  return {k: v for k, v in row.items() if '/' in k and not k.startswith('train/')}


def _line(row: dict) -> str:
  shown = {
    'loss': f'{round(row["train/loss"], 4) + 0.0:.4f}',  # + 0.0: no minus sign before zeros
    'accuracy': f'{row["train/accuracy"]:.3f}',
    'images/s': f'{row["images_per_sec"]:.0f}',
    'input wait': f'{row["input_wait"]:.0%}',
    **({'mfu': f'{row["mfu"]:.1%}'} if 'mfu' in row else {}),
    **(
      {'slowest': f'process {row["slowest_process"]} by {row["lag_seconds"]:.2f} s'}
      if 'lag_seconds' in row
      else {}
    ),
    **({'bad images': str(row['bad_images'])} if row.get('bad_images') else {}),
    **{name: f'{value + 0.0:.4g}' for name, value in _results(row).items()},
  }
  return ', '.join(f'{name} {value}' for name, value in shown.items())


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
