"""Accuracy against cost: figure 3 of the paper, with what was measured here."""

from collections.abc import Mapping, Sequence

from mixer import paper
from mixer.errors import InputError
from mixer.report import sections
from mixer.report.run_files import Run
from mixer.visualize import plots
from mixer.visualize.plots import Marks, Points

COST, SPEED = 'core-days of pre-training (paper: TPU v3)', 'images/s per core (paper: TPU v3)'
ACCURACY = 'ImageNet top-1, %'
JFT_IMAGES = 303_000_000  # in the ViT paper's text
_FAMILIES = ('Mixer', 'ViT', 'BiT')
# Where the names of each family are, so that they do not overlap; R152x1 is too near to R50x2.
_CORNERS = {COST: ((1, -1), (-1, 1), (1, -1)), SPEED: ((1, 1), (-1, -1), (-1, -1))}
_OPPOSITE = ('BiT-R152x1',)
_DAY = 86_400  # seconds

Panels = dict[str, list[Marks]]


def panels(report: Mapping | None = None, runs: Sequence[Run] = ()) -> Panels:
  """The paper's points over cost and over speed, and those of `measured` and `of_runs`."""
  found: Panels = {COST: [], SPEED: []}
  for colour, family in enumerate(_FAMILIES):
    points = [point for point in paper.figure_3() if point.model.startswith(f'{family}-')]
    for xlabel, column in ((COST, 'core_days'), (SPEED, 'images_per_sec_per_core')):
      places = [(getattr(point, column), point.imagenet) for point in points]
      found[xlabel].append(_marks(f'{family}, paper', points, places, xlabel, colour))
  for more in ([measured(report)] if report else []) + [of_runs(runs)]:
    for xlabel, series in more.items():
      found[xlabel] += series
  return found


def _marks(
  label: str, points: Sequence[paper.Point], places: Points, xlabel: str, colour: int, **options
) -> Marks:
  """`points` of the paper at `places`, with their names."""
  across, up = _CORNERS[xlabel][colour]
  corners = [(across, -up) if p.model in _OPPOSITE else (across, up) for p in points]
  return Marks(label, places, [_name(point) for point in points], colour, corners, **options)


def measured(report: Mapping) -> Panels:
  """Points of a throughput.json: its speed, and the accuracy of the paper.

  The cost is that of the paper's number of epochs at the measured rate of training, on one device.
  A model has the faster of the dtypes measured.

  Raises:
    InputError: it has no measurement of a model in figure 3, or one at another image size.
  """
  if report['image_size'] != 224:
    raise InputError(f'the images measured have {report["image_size"]} pixels; figure 3 has 224.')
  best: dict[tuple, float] = {}
  for row in report['rows']:
    if row['runner'] == 'jax' and row.get('images_per_sec'):
      key = row['mode'], row['model']
      best[key] = max(best.get(key, 0.0), row['images_per_sec'])
  device = report['device']['kind']
  found: Panels = {COST: [], SPEED: []}
  for colour, family in enumerate(_FAMILIES):
    for xlabel, mode in ((COST, 'training'), (SPEED, 'inference')):
      points = [
        point
        for point in paper.figure_3()
        if point.model.startswith(f'{family}-')
        and (mode, point.model) in best
        and (point.epochs or mode == 'inference')
      ]
      rates = [best[mode, point.model] for point in points]
      if mode == 'training':
        rates = [JFT_IMAGES * p.epochs / rate / _DAY for p, rate in zip(points, rates)]
      places = [(x, point.imagenet) for x, point in zip(rates, points)]
      if places:
        label = f'{family}, speed measured on {device}, accuracy of the paper'
        found[xlabel].append(_marks(label, points, places, xlabel, colour, hollow=True))
  if not any(found.values()):
    models = sorted({row['model'] for row in report['rows']})
    raise InputError(f'figure 3 has none of {models}; it has sizes of {", ".join(_FAMILIES)}.')
  return found


def of_runs(runs: Sequence[Run]) -> Panels:
  """Points of runs with an accuracy on ImageNet's validation set: their own cost and speed.

  A run that starts from other weights has no cost of pre-training.
  """
  found: Panels = {COST: [], SPEED: []}
  for colour, run in enumerate(runs, start=len(_FAMILIES)):
    own = sections.on_imagenet(run)
    if own.imagenet is not None:
      costs = {COST: None if run.start else own.core_days, SPEED: own.images_per_sec}
      for xlabel, value in costs.items():
        if value:
          label = f'{run.label}, measured'
          marks = Marks(label, [(value, own.imagenet)], [''], colour, [(1, 1)], hollow=True)
          found[xlabel].append(marks)
  return found


def chart(runs: Sequence[Run]) -> str:
  """An <svg> element of the panels with the points of runs; empty if no run has one."""
  if not any(of_runs(runs).values()):
    return ''
  return plots.element(
    plots.scatter(panels(runs=runs), ylabel=ACCURACY, form='svg'), prefix='pareto'
  )


def why_not_drawn(run: Run) -> str:
  """Why `of_runs` has no point of a run; empty if it has one."""
  if any(of_runs([run]).values()):
    return ''
  if sections.on_imagenet(run).imagenet is None:
    return "it has no accuracy on ImageNet's validation split."
  return 'it has no cost of pre-training, and no speed of an evaluation.'


def _name(point: paper.Point) -> str:
  """'B/16', or 'L/16 (14)' with the epochs where the figure has a model more than once."""
  several = len({p.epochs for p in paper.figure_3() if p.model == point.model}) > 1
  return point.model.partition('-')[2] + (f' ({point.epochs})' if several else '')
