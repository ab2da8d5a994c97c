"""Tables and figures of results over several seeds: means, with standard deviations."""

from collections.abc import Mapping, Sequence
import statistics

from etils import epath

from mixer.visualize import plots


def groups(rows: Sequence[Mapping], key: str) -> dict[str, list[Mapping]]:
  """The rows by their value of `key`, in the order of its first appearance."""
  found: dict[str, list[Mapping]] = {}
  for row in rows:
    found.setdefault(str(row[key]), []).append(row)
  return found


def percent(shares: Sequence[float]) -> str:
  """The mean in percent and, of several shares, their standard deviation (of a sample)."""
  return mean_and_spread(shares, digits=1, factor=100)


def mean_and_spread(values: Sequence[float], *, digits: int, factor: int = 1) -> str:
  """`factor` times the mean and, of several values, their standard deviation (of a sample)."""
  mean = f'{factor * statistics.fmean(values):.{digits}f}'
  return f'{mean} ± {factor * statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def markdown(rows: Sequence[Mapping], down: str, across: str, value: str, *, corner: str) -> str:
  """A table of means of the share `value`, with a line for each `down`, a column per `across`."""
  columns = groups(rows, across)
  lines = [f'| {corner} | {" | ".join(columns)} |', '| --- ' * (1 + len(columns)) + '|']
  for name, own in groups(rows, down).items():
    found = groups(own, across)
    cells = [
      percent([float(row[value]) for row in found[column]]) if column in found else '-'
      for column in columns
    ]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def _curve(rows: Sequence[Mapping], x: str) -> list[tuple[float, float, float]]:
  """(x, mean of the test top-1 in percent, standard deviation) in the order of x."""
  found = []
  for value, own in groups(rows, x).items():
    top1 = [100 * float(row['test_top1']) for row in own]
    found.append(
      (float(value), statistics.fmean(top1), statistics.stdev(top1) if len(top1) > 1 else 0.0)
    )
  return sorted(found)


def lines_figure(
  rows: Sequence[Mapping], key: str, x: str, path: epath.Path, *, xlabel: str
) -> None:
  """One panel with a line for each `key`; the x axis is logarithmic."""
  lines = {name: _curve(own, x) for name, own in groups(rows, key).items()}
  ticks = sorted({point[0] for points in lines.values() for point in points})
  panel = {'best checkpoint on held-out images': lines}
  plots.png(panel, path, xlabel=xlabel, ylabel='test top-1, percent', xticks=ticks)


def permutations_figure(rows: Sequence[Mapping], path: epath.Path) -> None:
  """A panel for each model, with a line over the steps for each permutation."""
  names = {
    'original': 'original images',
    'patch_pixel': 'patches, and pixels in them, shuffled',
    'global': 'all pixels shuffled',
  }
  panels = {
    model: {names[kind]: _curve(own, 'step') for kind, own in groups(of_model, 'kind').items()}
    for model, of_model in groups(rows, 'model').items()
  }
  plots.png(panels, path, xlabel='step', ylabel='test top-1, percent')


def cost_figure(rows: Sequence[Mapping], path: epath.Path) -> None:
  """Accuracy over FLOPs of training and over training speed."""
  panels: dict[str, dict] = {'total FLOPs of training': {}, 'training images/s on one core': {}}
  for model, own in groups(rows, 'model').items():
    first, family = own[0], model.partition('-')[0]
    ((_, mean, spread),) = _curve([{**row, 'x': 0} for row in own], 'x')
    flops = 1e6 * float(first['mflops_per_image']) * float(first['train_images'])
    for panel, x in zip(panels.values(), (flops, float(first['images_per_sec'])), strict=True):
      panel.setdefault(family, []).append((x, mean, spread))
  sorted_panels = {
    title: {family: sorted(points) for family, points in lines.items()}
    for title, lines in panels.items()
  }
  plots.png(sorted_panels, path, ylabel='test top-1, percent', log_x=True)
