"""The paper's studies at a size that runs here: python -m mixer.studies STUDY --workdir=DIR

  permutations  figure 4: a Mixer and a ResNet whose inputs are permuted
  data_size     figure 2, right: the same two on 3, 10, 30 and 100 percent of the training images

--models=mixer,vit,resnet adds a ViT.

Each run has its own workdir in DIR, so an interrupted study continues with the same command. At the
end DIR/STUDY.csv has every number, DIR/STUDY.png the figure, and a table is printed. Other flags
are passed to train.py. See docs/studies.md.
"""

from collections.abc import Callable, Sequence
import itertools
import statistics
from typing import NamedTuple

from absl import flags
from etils import epath

from mixer import cli, console, files, shipped, sweep
from mixer.errors import InputError
from mixer.run import metrics_log
from mixer.visualize import plots

CONFIGS, EVALUATE = shipped.CONFIGS, shipped.EVALUATE
MODELS = {'mixer': 'Mixer', 'vit': 'ViT', 'resnet': 'ResNet'}
KINDS = {
  'original': 'original images',
  'patch_pixel': 'patches and the pixels within them shuffled',
  'global': 'all pixels shuffled',
}
PERCENTS = (3, 10, 30, 100)


class Study(NamedTuple):
  """What to run: the seeds and models, and further flags of train.py."""

  workdir: epath.Path
  seeds: Sequence[str]
  models: Sequence[str]
  rest: Sequence[str]


def permutations(study: Study) -> None:
  """Three runs for each seed and model; the accuracy on the test set during each of them."""
  table = []
  for seed, model, kind in itertools.product(study.seeds, study.models, KINDS):
    run = study.workdir / f'permutations-{model}-{kind}-seed{seed}'
    train(f'permutations_small.py:model={model},kind={kind}', run, seed, study.rest)
    table += [
      {'model': model, 'kind': kind, 'seed': seed, 'step': row['step'],
       'test_top1': row['test/top1']}
      for row in metrics_log.read_rows(run) if 'test/top1' in row
    ]  # fmt: skip
  files.write_csv(study.workdir / 'permutations.csv', table)
  panels = {
    MODELS[model]: {
      label: means(table, 'step', model=model, kind=kind) for kind, label in KINDS.items()
    }
    for model in study.models
  }
  plots.png(panels, study.workdir / 'permutations.png', xlabel='step', ylabel='test top-1')
  console.print_line(f'\n{"test top-1 at the end":<24}' + ''.join(f'{kind:>14}' for kind in KINDS))
  for title, curves in panels.items():
    console.print_line(
      f'{title:<24}' + ''.join(f'{100 * points[-1][1]:14.1f}' for points in curves.values())
    )


def data_size(study: Study) -> None:
  """Four runs for each seed and model; the test accuracy of the checkpoint best on 'val'."""
  table = []
  for seed, model, percent in itertools.product(study.seeds, study.models, PERCENTS):
    config = f'data_size_small.py:model={model},subset={percent}'
    run = study.workdir / f'data_size-{model}-{percent}-seed{seed}'
    last = train(config, run, seed, study.rest)
    best = evaluate_best(config, run, study.rest)
    table.append(
      {'model': model, 'percent': percent, 'seed': seed, 'steps': last['step'],
       'best_step': int(best['checkpoint'].rpartition(' ')[2]), 'val_top1': best['val/top1'],
       'test_top1': best['test/top1'], 'last_test_top1': last['test/top1']}
    )  # fmt: skip
  files.write_csv(study.workdir / 'data_size.csv', table)
  curves = {MODELS[model]: means(table, 'percent', model=model) for model in study.models}
  plots.png(
    {'best checkpoint by validation': curves},
    study.workdir / 'data_size.png',
    xlabel='percent of the training images',
    ylabel='test top-1',
    xticks=PERCENTS,
  )
  console.print_line(f'\n{"test top-1":<24}' + ''.join(f'{percent:>12} %' for percent in PERCENTS))
  for title, points in curves.items():
    console.print_line(f'{title:<24}' + ''.join(f'{100 * top1:14.1f}' for _, top1 in points))


STUDIES: dict[str, Callable[[Study], None]] = {
  'permutations': permutations,
  'data_size': data_size,
}


def train(config: str, run: epath.Path, seed: str, rest: Sequence[str]) -> dict:
  """The last row of a run of train.py, which starts, resumes or is finished already."""
  return sweep.train(f'{CONFIGS}/{config}', run, '--notensorboard', f'--config.seed={seed}', *rest)


def evaluate_best(config: str, run: epath.Path, rest: Sequence[str]) -> dict:
  """The results of evaluate.py for the best checkpoint of a finished run, computed once."""
  output = run / 'best.json'
  if not output.exists():
    overrides = [flag for flag in rest if flag.startswith('--config.')]
    sweep.run_to_end(
      [str(EVALUATE), f'--config={CONFIGS}/{config}', f'--checkpoint={run}', '--which=best',
       f'--output={output}', *overrides],
      f'the evaluation of {run}',
    )  # fmt: skip
  return files.read_json(output, advice='Delete it, and start again.')


def means(table: Sequence[dict], x: str, **where) -> list[tuple[float, float]]:
  """(x, mean over the seeds of the test top-1) of the rows that agree with `where`."""
  chosen = [row for row in table if all(row[key] == value for key, value in where.items())]
  return [
    (value, statistics.fmean(row['test_top1'] for row in chosen if row[x] == value))
    for value in dict.fromkeys(row[x] for row in chosen)
  ]


def main(study: str, *rest: str) -> None:
  if study not in STUDIES:
    raise InputError(f'unknown study {study!r}; use one of {sorted(STUDIES)}.')
  sweep.refuse(rest, 'config.seed', instead='seeds')
  sweep.exit_on_sigterm()
  workdir = files.absolute(flags.FLAGS.workdir)
  models = flags.FLAGS.models
  if not models or not set(models) <= MODELS.keys():
    raise InputError(f'--models={",".join(models)}: give some of {",".join(MODELS)}.')
  STUDIES[study](Study(workdir, flags.FLAGS.seeds, models, rest))
  console.print_line(f'written: {workdir / study}.csv, {workdir / study}.png')


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'For the workdirs of the runs, the table and the figure.')
  flags.DEFINE_list('seeds', ['0'], 'A run is made with each seed; the figure shows means.')
  flags.DEFINE_list('models', ['mixer', 'resnet'], 'Some of mixer, vit, resnet.')
  flags.mark_flags_as_required(['workdir'])
  cli.run(main, keep_unknown=True)
