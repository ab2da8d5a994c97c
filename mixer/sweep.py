r"""The paper's choice of a learning rate: a grid on held-out training images, then the final run.

  python -m mixer.sweep --config=configs/finetune.py:model=B/16,data=cifar10 --workdir=DIR \
      --config.init.path=Mixer-B_16.npz

Runs train.py with stage=dev for each learning rate (by default those of appendix C), selects the
one with the highest dev/top1 and runs stage=final with it.
Other flags are passed to train.py. Each run has its own workdir in DIR, so an interrupted sweep
continues with the same command.
"""

from collections.abc import Iterator, Sequence
import contextlib
import json
import signal
import subprocess
import sys

from absl import flags
from etils import epath

from mixer import cli, console, files, shipped
from mixer.errors import InputError, Interrupted
from mixer.run import metrics_log

TRAIN = shipped.TRAIN


def sweep(config: str, workdir: epath.Path, rates: Sequence[str], rest: Sequence[str]) -> dict:
  """{'dev': {rate: top-1}, 'learning_rate': the best, 'final': the last row of the final run}."""
  if 'stage=' in config:
    raise InputError(f'--config={config}: the sweep sets the stage itself; leave it out.')
  refuse(rest, 'config.optim.learning_rate', instead='learning_rates')

  def run(stage: str, rate: str) -> dict:
    return train_stage(config, stage, rate, workdir / f'{stage}-{rate}', rest)

  rows = {rate: run('dev', rate) for rate in rates}
  dev = {rate: row['dev/top1'] for rate, row in rows.items()}
  best = max(dev, key=dev.get)
  return {'dev': dev, 'learning_rate': best, 'final': run('final', best)}


def refuse(rest: Sequence[str], flag: str, *, instead: str) -> None:
  """Raises InputError if `rest` has a flag that would replace what differs between the runs."""
  if any(part.lstrip('-').partition('=')[0] == flag for part in rest):
    raise InputError(f'--{flag} would be the same in all runs; give --{instead}.')


def train_stage(
  config: str, stage: str, rate: str, workdir: epath.Path, rest: Sequence[str]
) -> dict:
  """`train` with a stage and a learning rate."""
  separator = ',' if ':' in config else ':'
  config = f'{config}{separator}stage={stage}'
  return train(config, workdir, f'--config.optim.learning_rate={rate}', *rest)


def train(config: str, workdir: epath.Path, *rest: str) -> dict:
  """Starts or resumes a run of train.py in a subprocess; the last row of its metrics.

  Errors are those of `run_to_end`.
  """
  with lock(workdir) as inherited:
    run_to_end(
      [str(TRAIN), f'--config={config}', f'--workdir={workdir}', *rest],
      f'the run in {workdir}', inherited,
    )  # fmt: skip
  return metrics_log.read_rows(workdir)[-1]


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[Sequence[int]]:
  """Yields the file descriptors by which a program holds a workdir after this one has ended.

  kill -9 ends this program but not the one that it has started and that inherits them: the next
  program waits here.
  """

  def wait(_):
    console.print_line(f'waiting for the run that is still active in {workdir}')

  with files.lock(workdir / '.sweep-lock', wait) as file:
    yield (file.fileno(),) if file else ()


def run_to_end(command: Sequence[str], name: str, inherited: Sequence[int] = ()) -> None:
  """Runs a Python program, which is stopped if this one is, and waits for its end.

  Args:
    command: the program's file and its arguments.
    name: what the program does, for the message of an error.
    inherited: file descriptors.

  Raises:
    Interrupted: the program was stopped.
    InputError: it failed; its message has been printed.
  """
  command = [sys.executable, *command]
  console.print_line(' '.join(command))
  process = subprocess.Popen(command, pass_fds=inherited)
  try:
    status = process.wait()
  except (KeyboardInterrupt, SystemExit):  # Ctrl-C is sent to both programs, SIGTERM to this one
    process.terminate()  # train.py saves a checkpoint
    process.wait()
    raise
  check_status(status, name, 'see its message above.')


def check_status(status: int, name: str, why: str) -> None:
  """Raises the errors of `run_to_end`; `why` says where the message of the program is."""
  if status == Interrupted.status:
    raise Interrupted(f'{name} was stopped; the same command continues it.')
  if status:
    raise InputError(f'{name} ended with status {status}; {why}')


def exit_on_sigterm() -> None:
  """Turns SIGTERM into SystemExit, so that `run_to_end` stops its program too."""
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(Interrupted.status))


def main(*rest: str) -> None:
  exit_on_sigterm()
  workdir = files.absolute(flags.FLAGS.workdir)
  result = sweep(flags.FLAGS.config, workdir, flags.FLAGS.learning_rates, rest)
  files.write(workdir / 'sweep.json', json.dumps(result, indent=1).encode())
  for rate, top1 in result['dev'].items():
    selected = '  <- selected' if rate == result['learning_rate'] else ''
    console.print_line(f'learning rate {rate:>6}: dev/top1 {top1:.4f}{selected}')
  for name in ('val/top1', 'test/top1'):
    if name in result['final']:
      console.print_line(f'final: {name} {result["final"][name]:.4f}')


if __name__ == '__main__':
  flags.DEFINE_string('config', None, 'configs/finetune.py:ARGUMENT, without a stage.')
  flags.DEFINE_string('workdir', None, 'The directory for the workdirs of the runs.')
  flags.DEFINE_list('learning_rates', ['0.003', '0.01', '0.03', '0.06'], 'The grid.')
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(main, keep_unknown=True)
