"""Starts the entry points as users do, in processes of their own."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent

# The digits config at a size that takes seconds, with every source of randomness on.
TINY = (
  '--config.model.num_blocks=2',
  '--config.model.hidden_dim=16',
  '--config.model.tokens_mlp_dim=8',
  '--config.model.channels_mlp_dim=32',
  '--config.model.dropout=0.1',
  '--config.model.stochastic_depth=0.2',
  '--config.train_input.batch_size=64',
  '--config.every.log=1',
  '--config.every.evaluate=20',
  '--config.every.checkpoint=10',
)


def environment(**more: str) -> dict[str, str]:
  """One CPU device; compiled as in the tests' own process, and kept where it keeps its programs.

  A run that is killed needs a JAX_COMPILATION_CACHE_DIR of its own: JAX writes there in place.
  """
  # A process that has loaded TensorFlow has set these.
  inherited = os.environ.keys() - {'TF_CPP_MIN_LOG_LEVEL', 'TF_ENABLE_ONEDNN_OPTS'}
  return {
    **{name: os.environ[name] for name in inherited},
    **more,
  }


def optimised(**more: str) -> dict[str, str]:
  """The same with all of XLA's optimisations, as users have them."""
  return environment(**{'JAX_DISABLE_MOST_OPTIMIZATIONS': '0', 'XLA_FLAGS': '', **more})


def start(program: str, *flags: str, env: dict[str, str], cwd=ROOT) -> subprocess.Popen:
  command = [sys.executable, str(ROOT / program), *flags]
  return subprocess.Popen(
    command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def run(program: str, *flags: str, env: dict[str, str], cwd=ROOT) -> tuple[int, str]:
  """(exit status, everything printed)."""
  process = start(program, *flags, env=env, cwd=cwd)
  return ends(process)[0]


def small_digits(**changes) -> dict:
  """The digits at a size that takes seconds; keys as on the command line."""
  from configs import digits  # others start processes only

  found = digits.get_config()
  small = {
    'model.num_blocks': 1, 'model.hidden_dim': 16, 'model.tokens_mlp_dim': 8,
    'model.channels_mlp_dim': 32, 'train_input.batch_size': 64, 'total_steps': 6, 'every.log': 4,
    'every.evaluate': 6, 'every.checkpoint': 3,
  }  # fmt: skip
  found.update_from_flattened_dict({**small, **changes})
  return found.to_dict()


def train_here(config, workdir, **options) -> None:
  """Trains in this process, without TensorBoard; `config` is a ConfigDict or plain dicts."""
  from mixer.run import session  # others start processes only

  config = config if isinstance(config, dict) else config.to_dict()
  session.train(
    session.Options(config=config, workdir=str(workdir), **{'tensorboard': False, **options})
  )


def start_faulty(fault: str, *flags: str, marks, env: dict[str, str]) -> subprocess.Popen:
  """train.py with a fault of tests/faulty.py, which tells of itself by files in `marks`."""
  marks.mkdir(exist_ok=True)
  env = {**env, 'MARKS': str(marks), 'PYTHONPATH': str(ROOT)}
  return start('tests/faulty.py', fault, 'train.py', *flags, env=env)


def places(count: int, **more: float) -> list[tuple[str, ...]]:
  """The flags of each of `count` processes of one run on this machine."""
  with socket.create_server(('localhost', 0)) as server:
    port = server.getsockname()[1]
  shared = {'startup_timeout': 300, 'heartbeat_timeout': 30, **more}
  return [
    (
      f'--coordinator=localhost:{port}',
      f'--num_processes={count}',
      f'--process_id={i}',
      *(f'--{name}={value}' for name, value in shared.items()),
    )
    for i in range(count)
  ]


def ends(*processes: subprocess.Popen) -> list[tuple[int, str]]:
  """(exit status, everything printed) of each, when all have ended."""
  outputs = [process.communicate(timeout=1800)[0] for process in processes]
  for output in outputs:
    check_no_greeting(output)
  return [(process.returncode, output) for process, output in zip(processes, outputs)]


def check_no_greeting(output: str) -> None:
  """TensorFlow's messages at its start are not printed, whatever the program."""
  for greeting in ('oneDNN', 'absl::InitializeLog', 'cpu_feature_guard', 'This TensorFlow binary'):
    assert greeting not in output, output


def saved_steps(workdir) -> list[int]:
  return sorted(int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit())


def run_module(module: str, *flags: str, env: dict[str, str]) -> tuple[int, str]:
  """The same of `python -m module`."""
  command = [sys.executable, '-m', module, *flags]
  done = subprocess.run(
    command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    timeout=300,
  )  # fmt: skip
  check_no_greeting(done.stdout)
  return done.returncode, done.stdout


def train_flags(workdir, *overrides: str, config='configs/digits.py', tensorboard=False):
  return (
    f'--config={ROOT / config}',
    f'--workdir={workdir}',
    '--require=cpu',
    f'--{"" if tensorboard else "no"}tensorboard',
    *overrides,
  )


def rows(workdir) -> list[dict]:
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def learned(row: dict) -> dict:
  """The part of a row that does not depend on the clock."""
  return {k: v for k, v in row.items() if k.split('/')[0] in ('step', 'train', 'test', 'epoch')
          and not k.endswith('images_per_sec')}  # fmt: skip


def wait_for(condition, process: subprocess.Popen, seconds: float = 1200) -> bool:
  """Polls until `condition()` holds (True) or the process has ended (False)."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if condition():
      return True
    if process.poll() is not None:
      return False
    time.sleep(0.01)
  raise TimeoutError(f'nothing happened for {seconds} s')
