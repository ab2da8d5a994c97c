"""Sections of a report: each a function of the runs that returns pieces of `mixer.report.page`."""

from collections.abc import Sequence
import re
import statistics

from mixer import paper, runtime, settings
from mixer.report import charts, page, run_files
from mixer.report.page import Number
from mixer.report.run_files import Run

_COUNTS = ('n', 'n_without_labels', 'images_per_sec', 'seconds')  # they say nothing of the model
# Results that are shares of 1, told in percent.
_SHARE = re.compile(r'top[15]|precision_at_[15]|\d+shot(_seed\d+|_best_l2_on_test)?')
_NONE = '-'
_ON_THE_PAPER = (
  f'{paper.SOURCE}: accuracies are after fine-tuning, except that models trained on ImageNet alone '
  'have those of that training as ImageNet and ReaL. Tables 2 and 3 crop differently. Images per '
  'second are of an evaluation here, and of TPU v3 cores in the paper; core-days are devices times '
  'days in the loop here, and of TPU v3 in the paper.'
)


def curves(runs: Sequence[Run]) -> list[str]:
  """Charts of the loss, the accuracy, and whatever else evaluations have found."""
  groups: dict[str, list[str]] = {'Loss': ['train/loss'], 'Accuracy': ['train/accuracy']}
  for name in sorted({name for run in runs for name in run.results}):
    section, _, kind = name.rpartition('/')
    if kind == 'loss':
      groups['Loss'].append(name)
    elif kind in ('top1', 'accuracy'):
      groups['Accuracy'].append(name)
    elif kind not in (*_COUNTS, 'top5') and not kind.endswith('_is'):  # which l2 was the best
      groups.setdefault(section, []).append(name)
  return [
    charts.lines(
      f'{title}, over steps',
      [
        charts.Line(
          name if len(runs) == 1 else f'{run.label}: {name}',
          [(row['step'], row[name]) for row in run.rows if name in row],
          colour=i if len(runs) > 1 else j,
          dash=j if len(runs) > 1 else 0,
        )
        for i, run in enumerate(runs)
        for j, name in enumerate(names)
      ],
      log=title == 'Loss',
    )
    for title, names in groups.items()
  ]


def results(runs: Sequence[Run]) -> str:
  """A table of the last results, a column a run."""
  facts = {
    'model': [run.config['model']['name'] for run in runs],
    'training data': [run.data for run in runs],
    'step': [Number(f'{run.final["step"]:,}') if run.rows else _NONE for run in runs],
    'epoch': [_number(run.final.get('epoch'), '{:.2f}') for run in runs],
    'train/loss': [_number(run.final.get('train/loss')) for run in runs],
  }
  for source, title in (('results', '{}'), ('evaluation', '{} (evaluate.py)')):
    names = sorted({name for run in runs for name in getattr(run, source)})
    for name in names:
      if name.rpartition('/')[2] != 'images_per_sec':
        values = [getattr(run, source).get(name) for run in runs]
        facts[title.format(_named(name))] = [_result(name, value) for value in values]
  rows = [[name, *values] for name, values in facts.items()]
  return page.table(['', *(run.label for run in runs)], rows)


def beside_the_paper(runs: Sequence[Run]) -> list[str]:
  """Each run's numbers above the paper's for that model and data; which runs have none there."""
  head = [
    '', 'pre-trained on', 'pixels', 'epochs', 'ImageNet top-1 %', 'ReaL %', 'average of 5 %',
    'VTAB-1k %', 'images/s per core', 'core-days',
  ]  # fmt: skip
  pieces, without = [], []
  for run in runs:
    found = paper.rows(run.paper_model, None if run.start else run.data) if run.paper_model else []
    if found:
      rows = [_own_row(run), *map(_paper_row, found)]
      pieces += [page.heading(run.label, 3), page.table(head, rows, own=[0])]
    else:
      what = run.unlike_the_paper or run.config['model']['name']
      without.append(f'{run.label} ({what} on {paper.DATA_NAMES.get(run.data, run.data)})')
  if pieces:
    pieces.append(page.paragraph(_ON_THE_PAPER, soft=True))
  if without:
    pieces.append(page.paragraph(f'The paper has no row for {", ".join(without)}.'))
  return pieces


def cost(runs: Sequence[Run]) -> str:
  def row(run):
    final = run.final
    devices = round(final['images_per_sec'] / final['images_per_sec_per_device'])
    from_scratch = run.paper_model and not run.start  # the paper has the cost of pre-training
    found = paper.rows(run.paper_model, run.data) if from_scratch else []
    theirs = sorted({row.kilo_core_days for row in found if row.table == 3})
    return [
      run.label,
      Number(f'{devices}'),
      Number(f'{final["core_hours"]:,.3f}'),
      Number(f'{final["core_hours"] / 24:.3g}'),
      Number(' or '.join(f'{1000 * value:,.0f}' for value in theirs) or _NONE),
      Number(f'{statistics.median(row["images_per_sec"] for row in run.rows):,.0f}'),
      Number(f'{statistics.median(row["images_per_sec_per_device"] for row in run.rows):,.0f}'),
      Number(f'{100 * final["mfu"]:.1f} %' if 'mfu' in final else _NONE),
      Number(f'{100 * final["input_wait"]:.0f} %'),
    ]

  rows = [row(run) for run in runs if run.rows]
  head = [
    'run', 'devices', 'core-hours', 'core-days', 'in the paper', 'median images/s',
    'per device', 'mfu', 'input wait',
  ]  # fmt: skip
  return page.table(head, rows) if rows else nothing_logged()


def configs(runs: Sequence[Run]) -> list[str]:
  """In what the configs differ, and the whole of each, folded away."""
  found = run_files.differences(runs)
  pieces = []
  if len(runs) > 1:
    rows = [[key, *map(str, values)] for key, values in found.items()]
    head = ['differing key', *(run.label for run in runs)]
    same = page.paragraph('The configs of these runs are the same.')
    pieces.append(page.table(head, rows) if rows else same)
  for run in runs:
    lines = [f'config.{key} = {value!r}' for key, value in settings.flatten(run.config).items()]
    pieces.append(page.details(f'the whole config of {run.label}', '\n'.join(lines)))
  return pieces


def versions(runs: Sequence[Run]) -> str:
  here = runtime.versions()
  rows = [
    [package, *((run.description or {}).get('versions', {}).get(package, _NONE) for run in runs)]
    + [version]
    for package, version in here.items()
  ]
  return page.table(['package', *(run.label for run in runs), 'this report'], rows)


def status(run: Run) -> str:
  if run.description:
    return f'{run.label}: finished at step {run.final["step"]:,}' if run.rows else run.label
  return f'{run.label}: not finished, ' + (
    f'last logged step {run.final["step"]:,}' if run.rows else 'nothing logged yet'
  )


def nothing_logged() -> str:
  return page.paragraph('Nothing has been logged yet.')


def _named(name: str) -> str:
  return f'{name} %' if _is_share(name) else name


def _is_share(name: str) -> bool:
  return bool(_SHARE.fullmatch(name.rpartition('/')[2]))


def _result(name: str, value: float | None) -> str:
  if value is not None and _is_share(name):
    return Number(f'{100 * value:.2f}')
  return _number(value, '{:,.0f}' if name.endswith(('/n', '/n_without_labels')) else '{:.4g}')


def _number(value: float | None, form: str = '{:.4g}') -> Number:
  return Number(_NONE if value is None else form.format(value))


def _own_row(run: Run) -> list[str]:
  """What this run has of the columns of the paper's tables."""
  top1 = {'imagenet': None, 'real': None}
  speed = None
  for name, section in run.config['evals'].items():
    source = section.get('input', {}).get('name')
    column = {'imagenet2012': 'imagenet', 'imagenet2012_real': 'real'}.get(source)
    on_test = section.get('input', {}).get('split') == 'validation'
    if column and on_test and f'{name}/top1' in run.results:
      top1[column] = 100 * run.results[f'{name}/top1']
      speed = run.results.get(f'{name}/images_per_sec')
  final = run.final
  if speed is not None:
    speed *= final['images_per_sec_per_device'] / final['images_per_sec']
  size = run.config['train_input'].get('image_size', _NONE)
  pixels = str(size) if isinstance(size, int) else ' x '.join(map(str, size))
  return [
    run.label,
    f'from {run.start}' if run.start else paper.DATA_NAMES.get(run.data, run.data),
    Number(pixels),
    _number(final.get('epoch'), '{:.2f}'),
    _number(top1['imagenet'], '{:.2f}'),
    _number(top1['real'], '{:.2f}'),
    Number(_NONE),
    Number(_NONE),
    _number(speed, '{:,.0f}'),
    _number(final['core_hours'] / 24 if 'core_hours' in final else None, '{:.3g}'),
  ]


def _paper_row(row: paper.Row) -> list[str]:
  accuracies = (row.imagenet, row.real, row.average5, row.vtab)
  return [
    f'paper, table {row.table}',
    paper.DATA_NAMES[row.data],
    _number(row.resolution, '{}'),
    _number(row.epochs, '{}'),
    *(_number(value, '{:.2f}') for value in accuracies),
    _number(row.images_per_sec_per_core, '{:,}'),
    _number(1000 * row.kilo_core_days, '{:,.0f}'),
  ]
