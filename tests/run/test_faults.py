"""What a run does when it is stopped, when something breaks, and when the machine changes.

With real processes; they wait for events, never for a time.
"""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mixer.input.sources import arrays
import runs

STEPS = 40
FAULT_STEP = 25  # in faulty.py


@pytest.fixture(scope='module')
def env(tmp_path_factory):
  return runs.environment(JAX_COMPILATION_CACHE_DIR=str(tmp_path_factory.mktemp('cache')))


def flags(workdir, *more: str, steps: int = STEPS) -> tuple[str, ...]:
  total = f'--config.total_steps={steps}'
  small = (*runs.TINY, '--config.model.num_blocks=1')
  return runs.train_flags(workdir, *small, total, '--config.checkpoints.keep_last=2', *more)


@pytest.fixture(scope='module')
def straight(tmp_path_factory, env):
  """The workdir of a run of one process that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('straight')
  status, output = runs.run('train.py', *flags(workdir), env=env)
  assert status == 0, output
  return workdir


def assert_same_run(workdir, straight) -> None:
  """Bit for bit, with no step lost or doubled."""
  found, expected = runs.rows(workdir), runs.rows(straight)
  assert [row['step'] for row in found] == list(range(1, STEPS + 1))
  assert [runs.learned(row) for row in found] == [runs.learned(row) for row in expected]
  assert not any('postponed' in row for row in found)
  with np.load(workdir / 'model.npz') as a, np.load(straight / 'model.npz') as b:
    assert all(a[name].tobytes() == b[name].tobytes() for name in b.files)


def assert_same_losses(workdir, straight, rel: float = 1e-6) -> None:
  """To 1e-6, which is for another order of float32 additions."""
  found, expected = runs.rows(workdir), runs.rows(straight)
  assert [row['step'] for row in found] == list(range(1, STEPS + 1))
  losses = [[row['train/loss'] for row in part] for part in (found, expected)]
  np.testing.assert_allclose(*losses, rtol=rel)
  for a, b in zip(found, expected):
    assert a.get('test/n') == b.get('test/n')
    assert a.get('test/loss', 0) == pytest.approx(b.get('test/loss', 0), rel=rel)


def start_all(workdir, env, count: int, *more: str, timeouts=None) -> list[subprocess.Popen]:
  return [
    runs.start('train.py', *flags(workdir, *more), *place, env=env)
    for place in runs.places(count, **(timeouts or {}))
  ]


def wait_for(condition, *processes) -> None:
  """Until `condition()` holds; fails with what was printed if the first process ends before."""
  if not runs.wait_for(condition, processes[0]):
    for process in processes[1:]:
      process.kill()
    pytest.fail('\n---\n'.join(output for _, output in runs.ends(*processes)))


def rows_written(workdir) -> int:
  path = workdir / 'metrics.jsonl'
  return path.read_text().count('\n') if path.exists() else 0


def finish(workdir, env, *more: str) -> str:
  status, output = runs.run('train.py', *flags(workdir, *more), env=env)
  assert status == 0, output
  return output


def start_faulty_ones(fault: str, places, workdir, marks, env, *more: str):
  return [
    runs.start_faulty(fault, *flags(workdir, *more), *place, marks=marks, env=env)
    for place in places
  ]


def test_two_processes_one_is_told_to_stop_one_process_goes_on(straight, env, tmp_path):
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  processes = start_faulty_ones('waits_to_be_stopped', runs.places(2), workdir, marks, env)
  for i in range(2):
    wait_for((marks / f'waiting-0-{i}').exists, *processes)
  processes[1].send_signal(signal.SIGTERM)
  (first, output), (second, other) = runs.ends(*processes)
  assert (first, second) == (75, 75), output + other
  for text in (output, other):
    assert 'stopped: at step 7 of 40; its state is saved' in text
  assert runs.saved_steps(workdir)[-1] == 7 == rows_written(workdir)
  assert 'process 0 of 2' in output and '1 local devices' in other
  assert 'the checkpoint of step 7; step 7 of 40' in finish(workdir, env)
  assert_same_losses(workdir, straight)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_during_an_evaluation(straight, env, tmp_path, number):
  """The evaluation is left, its step saved, and the evaluation made up for."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  overrides = ('--config.evals.test.input.batch_size=100', '--config.every.evaluate=10')
  process = runs.start_faulty(
    'stops_while_evaluating', *flags(workdir, *overrides), marks=marks, env=env
  )
  wait_for((marks / 'evaluating-0').exists, process)
  process.send_signal(number)
  ((status, output),) = runs.ends(process)
  assert status == 75, output
  assert 'stopped: at step 20 of 40; its state is saved.' in output
  assert runs.rows(workdir)[-1]['postponed'] and 'test/top1' not in runs.rows(workdir)[-1]
  finish(workdir, env, *overrides)
  rows = runs.rows(workdir)
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  assert [row['step'] for row in rows if 'test/top1' in row] == [10, 20, 30, 40]
  for row, expected in zip(rows, runs.rows(straight)):
    assert row['train/loss'] == expected['train/loss'] and 'postponed' not in row
    if 'test/top1' in expected:
      assert row['test/top1'] == expected['test/top1']
  assert json.loads((workdir / 'checkpoints/20/metrics/metrics').read_text())['test/top1']


@pytest.mark.slow
def test_two_processes_told_to_stop_during_an_evaluation(straight, env, tmp_path):
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  overrides = ('--config.evals.test.input.batch_size=100', '--config.every.evaluate=10')
  processes = [
    runs.start_faulty(
      'stops_while_evaluating', *flags(workdir, *overrides), *place, marks=marks, env=env
    )
    for place in runs.places(2)
  ]
  for i, process in enumerate(processes):
    wait_for((marks / f'evaluating-{i}').exists, process)
  processes[1].send_signal(signal.SIGTERM)
  for status, output in runs.ends(*processes):
    assert status == 75 and 'stopped: at step 20 of 40' in output, output
  assert runs.rows(workdir)[-1]['postponed']
  ended = runs.ends(*start_all(workdir, env, 2, *overrides))
  assert [status for status, _ in ended] == [0, 0], ended
  rows = runs.rows(workdir)
  assert [row['step'] for row in rows if 'test/top1' in row] == [10, 20, 30, 40]
  losses = [[row['train/loss'] for row in part] for part in (rows, runs.rows(straight))]
  np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_told_to_stop_while_compiling(straight, env, tmp_path, count):
  """Nothing is to be saved yet, so the end comes at once, whatever the main thread does."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  places = runs.places(2) if count == 2 else [()]
  processes = [
    runs.start_faulty('compiles_long', *flags(workdir), *place, marks=marks, env=env)
    for place in places
  ]
  for i, process in enumerate(processes):
    wait_for((marks / f'compiling-{i}').exists, process)
  processes[-1].send_signal(signal.SIGTERM)
  for status, output in runs.ends(*processes):
    assert status == 75, output
    assert 'SIGTERM before the first step' in output
  finish(workdir, env)
  assert_same_run(workdir, straight)


@pytest.mark.slow
def test_told_to_stop_while_opening_data(env, tmp_path):
  marks = tmp_path / 'marks'
  process = runs.start_faulty('opens_long', *flags(tmp_path / 'run'), marks=marks, env=env)
  wait_for((marks / 'opening').exists, process)
  process.send_signal(signal.SIGTERM)
  ((status, output),) = runs.ends(process)
  assert status == 75 and 'before the first step' in output


@pytest.mark.slow
def test_told_to_stop_again_and_again(straight, env, tmp_path):
  """Each time at the seventh step after the start, from a checkpoint or not; bit for bit."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  for first in (0, 7, 14):
    (process,) = start_faulty_ones('waits_to_be_stopped', [()], workdir, marks, env)
    wait_for((marks / f'waiting-{first}-0').exists, process)
    process.send_signal(signal.SIGTERM)
    ((status, output),) = runs.ends(process)
    assert status == 75, output
    assert runs.saved_steps(workdir)[-1] == rows_written(workdir) == first + 7
  finish(workdir, env)
  assert_same_run(workdir, straight)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_others(straight, env, tmp_path, victim):
  """The other one waits for it in a collective."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  places = runs.places(2)
  victims = start_faulty_ones('step_stalls', [places[victim]], workdir, marks, env)
  others = [runs.start('train.py', *flags(workdir), *places[1 - victim], env=env)]
  wait_for((marks / f'stalled-{victim}').exists, *victims, *others)
  victims[0].kill()
  begin = time.monotonic()
  (_, (status, output)) = runs.ends(*victims, *others)
  assert time.monotonic() - begin < 60  # the heartbeat's time-out is 30 s
  assert status not in (0, -9), output
  if victim:
    assert (
      status == 1 and 'No heartbeat of process 1 for 3 s: if it was killed, that may be' in output
    )
  else:  # with it, the service has gone by which processes hear of each other
    assert 'Traceback' in output or 'JAX distributed service detected fatal errors' in output
  ended = runs.ends(*start_all(workdir, env, 2))
  assert [status for status, _ in ended] == [0, 0], ended
  assert_same_losses(workdir, straight)


@pytest.mark.slow
def test_a_process_that_hangs_is_named_and_ends_the_others(env, tmp_path):
  """Stopped, it does not even answer that it is there."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  places = runs.places(2, heartbeat_timeout=20)
  processes = start_faulty_ones('step_stalls', places, workdir, marks, env, '--stall_seconds=5')
  for i in range(2):
    wait_for((marks / f'stalled-{i}').exists, *processes)
  processes[1].send_signal(signal.SIGSTOP)
  (marks / 'go').touch()
  begin = time.monotonic()
  ((status, output),) = runs.ends(processes[0])
  assert time.monotonic() - begin < 80
  processes[1].kill()
  runs.ends(processes[1])
  assert status not in (0, 75), output
  text = r'process 1 has not been heard of for \d+ s; after 10 to 20 s it counts as dead'
  assert re.search(text, output), output
  assert f'nothing has come after step {FAULT_STEP - 1} for 5 s. Furthest behind: process' in output
  assert (workdir / 'stall-0.txt').exists()


@pytest.mark.slow
def test_told_to_stop_when_all_is_done(straight, env, tmp_path):
  """By a process that then ends, while another was told and waits to agree where to stop."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  first, second = runs.places(2)
  processes = [
    *start_faulty_ones('is_told_at_the_end', [first], workdir, marks, env),
    *start_faulty_ones('hears_late', [second], workdir, marks, env),
  ]
  ended = runs.ends(*processes)
  assert [status for status, _ in ended] == [0, 0], ended
  assert 'Traceback' not in ended[0][1] + ended[1][1]
  assert_same_losses(workdir, straight)


@pytest.mark.slow
def test_told_to_stop_when_nobody_reads_the_output(straight, env, tmp_path):
  """As by Ctrl-C on `train.py | tee log`, which ends tee too."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  (process,) = start_faulty_ones('waits_to_be_stopped', [()], workdir, marks, env)
  wait_for((marks / 'waiting-0-0').exists, process)
  process.stdout.close()
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=900) == 75
  assert runs.saved_steps(workdir)[-1] == 7 == rows_written(workdir)
  finish(workdir, env)
  assert_same_run(workdir, straight)


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named(env, tmp_path):
  places = runs.places(3, startup_timeout=20)
  processes = [runs.start('train.py', *flags(tmp_path), *place, env=env) for place in places[:2]]
  for status, output in runs.ends(*processes):
    assert status == 2 and 'error: process 2 of 3 did not come within 20 s' in output, output


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['config', 'code', 'data', 'workdir'])
def test_processes_that_do_not_agree(env, tmp_path, kind):
  first, second = runs.places(2)
  (tmp_path / 'marks').mkdir()
  workdir = tmp_path / 'run'
  processes = [runs.start('train.py', *flags(workdir), *first, env=env)]
  if kind == 'config':
    text = 'process 1: config.mixup is 0.7, on process 0 0.2'
    more = flags(workdir, '--config.mixup=0.7')
    processes.append(runs.start('train.py', *more, *second, env=env))
  elif kind in ('code', 'data'):
    text = {
      'code': "process 1: code is 'changed', on process 0",
      'data': 'process 1 finds for config.train_input: ',
    }[kind]
    processes += start_faulty_ones(f'other_{kind}', [second], workdir, tmp_path / 'marks', env)
  else:
    text = 'they do not share that directory'
    processes.append(runs.start('train.py', *flags(tmp_path / 'other'), *second, env=env))
  for status, output in runs.ends(*processes):
    assert status == 2 and text in output, output
  assert not (workdir / 'metrics.jsonl').exists()


@pytest.mark.slow
def test_what_one_process_refuses_ends_all(env, tmp_path):
  """Only process 0 looks at the workdir of another run."""
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  (tmp_path / 'config.json').write_text('{"seed": 1}')
  ended = runs.ends(*start_all(tmp_path, env, 2))
  for status, output in ended:
    assert status == 2 and 'belongs to a run with another config' in output, output
  assert 'process 0 has ended with status 2' in ended[1][1]


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_images_that_cannot_be_read_any_more(straight, env, tmp_path, count):
  """On the last process alone."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  *others, last = runs.places(2) if count == 2 else [()]
  processes = [runs.start('train.py', *flags(workdir), *place, env=env) for place in others]
  processes.append(runs.start_faulty('input_raises', *flags(workdir), *last, marks=marks, env=env))
  for status, output in runs.ends(*processes):
    assert status == 1 and 'the disk of the images has gone' in output, output
  # Of several, one that fails alone cannot wait for the others to complete a save.
  assert runs.saved_steps(workdir)[-1] in ([20] if count == 1 else [10, 20])
  finish(workdir, env)
  (assert_same_run if count == 1 else assert_same_losses)(workdir, straight)


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_a_gradient_that_is_not_finite(env, tmp_path, count):
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  places = runs.places(2) if count == 2 else [()]
  processes = [
    runs.start_faulty('gradient_is_nan', *flags(workdir), *place, marks=marks, env=env)
    for place in places
  ]
  for status, output in runs.ends(*processes):
    assert status == 3 and f'error: step {FAULT_STEP}: ' in output, output
    assert 'The last good checkpoint is of step 20' in output
  assert runs.rows(workdir)[-1]['step'] == FAULT_STEP - 1


@pytest.mark.slow
@pytest.mark.parametrize('count, tensorboard', [(1, False), (1, True), (2, False)])
def test_a_full_disk(straight, env, tmp_path, count, tensorboard):
  """Files cannot grow beyond a limit from the save of step 30 on: on process 0 alone."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  first, *others = runs.places(2) if count == 2 else [()]
  quiet = ('--config.every.log=20',)  # so that metrics.jsonl is not what grows too long
  quiet += ('--tensorboard',) * tensorboard
  processes = [
    runs.start_faulty('disk_is_full', *flags(workdir, *quiet), *first, marks=marks, env=env),
    *[runs.start('train.py', *flags(workdir, *quiet), *place, env=env) for place in others],
  ]
  fault = 'the checkpoint of step 30 could not be written'
  for i, (status, output) in enumerate(runs.ends(*processes)):
    assert status == 2, output
    assert (f'process 0 has ended with status 2 ({fault}' if i else f'error: {fault}') in output
  assert 'The checkpoint of step 20 is intact' in output and 'MB are free' in output
  assert runs.saved_steps(workdir) == [10, 20]
  assert 'step 20 of 40' in finish(workdir, env, *quiet)
  last, expected = runs.rows(workdir)[-1], runs.rows(straight)
  loss = np.mean([row['train/loss'] for row in expected[-10:]])  # since the row of step 30
  assert last['train/loss'] == (loss if count == 1 else pytest.approx(loss, rel=1e-6))


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_a_disk_that_is_full_at_the_end(straight, env, tmp_path, count):
  """No step comes to tell of it, and the other process waits for the failed one to complete."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  first, *others = runs.places(2) if count == 2 else [()]
  quiet = '--config.every.log=40'
  processes = [
    *start_faulty_ones('disk_is_full_at_the_end', [first], workdir, marks, env, quiet),
    *[runs.start('train.py', *flags(workdir, quiet), *place, env=env) for place in others],
  ]
  wait_for(lambda: runs.saved_steps(workdir)[-1:] == [30], *processes)
  begin = time.monotonic()
  for status, output in runs.ends(*processes):
    assert status == 2 and 'the checkpoint of step 40 could not be written' in output, output
  assert time.monotonic() - begin < 120  # orbax's time-out is 600 s
  assert not (workdir / 'model.npz').exists()
  finish(workdir, env, quiet)


def no_room(workdir, size: str) -> list[str]:
  """A command that runs another with a small disk of its own at `workdir`, where one may."""
  mount = f'mount -t tmpfs -o size={size} none {workdir} && exec "$@"'
  command = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', mount, 'sh']
  if shutil.which('unshare') is None or subprocess.run([*command, 'true'], check=False).returncode:
    pytest.skip('no mounts in a user namespace here')
  return command


@pytest.mark.slow
def test_a_disk_that_is_really_full(env, tmp_path):
  script = (
    f'import sys, runpy\nsys.path.insert(0, {str(runs.ROOT)!r})\n'
    'from mixer.run import workdirs\nworkdirs.check_space = lambda *_: None\n'
    'sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name="__main__")\n'
  )
  command = [*no_room(tmp_path, '400k'), sys.executable, '-c', script]
  process = subprocess.run(
    [*command, str(runs.ROOT / 'train.py'), *flags(tmp_path, '--config.checkpoints.keep_last=20')],
    env=env, text=True, capture_output=True, timeout=900, check=False,
  )  # fmt: skip
  output = process.stdout + process.stderr
  assert process.returncode == 2 and 'No space left on device' in output, output
  assert 'Traceback' not in output, output


@pytest.mark.slow
def test_a_workdir_that_vanishes(env, tmp_path):
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  (process,) = start_faulty_ones('step_stalls', [()], workdir, marks, env)
  wait_for((marks / 'stalled-0').exists, process)
  wait_for(lambda: 20 in runs.saved_steps(workdir), process)
  workdir.rename(tmp_path / 'away')
  (marks / 'go').touch()
  ((status, output),) = runs.ends(process)
  assert (
    status == 2 and f'error: {workdir}/metrics.jsonl was moved or removed, or its disk' in output
  ), output
  assert 'Traceback' not in output and not (workdir / 'metrics.jsonl').exists()


@pytest.mark.slow
def test_two_runs_in_one_workdir(straight, env, tmp_path):
  """Started at the same moment, one refuses; the lock of a killed one does not stay."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  both = [
    runs.start_faulty('compiles_long', *flags(workdir), marks=marks, env=env) for _ in range(2)
  ]
  runs.wait_for(lambda: any(p.poll() is not None for p in both), both[0])
  loser, winner = sorted(both, key=lambda p: p.poll() is None)
  ((status, output),) = runs.ends(loser)
  assert status == 2 and f'--workdir={workdir} is locked by another run: process ' in output
  assert f'process {winner.pid} on ' in output
  winner.kill()
  winner.communicate()
  finish(workdir, env)
  assert_same_run(workdir, straight)


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_a_damaged_checkpoint(straight, env, tmp_path, count):
  """Cut short: the one before is used on all processes, and said."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  places = runs.places(2) if count == 2 else [()]
  processes = start_faulty_ones('step_stalls', places, workdir, marks, env)
  wait_for(lambda: runs.saved_steps(workdir) == [10, 20], *processes)
  for process in processes:
    process.kill()
  runs.ends(*processes)
  state = workdir / 'checkpoints' / '20' / 'state'
  victim = max(state.rglob('*'), key=lambda p: p.stat().st_size)
  victim.write_bytes(victim.read_bytes()[:-100])
  places = runs.places(2) if count == 2 else [()]
  ended = runs.ends(*[runs.start('train.py', *flags(workdir), *place, env=env) for place in places])
  assert [status for status, _ in ended] == [0] * count, ended
  assert 'checkpoint 20 is damaged' in ended[0][1] and 'step 10 of 40' in ended[0][1]
  (assert_same_run if count == 1 else assert_same_losses)(workdir, straight)


def start_on(workdir, env, layout: str, fault='shards_everything') -> list[subprocess.Popen]:
  """A run on 'processes x devices of each x fsdp', with even small leaves sharded."""
  count, devices, fsdp = map(int, layout.split('x'))
  env = {**env, 'XLA_FLAGS': f'{env["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'}
  places = runs.places(count) if count > 1 else [()]
  mesh = f'--config.mesh.fsdp={fsdp}'
  return start_faulty_ones(fault, places, workdir, workdir.parent / 'marks', env, mesh)


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['1x8x1', '1x8x8', '1x8x4', '2x1x1', '2x1x2', '2x4x8', '4x1x1'])
def test_any_layout_gives_the_same_losses(straight, env, tmp_path, layout):
  ended = runs.ends(*start_on(tmp_path / 'run', env, layout))
  assert not any(status for status, _ in ended), ended
  assert_same_losses(tmp_path / 'run', straight)


@pytest.mark.slow
@pytest.mark.parametrize(
  'layouts', [('1x8x8', '1x1x1', '2x1x2', '1x8x1'), ('2x4x8', '4x1x1', '1x8x4', '2x1x1')]
)
def test_the_machine_changes_on_the_way(straight, env, tmp_path, layouts):
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  for i, layout in enumerate(layouts):
    processes = start_on(workdir, env, layout, 'shards_everything,waits_to_be_stopped')
    for k in range(len(processes)):
      wait_for((marks / f'waiting-{7 * i}-{k}').exists, *processes)
    processes[-1].send_signal(signal.SIGTERM)
    ended = runs.ends(*processes)
    assert {status for status, _ in ended} == {75}, ended
    assert runs.saved_steps(workdir)[-1] == 7 * (i + 1)
  finish(workdir, env)
  assert_same_losses(workdir, straight)


@pytest.mark.slow
def test_the_other_machine_has_less_memory(straight, env, tmp_path):
  """Parts of a batch one after the other, and activations computed again."""
  workdir, marks = tmp_path / 'run', tmp_path / 'marks'
  (process,) = start_faulty_ones('waits_to_be_stopped', [()], workdir, marks, env)
  wait_for((marks / 'waiting-0-0').exists, process)
  process.send_signal(signal.SIGTERM)
  assert [status for status, _ in runs.ends(process)] == [75]
  output = finish(workdir, env, '--config.microbatches=4', '--config.model.remat=True')
  assert 'the checkpoint of step 7; step 7 of 40' in output
  assert_same_losses(workdir, straight, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('checkpoint', ['workdir', 'model.npz'])
def test_two_processes_evaluate(straight, env, tmp_path, checkpoint):
  path = straight if checkpoint == 'workdir' else straight / checkpoint
  model = [flag for flag in flags(tmp_path) if 'model' in flag or 'config=' in flag]
  ended = runs.ends(*[
    runs.start(
      'evaluate.py', *model, f'--checkpoint={path}', f'--output={tmp_path}/result.json',
      f'--per_image={tmp_path}/images.csv', '--require=cpu',
      '--config.evals.test.input.batch_size=77', *place, env=env,
    )
    for place in runs.places(2)
  ])  # fmt: skip
  assert [status for status, _ in ended] == [0, 0], ended
  result = json.loads((tmp_path / 'result.json').read_text())
  row = runs.rows(straight)[-1]
  assert result['test/n'] == 360 and result['test/top1'] == row['test/top1']
  assert result['test/loss'] == pytest.approx(row['test/loss'], rel=1e-6)
  assert 'test/top1' in ended[0][1] and 'test/top1' not in ended[1][1]
  labels = arrays.digits(split='test')[1]
  with open(tmp_path / 'images.csv', encoding='utf-8') as file:
    lines = list(csv.DictReader(file))
  assert [int(line['index']) for line in lines] == list(range(360))
  assert [int(line['label']) for line in lines] == labels.tolist()
  hits = sum(line['class_1'] == line['label'] for line in lines)
  assert hits / 360 == result['test/top1']
  mistakes = json.loads((tmp_path / 'result' / 'test' / 'mistakes.json').read_text())['mistakes']
  assert len(mistakes) == min(360 - hits, 50)


@pytest.mark.slow
def test_watching(straight, env, tmp_path):
  """A stalled step is told of and the run goes on; profile, cache and compile seconds are there."""
  workdir, marks, cache = tmp_path / 'run', tmp_path / 'marks', tmp_path / 'cache'
  more = ('--stall_seconds=1', '--profile_steps=5:7', f'--compilation_cache={cache}')
  process = runs.start_faulty('step_stalls', *flags(workdir, *more), marks=marks, env=env)
  wait_for((workdir / 'stall-0.txt').exists, process)
  # A loaded machine may have stalled before; the built-in stall is the one in train_batches.
  wait_for(lambda: 'in train_batches' in (workdir / 'stall-0.txt').read_text(), process)
  (marks / 'go').touch()
  ((status, output),) = runs.ends(process)
  assert status == 0, output
  assert f'nothing has come after step {FAULT_STEP - 1} for 1 s' in output
  assert f'profile: {workdir}/profile' in output and list(workdir.rglob('*.xplane.pb'))
  assert any(cache.iterdir())
  assert_same_run(workdir, straight)
  assert [row['step'] for row in runs.rows(workdir) if 'compile_seconds' in row] == [1]
