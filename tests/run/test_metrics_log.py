"""The rows of metrics.jsonl, from metrics made up here."""

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
from mixer.run import metrics_log

METRICS = {
  'loss': 2.5, 'accuracy': 0.5, 'grad_norm': 1.0, 'update_norm': 0.1, 'param_norm': 9.0,
  'learning_rate': 1e-3,
}  # fmt: skip


class Clock:
  """A perf_counter that moves only when told."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(metrics_log.time, 'perf_counter', lambda: self.now)


def make(tmp_path, first_step=0, **changes) -> metrics_log.Reporter:
  facts = {
    'total_steps': 10, 'batch_size': 32, 'num_examples': 64, 'flops_per_image': 10**9,
    'tensorboard': False,
  }  # fmt: skip
  return metrics_log.Reporter(epath.Path(tmp_path), first_step=first_step, **{**facts, **changes})


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
  with report.interlude():
    clock.now += 10.0
  report.add({'val/top1': 0.75})
  report.write()
  (row,) = rows(tmp_path)
  assert row['step'] == 2 and row['epoch'] == 1.0 and row['train/loss'] == 1.0
  assert row['images_per_sec'] == 32.0 and row['images_per_sec_per_device'] == 4.0  # 8 devices
  assert row['input_wait'] == 0.25 and row['val/top1'] == 0.75
  assert row['tflops_per_device'] == pytest.approx(0.004) and row['mfu'] == pytest.approx(0.004)
  assert row['core_hours'] == pytest.approx(8 * 2 / 3600)


def test_time_in_evaluations_counts_as_cost_but_not_as_speed(tmp_path, monkeypatch):
  clock = Clock(monkeypatch)
  report = make(tmp_path)
  for step in (1, 2):
    clock.now += 1.0
    report.step(step, metrics(), keep=True)
    with report.interlude():
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
  with pytest.raises(errors.Diverged), report.interlude():
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
  report = make(tmp_path)
  for step in range(1, 11):
    report.step(step, metrics(), keep=step % 5 == 0)
  report.add({'val/top1': 0.75})
  report.write()
  report.close()
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
  report.postpone()
  report.write()
  (row,) = rows(tmp_path)
  assert row['step'] == 2 and row['train/loss'] == 1.5 and row['postponed'] is True
  again = make(tmp_path, first_step=2)
  assert again.postponed and rows(tmp_path) == [row]  # killed now, nothing would be lost
  again.add({'val/top1': 0.75})
  assert next(again.timed(iter('ab'))) == 'a'  # no checkpoint was due, so it is not yet written
  again.step(3, metrics(), keep=True)
  again.write()
  first, second = rows(tmp_path)
  expected = {name: value for name, value in row.items() if name != 'postponed'}
  assert first == {**expected, 'val/top1': 0.75} and second['step'] == 3
  assert not make(tmp_path, first_step=3).postponed


def test_metrics_that_are_gone(tmp_path):
  report = make(tmp_path)
  (tmp_path / 'metrics.jsonl').unlink()
  report.step(1, metrics(), keep=True)
  with pytest.raises(errors.InputError, match='metrics.jsonl is gone: it was moved or removed'):
    report.write()
  assert not (tmp_path / 'metrics.jsonl').exists()


@pytest.mark.parametrize('postponed', [False, True])
def test_metrics_that_find_no_room(tmp_path, postponed):
  """In the middle of a line as well: what is whole stays, and the next start goes on from it."""
  report = make(tmp_path)
  report.step(1, metrics(), keep=True)
  if postponed:
    report.postpone()
  report.write()
  before = rows(tmp_path)
  report = make(tmp_path, first_step=1)
  if postponed:
    report.add({'val/top1': 0.75})
  else:
    report.step(2, metrics(), keep=True)
  size = (tmp_path / 'metrics.jsonl').stat().st_size
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size - 50 if postponed else size + 5, limits[1]))
  try:
    wanted = r'step \d could not be written to .*metrics.jsonl: .* Make room \(quotas count too\)'
    with pytest.raises(errors.InputError, match=wanted):
      report.write()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert metrics_log.read_rows(epath.Path(tmp_path)) == before
  assert make(tmp_path, first_step=1).postponed == postponed
  assert rows(tmp_path) == before


def test_what_comes_once(tmp_path):
  report = make(tmp_path, once={'compile_seconds': 2.5})
  for step in (1, 2):
    report.step(step, metrics(), keep=True)
  report.write()
  assert [row.get('compile_seconds') for row in rows(tmp_path)] == [2.5, None]
