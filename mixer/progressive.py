r"""Training at one resolution that goes on at others, each from the weights of the one before.

  python -m mixer.progressive --config=configs/fashion_mnist.py --workdir=DIR \
      --stage='train_input.image_size=16 total_steps=3000' \
      --stage='train_input.image_size=32 model.tiles=2 total_steps=600 optim.learning_rate=0.001' \
      --config.total_epochs=None

Each --stage has KEY=VALUE of its config, separated by spaces. Runs train.py for each in turn, in
DIR/stage1, DIR/stage2, ..., where `config.init.path` is the stage before; that of the first may be
given. Other flags are passed to all. An interrupted run continues with the same command, and
finished stages are skipped. See docs/finetuning.md.
"""

from collections.abc import Sequence
import re
import shlex

from absl import flags
from etils import epath

from mixer import cli, console, files, sweep
from mixer.errors import InputError


def progress(
  config: str, workdir: epath.Path, stages: Sequence[str], rest: Sequence[str]
) -> list[dict]:
  """The last row of the metrics of each stage, whose 'KEY=VALUE KEY=VALUE' are in `stages`.

  Raises:
    InputError: a stage is none, or a run failed.
  """
  changes = [_changes(stage) for stage in stages]
  given = [stage for stage in stages[1:] if re.search(r'(^|\s)init\.path=', stage)]
  if given:
    raise InputError(f'--stage={given[0]}: init.path is the stage before; leave it out.')
  keys = {change.partition('=')[0] for stage in changes for change in stage}
  for key in sorted({*keys, 'init.path'}):
    sweep.refuse(rest, f'config.{key}', instead='stage')
  rows: list[dict] = []
  for number, stage in enumerate(changes, 1):
    start = [f'--config.init.path={workdir / f"stage{number - 1}"}'] if rows else []
    own = [f'--config.{change}' for change in stage]
    rows.append(sweep.train(config, workdir / f'stage{number}', *start, *own, *rest))
  return rows


def _changes(stage: str) -> list[str]:
  """The KEY=VALUE of a stage."""
  try:
    found = shlex.split(stage)
  except ValueError as fault:
    raise InputError(f'--stage={stage}: {fault}.') from fault
  wrong = [part for part in found if not part.partition('=')[1] or part.startswith('-')]
  if wrong or not found:
    raise InputError(
      f'--stage={stage}: {wrong or "nothing"} is not KEY=VALUE of a config, such as '
      'train_input.image_size=32.'
    )
  return found


def main(*rest: str) -> None:
  sweep.exit_on_sigterm()
  stages = flags.FLAGS.stage
  rows = progress(flags.FLAGS.config, files.absolute(flags.FLAGS.workdir), stages, rest)
  for stage, row in zip(stages, rows, strict=True):
    results = ', '.join(f'{name} {row[name]:.4f}' for name in row if name.endswith('/top1'))
    console.print_line(f'{stage}: step {row["step"]}, {results or "no evaluation"}')


if __name__ == '__main__':
  flags.DEFINE_string('config', None, 'FILE[:ARGUMENT], the config of all stages.')
  flags.DEFINE_string('workdir', None, 'The directory for the workdirs of the stages.')
  flags.DEFINE_multi_string('stage', None, 'KEY=VALUE KEY=VALUE ... of the config of a stage.')
  flags.mark_flags_as_required(['config', 'workdir', 'stage'])
  cli.run(main, keep_unknown=True)
