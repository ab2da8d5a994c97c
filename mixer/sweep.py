"""The paper's choice of a learning rate: a grid on held-out training images, then the real run.

  python -m mixer.sweep --config=configs/finetune.py:model=B/16,data=cifar10 --workdir=DIR \
      --config.init.path=Mixer-B_16.npz

Runs train.py with stage=dev for each rate (appendix C's grid by default), takes the rate with the
highest dev/top1 and runs stage=final with it. Flags it does not know go to train.py. Each run has a
workdir of its own below DIR, so a sweep that was stopped goes on where it was.
"""

import json
import pathlib
import subprocess
import sys

from absl import flags
from etils import epath

from mixer import files, reporting, settings
from mixer.errors import InputError, Interrupted

TRAIN = pathlib.Path(__file__).parent.parent / 'train.py'


def sweep(config: str, workdir: epath.Path, rates: list[str], rest: list[str]) -> dict:
  """{'dev': {rate: top-1}, 'learning_rate': the best, 'final': the last row of the final run}."""
  if 'stage=' in config:
    raise InputError(f'--config={config}: the sweep sets the stage itself; leave it out.')
  dev = {rate: _train(config, 'dev', rate, workdir, rest)['dev/top1'] for rate in rates}
  best = max(dev, key=dev.get)
  return {'dev': dev, 'learning_rate': best, 'final': _train(config, 'final', best, workdir, rest)}


def _train(config: str, stage: str, rate: str, workdir: epath.Path, rest: list[str]) -> dict:
  """The last row of a run of train.py, which is started or goes on or is done already."""
  directory = workdir / f'{stage}-{rate}'
  separator = ',' if ':' in config else ':'
  command = [
    sys.executable, str(TRAIN), f'--config={config}{separator}stage={stage}',
    f'--workdir={directory}', f'--config.optim.learning_rate={rate}', *rest,
  ]  # fmt: skip
  print(' '.join(command), flush=True)
  status = subprocess.run(command, check=False).returncode
  if status == Interrupted.status:
    raise Interrupted(f'in {directory}; the same command again goes on there.')
  if status:
    raise InputError(f'the run in {directory} ended with status {status}; see its message above.')
  return reporting.read_rows(directory)[-1]


def main(*rest: str) -> None:
  workdir = epath.Path(flags.FLAGS.workdir)
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
  settings.run(main, keep_unknown=True)
