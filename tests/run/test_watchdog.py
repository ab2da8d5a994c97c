"""Stalls, slow processes and profiles, without a run."""

import pathlib
import time

from etils import epath
import jax
import jax.numpy as jnp
import pytest

from mixer.cluster import coordination
from mixer.errors import InputError
from mixer.run import watchdog


def wait_until(condition, seconds: float = 60.0) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_stall_is_told_once_and_the_run_goes_on(tmp_path, caplog, capfd):
  pace = watchdog.Pace(epath.Path(tmp_path), stall_seconds=0.1)
  path = tmp_path / 'stall-0.txt'

  def where_it_hangs():
    wait_until(lambda: path.exists() and path.read_text().count('where_it_hangs') == 1)

  with pace.watching():
    pace.boundary(7)
    where_it_hangs()
    assert 'nothing has come after step 7 for 0.1 s.' in caplog.text and str(path) in caplog.text
    time.sleep(0.3)  # no second word of the same stall
    assert path.read_text().count('--- after step 7') == 1
    pace.boundary(8)
    wait_until(lambda: '--- after step 8' in path.read_text())
  assert 'where_it_hangs' in capfd.readouterr().err


def test_no_stall(tmp_path):
  pace = watchdog.Pace(epath.Path(tmp_path), stall_seconds=0.0)
  with pace.watching():
    pace.boundary(1)
  assert not list(tmp_path.iterdir())


def test_the_slowest_process_is_named(tmp_path, monkeypatch):
  """By the latest step that all have told of: 20, where process 1 came 3 s after process 0."""
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(coordination, 'several', lambda: True)
  signs = {
    0: {'dispatched': {'10': 100.0, '20': 200.0, '30': 300.0}},
    1: {'dispatched': {'10': 100.0, '20': 203.0}},
    2: {'dispatched': {'10': 105.0, '20': 201.0}},
  }
  monkeypatch.setattr(coordination, 'heard', signs)
  pace = watchdog.Pace(epath.Path(tmp_path), stall_seconds=0.0)
  assert pace.lags(40) == {'lag_seconds': 3.0, 'slowest_process': 1}
  assert list(coordination.sign['dispatched']) == [40]
  del signs[2]
  assert pace.lags(50) == {}


def test_lags_of_one_process(tmp_path):
  assert watchdog.Pace(epath.Path(tmp_path), stall_seconds=0.0).lags(10) == {}


@pytest.mark.parametrize('first', [0, 3])
def test_a_profile_of_the_steps_asked_for(tmp_path, monkeypatch, first):
  calls = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda where: calls.append(('start', where)))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  profile = watchdog.Profile(epath.Path(tmp_path), '3:4')
  for step in range(first, 8):
    profile.boundary(step)
    calls.append(step)
  profile.close()
  after = [3, 4, 'stop', 5, 6, 7]
  start = ('start', str(tmp_path))
  assert calls == ([0, 1, start, 2, *after] if first == 0 else [start, *after])


def test_a_profile_is_written(tmp_path):
  profile = watchdog.Profile(epath.Path(tmp_path), '1:1')
  profile.boundary(0)
  jnp.ones(3).block_until_ready()
  profile.close()
  assert list(pathlib.Path(tmp_path).rglob('*.xplane.pb'))


@pytest.mark.parametrize('steps', ['10', '15:10', 'a:b', ':', '-1:4', '0:3', ''])
def test_steps_that_are_none(tmp_path, steps):
  with pytest.raises(InputError, match='--profile_steps=.*: write FIRST:LAST, as in 10:15'):
    watchdog.Profile(epath.Path(tmp_path), steps)


def test_a_profile_of_steps_that_do_not_come_is_missed(tmp_path, caplog):
  profile = watchdog.Profile(epath.Path(tmp_path), '500:510')
  profile.boundary(3)
  profile.close()
  assert 'no profile: none of the steps 500 to 510 was made.' in caplog.text
  caplog.clear()
  watchdog.Profile(epath.Path(tmp_path), None).close()
  assert not caplog.text and not list(tmp_path.iterdir())
