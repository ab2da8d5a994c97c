"""Sections of a report: each a function of the runs that returns what the template shows."""

from collections.abc import Mapping, Sequence
import dataclasses
import statistics
from typing import NamedTuple

from mixer import paper, runtime, settings
from mixer.report import goodput
from mixer.report.curves import SEED, SHARE
from mixer.report.run_files import Run

_NONE = '-'
_IMAGENET = 'imagenet2012'
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
_TIME_HEAD = (
  'run', 'starts', 'hours', 'goodput', 'input wait', 'evaluations, saves', 'start-up',
  'stopped or repeated',
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
      if kind != 'images_per_sec' and not SEED.fullmatch(name):
        title = f'{name} %' if SHARE.fullmatch(kind) else name
        facts[title + suffix] = [_result(results, name) for results in found]
  rows = [[name, *values] for name, values in facts.items()]
  return Table(['', *(run.label for run in runs)], rows)


def paper_comparison(runs: Sequence[Run]) -> tuple[list[tuple[str, Table]], list[str]]:
  """(label and table of each run that the paper has a row for, notes).

  Its model and the data of its pre-training are those of the row. If it starts from other weights,
  it is trained on ImageNet, as the rows are.
  """
  tables, notes = [], []
  for run in runs:
    found = paper.rows(run.paper_model, run.pretraining) if run.paper_model else []
    if run.start and run.data != _IMAGENET:
      found = []
    if found and run.pretraining:
      rows = [_own_row(run), *map(_paper_row, found)]
      tables.append((run.label, Table(_PAPER_HEAD, rows, highlight_first=True)))
    else:
      notes.append(f'The paper has no row for {run.label}: {_why_no_row(run)}.')
  return tables, [_ON_THE_PAPER] * bool(tables) + notes


def _why_no_row(run: Run) -> str:
  data = paper.DATA_NAMES.get(run.data, run.data)
  if run.difference_from_paper or not run.start or run.data != _IMAGENET:
    return f'{run.difference_from_paper or run.config["model"]["name"]} on {data}'
  if run.pretraining is None:
    return f'what {run.start} was trained on is not recorded beside it'
  return f'{run.paper_model}, pre-trained on {run.pretraining}'


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
      _number(_percent(_median(run, 'mfu')), '{:.1f} %'),
      _number(_percent(_median(run, 'input_wait')), '{:.0f} %'),
    ]

  return Table(_COST_HEAD, [row(run) for run in runs if run.rows])


def wall_time(runs: Sequence[Run]) -> Table:
  """Where the hours of every run that has logged its cost went."""

  def row(run, times):
    parts = (times.trained, times.waited, times.evaluated, times.started, times.lost)
    shares = [f'{100 * part / times.wall:.1f} %' if times.wall else _NONE for part in parts]
    if times.is_bound:  # of the wall time, a part is known
      shares = [f'≤ {share}' for share in shares[:3]] + [_NONE] * 2
    hours = f'{"≥ " * times.is_bound}{times.wall:,.3g}'
    return [run.label, _number(times.starts, '{}'), *map(Number, (hours, *shares))]

  measured = [(run, goodput.times(run)) for run in runs]
  return Table(_TIME_HEAD, [row(run, times) for run, times in measured if times])


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


def _result(results: Mapping[str, float], name: str) -> Number:
  """A value; of few-shot results with the standard deviation over the seeds."""
  value, kind = results.get(name), name.rpartition('/')[2]
  if value is None or not SHARE.fullmatch(kind):
    return _number(value, '{:,.0f}' if kind in ('n', 'n_without_labels') else '{:.4g}')
  seeds = [v for n, v in results.items() if (m := SEED.fullmatch(n)) and m[1] == name]
  spread = f' ± {100 * statistics.stdev(seeds):.2f} ({len(seeds)} seeds)' if seeds[1:] else ''
  return Number(f'{100 * value:.2f}{spread}')


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
    column = {_IMAGENET: 'imagenet', 'imagenet2012_real': 'real'}.get(source)
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
    paper.DATA_NAMES[run.pretraining],
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
