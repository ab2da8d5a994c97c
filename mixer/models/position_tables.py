"""ViT's position table for another grid of patches: section 3.2 of the ViT paper."""

import math

import numpy as np
import scipy.ndimage

from mixer.errors import InputError

Grid = tuple[int, int]


def resize(table: np.ndarray, new: Grid, old: Grid | None = None) -> np.ndarray:
  """Table (1, tokens, C) for a grid `old` (rows, columns) of patches -> one for `new`, float32.

  Bilinear interpolation in which the corners of both grids coincide, as in vision_transformer and
  big_vision. A row for the class token stays in front unchanged, as in vision_transformer;
  big_vision adds that row to the class token itself and has none in its table. Both take square
  grids only. For some sides, such as 28 to 24, rounding makes the last row and column of theirs
  zero; here these are interpolated like the others.

  Args:
    table: has a row per patch, row-major, after one for the class token if there is one.
    new: (rows, columns) of the result.
    old: (rows, columns) of the table; None for a square.

  Raises:
    InputError: the table does not have the rows of the grid `old`, or of any square.
  """
  table = np.asarray(table, np.float32)
  tokens = table.shape[1]
  rows, columns = old or (math.isqrt(tokens),) * 2
  extra = tokens - rows * columns
  if extra not in (0, 1):
    wanted = f'the grid {(rows, columns)}' if old else 'a square grid'
    raise InputError(
      f'a position table of {tokens} rows is not that of {wanted}, with or without a class token; '
      'give the size of the images that the model was trained on.'
    )
  if (rows, columns) == tuple(new):
    return table
  grid = table[0, extra:].reshape(rows, columns, -1)
  factors = (new[0] / rows, new[1] / columns, 1)
  # In the default mode, a coordinate that is rounded to just above the last one gives 0.
  grid = scipy.ndimage.zoom(grid, factors, order=1, mode='nearest')
  return np.concatenate([table[:, :extra], grid.reshape(1, new[0] * new[1], -1)], axis=1)
