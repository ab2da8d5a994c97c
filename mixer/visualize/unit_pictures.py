"""Mosaics of the units of a Mixer: figures 5 to 7 of the paper, as PNG and SVG."""

import base64
from collections.abc import Sequence
import dataclasses
import io

import numpy as np
from PIL import Image

from mixer import pretrained
from mixer.errors import InputError
from mixer.models import layers
from mixer.visualize import units

_TILE = 48  # pixels of a tile's longer side, about
_GAP, _PAIR_GAP = 3, 14  # pixels between tiles, and between pairs of them
_BACKGROUND = 196


@dataclasses.dataclass(frozen=True)
class Mosaic:
  """Pictures of units, row by row.

  Attributes:
    tiles: uint8 (units, rows, columns, 3).
    titles: one for each tile.
    paired: whether tiles 0 and 1, 2 and 3 and so on stand together.
  """

  tiles: np.ndarray
  titles: Sequence[str]
  paired: bool = False

  def png(self) -> bytes:
    """One image of all tiles, without the titles."""
    scale = self._scale
    corners, (height, width) = self._layout()
    image = np.full((height, width, 3), _BACKGROUND, np.uint8)
    for (y, x), tile in zip(corners, self.tiles.repeat(scale, axis=1).repeat(scale, axis=2)):
      image[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return _encode(image)

  def svg(self) -> bytes:
    """The same with one <image> for each tile, sharp at any size, and its title as a tooltip."""
    corners, (height, width) = self._layout()
    rows, columns = (side * self._scale for side in self.tiles.shape[1:3])
    lines = [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
      f'height="{height}">',
      '<style>image { image-rendering: pixelated }</style>',
      f'<rect width="100%" height="100%" fill="rgb({_BACKGROUND},{_BACKGROUND},{_BACKGROUND})"/>',
    ]
    for (y, x), tile, title in zip(corners, self.tiles, self.titles, strict=True):
      data = base64.b64encode(_encode(tile)).decode()
      lines.append(
        f'<image x="{x}" y="{y}" width="{columns}" height="{rows}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{data}"><title>{title}</title></image>'
      )
    return '\n'.join([*lines, '</svg>\n']).encode()

  @property
  def _scale(self) -> int:
    """Pixels of the picture for each weight."""
    return max(1, round(_TILE / max(self.tiles.shape[1:3])))

  def _layout(self) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """((y, x) of the upper left corner of each tile, (height, width) of the whole)."""
    across = units.columns(len(self.tiles))
    rows, columns = (side * self._scale for side in self.tiles.shape[1:3])
    more = _PAIR_GAP - _GAP if self.paired else 0
    places = np.arange(len(self.tiles)) // across, np.arange(len(self.tiles)) % across
    ys = _PAIR_GAP + places[0] * (rows + _GAP + more)
    xs = _PAIR_GAP + places[1] * (columns + _GAP) + places[1] // 2 * more
    return list(zip(ys, xs)), (ys.max() + rows + _PAIR_GAP, xs.max() + columns + _PAIR_GAP)


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
    tiles = units.red_and_blue(weights[order])
    found[f'block_{block}'] = Mosaic(tiles, _titles(weights, order), paired=True)
  order = units.by_frequency(stem)
  found['stem'] = Mosaic(units.as_colours(stem[order]), _titles(stem, order))
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


def _titles(weights: np.ndarray, order: Sequence[int]) -> list[str]:
  frequency = units.frequencies(weights)
  return [f'unit {i}, frequency {frequency[i]:.3f} cycles per step' for i in order]


def _encode(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, 'PNG')
  return buffer.getvalue()
