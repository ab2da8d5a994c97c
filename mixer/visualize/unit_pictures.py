"""Mosaics of the units of a Mixer: figures 5 to 7 of the paper, as PNG and SVG."""

import base64
from collections.abc import Iterator, Sequence
import dataclasses
import html
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mixer import pretrained
from mixer.errors import InputError
from mixer.models import layers
from mixer.visualize import units

_TILE = 56  # pixels of a tile's longer side, at least
_GAP, _PAIR_GAP, _MARGIN = 8, 18, 14  # pixels between tiles, between pairs of them, and around
_LABEL, _HEADER, _FOOTER = 13, 34, 40  # pixels above each tile, and above and below all
_SMALL, _LARGE = 10, 14  # pixels of letters
_BACKGROUND, _INK, _SOFT = (222,) * 3, (30,) * 3, (110,) * 3
_BAR, _MIN_WIDTH = 96, 420  # pixels of the scale of colours, and of the texts
_SCALE = 'At each unit: its number, and w, its largest absolute weight.'
_ANCHORS = {'l': 'start', 'm': 'middle', 'r': 'end'}
_RAMP = np.linspace(-1, 1, _BAR)[None, None]


@dataclasses.dataclass(frozen=True)
class Unit:
  """What is written at a tile: the number of the unit, and the weight of the strongest colour."""

  number: int
  frequency: float
  largest: float

  @property
  def title(self) -> str:
    return (
      f'unit {self.number}, frequency {self.frequency:.3f} cycles per step, '
      f'largest absolute weight {self.largest:.3g}'
    )


@dataclasses.dataclass(frozen=True)
class Mosaic:
  """Pictures of units, row by row, each with its number and the weight that its scale ends at.

  Attributes:
    title: of the whole.
    tiles: uint8 (units, rows, columns, 3).
    units: one for each tile.
    bar: uint8 (n, 3), the colours from minus to plus the largest absolute weight.
    paired: whether tiles 0 and 1, 2 and 3 and so on stand together.
  """

  title: str
  tiles: np.ndarray = dataclasses.field(repr=False)
  units: Sequence[Unit] = dataclasses.field(repr=False)
  bar: np.ndarray = dataclasses.field(repr=False)
  paired: bool = False

  def png(self) -> bytes:
    """One image of all tiles."""
    corners, (height, width) = self._layout()
    image = Image.new('RGB', (width, height), _BACKGROUND)
    rows, columns = self._tile
    for (y, x), tile in zip(corners, self.tiles):
      scaled = Image.fromarray(np.ascontiguousarray(tile))
      image.paste(scaled.resize((columns, rows), Image.Resampling.NEAREST), (x, y))
    y = height - _FOOTER + 12
    image.paste(Image.fromarray(self.bar[None]).resize((_BAR, 12)), (_MARGIN, y))
    draw = ImageDraw.Draw(image)
    for text, x, y, anchor, size in self._texts():
      draw.text(
        (x, y), text, _SOFT if anchor == 'rs' else _INK, ImageFont.load_default(size), anchor
      )
    return encode(image)

  _repr_png_ = png  # with which Jupyter shows it

  def svg(self) -> bytes:
    """The same with one <image> for each tile, sharp at any size, and its title as a tooltip."""
    corners, (height, width) = self._layout()
    rows, columns = self._tile
    lines = [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
      f'height="{height}">',
      '<style>image { image-rendering: pixelated } text { font-family: sans-serif }</style>',
      f'<rect width="100%" height="100%" fill="rgb{_BACKGROUND}"/>',
    ]
    size = f'width="{columns}" height="{rows}" preserveAspectRatio="none"'
    for (y, x), tile, unit in zip(corners, self.tiles, self.units, strict=True):
      lines.append(
        f'<image x="{x}" y="{y}" {size} {_link(tile)}><title>{unit.title}</title></image>'
      )
    lines.append(
      f'<image x="{_MARGIN}" y="{height - _FOOTER + 12}" width="{_BAR}" height="12" '
      f'preserveAspectRatio="none" {_link(self.bar[None])}/>'
    )
    for text, x, y, anchor, size in self._texts():
      ink = _SOFT if anchor == 'rs' else _INK
      lines.append(
        f'<text x="{x}" y="{y}" font-size="{size}" fill="rgb{ink}" '
        f'text-anchor="{_ANCHORS[anchor[0]]}">{html.escape(text)}</text>'
      )
    return '\n'.join([*lines, '</svg>\n']).encode()

  @property
  def _tile(self) -> tuple[int, int]:
    """(height, width) of a tile in pixels: a whole number for each weight."""
    rows, columns = self.tiles.shape[1:3]
    scale = math.ceil(_TILE / max(rows, columns))
    return rows * scale, columns * scale

  def _layout(self) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """((y, x) of the upper left corner of each tile, (height, width) of the whole)."""
    across = units.columns(len(self.tiles))
    rows, columns = self._tile
    more = _PAIR_GAP - _GAP if self.paired else 0
    places = np.arange(len(self.tiles)) // across, np.arange(len(self.tiles)) % across
    ys = _HEADER + _LABEL + places[0] * (rows + _LABEL + _GAP + more // 2)
    xs = _MARGIN + places[1] * (columns + _GAP) + places[1] // 2 * more
    corners = list(zip(ys.tolist(), xs.tolist()))
    width = max(xs.max() + columns + _MARGIN, 2 * _MARGIN + _MIN_WIDTH)
    return corners, (int(ys.max()) + rows + _FOOTER, int(width))

  def _texts(self) -> Iterator[tuple[str, int, int, str, int]]:
    """(text, x, y, which point of it that is as Pillow says it, pixels of its letters)."""
    corners, (height, _) = self._layout()
    yield self.title, _MARGIN, 22, 'ls', _LARGE
    for (y, x), unit in zip(corners, self.units, strict=True):
      yield str(unit.number), x, y - 3, 'ls', _SMALL
      yield f'{unit.largest:.2g}', x + self._tile[1], y - 3, 'rs', _SMALL
    y = height - 5
    for text, x in (('-w', 0), ('0', _BAR // 2), ('w', _BAR)):
      yield text, _MARGIN + x, y, 'ms', _SMALL
    yield _SCALE, 2 * _MARGIN + _BAR, height - _FOOTER + 22, 'ls', _SMALL


def pictures(
  trained: pretrained.Pretrained,
  blocks: Sequence[int] | None = None,
  count: int = 64,
  grid: tuple[int, int] | None = None,
) -> dict[str, Mosaic]:
  """{'block_0' and so on: the token-mixing units of the block, 'stem': the patches of the stem}.

  A ViT and a ResNet have only the stem.

  Args:
    trained: the parameters, opened.
    blocks: indices of blocks; None for the first three.
    count: units of each block, low frequencies first; 0 for all. The stem has all of its units.
    grid: (rows, columns) of patches; None for what the run has recorded, or a square.

  Raises:
    InputError: the parameters cannot be drawn, or belong to permuted images.
  """
  flat, source = pretrained.flatten(trained.params), trained.source
  if blocks is None:
    blocks = range(min(3, units.count_blocks(flat)))
  _check_pixels(trained)
  stem, found = units.stem_units(flat, source), {}
  recorded = _recorded_grid(trained, stem.shape[1:3]) if units.count_blocks(flat) else None
  for block in blocks:
    shape = grid or recorded or units.square_grid(flat, block, source)
    weights = units.token_mixing_units(flat, block, shape, source)
    order = units.in_pairs(weights)[: count or None]
    found[f'block_{block}'] = Mosaic(
      f'Block {block}: {_some(order, weights)} token-mixing units on the grid of patches',
      units.red_and_blue(weights[order]),
      _described(weights, order),
      units.red_and_blue(_RAMP)[0, 0],
      paired=True,
    )
  order = units.by_frequency(stem)
  found['stem'] = Mosaic(
    f'Stem: {_some(order, stem)} units on the pixels of a patch',
    units.as_colours(stem[order]),
    _described(stem, order),
    units.as_colours(_RAMP[..., None])[0, 0],
  )
  return found


def _check_pixels(trained: pretrained.Pretrained) -> None:
  """Raises InputError if the parameters belong to permuted images."""
  if permutation := trained.description.permutation:
    raise InputError(
      f'{trained.source} was trained with the input permutation {permutation}: its weights are not '
      'in the order of the pixels of an image, so they make no pictures.'
    )


def _recorded_grid(
  trained: pretrained.Pretrained, patch: tuple[int, int]
) -> tuple[int, int] | None:
  """(rows, columns) of patches in the images that the model was trained on, if recorded."""
  size = trained.description.image_size
  return None if size is None else layers.patch_grid(size, patch)


def _described(weights: np.ndarray, order: Sequence[int]) -> list[Unit]:
  frequency = units.frequencies(weights)
  return [Unit(i, float(frequency[i]), float(np.abs(weights[i]).max())) for i in order]


def _some(order: Sequence[int], weights: np.ndarray) -> str:
  return f'{len(order)} of {len(weights)}' if len(order) < len(weights) else f'all {len(order)}'


def _link(image: np.ndarray) -> str:
  data = base64.b64encode(encode(Image.fromarray(np.ascontiguousarray(image)))).decode()
  return f'href="data:image/png;base64,{data}"'


def encode(image: Image.Image) -> bytes:
  """A PNG file."""
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  return buffer.getvalue()
