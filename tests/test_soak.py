"""A minute of the soak, and that each thing it looks for is found where it is planted."""

from collections import Counter
import json
import subprocess
import sys

import pytest

from benchmarks import soak, soak_checks
import runs

STEPS = 30
SAMPLES = [soak_checks.Sample(step, 12, 300.0) for step in range(100)]
FILES = [
  '.lock', 'metrics.jsonl', 'curves.png', 'config.json', 'classes.json', 'model.npz', 'model.json',
  'checkpoints/20/', 'checkpoints/30/', 'checkpoints/30/manifest.json',
]  # fmt: skip


def rows() -> list[dict]:
  return [{'step': s, 'train/loss': 2.0 + 1 / s, 'train/accuracy': 0.5} for s in range(1, 31)]


def changed(step: int, **values) -> list[dict]:
  return [{**row, **(values if row['step'] == step else {})} for row in rows()]


def test_nothing_wrong_passes():
  faults, worst = soak_checks.loss_faults(rows(), rows(), exact_to=STEPS)
  assert (faults, worst) == ([], 0.0)
  assert soak_checks.step_faults(list(range(1, 31)), STEPS) == []
  assert soak_checks.file_faults(FILES, kept=3) == []
  leaks, figures = soak_checks.leak_faults(SAMPLES)
  assert leaks == [] and figures['steps'] == 99 and figures['open_files'] == [12, 12]
  run = {'steps': STEPS, 'attempts': 2, 'layout_changed_after': None, 'worst_deviation': worst}
  events = Counter({('SIGTERM', (75,)): 1, ('none', (0,)): 1})
  result = soak_checks.verdict([], events, [run], figures)
  assert result['passed'] and result['bit_equal_runs'] == 1
  text = soak_checks.describe(result)
  assert '| SIGTERM | 75 | 1 |' in text and text.endswith('verdict: passed')
  json.dumps(result)


@pytest.mark.parametrize(
  ('faults', 'text'),
  [
    (soak_checks.step_faults([1, 2, 4], 4), 'step 3 is lost'),
    (soak_checks.step_faults([1, 2, 3], 4), 'step 4 is lost'),
    (soak_checks.step_faults([1, 2, 2, 3], 3), 'step 2 is there 2 times'),
    (soak_checks.step_faults([1, 3, 2], 3), 'not 1, 2, ... in order'),
    (soak_checks.step_faults([1, 2, 3], 2), 'step 3 is one too many'),
    (soak_checks.status_faults('SIGTERM', [0], 0, False), 'status 0 instead of [75]'),
    (soak_checks.status_faults('full disk', [1], 0, False), 'status 1 instead of [2]'),
    (soak_checks.status_faults('SIGKILL', [0, 137], 1, False), 'process 0 ended with status 0'),
    (soak_checks.status_faults('SIGKILL', [137, 1], 1, True), 'process 0 ended with status 137'),
    (soak_checks.status_faults('none', [134], 0, True), 'none: process 0 ended with status 134'),
    (soak_checks.save_faults('SIGKILL', [10, 20], [10], 25), 'step 20 was saved, but 10'),
    (soak_checks.save_faults('SIGTERM', [], [10], 12), '12 steps were done, but the newest'),
    (soak_checks.start_faults('a; step 10 of 30; compiled in 1 s', [10, 20]), 'step 10 instead'),
    (soak_checks.start_faults('checkpoint 20 is damaged (x)', [20]), 'checkpoint 20 is damaged'),
    (soak_checks.file_faults([*FILES, 'metrics.jsonl.partial'], 3), 'metrics.jsonl.partial was'),
    (soak_checks.file_faults([*FILES, 'checkpoints/9.orbax-checkpoint-tmp/'], 3), 'left behind'),
    (soak_checks.file_faults([*FILES, 'checkpoints/9/', 'checkpoints/8/'], 3), '4 checkpoints'),
    (soak_checks.file_faults([n for n in FILES if n != 'model.npz'], 3), 'model.npz is not there'),
  ],
)
def test_planted_faults(faults, text):
  assert any(text in fault for fault in faults)
  result = soak_checks.verdict(faults, Counter(), [{'steps': 1, 'layout_changed_after': None,
                                                    'worst_deviation': 0.0}], {})  # fmt: skip
  assert not result['passed'] and soak_checks.describe(result).endswith('verdict: FAILED')


def test_a_late_event_may_find_a_run_that_is_done():
  assert soak_checks.status_faults('SIGTERM', [0], 0, True) == []
  assert soak_checks.status_faults('SIGKILL', [134, 137], 1, False) == []
  assert soak_checks.save_faults('SIGTERM', [10], [10, 17], 17) == []


def test_a_transport_that_timed_out():
  log = 'UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue() timed out'
  assert soak_checks.event_in('none', ['', log]) == 'transport timed out'
  assert soak_checks.event_in('none', ['', 'Traceback']) == 'none'
  assert soak_checks.event_in('SIGKILL', [log]) == 'SIGKILL'
  assert soak_checks.status_faults('transport timed out', [1, 1], 0, False) == []
  assert soak_checks.status_faults('transport timed out', [0, 1], 0, False)


def test_a_soak_without_a_finished_run_fails():
  assert not soak_checks.verdict([], Counter(), [], {})['passed']


def test_losses_that_differ():
  """Before a change of layout in the last bit, after it by more than the tolerance."""
  near, far = {'train/loss': (2 + 1 / 20) * (1 + 2e-7)}, {'train/loss': (2 + 1 / 20) * (1 + 2e-6)}
  assert soak_checks.loss_faults(changed(20, **near), rows(), 30)[0] == [
    "step 20 differs in ['train/loss']"
  ]
  faults, worst = soak_checks.loss_faults(changed(20, **near), rows(), 19)
  assert faults == [] and worst == pytest.approx(2e-7, rel=1e-3)
  assert 'step 20: a loss is off by 2.0e-06' in soak_checks.loss_faults(
    changed(20, **far), rows(), 19
  )[0][0]  # fmt: skip
  assert soak_checks.loss_faults(changed(20, **{'train/loss': float('nan')}), rows(), 19)[0]
  assert soak_checks.loss_faults(changed(5, **{'train/accuracy': 0.6}), rows(), 30)[0]
  evaluated = changed(20, **{'test/loss': 1.0})
  assert 'other values' in soak_checks.loss_faults(rows(), evaluated, 30)[0][0]


def test_leaks():
  def found(files=0.0, memory=0.0):
    return soak_checks.leak_faults([
      sample._replace(open_files=12 + files * i, memory_mib=300 + memory * i)
      for i, sample in enumerate(SAMPLES)
    ])[0]  # fmt: skip

  assert found(files=0.05, memory=0.1) == []
  assert 'files were open early' in found(files=0.2)[0]
  assert 'MiB were resident early' in found(memory=1.0)[0]
  assert 'only 3 samples' in soak_checks.leak_faults(SAMPLES[:3])[0][0]


def test_events_are_drawn_from_the_seed():
  drawn = [soak.plan(0, run, attempt, 300) for run in range(6) for attempt in range(40)]
  assert drawn == [soak.plan(0, run, attempt, 300) for run in range(6) for attempt in range(40)]
  assert {one.event.kind for one in drawn} == set(soak_checks.EVENTS)
  assert {one.layout for one in drawn} == set(soak.LAYOUTS)
  assert {soak.plan(0, 2, attempt, 300).layout for attempt in range(40)} == {soak.HOME}
  assert drawn != [soak.plan(1, run, attempt, 300) for run in range(6) for attempt in range(40)]


@pytest.mark.slow
def test_a_minute_of_it(tmp_path):
  options = ('--minutes=1', '--steps=100', f'--workdir={tmp_path}/soak')
  done = subprocess.run(
    [sys.executable, 'benchmarks/soak.py', *options], cwd=runs.ROOT, text=True,
    capture_output=True, timeout=1800, check=False,
  )  # fmt: skip
  assert done.returncode == 0 and 'verdict: passed' in done.stdout, done.stdout + done.stderr
  result = json.loads((tmp_path / 'soak/soak.json').read_text())
  assert result['passed'] and result['runs'] and result['leak']
