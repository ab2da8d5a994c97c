"""Pictures: curves of a run, and what the units of a Mixer have learned.

python -m mixer.visualize --checkpoint=FILE_OR_WORKDIR --output=DIR draws the token-mixing units of
some blocks and the patches of the stem (figures 5 to 7 of the paper), as PNG and SVG, of whatever
`mixer.pretrained.load` reads. See docs/figures.md.
"""

import base64
from collections.abc import Sequence
import io

from etils import epath
import numpy as np
from PIL import Image

from mixer import files, pretrained
from mixer.errors import InputError
from mixer.models import layers, permutations
from mixer.visualize import units

_TILE = 48  # pixels of a tile's longer side, about
_GAP, _PAIR_GAP = 3, 14  # pixels between tiles, and between pairs of them
_BACKGROUND = 196


def draw_units(
  path: epath.PathLike,
  output: epath.Path,
  *,
  blocks: Sequence[int] | None = None,
  count: int = 64,
  grid: tuple[int, int] | None = None,
) -> list[epath.Path]:
  """Writes block_I.png and .svg for each of `blocks`, stem.png and stem.svg; returns the files.

  Args:
    path: what `pretrained.load` reads.
    output: a directory.
    blocks: 0 is the first; None for the first three.
    count: how many units of each block, those of low frequency; 0 for all. The stem's are all
      drawn.
    grid: (rows, columns) of patches; None for what its run has recorded, or a square.

  Raises:
    InputError: the parameters cannot be read or drawn so, or are of permuted images.
  """
  written = []
  for name, (tiles, titles, paired) in pictures(path, blocks, count, grid).items():
    for ending, draw in (('png', png), ('svg', svg)):
      written.append(output / f'{name}.{ending}')
      files.write(written[-1], draw(tiles, titles, paired=paired))
  return written


def pictures(
  path: epath.PathLike,
  blocks: Sequence[int] | None = None,
  count: int = 64,
  grid: tuple[int, int] | None = None,
) -> dict[str, tuple[np.ndarray, list[str], bool]]:
  """{'block_0' and so on, 'stem': (RGB tiles, their titles, whether they come in pairs)}."""
  path = epath.Path(path).expanduser()
  flat, source = pretrained.flatten(pretrained.load(path)), str(path)
  if blocks is None:
    blocks = range(min(3, units.count_blocks(flat)))
  stem, found = units.of_stem(flat, source), {}
  described = _described_grid(path, stem.shape[1:3])
  for block in blocks:
    shape = grid or described or units.square_grid(flat, block, source)
    weights = units.of_token_mixing(flat, block, shape, source)
    order = units.in_pairs(weights)[: count or None]
    found[f'block_{block}'] = units.red_and_blue(weights[order]), _titles(weights, order), True
  order = units.by_frequency(stem)
  found['stem'] = units.as_colours(stem[order]), _titles(stem, order), False
  return found


def png(tiles: np.ndarray, titles: Sequence[str], *, paired: bool) -> bytes:
  """One image of all `tiles`, uint8 (n, rows, columns, 3); it has no place for the titles."""
  scale = _scale(tiles)
  tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
  places, (height, width) = _arrange(len(tiles), tiles.shape[1:3], paired)
  image = np.full((height, width, 3), _BACKGROUND, np.uint8)
  for (y, x), tile in zip(places, tiles, strict=True):
    image[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
  return _encode(image)


def svg(tiles: np.ndarray, titles: Sequence[str], *, paired: bool) -> bytes:
  """The same with one <image> for each tile, sharp at any size, its title as a tooltip."""
  scale = _scale(tiles)
  rows, columns = tiles.shape[1] * scale, tiles.shape[2] * scale
  places, (height, width) = _arrange(len(tiles), (rows, columns), paired)
  lines = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
    f'height="{height}">',
    '<style>image { image-rendering: pixelated }</style>',
    f'<rect width="100%" height="100%" fill="rgb({_BACKGROUND},{_BACKGROUND},{_BACKGROUND})"/>',
  ]
  for (y, x), tile, title in zip(places, tiles, titles, strict=True):
    data = base64.b64encode(_encode(tile)).decode()
    lines.append(
      f'<image x="{x}" y="{y}" width="{columns}" height="{rows}" preserveAspectRatio="none" '
      f'href="data:image/png;base64,{data}"><title>{title}</title></image>'
    )
  return '\n'.join([*lines, '</svg>\n']).encode()


def _described_grid(path: epath.Path, patch: tuple[int, int]) -> tuple[int, int] | None:
  """(rows, columns) of patches that the model's own description tells, if it has one."""
  permutation, size = permutations.recorded(path)
  if permutation:
    raise InputError(
      f'{path} was trained with the input permutation {permutation}: its weights are not in the '
      'order of the pixels of an image, so they make no pictures.'
    )
  return None if size is None else layers.patch_grid(size, patch)


def _titles(weights: np.ndarray, order: Sequence[int]) -> list[str]:
  frequency = units.frequencies(weights)
  return [f'unit {i}, frequency {frequency[i]:.3f} cycles per step' for i in order]


def _scale(tiles: np.ndarray) -> int:
  return max(1, round(_TILE / max(tiles.shape[1:3])))


def _arrange(
  count: int, tile: tuple[int, int], paired: bool
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
  """((y, x) of each tile, (height, width) of the whole), row by row."""
  across = min(units.columns(count), count)
  gaps = [_PAIR_GAP if paired and i % 2 else _GAP for i in range(across)]
  lefts = [_PAIR_GAP + i * tile[1] + sum(gaps[:i]) for i in range(across)]
  step = tile[0] + (_PAIR_GAP if paired else _GAP)
  places = [(_PAIR_GAP + i // across * step, lefts[i % across]) for i in range(count)]
  height = places[-1][0] + tile[0] + _PAIR_GAP
  return places, (height, lefts[-1] + tile[1] + _PAIR_GAP)


def _encode(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, 'PNG')
  return buffer.getvalue()
