"""What a run tells: metrics.jsonl, TensorBoard, progress, and the facts it starts from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import json
import math
import sys
import time

from absl import logging
from etils import epath
import jax
import tqdm

from mixer import console, files, hardware, runtime
from mixer.cluster import coordination
from mixer.errors import Diverged, InputError

METRICS_FILE = 'metrics.jsonl'
_SECONDS_BETWEEN_PICTURES = 60


def read_rows(workdir: epath.Path) -> list[dict]:
  """The whole lines of a run's metrics.jsonl; a last line that a kill cut short is left out."""
  path = epath.Path(workdir) / METRICS_FILE
  if not path.exists():
    return []
  return [
    json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1] == '\n'
  ]


class Reporter:
  """Receives each step's metrics, checks them, and writes the rows that are to be kept.

  A step's metrics are fetched when the next step has been dispatched, so the device never
  waits for the host. On restart the rows after `first_step` are dropped: they come again.
  `draw` is given the rows at the end, and at evaluations a minute or more apart. `once` goes into
  the first row, what `counts` gives then and `lags` (step -> more of a row) into every row.
  """

  def __init__(
    self,
    workdir: epath.Path,
    *,
    first_step: int,
    total_steps: int,
    batch_size: int,
    num_examples: int,
    flops_per_image: int,
    tensorboard: bool = True,
    counts: Callable[[], dict[str, int]] = dict,
    draw: Callable[[list[dict]], None] | None = None,
    once: Mapping[str, float] | None = None,
    lags: Callable[[int], dict[str, float]] = lambda step: {},
  ):
    self._path = workdir / METRICS_FILE
    self._total_steps, self._batch_size, self._num_examples = total_steps, batch_size, num_examples
    self._flops_per_image, self._counts = flops_per_image, counts
    self._primary = jax.process_index() == 0
    rows = [row for row in read_rows(workdir) if row['step'] <= first_step]
    if self._primary:
      self._rewrite(rows)
    last = coordination.agreed(lambda: rows[-1] if rows else {})
    self._core_hours = last.get('core_hours', 0.0)
    self._writer = _tensorboard_writer(workdir) if tensorboard and self._primary else None
    self._bar = None
    if self._primary and sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=total_steps, initial=first_step, unit='step', dynamic_ncols=True)
    self._draw, self._drawn = draw, time.monotonic()
    self._held = None  # (step, device metrics, whether its row is kept)
    self._row = None  # the held step's row, once its metrics are here
    self._once, self._lags = dict(once or {}), lags
    # Whether the last row still waits for its evaluation, before which the run was stopped.
    self.postponed = last.pop('postponed', False)
    if self.postponed:
      self._held = (first_step, {}, True)
      self._row = last
    self._last_step = first_step
    self._first_step, self._started = first_step, time.perf_counter()
    self._restart_clock(first_step)

  def timed(self, batches: Iterable[dict]) -> Iterator[dict]:
    """The same batches, with the time counted for which the device may have waited for them.

    While the step before still runs when its successor's batch is there, nobody has waited.
    """
    iterator = iter(batches)
    while True:
      begin = time.perf_counter()
      try:
        batch = next(iterator)
      except StopIteration:
        return
      if self._held is None or all(value.is_ready() for value in self._held[1].values()):
        self._waited += time.perf_counter() - begin
      yield batch

  def step(self, step: int, metrics: dict[str, jax.Array], *, keep: bool) -> None:
    """Holds this step's metrics, and finishes with those of the step before."""
    more = self._lags(step) if keep else {}  # now, when the step has just been dispatched
    self.write()
    self._held = (step, metrics, keep)
    self._more = more

  def add(self, results: dict[str, float]) -> None:
    """Puts the results of an evaluation into the held step's row."""
    self._settle()
    self._row.update(results)

  def postpone(self) -> None:
    """Marks the held step's row: its evaluation comes at the next start."""
    self._settle()
    self._row['postponed'] = True

  def write(self) -> None:
    """Checks the held step and writes its row, if it is to be kept."""
    self._settle()
    if self._row:
      self._emit(self._row)
    self._held = self._row = None

  @contextlib.contextmanager
  def interlude(self) -> Iterator[None]:
    """Time that does not count as training: evaluations and saves. Checks the held step."""
    self._settle()
    begin = time.perf_counter()
    yield
    self._paused += time.perf_counter() - begin

  def close(self) -> None:
    """Draws the last picture, ends the bar and the TensorBoard file."""
    self._picture()
    if self._bar is not None:
      self._bar.close()
    self._to_tensorboard(lambda writer: writer.close())

  def _settle(self) -> None:
    """Waits for the held step; raises Diverged if its loss or gradient is not finite."""
    if self._held is None or self._row is not None:
      return
    step, metrics, keep = self._held
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
    self._row = self._make_row(step, values) if keep else {}

  def _make_row(self, step: int, values: dict[str, float]) -> dict:
    seconds = time.perf_counter() - self._clock - self._paused
    rate = (step - self._clock_step) * self._batch_size / seconds
    flops = rate * self._flops_per_image / jax.device_count()
    peak = hardware.peak_flops(jax.devices()[0].device_kind)
    self._core_hours += hardware.core_count() * (time.perf_counter() - self._clock) / 3600
    row = {
      'step': step,
      'epoch': step * self._batch_size / self._num_examples,
      **{f'train/{name}': value for name, value in values.items()},
      'images_per_sec': rate,
      'images_per_sec_per_device': rate / jax.device_count(),
      'input_wait': self._waited / seconds,
      'tflops_per_device': flops / 1e12,
      **({'mfu': flops / peak} if peak else {}),
      'core_hours': self._core_hours,
      **self._more,
      **self._once,
      **self._counts(),
    }
    self._once = {}
    self._restart_clock(step)
    return row

  def _keep(self, row: dict) -> None:
    if self.postponed:
      self._rewrite([*read_rows(self._path.parent)[:-1], row])
      self.postponed = False
    else:
      with self._path.open('a') as file:
        file.write(json.dumps(row) + '\n')

  def _to_tensorboard(self, write: Callable) -> None:
    """Does something with the writer, if there is one; its faults are those of a copy."""
    if self._writer is None:
      return
    try:
      write(self._writer)
    except Exception as fault:  # TensorFlow's own
      self._writer = None
      logging.warning(
        'no more TensorBoard output until the next start; metrics.jsonl goes on: %s', fault
      )

  def _rewrite(self, rows: list[dict]) -> None:
    files.write(self._path, ''.join(json.dumps(row) + '\n' for row in rows).encode())

  def _restart_clock(self, step: int) -> None:
    self._clock, self._clock_step = time.perf_counter(), step
    self._paused = self._waited = 0.0

  def _picture(self) -> None:
    if self._draw is not None and self._primary and (rows := read_rows(self._path.parent)):
      try:
        self._draw(rows)
      except OSError as fault:
        logging.warning('the curves were not drawn: %s', fault)
    self._drawn = time.monotonic()

  def _emit(self, row: dict) -> None:
    if not self._primary:
      return
    if not self._path.exists():
      raise InputError(
        f'{self._path} is gone: it was moved or removed, or its disk is no longer there. The run '
        'ends, for nothing more of it could be kept.'
      )
    try:
      self._keep(row)
    except OSError as fault:
      raise InputError(
        f'step {row["step"]} could not be written to {self._path}: {fault}. Make room (quotas '
        'count too), then start the same command again.'
      ) from fault
    if row.get('postponed'):
      return
    scalars = {k: v for k, v in row.items() if k != 'step'}
    self._to_tensorboard(
      lambda writer: (writer.write_scalars(row['step'], scalars), writer.flush())
    )
    if _results(row) and time.monotonic() - self._drawn > _SECONDS_BETWEEN_PICTURES:
      self._picture()
    if self._bar is None:
      done, left = max(row['step'] - self._first_step, 1), self._total_steps - row['step']
      eta = _duration((time.perf_counter() - self._started) / done * left)
      console.print_line(f'step {row["step"]}/{self._total_steps} eta {eta} {_line(row)}')
    else:
      self._bar.set_postfix_str(_line(row), refresh=False)
      if _results(row):
        self._bar.write(f'step {row["step"]}: {_line(row)}', file=sys.stderr)


def _results(row: dict) -> dict[str, float]:
  """What evaluations put into a row."""
  return {k: v for k, v in row.items() if '/' in k and not k.startswith('train/')}


def _line(row: dict) -> str:
  shown = {
    'loss': f'{row["train/loss"]:.4f}',
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
    **{name: f'{value:.4g}' for name, value in _results(row).items()},
  }
  return ', '.join(f'{name} {value}' for name, value in shown.items())


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'


def _tensorboard_writer(workdir: epath.Path):
  """clu's TensorBoard writer, or None (and a line that says so) where TensorFlow is missing."""
  try:
    runtime.tensorflow()
    from clu import metric_writers
  except ImportError as fault:
    logging.warning('no TensorBoard output: %s', fault)
    return None
  return metric_writers.SummaryWriter(str(workdir / 'tensorboard'))
