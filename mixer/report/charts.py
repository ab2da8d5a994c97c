"""Line charts as inline SVG, coloured by the page's style sheet, so that they follow its theme."""

from collections.abc import Sequence
import dataclasses
import html
import math

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 12, 30
_MOST_POINTS = 800  # of a line; more are thinned out
COLOURS = 8  # classes c0 to c7 of the style sheet
DASHES = ('', '7 4', '2 3', '9 3 2 3')


@dataclasses.dataclass(frozen=True)
class Line:
  """One line; `colour` and `dash` are numbers, taken modulo those there are."""

  label: str
  points: Sequence[tuple[float, float]]
  colour: int = 0
  dash: int = 0


def lines(title: str, series: Sequence[Line], *, log: bool = False) -> str:
  """An HTML figure of `series` over the step; values that cannot be drawn are left out.

  With `log`, the vertical axis is logarithmic, provided that all values are positive.
  """
  kept = [dataclasses.replace(line, points=_finite(line.points)) for line in series]
  kept = [line for line in kept if line.points]
  if not kept:
    return ''
  xs, ys = zip(*(point for line in kept for point in line.points))
  log = log and min(ys) > 0
  x_ticks = linear_ticks(min(0, *xs), max(xs))
  y_ticks = log_ticks(min(ys), max(ys)) if log else linear_ticks(min(ys), max(ys))
  scale = math.log10 if log else float
  low, high = (scale(f(*y_ticks, f(ys))) for f in (min, max))

  def place(x, y):
    across = (x - x_ticks[0]) / ((max(max(xs), x_ticks[-1]) - x_ticks[0]) or 1)
    up = (scale(y) - low) / ((high - low) or 1)
    return (
      _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
      _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
    )

  parts = [*_grid(place, x_ticks, y_ticks)]
  for line in kept:
    path = ' '.join('{:.1f},{:.1f}'.format(*place(*point)) for point in thin(line.points))
    shape = f'class="line c{line.colour % COLOURS}" stroke-dasharray="{_dash(line)}"'
    if len(line.points) == 1:
      x, y = place(*line.points[0])
      parts.append(f'<circle {shape} cx="{x:.1f}" cy="{y:.1f}" r="3"></circle>')
    else:
      parts.append(f'<polyline {shape} points="{path}"></polyline>')
  return (
    f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
    f'{"".join(parts)}</svg>{_legend(kept)}</figure>'
  )


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """At most about 800 of the points, at even distances, with the last one."""
  every = -(-len(points) // _MOST_POINTS)
  kept = list(points[::every])
  return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def linear_ticks(low: float, high: float) -> list[float]:
  """Three to seven round numbers within [low, high], or `low` alone where there is no range."""
  if high <= low:
    return [low]
  unit = 10 ** math.floor(math.log10((high - low) / 4))
  step = next(unit * k for k in (1, 2, 5, 10) if (high - low) / (unit * k) <= 6)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten within [low, high] with their double and fivefold, or whole powers if many."""
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  factors = (1, 2, 5) if last - first <= 3 else (1,)
  found = [k * 10.0**e for e in range(first, last + 1) for k in factors]
  return [tick for tick in found if low <= tick <= high] or [low]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  return [(x, y) for x, y in points if math.isfinite(y)]


def _grid(place, x_ticks, y_ticks):
  bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
  for tick in y_ticks:
    _, y = place(x_ticks[0], tick)
    yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"></line>'
    yield f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>'
  for tick in x_ticks:
    x, _ = place(tick, y_ticks[0])
    yield f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:,.6g}</text>'
  yield f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"></line>'


def _dash(line: Line) -> str:
  return DASHES[line.dash % len(DASHES)]


def _legend(series: Sequence[Line]) -> str:
  entries = (
    '<li><svg viewBox="0 0 26 8" class="key" aria-hidden="true">'
    f'<line class="line c{line.colour % COLOURS}" stroke-dasharray="{_dash(line)}" x1="0" x2="26" '
    f'y1="4" y2="4"></line></svg>{html.escape(line.label)}</li>'
    for line in series
  )
  return f'<ul class="legend">{"".join(entries)}</ul>'
