"""Killed at any moment and started again, a run writes what it would have written."""

import random
import signal
import time

from etils import epath
import numpy as np
import pytest

from mixer.checkpoints import integrity
import runs

STEPS = 120


@pytest.fixture(scope='module')
def env(tmp_path_factory):
  return runs.optimised(JAX_COMPILATION_CACHE_DIR=str(tmp_path_factory.mktemp('cache')))


def flags(workdir, steps: int) -> tuple[str, ...]:
  return runs.train_flags(
    workdir, *runs.TINY, f'--config.total_steps={steps}', '--config.checkpoints.keep_last=2'
  )


def run_straight(workdir, env, steps: int):
  status, output = runs.run('train.py', *flags(workdir, steps), env=env)
  assert status == 0, output
  assert [row['step'] for row in runs.rows(workdir)] == list(range(1, steps + 1))
  return workdir


@pytest.fixture(scope='module')
def straight(tmp_path_factory, env):
  """The workdir of a run that nothing disturbs."""
  return run_straight(tmp_path_factory.mktemp('straight'), env, STEPS)


def run_with_kills(workdir, env, steps: int, kills: int, seed: int) -> None:
  """Starts the run again and again, SIGKILLs it `kills` times at moments of chance, ends it.

  A start rewrites metrics.jsonl, so its inode tells when training begins; with a checkpoint
  every ten steps, each of a few tenths of a second, many kills fall into a save.
  """
  chance, metrics = random.Random(seed), workdir / 'metrics.jsonl'
  for _ in range(kills):
    before = metrics.stat().st_ino if metrics.exists() else None
    process = runs.start('train.py', *flags(workdir, steps), env=env)
    runs.wait_for(lambda: metrics.exists() and metrics.stat().st_ino != before, process)  # noqa: B023
    time.sleep(chance.uniform(0.0, 1.0))
    assert process.poll() is None, 'the run ended before it was killed; give it more steps'
    process.send_signal(signal.SIGKILL)
    process.communicate()
  status, output = runs.run('train.py', *flags(workdir, steps), env=env)
  assert status == 0, output


def assert_same_run(workdir, straight) -> None:
  expected, found = runs.rows(straight), runs.rows(workdir)
  assert [runs.learned(row) for row in found] == [runs.learned(row) for row in expected]
  with np.load(workdir / 'model.npz') as a, np.load(straight / 'model.npz') as b:
    assert a.files == b.files
    assert all(a[name].tobytes() == b[name].tobytes() for name in a.files)


def test_three_kills(straight, env, tmp_path):
  run_with_kills(tmp_path, env, STEPS, kills=3, seed=1)
  assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_fifty_kills_during_saves(env, tmp_path, kills=50):
  """Each at a moment of chance after a save has begun; the step before it is never lost."""
  steps, killed = 1000, tmp_path / 'killed'
  straight = run_straight(tmp_path / 'straight', env, steps)
  chance, cut_short = random.Random(3), 0

  def unfinished():
    return list(killed.glob('checkpoints/*.orbax-checkpoint-tmp'))

  for _ in range(kills):
    left = set(unfinished())
    process = runs.start('train.py', *flags(killed, steps), env=env)
    assert runs.wait_for(lambda: set(unfinished()) - left, process)  # noqa: B023
    complete = runs.saved_steps(killed)
    time.sleep(chance.uniform(0.0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cut_short += bool(unfinished())
    intact = [
      s
      for s in runs.saved_steps(killed)
      if integrity.damage(epath.Path(killed / 'checkpoints' / str(s))) is None
    ]
    assert not complete or (intact and intact[-1] >= complete[-1])
  assert cut_short >= kills // 5  # the others came after its end
  status, output = runs.run('train.py', *flags(killed, steps), env=env)
  assert status == 0, output
  assert 'is damaged' not in output
  assert_same_run(killed, straight)


def test_a_damaged_checkpoint_is_not_used(straight, env, tmp_path):
  """One flipped bit in the newest checkpoint: the one before is used, and said."""
  process = runs.start('train.py', *flags(tmp_path, STEPS), env=env)
  assert runs.wait_for(lambda: len(runs.saved_steps(tmp_path)) >= 2, process)
  process.kill()
  process.communicate()
  older, newest = runs.saved_steps(tmp_path)[-2:]
  victim = max(
    (tmp_path / 'checkpoints' / str(newest) / 'state').rglob('*'), key=lambda p: p.stat().st_size
  )
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 1
  victim.write_bytes(bytes(content))
  status, output = runs.run('train.py', *flags(tmp_path, STEPS), env=env)
  assert status == 0, output
  assert f'checkpoint {newest} is damaged' in output and 'has changed since' in output
  assert f'step {older} of {STEPS}' in output
  aside = tmp_path / 'checkpoints.damaged'
  assert [p.name.split('-')[0] for p in aside.iterdir()] == [str(newest)]
  assert_same_run(tmp_path, straight)
