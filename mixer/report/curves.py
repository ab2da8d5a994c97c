"""The curves of a report: which charts there are, and what their lines show."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import re

import numpy as np

from mixer.report import goodput
from mixer.report.run_files import Run
from mixer.visualize import plots

# Results that are shares of 1, shown in percent.
SHARE = re.compile(
  r'top[15]|accuracy|input_wait|mfu|ece|precision_at_[15]|\d+shot(_best_l2_on_test)?'
)
SEED = re.compile(r'(.*/\d+shot)_seed\d+')
_POINTS = 2000  # of a line, at most
_COUNTS = ('n', 'n_without_labels', 'images_per_sec', 'seconds')  # not measures of the model
_LOSS, _ACCURACY = 'Loss', 'Accuracy'
_TITLES = {
  'train/learning_rate': 'Learning rate',
  'train/grad_norm': 'Norm of the gradient',
  'train/update_norm': 'Norm of the update',
  'train/param_norm': 'Norm of the parameters',
  'images_per_sec': 'Images per second',
  'input_wait': 'Input wait: share of time, upper bound',
  'mfu': 'MFU: share of the peak FLOP/s',
}
_LOGARITHMIC = (_LOSS, 'train/grad_norm', 'train/update_norm')


@dataclasses.dataclass(frozen=True)
class Curve:
  """A line of a chart, with the values of the x axes at each of its points.

  Attributes:
    label: names the run too, if the page has several.
    run: the number of the run.
    colour, dash: as a `plots.Line` has them.
    steps: (n,) ascending.
    hours: (n,) in the training loop; NaN where they are not logged.
    values: (n,) finite.
    band: the lowest and the highest of the seeds, (2, n), or None.
  """

  label: str
  run: int
  colour: int
  dash: int
  steps: np.ndarray
  hours: np.ndarray
  values: np.ndarray
  band: np.ndarray | None = None

  def thinned(self) -> 'Curve':
    """At most `_POINTS` points: the lowest and the highest of each stretch of rows."""
    count = len(self.steps)
    if count <= _POINTS:
      return self
    kept = {0, count - 1}
    for part in np.array_split(np.arange(1, count - 1), _POINTS // 2 - 1):
      values = self.values[part]
      kept |= {part[values.argmin()], part[values.argmax()]}
    at = np.array(sorted(kept))
    band = None if self.band is None else self.band[:, at]
    return dataclasses.replace(
      self, steps=self.steps[at], hours=self.hours[at], values=self.values[at], band=band
    )

  @property
  def line(self) -> plots.Line:
    points = list(zip(self.steps.tolist(), self.values.tolist()))
    band = None if self.band is None else self.band.tolist()
    return plots.Line(self.label, points, self.colour, self.dash, band)

  def to_json(self) -> dict:
    line = self.line
    return {
      'label': self.label,
      'run': self.run,
      'colour': line.stroke,
      'dash': line.dashes,
      'step': self.steps.tolist(),
      'hours': None if np.isnan(self.hours).any() else _short(self.hours),
      'values': _short(self.values),
      'band': None if self.band is None else [_short(edge) for edge in self.band],
    }


@dataclasses.dataclass(frozen=True)
class Chart:
  title: str
  curves: Sequence[Curve]
  svg: str
  log: bool

  def to_json(self) -> dict:
    return {'log': self.log, 'curves': [curve.to_json() for curve in self.curves]}


def charts(runs: Sequence[Run]) -> list[Chart]:
  """Charts of loss, accuracy and every other result, of the schedule, norms, speed and waiting.

  Values that are not finite are left out, and so are charts without any value.
  """
  hours = [goodput.hours(run) for run in runs]
  found = []
  for title, names in _groups(runs).items():
    curves = [
      curve.thinned()
      for number, run in enumerate(runs)
      for place, name in enumerate(names)
      if (curve := _curve(runs, number, hours[number], name, place, _is_share(names)))
    ]
    if curves:
      shown = names[0] if len(names) == 1 and title not in (_LOSS, _ACCURACY) else title
      shown = _TITLES.get(shown, shown) + ', %' * _is_share(names)
      lines = [curve.line for curve in curves]
      log = title in _LOGARITHMIC and min(min(curve.values.tolist()) for curve in curves) > 0
      svg = plots.svg(lines, log=log, prefix=f'chart-{len(found)}')
      found.append(Chart(shown, curves, svg, log))
  return found


def to_json(runs: Sequence[Run], shown: Sequence[Chart]) -> dict:
  """What the script of the page draws: the charts, and for each run its name and epochs."""
  return {
    'runs': [
      {'label': run.label, 'colour': plots.Line('', (), i).stroke, 'epoch': _epochs(run)}
      for i, run in enumerate(runs)
    ],
    'charts': [chart.to_json() for chart in shown],
  }


def _groups(runs: Sequence[Run]) -> dict[str, list[str]]:
  """{title: the metrics in that chart}."""
  groups = {_LOSS: ['train/loss'], _ACCURACY: ['train/accuracy']}
  for name in sorted({name for run in runs for name in run.results}):
    section, _, kind = name.rpartition('/')
    if kind == 'loss':
      groups[_LOSS].append(name)
    elif kind in ('top1', 'accuracy'):
      groups[_ACCURACY].append(name)
    elif kind not in _COUNTS and not kind.endswith('_is') and not SEED.fullmatch(name):
      # The shares of an evaluation are one chart; any other result is its own.
      groups.setdefault(section if SHARE.fullmatch(kind) else name, []).append(name)
  named = {name for names in groups.values() for name in names}
  logged = {name for run in runs for name in run.final if name.startswith('train/')}
  for name in [*_TITLES, *sorted(logged - named - _TITLES.keys())]:
    groups[name] = [name]
  return groups


def _is_share(names: Iterable[str]) -> bool:
  return all(SHARE.fullmatch(name.rpartition('/')[2]) for name in names)


def _curve(
  runs: Sequence[Run], number: int, hours: Mapping[int, float], name: str, place: int, share: bool
) -> Curve | None:
  """A colour for each name; with several runs a colour for each run and a dash for each name."""
  run, several = runs[number], len(runs) > 1
  rows = [row for row in run.rows if math.isfinite(row.get(name, math.nan))]
  if not rows:
    return None
  scale = 100 if share else 1
  seeds = sorted(n for n in run.final if (m := SEED.fullmatch(n)) and m[1] == name)
  band = None
  if len(seeds) > 1:
    values = np.array([[row.get(seed, math.nan) for row in rows] for seed in seeds]) * scale
    band = np.stack([values.min(axis=0), values.max(axis=0)])
  return Curve(
    f'{run.label}: {name}' if several else name,
    run=number,
    colour=number if several else place,
    dash=place if several else 0,
    steps=np.array([row['step'] for row in rows]),
    hours=np.array([hours.get(row['step'], math.nan) for row in rows]),
    values=np.array([row[name] for row in rows], float) * scale,
    band=band if band is not None and np.isfinite(band).all() else None,
  )


def _epochs(run: Run) -> float | None:
  """Epochs of a step; None if they are not logged."""
  return next((row['epoch'] / row['step'] for row in reversed(run.rows) if row.get('epoch')), None)


def _short(values: np.ndarray) -> list[float]:
  """With six digits, as numbers of JSON."""
  return [float(f'{value:.6g}') for value in values.tolist()]
