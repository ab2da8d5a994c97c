"""Sections of a report: each a function of the runs that returns what the template shows."""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import re
import statistics
from typing import NamedTuple

from mixer import paper, runtime, settings
from mixer.report.run_files import Run
from mixer.visualize import plots

_COUNTS = ('n', 'n_without_labels', 'images_per_sec', 'seconds')  # not measures of the model
# Results that are shares of 1, shown in percent.
_SHARE = re.compile(r'top[15]|precision_at_[15]|\d+shot(_seed\d+|_best_l2_on_test)?')
_NONE = '-'
_ON_THE_PAPER = (
  f'{paper.SOURCE}: accuracies are after fine-tuning, except that models trained on ImageNet alone '
  'have the ImageNet and ReaL accuracies of that training. Tables 2 and 3 crop differently. Images '
  'per second are those of an evaluation in this run, and per TPU v3 core in the paper; core-days '
  'are devices times days in the training loop in this run, and TPU v3 core-days in the paper.'
)
_PAPER_HEAD = (
  '', 'pre-trained on', 'pixels', 'epochs', 'ImageNet top-1 %', 'ReaL %', 'average of 5 %',
  'VTAB-1k %', 'images/s per core', 'core-days',
)  # fmt: skip
_COST_HEAD = (
  'run', 'devices', 'core-hours', 'core-days', 'in the paper', 'median images/s', 'per device',
  'mfu', 'input wait',
)  # fmt: skip


class Number(str):
  """The text of a table cell in a right-aligned column."""


@dataclasses.dataclass(frozen=True)
class Table:
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  highlight_first: bool = False

  @property
  def numeric(self) -> list[bool]:
    """Of each column: whether one of its cells is a Number."""
    return [any(isinstance(row[i], Number) for row in self.rows) for i in range(len(self.head))]


@dataclasses.dataclass(frozen=True)
class Chart:
  title: str
  lines: Sequence[plots.Line]
  svg: str


def curves(runs: Sequence[Run]) -> list[Chart]:
  """Charts of the loss, the accuracy and every other result of an evaluation.

  Values that are not finite are left out, and so are charts without any value.
  """
  groups: dict[str, list[str]] = {'Loss': ['train/loss'], 'Accuracy': ['train/accuracy']}
  for name in sorted({name for run in runs for name in run.results}):
    section, _, kind = name.rpartition('/')
    if kind == 'loss':
      groups['Loss'].append(name)
    elif kind in ('top1', 'accuracy'):
      groups['Accuracy'].append(name)
    elif kind not in (*_COUNTS, 'top5') and not kind.endswith('_is'):  # the l2 that was the best
      groups.setdefault(section, []).append(name)
  charts = []
  for title, names in groups.items():
    if lines := list(_lines(runs, names)):
      svg = plots.svg(lines, log=title == 'Loss', prefix=f'chart-{len(charts)}')
      charts.append(Chart(f'{title}, over steps', lines, svg))
  return charts


def _lines(runs: Sequence[Run], names: Sequence[str]) -> Iterator[plots.Line]:
  """A colour for each name; with several runs a colour for each run and a dash for each name."""
  for i, run in enumerate(runs):
    for j, name in enumerate(names):
      points = [
        (row['step'], row[name]) for row in run.rows if math.isfinite(row.get(name, math.nan))
      ]
      if points and len(runs) == 1:
        yield plots.Line(name, points, colour=j)
      elif points:
        yield plots.Line(f'{run.label}: {name}', points, colour=i, dash=j)


def results(runs: Sequence[Run]) -> Table:
  """The last results, a column for each run."""
  facts = {
    'model': [run.config['model']['name'] for run in runs],
    'training data': [run.data for run in runs],
    'step': [Number(f'{run.final["step"]:,}') if run.rows else _NONE for run in runs],
    'epoch': [_number(run.final.get('epoch'), '{:.2f}') for run in runs],
    'train/loss': [_number(run.final.get('train/loss')) for run in runs],
  }
  sources = {'': [run.results for run in runs]}
  for evaluation in sorted({name for run in runs for name in run.evaluations}):
    sources[f' ({evaluation})'] = [run.evaluations.get(evaluation, {}) for run in runs]
  for suffix, found in sources.items():
    for name in sorted({name for results in found for name in results}):
      kind = name.rpartition('/')[2]
      if kind != 'images_per_sec':
        title = f'{name} %' if _SHARE.fullmatch(kind) else name
        facts[title + suffix] = [_result(kind, results.get(name)) for results in found]
  rows = [[name, *values] for name, values in facts.items()]
  return Table(['', *(run.label for run in runs)], rows)


def paper_comparison(runs: Sequence[Run]) -> tuple[list[tuple[str, Table]], list[str]]:
  """(label and table of each run whose model and data the paper has a row for, notes)."""
  tables, without = [], []
  for run in runs:
    found = paper.rows(run.paper_model, None if run.start else run.data) if run.paper_model else []
    if found:
      rows = [_own_row(run), *map(_paper_row, found)]
      tables.append((run.label, Table(_PAPER_HEAD, rows, highlight_first=True)))
    else:
      what = run.difference_from_paper or run.config['model']['name']
      without.append(f'{run.label} ({what} on {paper.DATA_NAMES.get(run.data, run.data)})')
  notes = [_ON_THE_PAPER] if tables else []
  if without:
    notes.append(f'The paper has no row for {", ".join(without)}.')
  return tables, notes


def cost(runs: Sequence[Run]) -> Table:
  """The cost of every run that has logged something."""

  def row(run):
    final = run.final
    devices = _device_count(run)
    from_scratch = run.paper_model and not run.start  # the paper has the cost of pre-training
    found = paper.rows(run.paper_model, run.data) if from_scratch else []
    in_paper = sorted({row.kilo_core_days for row in found if row.table == 3})
    hours = final.get('core_hours')
    return [
      run.label,
      _number(devices, '{}'),
      _number(hours, '{:,.3f}'),
      _number(None if hours is None else hours / 24, '{:.3g}'),
      Number(' or '.join(f'{1000 * value:,.0f}' for value in in_paper) or _NONE),
      *(_number(_median(run, f'images_per_sec{of}'), '{:,.0f}') for of in ('', '_per_device')),
      _number(_percent(final.get('mfu')), '{:.1f} %'),
      _number(_percent(final.get('input_wait')), '{:.0f} %'),
    ]

  return Table(_COST_HEAD, [row(run) for run in runs if run.rows])


def _device_count(run: Run) -> int | None:
  """By the rates; None if they were not logged."""
  rates = [run.final.get(name) for name in ('images_per_sec', 'images_per_sec_per_device')]
  return round(rates[0] / rates[1]) if all(rates) else None


def _median(run: Run, name: str) -> float | None:
  values = [row[name] for row in run.rows if name in row]
  return statistics.median(values) if values else None


def _percent(share: float | None) -> float | None:
  return None if share is None else 100 * share


def differences(runs: Sequence[Run]) -> Table:
  """The config keys in which the runs differ, a column for each run."""
  flat = [settings.flatten(run.config) for run in runs]
  keys = sorted({key for config in flat for key in config})
  found = {key: [config.get(key, '(absent)') for config in flat] for key in keys}
  rows = [
    [k, *map(str, values)] for k, values in found.items() if any(v != values[0] for v in values)
  ]
  return Table(['differing key', *(run.label for run in runs)], rows)


def versions(runs: Sequence[Run]) -> Table:
  """The package versions of each run and of this program."""
  recorded = [(run.description or {}).get('versions', {}) for run in runs]
  rows = [
    [package, *(found.get(package, _NONE) for found in recorded), version]
    for package, version in runtime.versions().items()
  ]
  return Table(['package', *(run.label for run in runs), 'this report'], rows)


def status(run: Run) -> str:
  step = f'{run.final["step"]:,}' if run.rows else None
  if run.description:
    return f'{run.label}: finished' + (f' at step {step}' if step else '')
  return f'{run.label}: not finished, ' + (
    f'last logged step {step}' if step else 'nothing logged yet'
  )


def _result(kind: str, value: float | None) -> Number:
  if value is not None and _SHARE.fullmatch(kind):
    return Number(f'{100 * value:.2f}')
  return _number(value, '{:,.0f}' if kind in ('n', 'n_without_labels') else '{:.4g}')


def _number(value: float | None, form: str = '{:.4g}') -> Number:
  return Number(_NONE if value is None else form.format(value))


class OnImageNet(NamedTuple):
  """What a run measured on ImageNet's validation set, and its cost; None for what it has not."""

  imagenet: float | None  # top-1 in percent
  real: float | None  # with the ReaL labels
  images_per_sec: float | None  # of an evaluation, per device
  core_days: float | None


def on_imagenet(run: Run) -> OnImageNet:
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
    devices = _device_count(run)
    speed = speed / devices if devices else None
  core_days = final['core_hours'] / 24 if 'core_hours' in final else None
  return OnImageNet(**top1, images_per_sec=speed, core_days=core_days)


def _own_row(run: Run) -> list[str]:
  """What this run has of the columns of the paper's tables."""
  own = on_imagenet(run)
  size = run.config['train_input'].get('image_size', _NONE)
  pixels = str(size) if isinstance(size, int) else ' x '.join(map(str, size))
  return [
    run.label,
    f'from {run.start}' if run.start else paper.DATA_NAMES.get(run.data, run.data),
    Number(pixels),
    _number(run.final.get('epoch'), '{:.2f}'),
    _number(own.imagenet, '{:.2f}'),
    _number(own.real, '{:.2f}'),
    Number(_NONE),
    Number(_NONE),
    _number(own.images_per_sec, '{:,.0f}'),
    _number(own.core_days, '{:.3g}'),
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
