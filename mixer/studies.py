"""The paper's studies at a size that runs here: python -m mixer.studies STUDY --workdir=DIR

  permutations  figure 4: a Mixer and a ResNet whose inputs are permuted
  data_size     figure 2, right: the same two on 3, 10, 30 and 100 percent of the training images

Each run has a workdir below DIR, so a study that was stopped goes on where it was with the same
command. At the end DIR/STUDY.csv has every number, DIR/STUDY.png the figure, and a table is
printed. Flags it does not know go to train.py. See docs/studies.md.
"""

from collections.abc import Callable, Sequence
import csv
import io
import json
import pathlib
import statistics
import sys

from absl import flags
from etils import epath

from mixer import cli, files, sweep
from mixer.errors import InputError, Interrupted
from mixer.run import metrics_log
from mixer.visualize import plots

ROOT = pathlib.Path(__file__).parent.parent
EVALUATE = ROOT / 'evaluate.py'
MODELS = ('mixer', 'resnet')
KINDS = ('original', 'patch_pixel', 'global')
PERCENTS = (3, 10, 30, 100)


def permutations(workdir: epath.Path, seeds: Sequence[str], rest: Sequence[str]) -> None:
  """Six runs for each seed; the accuracy on the test set along each of them."""
  table = []
  for seed in seeds:
    for model in MODELS:
      for kind in KINDS:
        config = f'configs/permutations_small.py:model={model},kind={kind}'
        run = workdir / f'permutations-{model}-{kind}-seed{seed}'
        train(config, run, seed, rest)
        table += [
          {'model': model, 'kind': kind, 'seed': seed, 'step': row['step'],
           'test_top1': row['test/top1']}
          for row in metrics_log.read_rows(run) if 'test/top1' in row
        ]  # fmt: skip
  write(table, workdir / 'permutations.csv')
  panels = {
    model: {kind: means(table, 'step', model=model, kind=kind) for kind in KINDS}
    for model in MODELS
  }
  plots.lines(panels, workdir / 'permutations.png', xlabel='step', ylabel='test top-1')
  print(f'\n{"test top-1 at the end":<24}' + ''.join(f'{kind:>14}' for kind in KINDS))
  for model, curves in panels.items():
    print(f'{model:<24}' + ''.join(f'{100 * curves[kind][-1][1]:14.1f}' for kind in KINDS))


def data_size(workdir: epath.Path, seeds: Sequence[str], rest: Sequence[str]) -> None:
  """Eight runs for each seed; the accuracy on the test set where that on 'val' was best."""
  table = []
  for seed in seeds:
    for model in MODELS:
      for percent in PERCENTS:
        config = f'configs/data_size_small.py:model={model},subset={percent}'
        run = workdir / f'data_size-{model}-{percent}-seed{seed}'
        last = train(config, run, seed, rest)
        best = evaluate_best(config, run, rest)
        table.append(
          {'model': model, 'percent': percent, 'seed': seed, 'steps': last['step'],
           'best_step': int(best['checkpoint'].rpartition(' ')[2]), 'val_top1': best['val/top1'],
           'test_top1': best['test/top1'], 'last_test_top1': last['test/top1']}
        )  # fmt: skip
  write(table, workdir / 'data_size.csv')
  curves = {model: means(table, 'percent', model=model) for model in MODELS}
  plots.lines(
    {'best checkpoint by validation': curves},
    workdir / 'data_size.png',
    xlabel='percent of the training images',
    ylabel='test top-1',
    xticks=PERCENTS,
  )
  print(f'\n{"test top-1":<24}' + ''.join(f'{percent:>12} %' for percent in PERCENTS))
  for model, points in curves.items():
    print(f'{model:<24}' + ''.join(f'{100 * top1:14.1f}' for _, top1 in points))


STUDIES: dict[str, Callable[[epath.Path, Sequence[str], Sequence[str]], None]] = {
  'permutations': permutations,
  'data_size': data_size,
}


def train(config: str, run: epath.Path, seed: str, rest: Sequence[str]) -> dict:
  """The last row of a run of train.py, which is started, goes on, or is done already."""
  return sweep.start(str(ROOT / config), run, '--notensorboard', f'--config.seed={seed}', *rest)


def evaluate_best(config: str, run: epath.Path, rest: Sequence[str]) -> dict:
  """What evaluate.py finds of the best checkpoint of a finished run; made once."""
  output = run / 'best.json'
  if not output.exists():
    command = [
      sys.executable, str(EVALUATE), f'--config={ROOT / config}', f'--checkpoint={run}',
      '--which=best', f'--output={output}', *(f for f in rest if f.startswith('--config.')),
    ]  # fmt: skip
    print(' '.join(command), flush=True)
    status = sweep.run_to_end(command)
    if status == Interrupted.status:
      raise Interrupted(f'in {run}; the same command again goes on there.')
    if status:
      raise InputError(
        f'the evaluation of {run} ended with status {status}; see its message above.'
      )
  return json.loads(output.read_text())


def means(table: Sequence[dict], x: str, **where) -> list[tuple[float, float]]:
  """(x, mean over the seeds of the test top-1) of the rows that agree with `where`."""
  chosen = [row for row in table if all(row[key] == value for key, value in where.items())]
  return [
    (value, statistics.fmean(row['test_top1'] for row in chosen if row[x] == value))
    for value in dict.fromkeys(row[x] for row in chosen)
  ]


def write(table: Sequence[dict], path: epath.Path) -> None:
  text = io.StringIO()
  writer = csv.DictWriter(text, table[0], lineterminator='\n')
  writer.writeheader()
  writer.writerows(table)
  files.write(path, text.getvalue().encode())


def main(study: str, *rest: str) -> None:
  if study not in STUDIES:
    raise InputError(f'unknown study {study!r}; use one of {sorted(STUDIES)}.')
  sweep.end_on_sigterm()
  workdir = files.absolute(flags.FLAGS.workdir)
  STUDIES[study](workdir, flags.FLAGS.seeds, rest)
  print(f'written: {workdir / study}.csv, {workdir / study}.png')


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'Holds a workdir for each run, the table and the figure.')
  flags.DEFINE_list('seeds', ['0'], 'Each run is made with each of these; the figure has means.')
  flags.mark_flags_as_required(['workdir'])
  cli.run(main, keep_unknown=True)
