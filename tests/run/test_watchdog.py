"""Stalls and slow processes, without a run."""

import time

from etils import epath

from mixer.cluster import coordination
from mixer.run import watchdog


def wait_until(condition, seconds: float = 60.0) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_stall_is_reported_once_and_the_run_goes_on(tmp_path, caplog, capfd):
  dog = watchdog.Watchdog(epath.Path(tmp_path), stall_seconds=0.1)
  path = tmp_path / 'stall-0.txt'

  def where_it_hangs():
    wait_until(lambda: path.exists() and path.read_text().count('where_it_hangs') == 1)

  with dog.watching():
    dog.boundary(7)
    where_it_hangs()
    assert (
      'no step was dispatched for 0.1 s after step 7.' in caplog.text and str(path) in caplog.text
    )
    time.sleep(0.3)  # no second report of the same stall
    assert path.read_text().count('--- after step 7') == 1
    dog.boundary(8)
    wait_until(lambda: '--- after step 8' in path.read_text())
  assert 'where_it_hangs' in capfd.readouterr().err


def test_no_stall(tmp_path):
  dog = watchdog.Watchdog(epath.Path(tmp_path), stall_seconds=0.0)
  with dog.watching():
    dog.boundary(1)
  assert not list(tmp_path.iterdir())


def test_the_slowest_process_is_named(tmp_path, monkeypatch):
  """By the latest step that all have reported, 20: process 1 was 3 s later than process 0."""
  cluster = coordination.Cluster(client=object(), num_processes=3)
  heartbeats = {
    0: {'dispatched': {'10': 100.0, '20': 200.0, '30': 300.0}},
    1: {'dispatched': {'10': 100.0, '20': 203.0}},
    2: {'dispatched': {'10': 105.0, '20': 201.0}},
  }
  monkeypatch.setattr(cluster, '_heartbeats', heartbeats)
  dog = watchdog.Watchdog(epath.Path(tmp_path), stall_seconds=0.0, cluster=cluster)
  assert dog.lags(40) == {'lag_seconds': 3.0, 'slowest_process': 1}
  assert list(cluster._status['dispatched']) == [40]
  del heartbeats[2]
  assert dog.lags(50) == {}


def test_a_stall_is_reported_when_the_other_processes_cannot_be_asked(tmp_path, caplog):
  class Client:
    def key_value_dir_get(self, prefix):
      raise RuntimeError('no answer')

  cluster = coordination.Cluster(Client(), num_processes=2)
  dog = watchdog.Watchdog(epath.Path(tmp_path), stall_seconds=0.1, cluster=cluster)
  with dog.watching():
    wait_until((tmp_path / 'stall-0.txt').exists)
  assert 'no step was dispatched for 0.1 s after step 0. The stacks' in caplog.text


def test_lags_of_one_process(tmp_path):
  assert watchdog.Watchdog(epath.Path(tmp_path), stall_seconds=0.0).lags(10) == {}
