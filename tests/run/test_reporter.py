"""The rows of metrics.jsonl and the lines printed, from made-up metrics."""

import json
import math
import resource
import sys
import time

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import errors, hardware
from mixer.run import metrics_log, reporter

METRICS = {
  'loss': 2.5, 'accuracy': 0.5, 'grad_norm': 1.0, 'update_norm': 0.1, 'param_norm': 9.0,
  'learning_rate': 1e-3,
}  # fmt: skip


class Clock:
  """A perf_counter that moves only when told."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(reporter.time, 'perf_counter', lambda: self.now)


def make(tmp_path, first_step=0, **changes) -> reporter.Reporter:
  workload = reporter.Workload(
    total_steps=10, batch_size=32, num_examples=64, flops_per_image=10**9
  )
  return reporter.Reporter(epath.Path(tmp_path), workload, first_step=first_step, **changes)


def metrics(**changes) -> dict:
  return {name: jnp.float32(value) for name, value in {**METRICS, **changes}.items()}


def rows(tmp_path) -> list[dict]:
  return [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]


def test_a_row(tmp_path, monkeypatch):
  """Two steps of a second each, a quarter of a second of it waiting, ten in an evaluation."""
  clock = Clock(monkeypatch)
  monkeypatch.setattr(hardware, 'peak_flops', lambda kind: 1e12)
  report = make(tmp_path)

  def batches():
    clock.now += 0.25
    yield 'first'
    clock.now += 0.25
    yield 'second'

  for step, batch in enumerate(report.timed(batches()), start=1):
    assert batch in ('first', 'second')
    clock.now += 0.75
    report.step(step, metrics(loss=3.0 - step), keep=step == 2)
  with report.pause_timer():
    clock.now += 10.0
  report.add({'val/top1': 0.75})
  report.write()
  (row,) = rows(tmp_path)
  assert row['step'] == 2 and row['epoch'] == 1.0 and row['train/loss'] == 1.5
  assert row['images_per_sec'] == 32.0 and row['images_per_sec_per_device'] == 4.0  # 8 devices
  assert row['input_wait'] == 0.25 and row['val/top1'] == 0.75
  assert row['tflops_per_device'] == pytest.approx(0.004) and row['mfu'] == pytest.approx(0.004)
  assert row['core_hours'] == pytest.approx(8 * 2 / 3600)


def train(report, losses, every: int, first: int = 1) -> None:
  for step, loss in enumerate(losses, start=first):
    report.step(step, metrics(loss=loss, accuracy=1 / loss, grad_norm=loss), keep=step % every == 0)


def test_rows_have_means_over_the_steps_since_the_last(tmp_path):
  losses = [np.float32(x) for x in (2.7, 1.3, 0.9, 4.1, 0.2, 0.6)]
  report = make(tmp_path)
  train(report, losses, every=3)
  report.write()
  first, second = rows(tmp_path)
  for row, part in ((first, losses[:3]), (second, losses[3:])):
    assert row['train/loss'] == pytest.approx(math.fsum(part) / 3, rel=1e-12)
    accuracy = math.fsum(float(np.float32(1 / x)) for x in part) / 3
    assert row['train/accuracy'] == pytest.approx(accuracy, rel=1e-12)
    assert row['train/grad_norm'] == part[-1]  # the last step's own


@pytest.mark.parametrize('stop', [1, 2, 4, 5])
def test_means_continue_exactly_after_a_stop_between_rows(tmp_path, stop):
  """Stopped once or, at step 5, twice; the rows are those of a run that was never stopped."""
  losses = [np.float32(x) for x in np.random.default_rng(0).uniform(0.1, 3.0, 9)]
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  for path in (whole, parts):
    path.mkdir()
  report = make(whole)
  train(report, losses, every=3)
  report.write()
  report = make(parts)
  train(report, losses[:stop], every=3)
  report.write(stopping=True)
  if stop == 5:  # resumed from 4 by another run, which was killed: its part is not used
    entries = json.loads((parts / 'metrics.partial.json').read_text())
    entries['4'] = [0, {'count': 1, 'sums': {'loss': 1.0, 'accuracy': 1.0}}]
    (parts / 'metrics.partial.json').write_text(json.dumps(entries))
  report = make(parts, first_step=stop)
  train(report, losses[stop:], every=3, first=stop + 1)
  report.write()
  wanted = ('step', 'train/loss', 'train/accuracy', 'train/grad_norm')
  assert [[row[k] for k in wanted] for row in rows(parts)] == [
    [row[k] for k in wanted] for row in rows(whole)
  ]


@pytest.mark.parametrize(
  'content',
  [
    '',
    '[]',
    '{"2": 3}',
    '{"2": [0]}',
    '{"2": [0, 5]}',
    '{"x": {}}',
    '{"2": [0, {"count": 1, "sums": {}, "x": 1}]}',
    '{"2": [0, {"sums": 3}]}',
    '{"2": [0, {"count": 1, "sums": {"loss": 9.0}}]}',
  ],
)
def test_partial_sums_that_are_damaged_are_ignored(tmp_path, content):
  (tmp_path / 'metrics.partial.json').write_text(content)
  report = make(tmp_path, first_step=2)
  report.step(3, metrics(loss=1.5), keep=True)
  report.write()
  assert rows(tmp_path)[-1]['train/loss'] == 1.5


def test_no_negative_zero(tmp_path, capsys):
  report = make(tmp_path)
  report.step(1, metrics(loss=-0.0), keep=True)
  report.add({'val/loss': -0.0})
  report.write()
  line = capsys.readouterr().out
  assert 'loss 0.0000, ' in line and 'val/loss 0\n' in line and '-0' not in line


def test_time_in_evaluations_counts_as_cost_but_not_as_speed(tmp_path, monkeypatch):
  clock = Clock(monkeypatch)
  report = make(tmp_path)
  for step in (1, 2):
    clock.now += 1.0
    report.step(step, metrics(), keep=True)
    with report.pause_timer():
      clock.now += 10.0
  report.write()
  first, second = rows(tmp_path)
  assert first['images_per_sec'] == second['images_per_sec'] == 32.0
  assert second['core_hours'] - first['core_hours'] == pytest.approx(8 * 11 / 3600)


def test_a_restart_drops_later_rows_and_goes_on_counting_cost(tmp_path, monkeypatch):
  clock = Clock(monkeypatch)
  old = [{'step': step, 'core_hours': step / 10} for step in (1, 2, 3)]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in old) + '{"s')
  report = make(tmp_path, first_step=2)
  assert rows(tmp_path) == old[:2]
  clock.now += 36.0
  report.step(3, metrics(), keep=True)
  report.write()
  assert [row['step'] for row in rows(tmp_path)] == [1, 2, 3]
  assert rows(tmp_path)[-1]['core_hours'] == pytest.approx(0.2 + 8 * 0.01)


@pytest.mark.parametrize('name', ['loss', 'grad_norm'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_what_is_not_finite_is_raised_when_the_next_step_comes(tmp_path, name, value):
  report = make(tmp_path)
  report.step(1, metrics(), keep=True)
  report.step(2, metrics(**{name: value}), keep=False)
  with pytest.raises(errors.Diverged, match=f'step 2: {name} = {value}, at learning rate 0.001'):
    report.step(3, metrics(), keep=True)
  assert [row['step'] for row in rows(tmp_path)] == [1]


def test_what_is_not_finite_is_raised_before_an_evaluation(tmp_path):
  report = make(tmp_path)
  report.step(1, metrics(loss=math.nan), keep=True)
  with pytest.raises(errors.Diverged), report.pause_timer():
    pytest.fail('the evaluation was begun')


def test_plain_lines(tmp_path, monkeypatch, capsys):
  clock = Clock(monkeypatch)
  report = make(tmp_path)
  clock.now += 2.0
  report.step(2, metrics(), keep=True)
  report.add({'val/top1': 0.75})
  report.write()
  line = capsys.readouterr().out
  assert line.startswith('step 2/10 eta 0:00:08 loss 2.5000, accuracy 0.500, images/s 32,')
  assert line.endswith('val/top1 0.75\n')


@pytest.mark.parametrize(('input_seconds', 'done', 'told'), [
  (0.25, True, '83%'),  # the device has finished before the batch is there
  (0.25, False, '0%'),  # it is still at work, so the slow input has cost nothing
  (0.0, True, '0%'),
])  # fmt: skip
def test_the_line_tells_the_share_of_time_that_input_cost(
  tmp_path, monkeypatch, capsys, input_seconds, done, told
):
  class Result(float):
    def is_ready(self):
      return done

  clock = Clock(monkeypatch)
  report = make(tmp_path)

  def slow():
    while True:
      clock.now += input_seconds
      yield

  for step, _ in zip(range(1, 6), report.timed(slow())):
    clock.now += 0.05
    report.step(step, {name: Result(value) for name, value in METRICS.items()}, keep=step in (1, 5))
  report.write()
  assert f'input wait {told}' in capsys.readouterr().out.splitlines()[-1]


def test_a_slow_input_shows_with_a_real_step(tmp_path, capsys):
  def slow():
    while True:
      time.sleep(0.05)
      yield np.ones(8, np.float32)

  step_fn = jax.jit(lambda x: {name: x.mean() * value for name, value in METRICS.items()})
  jax.block_until_ready(step_fn(next(slow())))
  report = make(tmp_path)
  for step, batch in zip(range(1, 7), report.timed(slow())):
    report.step(step, step_fn(batch), keep=step == 6)
  report.write()
  row = rows(tmp_path)[-1]
  assert 0.5 < row['input_wait'] <= 1.0
  assert f'input wait {row["input_wait"]:.0%}' in capsys.readouterr().out


def test_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  with make(tmp_path) as report:
    for step in range(1, 11):
      report.step(step, metrics(), keep=step % 5 == 0)
    report.add({'val/top1': 0.75})
    report.write()
  captured = capsys.readouterr()
  assert captured.out == '' and '10/10' in captured.err and '100%' in captured.err
  assert 'step 10: loss 2.5000' in captured.err and 'val/top1 0.75' in captured.err


def test_peaks():
  assert hardware.peak_flops('TPU v3') == 61.5e12  # a core
  assert hardware.peak_flops('NVIDIA H100 80GB HBM3') == 989e12
  assert hardware.peak_flops('NVIDIA H100 PCIe') == 756e12
  assert hardware.peak_flops('TPU v5 lite') == 197e12 and hardware.peak_flops('TPU v5') == 459e12
  assert hardware.peak_flops('cpu') is None


def test_a_row_whose_evaluation_is_made_up_for(tmp_path):
  """Stopped in the evaluation of step 2: the row is there at once, and completed after a start."""
  report = make(tmp_path)
  report.step(2, metrics(loss=1.5), keep=True)
  report.defer_eval()
  report.write()
  (row,) = rows(tmp_path)
  assert row['step'] == 2 and row['train/loss'] == 1.5 and row['postponed'] is True
  again = make(tmp_path, first_step=2)
  assert again.eval_deferred and rows(tmp_path) == [row]  # killed now, nothing would be lost
  again.add({'val/top1': 0.75})
  assert next(again.timed(iter('ab'))) == 'a'  # no checkpoint was due, so it is not yet written
  again.step(3, metrics(), keep=True)
  again.write()
  first, second = rows(tmp_path)
  expected = {name: value for name, value in row.items() if name != 'postponed'}
  assert first == {**expected, 'val/top1': 0.75} and second['step'] == 3
  assert not make(tmp_path, first_step=3).eval_deferred


def test_metrics_that_are_gone(tmp_path):
  report = make(tmp_path)
  (tmp_path / 'metrics.jsonl').unlink()
  report.step(1, metrics(), keep=True)
  with pytest.raises(errors.InputError, match='metrics.jsonl was moved or removed, or its disk'):
    report.write()
  assert not (tmp_path / 'metrics.jsonl').exists()


@pytest.mark.parametrize('deferred', [False, True])
def test_metrics_that_find_no_room(tmp_path, deferred):
  """In the middle of a line as well: what is whole stays, and the next start goes on from it."""
  report = make(tmp_path)
  report.step(1, metrics(), keep=True)
  if deferred:
    report.defer_eval()
  report.write()
  before = rows(tmp_path)
  report = make(tmp_path, first_step=1)
  if deferred:
    report.add({'val/top1': 0.75})
  else:
    report.step(2, metrics(), keep=True)
  size = (tmp_path / 'metrics.jsonl').stat().st_size
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size - 50 if deferred else size + 5, limits[1]))
  try:
    wanted = r'step \d could not be written to .*metrics.jsonl: .* Free disk space \(quotas count'
    with pytest.raises(errors.InputError, match=wanted):
      report.write()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert metrics_log.read_rows(epath.Path(tmp_path)) == before
  assert make(tmp_path, first_step=1).eval_deferred == deferred
  assert rows(tmp_path) == before


def test_what_comes_once(tmp_path):
  report = make(tmp_path, once={'compile_seconds': 2.5})
  for step in (1, 2):
    report.step(step, metrics(), keep=True)
  report.write()
  assert [row.get('compile_seconds') for row in rows(tmp_path)] == [2.5, None]
