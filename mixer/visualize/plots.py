"""Line plots with matplotlib: PNG files, and SVG elements for a web page."""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import re

from etils import epath
import numpy as np

from mixer import files

Points = Sequence[tuple[float, float]]
_COLOURS = (
  '#1f6fc4', '#d1601f', '#2a9160', '#b33a7d', '#7a57c2', '#94761a', '#16899b', '#6b727a',
)  # fmt: skip
_DASHES = ((), (7, 4), (2, 3), (9, 3, 2, 3))
_IMAGES_IN_A_ROW, _CAPTION = 8, 28  # characters of a line
_TEXT, _GRID = '#60676f', '#dfe3e8'
_CSS_VARIABLES = {
  **{colour: f'var(--c{i}, {colour})' for i, colour in enumerate(_COLOURS)},
  _TEXT: f'var(--soft, {_TEXT})',
  _GRID: f'var(--line, {_GRID})',
}
_SVG_STYLE = {
  'axes.edgecolor': _TEXT,
  'font.size': 12,
  'lines.scale_dashes': False,
  'path.simplify_threshold': 1.0,  # pixels; bounds the size of a line of many points
  'svg.fonttype': 'none',  # text stays text
  'svg.hashsalt': 'mixer',  # the same ids every time
}


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a chart. `colour` and `dash` are indices, modulo the number of colours and dashes.

  `band` has the lower and the upper edge of an area around the line, at its points.
  """

  label: str
  points: Points
  colour: int = 0
  dash: int = 0
  band: tuple[Sequence[float], Sequence[float]] | None = None

  @property
  def stroke(self) -> str:
    """The colour in CSS; a page changes it by setting --c0 to --c7."""
    return _CSS_VARIABLES[_COLOURS[self.colour % len(_COLOURS)]]

  @property
  def dashes(self) -> tuple[int, ...]:
    """Lengths of strokes and gaps in pixels; empty for a solid line."""
    return _DASHES[self.dash % len(_DASHES)]


def svg(lines: Sequence[Line], *, log: bool, prefix: str) -> str:
  """An <svg> element of `lines` over the step, without a legend. Line i has the id PREFIX-line-i.

  Args:
    lines: each with one finite point or more.
    log: the y axis is logarithmic, if all values are positive.
    prefix: starts all ids in the element, so that several elements can share a page.
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_SVG_STYLE):
    figure = Figure(figsize=(560 / 72, 300 / 72))
    axes = figure.add_axes((58 / 560, 30 / 300, 480 / 560, 258 / 300))
    for i, line in enumerate(lines):
      colour = _COLOURS[line.colour % len(_COLOURS)]
      if line.band:
        steps = [step for step, _ in line.points]
        axes.fill_between(steps, *line.band, color=colour, alpha=0.2, linewidth=0)
      axes.plot(
        *zip(*line.points),
        color=colour,
        linewidth=1.8,
        linestyle=(0, line.dashes) if line.dashes else '-',
        marker='o' if len(line.points) == 1 else None,
        clip_on=False,
        gid=f'line-{i}',
      )
    axes.set_xlim(left=0)
    axes.grid(axis='y', color=_GRID, clip_on=False)
    axes.tick_params(bottom=False, left=False, labelcolor=_TEXT)
    axes.spines[['left', 'right', 'top']].set_visible(False)
    if log and min(y for line in lines for _, y in line.points) > 0:
      _make_logarithmic(axes)
    axes.xaxis.set_major_formatter('{x:,.6g}')
    axes.yaxis.set_major_formatter('{x:.6g}')
    return element(_file(figure, 'svg'), prefix)


def element(file: bytes, prefix: str) -> str:
  """An SVG file as an element of a page: ids with a prefix, colours that the page can change."""
  text = file.decode()
  text = re.sub(r' xmlns[^ >]*', '', text[text.index('<svg') :])  # HTML needs no namespaces
  text = re.sub(r'( id="|href="#)', rf'\1{prefix}-', text)
  return re.sub('#[0-9a-f]{6}', lambda found: _CSS_VARIABLES.get(found[0], found[0]), text)


def _file(figure, form: str) -> bytes:
  """A figure as 'png', or as 'svg', which has the same bytes every time."""
  options = {'dpi': 100}
  if form == 'svg':
    metadata = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    options = {'transparent': True, 'metadata': metadata}
  buffer = io.BytesIO()
  figure.savefig(buffer, format=form, **options)
  return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Marks:
  """Points of a scatter plot, each with a name beside it, or none.

  `colour` is an index, as a `Line`'s is; `corners` has where each name is, (1, 1) for the upper
  right of its point; hollow points are larger.
  """

  label: str
  points: Points
  names: Sequence[str]
  colour: int
  corners: Sequence[tuple[int, int]]
  hollow: bool = False


def scatter(panels: Mapping[str, Sequence[Marks]], *, ylabel: str, form: str) -> bytes:
  """A PNG or SVG file with a panel for each label of a logarithmic x axis, and one legend."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context({**_SVG_STYLE, 'font.size': 10}):
    figure = Figure(figsize=(6 * len(panels), 6), layout='constrained')
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    shown = {}  # label -> a handle for the legend
    for axes, (xlabel, series) in zip(row, panels.items(), strict=True):
      for marks in series:
        shown.setdefault(marks.label, _draw_marks(axes, marks))
      axes.set_xscale('log')
      axes.xaxis.set_major_formatter('{x:,.6g}')
      axes.set_xlabel(xlabel, color=_TEXT)
      axes.grid(color=_GRID)
      axes.tick_params(which='both', labelcolor=_TEXT)
      axes.margins(0.08)
    row[0].set_ylabel(ylabel, color=_TEXT)
    legend = figure.legend(
      shown.values(), shown, loc='outside lower center', ncols=3, frameon=False, labelcolor=_TEXT
    )
    for text in legend.get_texts():
      text.set_parse_math(False)  # a run's path may have a $
    return _file(figure, form)


def _draw_marks(axes, marks: Marks):
  colour = _COLOURS[marks.colour % len(_COLOURS)]
  (handle,) = axes.plot(
    *zip(*marks.points),
    linestyle='none',
    color=colour,
    marker='osD^v<>p'[marks.colour % 8],
    markersize=10 if marks.hollow else 5,
    markerfacecolor='none' if marks.hollow else colour,
  )
  for point, name, (across, up) in zip(marks.points, marks.names, marks.corners, strict=True):
    axes.annotate(
      name,
      point,
      xytext=(5 * across, 3 if up > 0 else -10),
      textcoords='offset points',
      ha='left' if across > 0 else 'right',
      fontsize=8,
      color=colour,
    )
  return handle


def _make_logarithmic(axes) -> None:
  """A logarithmic y axis with plain numbers as labels: 1, 2, 5, 10 or powers of ten."""
  from matplotlib import ticker

  axes.set_yscale('log')
  low, high = axes.get_ylim()
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
  axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.yaxis.set_major_formatter('{x:.6g}')


def curves(rows: Sequence[dict], path: epath.Path) -> None:
  """Plots the loss and the accuracies of metrics.jsonl's `rows` over the step, as a PNG."""
  names = sorted({name for row in rows for name in row} - {'train/loss', 'train/accuracy'})
  panels = {
    'loss': ['train/loss', *(n for n in names if n.endswith('/loss'))],
    'accuracy': ['train/accuracy', *(n for n in names if n.endswith(('/top1', '/accuracy')))],
  }
  points = {
    title: {name: [(row['step'], row[name]) for row in rows if name in row] for name in shown}
    for title, shown in panels.items()
  }
  png(points, path, xlabel='step', log_y=('loss',), share_y=False)


def png(
  panels: Mapping[str, Mapping[str, Points]],
  path: epath.Path,
  *,
  xlabel: str = '',
  ylabel: str = '',
  xticks: Sequence[float] = (),
  log_x: bool = False,
  log_y: Sequence[str] = (),
  share_y: bool = True,
) -> None:
  """Writes a PNG with a panel for each title and in it a line of (x, y) for each label.

  Points (x, y, e) have an error bar from y - e to y + e. With `xticks` the x axis is logarithmic
  and has these ticks. `log_y` has the titles of panels with a logarithmic y axis.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5 * len(panels), 4), layout='constrained')
  row = figure.subplots(1, len(panels), sharey=share_y, squeeze=False)[0]
  for axes, (title, lines) in zip(row, panels.items(), strict=True):
    for label, points in lines.items():
      x, y, *errors = zip(*points)
      marker = '.' if len(points) < 50 else None
      axes.errorbar(x, y, *errors, label=label, marker=marker, capsize=3 if errors else None)
    axes.set(xlabel=xlabel, title=title)
    if title in log_y:
      _make_logarithmic(axes)
    if xticks:
      axes.set_xscale('log')
      axes.set_xticks(xticks, [f'{tick:g}' for tick in xticks])
      axes.minorticks_off()
    elif log_x:
      axes.set_xscale('log')
    axes.grid(alpha=0.3)
  if len({tuple(lines) for lines in panels.values()}) == 1:  # one legend for all, below
    labelled = row[0].get_legend_handles_labels()
    figure.legend(*labelled, loc='outside lower center', ncols=len(labelled[0]))
  else:
    for axes in row:
      axes.legend()
  row[0].set_ylabel(ylabel)
  files.write(path, _file(figure, 'png'))


def reliability(calibration: Mapping, path: epath.Path) -> None:
  """Writes a PNG of the bins of a calibration.json: accuracy over probability, and images."""
  from matplotlib.figure import Figure

  bins = calibration['bins']
  left, width = [one['low'] for one in bins], bins[0]['high']
  figure = Figure(figsize=(5, 6), layout='constrained')
  top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
  top.plot((0, 1), (0, 1), color=_TEXT, linestyle='--', label='calibrated')
  accuracy = [one['accuracy'] or 0 for one in bins]
  top.bar(left, accuracy, width, align='edge', color=_COLOURS[0], edgecolor='white')
  top.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy', title=f'ECE {calibration["ece"]:.4f}')
  top.legend()
  below.bar(
    left, [one['n'] for one in bins], width, align='edge', color=_COLOURS[7], edgecolor='white'
  )
  below.set(xlabel='probability of the highest class', ylabel='images')
  files.write(path, _file(figure, 'png'))


def images(
  pictures: Sequence[np.ndarray], captions: Sequence[str], path: epath.Path, *, title: str
) -> None:
  """Writes a PNG of uint8 images (height, width, channels) in rows of eight, with their captions.

  One channel is shown as grey, and of any other number than three the first one.
  """
  from matplotlib.figure import Figure

  columns = min(_IMAGES_IN_A_ROW, len(pictures))
  rows = -(-len(pictures) // columns)
  height, width = pictures[0].shape[:2]
  lines = max(caption.count('\n') + 1 for caption in captions)
  tall = 1.7 * min(max(height / width, 0.25), 4.0) + 0.16 * lines + 0.1
  figure = Figure(figsize=(1.8 * columns, tall * rows + 0.4), layout='constrained')
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid:
    axes.axis('off')
  for axes, picture, caption in zip(grid, pictures, captions):
    shown = picture if picture.shape[-1] == 3 else picture[..., 0]
    axes.imshow(shown, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
    short = [
      line if len(line) <= _CAPTION else f'{line[: _CAPTION - 9]}...{line[-6:]}'
      for line in caption.split('\n')
    ]  # the share is at the end
    axes.set_title('\n'.join(short), fontsize=7, parse_math=False)
  figure.suptitle(title, fontsize=9)
  files.write(path, _file(figure, 'png'))
