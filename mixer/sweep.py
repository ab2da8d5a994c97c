"""The paper's choice of a learning rate: a grid on held-out training images, then the real run.

  python -m mixer.sweep --config=configs/finetune.py:model=B/16,data=cifar10 --workdir=DIR \
      --config.init.path=Mixer-B_16.npz

Runs train.py with stage=dev for each rate (appendix C's grid by default), takes the rate with the
highest dev/top1 and runs stage=final with it. Flags it does not know go to train.py. Each run has a
workdir of its own below DIR, so a sweep that was stopped goes on where it was.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import pathlib
import signal
import subprocess
import sys

from absl import flags
from etils import epath

from mixer import cli, files
from mixer.errors import InputError, Interrupted
from mixer.run import metrics_log

TRAIN = pathlib.Path(__file__).parent.parent / 'train.py'


def sweep(config: str, workdir: epath.Path, rates: list[str], rest: list[str]) -> dict:
  """{'dev': {rate: top-1}, 'learning_rate': the best, 'final': the last row of the final run}."""
  if 'stage=' in config:
    raise InputError(f'--config={config}: the sweep sets the stage itself; leave it out.')

  def run(stage: str, rate: str) -> dict:
    return train(config, stage, rate, workdir / f'{stage}-{rate}', rest)

  dev = {rate: run('dev', rate)['dev/top1'] for rate in rates}
  best = max(dev, key=dev.get)
  return {'dev': dev, 'learning_rate': best, 'final': run('final', best)}


def train(config: str, stage: str, rate: str, directory: epath.Path, rest: list[str]) -> dict:
  """`start` with a stage and a learning rate."""
  separator = ',' if ':' in config else ':'
  config = f'{config}{separator}stage={stage}'
  return start(config, directory, f'--config.optim.learning_rate={rate}', *rest)


def start(config: str, directory: epath.Path, *rest: str) -> dict:
  """The last row of a run of train.py, which is started or goes on or is done already.

  Raises:
    InputError: it did not end well.
  """
  command = [sys.executable, str(TRAIN), f'--config={config}', f'--workdir={directory}', *rest]
  print(' '.join(command), flush=True)
  with _alone(directory) as inherited:
    status = run_to_end(command, inherited)
  if status == Interrupted.status:
    raise Interrupted(f'in {directory}; the same command again goes on there.')
  if status:
    raise InputError(f'the run in {directory} ended with status {status}; see its message above.')
  return metrics_log.read_rows(directory)[-1]


def run_to_end(command: list[str], inherited: tuple[int, ...] = ()) -> int:
  """The exit status of a command, which is told to stop if this program is, and waited for."""
  process = subprocess.Popen(command, pass_fds=inherited)
  try:
    return process.wait()
  except (KeyboardInterrupt, SystemExit):  # Ctrl-C reaches the command too, SIGTERM this program
    process.terminate()  # of train.py: it saves
    process.wait()
    raise


@contextlib.contextmanager
def _alone(directory: epath.Path) -> Iterator[tuple[int, ...]]:
  """Waits until no run is left in `directory`: kill -9 ends this program, but not its train.py.

  Yields what train.py is to inherit, so that the lock is free when it has ended too.
  """
  if '://' in str(directory):
    yield ()
    return
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / '.sweep-lock', 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f'waiting for the run that is still going on in {directory}', flush=True)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield (lock.fileno(),)


def end_on_sigterm() -> None:
  """Makes SIGTERM an exception, so that the run that has been started saves and ends as well."""
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(Interrupted.status))


def main(*rest: str) -> None:
  end_on_sigterm()
  workdir = files.absolute(flags.FLAGS.workdir)
  result = sweep(flags.FLAGS.config, workdir, flags.FLAGS.learning_rates, list(rest))
  for rate, top1 in result['dev'].items():
    chosen = '  <- chosen' if rate == result['learning_rate'] else ''
    print(f'learning rate {rate:>6}: dev/top1 {top1:.4f}{chosen}')
  print(f'final: test/top1 {result["final"]["test/top1"]:.4f}')
  files.write(workdir / 'sweep.json', json.dumps(result, indent=1).encode())


if __name__ == '__main__':
  flags.DEFINE_string('config', None, 'configs/finetune.py:ARGUMENT, without a stage.')
  flags.DEFINE_string('workdir', None, 'Holds a workdir for each run.')
  flags.DEFINE_list('learning_rates', ['0.003', '0.01', '0.03', '0.06'], 'The grid.')
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(main, keep_unknown=True)
