"""Weights for another resolution: exact growth (section 3 and appendix C) and resampling.

An image of the new size is divided into K_h x K_w tiles of the old size. After growing, the
token-mixing MLPs work on each tile as before, so the logits of the large image are the mean of
those of its tiles; fine-tuning then mixes tokens across tiles.

Resampling, which is not in the paper, is an approximation for any other grid.
"""

from collections.abc import Callable, Mapping
import math

import jax
import numpy as np

from mixer.errors import InputError


def tiling(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
  """Number of tiles of the token grid `old` (rows, columns) along each side of the grid `new`.

  Raises:
    InputError: a side is not a multiple; the message has the nearest multiples.
  """
  faults = []
  for side, have, want in zip(('rows', 'columns'), old, new):
    if want % have:
      below, above = want // have * have, -(-want // have) * have
      valid = f'{below} or {above}' if below else f'{above}'
      faults.append(f'{want} {side} are no multiple of {have}: use {valid}')
  if faults:
    raise InputError(
      f'weights for a grid of {old} patches cannot grow to {new}: {"; ".join(faults)}. '
      'Grown weights are copies of the old ones, one for each tile (appendix C of the paper). '
      'config.init.resample=True, without config.model.tiles, resamples them for any grid instead, '
      'which is an approximation.'
    )
  return new[0] // old[0], new[1] // old[1]


def tile_major(grid: tuple[int, int], tiles: tuple[int, int]) -> np.ndarray:
  """The row-major index, in the grown grid, of each token in tile-major order: int (n,).

  Tile-major: all the tokens of the first tile in its own row-major order, then the next tile's.
  """
  (rows, columns), (down, across) = grid, tiles
  index = np.arange(down * rows * across * columns)
  return index.reshape(down, rows, across, columns).transpose(0, 2, 1, 3).ravel()


def grow(params: Mapping, grid: tuple[int, int], tiles: tuple[int, int]) -> dict:
  """Parameters for a grid `tiles` times as large as `grid`, in the released layout.

  Every token-mixing MLP becomes block-diagonal over the tiles, its hidden width K_h * K_w times
  as large; everything else keeps its shape and values. (Section 3 of the paper has W2 where
  appendix C has W1 for the first layer; this follows the appendix.)
  """
  count, index = math.prod(tiles), tile_major(grid, tiles)
  eye = np.eye(count, dtype=np.float32)

  def grow_mlp(mlp):
    first, second = mlp['Dense_0'], mlp['Dense_1']
    into = np.empty((len(index), count * first['kernel'].shape[1]), np.float32)
    into[index] = np.kron(eye, np.asarray(first['kernel']))
    out = np.empty((count * second['kernel'].shape[0], len(index)), np.float32)
    out[:, index] = np.kron(eye, np.asarray(second['kernel']))
    bias = np.empty(len(index), np.float32)
    bias[index] = np.tile(second['bias'], count)
    return {
      'Dense_0': {'kernel': into, 'bias': np.tile(first['bias'], count)},
      'Dense_1': {'kernel': out, 'bias': bias},
    }

  return _with_token_mixing(params, grow_mlp)


def resample(params: Mapping, old: tuple[int, int], new: tuple[int, int]) -> dict:
  """Parameters for the grid `new` of those for `old` (rows, columns), in the released layout.

  Each token-mixing MLP f of `old` becomes R f(P x): P resizes the tokens x from `new` to `old`, and
  R from `old` to `new`, both bilinearly with antialiasing. P is part of the first kernel, P^T W_1,
  and R of the second kernel and its bias, W_2 R^T and R b_2; the hidden width stays. The rows of P
  add up to 1. So tokens that are all equal have the same pre-activations as before: away from the
  borders, P^T W_1 is W_1 interpolated and scaled by the number of old tokens over that of new ones.
  """
  down, up = _resize_matrix(new, old), _resize_matrix(old, new)

  def resample_mlp(mlp):
    first, second = mlp['Dense_0'], mlp['Dense_1']
    return {
      'Dense_0': {'kernel': down.T @ first['kernel'], 'bias': first['bias']},
      'Dense_1': {'kernel': second['kernel'] @ up.T, 'bias': up @ second['bias']},
    }

  return _with_token_mixing(params, resample_mlp)


def _resize_matrix(old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
  """(new tokens, old tokens), float32: resizes values on the grid `old`, row-major, to `new`."""
  rows, columns = (
    jax.image.resize(np.eye(have, dtype=np.float32), (want, have), 'linear', antialias=True)
    for have, want in zip(old, new, strict=True)
  )
  return np.kron(rows, columns)


def _with_token_mixing(params: Mapping, change: Callable[[Mapping], Mapping]) -> dict:
  """The parameters, in which each token-mixing MLP is changed."""
  return {
    name: {**part, 'token_mixing': change(part['token_mixing'])}
    if name.startswith('MixerBlock_')
    else part
    for name, part in params.items()
  }
