"""Runs in this process: the functions that train.py and evaluate.py call."""

import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from mixer import pretrained
from mixer.errors import Diverged, InputError, Interrupted
from mixer.input.sources import arrays
from mixer.run import evaluation, metrics_log
from mixer.training import train_step
import runs
from runs import small_digits as config


def train(workdir, values=None, **options) -> None:
  runs.train_here(values or config(), workdir, **options)


def rows(workdir) -> list[dict]:
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k == 'step' or k.startswith('train/')}
    for line in lines
  ]


def assert_same_run(one, other) -> None:
  assert rows(one) == rows(other)
  parameters = (jax.tree.leaves(pretrained.load(path / 'model.npz')) for path in (one, other))
  for left, right in zip(*parameters, strict=True):
    np.testing.assert_array_equal(left, right)


def test_runs_and_evaluations_in_one_process(tmp_path, whole):
  """Nothing of a run reaches the next: options, config, signal handlers, threads."""
  handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  workdirs = [tmp_path / name for name in 'ab']
  for workdir, seed, loss in zip(workdirs, (1, 0), ('sigmoid', 'softmax')):
    train(workdir, config(seed=seed, loss=loss), require='cpu')
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
  end = time.monotonic() + 10
  while any(t.name in ('signals', 'watchdog') for t in threading.enumerate()):
    assert time.monotonic() < end
  assert [row['step'] for row in rows(workdirs[0])] == [3, 4, 6]
  assert rows(workdirs[0]) != rows(whole)
  assert_same_run(workdirs[1], whole)

  for workdir, loss in zip(workdirs, ('sigmoid', 'softmax')):
    options = evaluation.Options(config=config(loss=loss), checkpoint=str(workdir))
    found = evaluation.evaluate(options)
    last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
    for name in ('test/top1', 'test/loss'):
      assert found[name] == pytest.approx(last[name])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The workdir of a run that was never stopped."""
  workdir = tmp_path_factory.mktemp('whole')
  train(workdir)
  return workdir


@pytest.mark.parametrize('step', [1, 5])
def test_a_stop_between_rows_changes_nothing(tmp_path, monkeypatch, whole, step):
  """Also the means in the rows, which are over the steps before and after the stop."""
  original = arrays.Arrays.train_batches

  def train_batches(self, first_batch, *args):
    for number, batch in enumerate(original(self, first_batch, *args), first_batch + 1):
      if number == step + 1 and first_batch == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # the thread of the signals notes it; the boundary of `step` has passed
      yield batch

  monkeypatch.setattr(arrays.Arrays, 'train_batches', train_batches)
  with pytest.raises(Interrupted, match=f'at step {step + 1} of 6; its state is saved'):
    train(tmp_path / 'parts')
  assert not (tmp_path / 'parts' / 'model.npz').exists()
  train(tmp_path / 'parts')
  assert_same_run(whole, tmp_path / 'parts')


def test_a_signal_before_the_first_step_does_not_end_the_process(tmp_path, monkeypatch, whole):
  """It ends train.py at once; here the run stops after its first step, and can be resumed."""
  original = train_step.compile_step

  def compile_step(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)  # the thread of the signals notes it
    return original(*args)

  monkeypatch.setattr(train_step, 'compile_step', compile_step)
  with pytest.raises(Interrupted, match='at step 1 of 6; its state is saved'):
    train(tmp_path)
  monkeypatch.setattr(train_step, 'compile_step', original)
  train(tmp_path)
  assert_same_run(whole, tmp_path)
  starts = metrics_log.read_starts(tmp_path)
  assert [(start['step'], start['cores']) for start in starts] == [(0, 8), (1, 8)]
  assert (
    starts[0]['time'] < starts[1]['time'] < metrics_log.read_rows(tmp_path)[0]['time'] < time.time()
  )
  train(tmp_path)  # a finished run does not start
  assert metrics_log.read_starts(tmp_path) == starts


def test_errors_leave_the_process_usable(tmp_path):
  handler = signal.getsignal(signal.SIGTERM)
  with pytest.raises(InputError, match="nothing reads 'mixupp' .did you mean 'mixup'"):
    train(tmp_path / 'a', {**config(), 'mixupp': 0.0})
  with pytest.raises(Diverged, match='No checkpoint had been saved yet'):
    train(tmp_path / 'b', config(**{'optim.learning_rate': 1e38, 'optim.weight_decay': 0.0}))
  assert signal.getsignal(signal.SIGTERM) == handler
  train(tmp_path / 'a')
  assert (tmp_path / 'a' / 'model.npz').exists()


def test_outside_the_main_thread(tmp_path):
  """There a process has no say over its signal handlers."""
  faults = []

  def run():
    try:
      train(tmp_path)
    except BaseException as fault:
      faults.append(fault)

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert not faults and (tmp_path / 'model.npz').exists()
