"""Which process this is, and how processes find each other; real runs are in test_faults.py."""

import concurrent.futures
import json
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from mixer import cli
from mixer.cluster import coordination, detection, handshake
from mixer.errors import Diverged, InputError
import runs

SLURM = {
  'SLURM_JOB_ID': '4097',
  'SLURM_STEP_NODELIST': 'node[007-008]',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '1',
}
OPEN_MPI_4 = {
  'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_RANK': '1',
}
OPEN_MPI_5 = {name: value for name, value in OPEN_MPI_4.items() if 'MCA' not in name}
NOTHING = (None, None, None)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
  """A function that sets the environment of a launcher; at first there is none."""
  others = (
    'KUBERNETES_SERVICE_HOST', 'PMI_SIZE', 'JAX_LOCAL_DEVICE_IDS', 'TPU_WORKER_HOSTNAMES',
    'TPU_PROCESS_ADDRESSES', 'JOB_COMPLETION_INDEX',
  )  # fmt: skip
  for name in (*SLURM, *OPEN_MPI_4, *others):
    monkeypatch.delenv(name, raising=False)

  def put(variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return put


def test_alone(surroundings):
  assert detection.detect(*NOTHING, 10) is None
  surroundings({**SLURM, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'})
  assert detection.detect(*NOTHING, 10) is None  # and JAX must not hide all GPUs but one


def test_by_flags():
  assert detection.detect('here:8476', 4, 3, 10) == ('here:8476', 4, 3, None)


def test_slurm(surroundings):
  surroundings(SLURM)
  port = 4097 % 2**12 + (65535 - 2**12 + 1)
  assert detection.detect(*NOTHING, 10) == (f'node007:{port}', 4, 3, [1])
  assert detection.detect('node007:9', None, None, 10) == ('node007:9', 4, 3, [1])
  assert detection.detect(None, 1, None, 10) is None


def test_open_mpi(surroundings):
  surroundings(OPEN_MPI_4)
  coordinator, *rest = detection.detect(*NOTHING, 10)
  assert coordinator.startswith('10.96.0.1:') and rest == [2, 1, [1]]


def test_what_jax_does_not_know_is_not_run_alone(surroundings):
  """Open MPI 5 tells ranks, but no address."""
  surroundings(OPEN_MPI_5)
  with pytest.raises(InputError, match='looks like one of several processes.*--num_processes=1'):
    detection.detect(*NOTHING, 10)
  assert detection.detect('here:8476', None, None, 10) == ('here:8476', 2, 1, [1])


def test_devices_given_by_hand(surroundings):
  surroundings({**SLURM, 'JAX_LOCAL_DEVICE_IDS': '0,1'})
  assert detection.detect(*NOTHING, 10).local_device_ids is None  # JAX reads the variable itself


def test_incomplete_flags():
  with pytest.raises(InputError, match='--num_processes, --process_id cannot be detected: give'):
    detection.detect('here:8476', None, None, 10)
  with pytest.raises(InputError, match='--process_id=2 is not in 0 to 1'):
    detection.detect('here:8476', 2, 2, 10)


def test_a_pod_of_no_job(surroundings):
  surroundings({'KUBERNETES_SERVICE_HOST': '10.0.0.1'})
  assert detection.detect(*NOTHING, 10) is None


def free_port() -> int:
  with socket.create_server(('localhost', 0)) as server:
    return server.getsockname()[1]


def call(count, ids, facts=lambda i: {}, timeout=30.0) -> list[str]:
  """What each of the processes `ids` of `count` is told: '' or its error."""
  address = f'localhost:{free_port()}'

  def one(i):
    try:
      handshake.wait_for_all(
        address, process_id=i, num_processes=count, timeout=timeout, facts=facts(i)
      )
    except InputError as error:
      return str(error)
    return ''

  with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
    return list(pool.map(one, ids))


def test_all_come():
  assert call(4, [3, 1, 0, 2], lambda i: {'a': (1, 2)}) == [''] * 4


def test_who_is_missing_is_named():
  first, second = call(4, [0, 2], timeout=1.0)
  assert first == second
  assert re.match(
    r'processes 1, 3 of 4 did not connect within 1 s .* process 0 \(.*process 2', first
  )


def test_without_process_0():
  (text,) = call(2, [1], timeout=0.5)
  assert re.match('process 1 found no process 0 at localhost:[0-9]+ within 0.5 s', text)


def test_two_of_the_same_number():
  told = call(3, [0, 1, 1])
  assert len(set(told)) == 1 and 'two processes have the number 1: ' in told[0]


def connect(port: int) -> socket.socket:
  """Waits until process 0 listens."""
  end = time.monotonic() + 30
  while True:
    try:
      return socket.create_connection(('localhost', port))
    except OSError:
      assert time.monotonic() < end, 'process 0 does not listen'
      time.sleep(0.01)


def say_hello(port: int, process_id: int) -> socket.socket:
  """A process that has come, and waits for the verdict."""
  connection = connect(port)
  hello = {'id': process_id, 'where': 'there', 'facts': {'num_processes': 3}}
  connection.sendall(json.dumps(hello).encode() + b'\n')
  return connection


@pytest.mark.parametrize('again', [True, False])
def test_a_process_that_comes_and_ends_is_not_counted(again):
  """Started again it is one of them; else it is the one that is missing."""
  port = free_port()
  arguments = {'num_processes': 3, 'facts': {}, 'timeout': 30.0 if again else 2.0}
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(handshake.wait_for_all, f'localhost:{port}', process_id=0, **arguments)
    say_hello(port, 1).close()
    others = [say_hello(port, i) for i in ((1, 2) if again else (2,))]
    if again:
      assert first.result() is None
    else:
      with pytest.raises(InputError, match='process 1 of 3 did not connect within 2 s'):
        first.result()
  for connection in others:
    connection.close()


def test_what_differs_is_named():
  told = call(3, [0, 1, 2], lambda i: {'config.seed': i // 2, 'jax': '0.10'})
  assert len(set(told)) == 1
  assert '  process 2: config.seed is 1, on process 0 0\n' in told[0]
  assert 'process 1:' not in told[0] and 'jax' not in told[0]


def test_strangers_are_not_counted():
  port = free_port()
  address = f'localhost:{port}'
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    hold = [
      pool.submit(
        handshake.wait_for_all, address, process_id=0, num_processes=2, timeout=30, facts={}
      )
    ]
    while True:
      try:
        stranger = socket.create_connection(('localhost', port))
        break
      except OSError:
        pass
    with stranger:
      stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
      hold.append(
        pool.submit(
          handshake.wait_for_all, address, process_id=1, num_processes=2, timeout=30, facts={}
        )
      )
      assert [future.result() for future in hold] == [None, None]


def test_a_port_that_is_taken():
  with socket.create_server(('', free_port())) as server:
    address = f'localhost:{server.getsockname()[1]}'
    with pytest.raises(InputError, match='process 0 cannot listen on port .* a free port'):
      handshake.wait_for_all(address, process_id=0, num_processes=2, timeout=1, facts={})


class Store:
  """What the coordination service keeps, for clusters of one test."""

  def __init__(self):
    self.values: dict[str, str] = {}

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite or key not in self.values
    self.values[key] = value

  def blocking_key_value_get(self, key, timeout_ms):
    return self.values[key]

  def key_value_dir_get(self, prefix):
    return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]


def pair() -> list[coordination.Cluster]:
  store = Store()
  return [coordination.Cluster(store, process_id=i, num_processes=2) for i in range(2)]


def test_process_0_decides_for_all():
  first, second = pair()
  for value in ({'step': 4}, None, 3):
    assert first.on_process_0(lambda value=value: value) == value
    assert second.on_process_0(lambda: pytest.fail('called on process 1')) == value
  assert coordination.SINGLE.on_process_0(lambda: 5) == 5


def test_data_that_differ_are_named():
  same = {'config.train_input': '5 images', 'config.evals.val.input': '3 images'}
  coordination.SINGLE.check_same({**same, 'config.evals.val.input': '4 images'})
  first, second = pair()
  first.check_same(same)
  text = 'process 1 finds for config.evals.val.input: 4 images; process 0: 3 images. Give all'
  with pytest.raises(InputError, match=text):
    second.check_same({**same, 'config.evals.val.input': '4 images'})


@pytest.mark.parametrize('missing_on', [0, 1])
def test_evaluation_data_that_one_process_lacks_are_named(missing_on):
  facts = [{'config.evals.val.input': '3 images', 'config.evals.real.input': '9 images'}] * 2
  facts[missing_on] = {'config.evals.val.input': '3 images'}
  first, second = pair()
  first.check_same(facts[0])
  seen = ['9 images', '9 images']
  seen[missing_on] = 'nothing'
  text = f'process 1 finds for config.evals.real.input: {seen[1]}; process 0: {seen[0]}. Give all'
  with pytest.raises(InputError, match=text):
    second.check_same(facts[1])


def test_nothing_changes_a_single_process():
  before = dict(vars(coordination.SINGLE))
  with coordination.SINGLE as cluster:
    cluster.barrier('here')
    cluster.set_status(step=3)
    cluster.check_same({'a': 1})
    assert not cluster.is_multiprocess and cluster.process_id == 0 and not cluster.heartbeats
  assert vars(coordination.SINGLE) == before and not coordination.SINGLE._status


def test_imports_start_nothing():
  """No thread, signal handler or log filter comes from importing the program."""
  code = (
    'import logging, signal, sys, threading\n'
    'before = (threading.enumerate(), sys.unraisablehook, signal.getsignal(signal.SIGTERM))\n'
    'import mixer.run.session, mixer.run.evaluation, mixer.cost.dry_run\n'
    'after = (threading.enumerate(), sys.unraisablehook, signal.getsignal(signal.SIGTERM))\n'
    'assert before == after, (before, after)\n'
    'from absl import logging as absl_logging\n'
    'assert not absl_logging.get_absl_logger().filters\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=runs.ROOT, text=True, capture_output=True, timeout=300
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('address', ['here', 'here:', ':80', 'here:port'])
def test_addresses(address):
  with pytest.raises(InputError, match='write HOST:PORT of process 0'):
    handshake.parse_address(address)
  assert handshake.parse_address('[::1]:80') == ('::1', 80)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_waiting_for_the_other_processes(tmp_path, number):
  """The status is that of a process without handlers; nothing had begun."""
  flags = runs.places(2)[0]
  port = int(flags[0].rpartition(':')[2])
  process = runs.start(
    'train.py', *runs.train_flags(tmp_path / 'run'), *flags, env=runs.environment()
  )
  connect(port).close()
  process.send_signal(number)
  ((status, output),) = runs.ends(process)
  assert status == 128 + number and f'error: stopped by {number.name}.' in output, output


def test_what_ends_a_run_is_printed_before_the_others_are_waited_for(capsys):
  """Another process may end this one meanwhile; and it is printed once."""

  class Gone(Store):
    def wait_at_barrier(self, name, timeout_ms):
      assert 'error: step 5: loss = nan' in capsys.readouterr().err
      raise RuntimeError('process 0 has ended')

  error = Diverged('step 5: loss = nan')
  with pytest.raises(RuntimeError, match='process 0 has ended'):
    coordination.Cluster(Gone(), process_id=1, num_processes=2).__exit__(None, error, None)
  assert cli.print_error(error) == 3 and not capsys.readouterr().err
