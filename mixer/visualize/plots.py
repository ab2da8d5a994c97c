"""Plots of numbers over steps, as PNG."""

from collections.abc import Mapping, Sequence
import io

from etils import epath

from mixer import files


def curves(rows: Sequence[dict], path: epath.Path) -> None:
  """Draws the loss and the accuracies over the steps of metrics.jsonl's `rows` as a PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4), layout='constrained')
  FigureCanvasAgg(figure)
  names = sorted({name for row in rows for name in row})
  panels = {
    'loss': ['train/loss', *(n for n in names if n.endswith('/loss') and n != 'train/loss')],
    'accuracy': [
      'train/accuracy',
      *(n for n in names if n.endswith(('/top1', '/accuracy')) and n != 'train/accuracy'),
    ],
  }
  for axes, (title, shown) in zip(figure.subplots(1, 2), panels.items(), strict=True):
    for name in shown:
      points = [(row['step'], row[name]) for row in rows if name in row]
      axes.plot(*zip(*points, strict=True), label=name, marker='.' if len(points) < 50 else None)
    axes.set(xlabel='step', title=title)
    if title == 'loss':
      axes.set_yscale('log')
    axes.grid(alpha=0.3)
    axes.legend()
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=110)
  files.write(path, buffer.getvalue())


def lines(
  panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
  path: epath.Path,
  *,
  xlabel: str,
  ylabel: str,
  xticks: Sequence[float] = (),
) -> None:
  """Draws, for each panel's title, a line of (x, y) for each label, all over one scale, as a PNG.

  With `xticks` the x axis is logarithmic and has those ticks.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(4.5 * len(panels), 3.6), layout='constrained')
  FigureCanvasAgg(figure)
  row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  for axes, (title, shown) in zip(row, panels.items(), strict=True):
    for label, points in shown.items():
      axes.plot(*zip(*points, strict=True), label=label, marker='.')
    axes.set(xlabel=xlabel, title=title)
    if xticks:
      axes.set_xscale('log')
      axes.set_xticks(xticks, [f'{tick:g}' for tick in xticks])
      axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
  row[0].set_ylabel(ylabel)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=90)
  files.write(path, buffer.getvalue())
