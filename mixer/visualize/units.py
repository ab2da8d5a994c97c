"""What single units have learned: their weights, in the order of pairs and frequencies, as tiles.

Section 3.5 and appendix D of the paper (figures 5 to 7). The paper says that units are sorted by a
heuristic that puts low frequencies first, and that each is followed by the one closest to its
inverse, without details. The measures and the scale of the colours are a choice of this module.
"""

from collections.abc import Mapping
import math
import re

import numpy as np

from mixer.errors import InputError

_STEMS = ('stem/kernel', 'embedding/kernel', 'root_block/conv_root/kernel')  # Mixer, ViT, BiT
Flat = Mapping[str, np.ndarray]  # parameters in the released layout, as `pretrained.flatten` gives


def token_mixing_units(flat: Flat, block: int, grid: tuple[int, int], source: str) -> np.ndarray:
  """The first token-mixing layer of a block, 0 for the first: (units, rows, columns).

  Raises:
    InputError: it is missing or damaged, or its number of tokens is not that of `grid`, (rows,
      columns).
  """
  kernel = _token_kernel(flat, block, source)
  if len(kernel) != math.prod(grid):
    raise InputError(
      f'{source}: block {block} mixes {len(kernel)} tokens, and the grid of patches is '
      f'{grid[0]} x {grid[1]}; give the right one with --grid=ROWSxCOLUMNS, or other --blocks.'
    )
  return kernel.T.reshape(-1, *grid)


def square_grid(flat: Flat, block: int, source: str) -> tuple[int, int]:
  """(rows, columns) of a square with the tokens of a block; InputError if there is none."""
  tokens = len(_token_kernel(flat, block, source))
  side = math.isqrt(tokens)
  if side * side != tokens:
    raise InputError(
      f'{source}: its {tokens} tokens make no square; give the grid of patches with '
      '--grid=ROWSxCOLUMNS.'
    )
  return side, side


def stem_units(flat: Flat, source: str) -> np.ndarray:
  """The patches of the stem: (units, patch height, patch width, 1 or 3 channels)."""
  name = next((name for name in _STEMS if name in flat), _STEMS[0])
  kernel = _finite(flat, name, source)
  if kernel.ndim != 4 or kernel.shape[2] not in (1, 3):
    raise InputError(
      f'{source}: {name} has the shape {kernel.shape}; only those of grey and colour images, '
      '(height, width, 1 or 3, units), can be drawn.'
    )
  return np.moveaxis(kernel, -1, 0)


def count_blocks(flat: Flat) -> int:
  return len({m[0] for name in flat if (m := re.match(r'MixerBlock_\d+/', name))})


def _token_kernel(flat: Flat, block: int, source: str) -> np.ndarray:
  count = count_blocks(flat)
  if not count:
    raise InputError(f'{source} has no blocks of a Mixer; leave out --blocks to draw its stem.')
  if not 0 <= block < count:
    raise InputError(f'{source} has the blocks 0 to {count - 1}; there is no block {block}.')
  prefix = f'MixerBlock_{block}/'
  changed = sorted({n.split('/')[1] for n in flat if re.match(prefix + r'\w+_token_mixing/', n)})
  if changed:
    raise InputError(
      f'{source}: block {block} has {changed[0]}, a variant of appendix A of the paper, whose '
      'units have no weights on the patch grid. Draw other blocks with --blocks=0,1, or the stem '
      'alone with --blocks=.'
    )
  kernel = _finite(flat, f'{prefix}token_mixing/Dense_0/kernel', source)
  if kernel.ndim != 2:
    raise InputError(f'{source}: the token-mixing kernel of block {block} is {kernel.shape}.')
  return kernel


def _finite(flat: Flat, name: str, source: str) -> np.ndarray:
  if name not in flat:
    raise InputError(f'{source} has no {name}, so it is not a Mixer in the released layout.')
  if not np.isfinite(flat[name]).all():
    raise InputError(f'{source}: {name} has values that are not finite; the file is damaged.')
  return np.asarray(flat[name], np.float32)


def frequencies(units: np.ndarray) -> np.ndarray:
  """The mean radius of each unit's 2-D spectrum, weighted by power, in cycles per step: (units,).

  `units` is (units, rows, columns) or (units, rows, columns, channels); powers are summed over the
  channels. A unit of zeros has the frequency infinity, so that it is sorted last.
  """
  power = np.abs(np.fft.fft2(units.astype(np.float64), axes=(1, 2))) ** 2
  power = power.reshape(*power.shape[:3], -1).sum(axis=3)
  radius = np.hypot(
    np.fft.fftfreq(units.shape[1])[:, None], np.fft.fftfreq(units.shape[2])[None, :]
  )
  total = power.sum(axis=(1, 2))
  with np.errstate(invalid='ignore'):
    return np.where(total > 0, (power * radius).sum(axis=(1, 2)) / total, np.inf)


def pairs(units: np.ndarray) -> list[tuple[int, int]]:
  """Pairs of units of opposite phase, each unit in one pair; of an odd number, one is left out.

  Greedy: the two units with the most negative cosine similarity are the first pair, the same of the
  remaining units the second, and so on.
  """
  flat = units.reshape(len(units), -1).astype(np.float64)
  norm = np.linalg.norm(flat, axis=1, keepdims=True)
  flat = flat / np.where(norm > 0, norm, 1.0)
  first, second = np.triu_indices(len(flat), k=1)
  found, free = [], np.ones(len(flat), bool)
  for k in np.argsort((flat @ flat.T)[first, second], kind='stable'):
    i, j = int(first[k]), int(second[k])
    if free[i] and free[j]:
      free[[i, j]] = False
      found.append((i, j))
      if free.sum() < 2:
        break
  return found


def in_pairs(units: np.ndarray) -> list[int]:
  """Order of the units: pair by pair, the lowest mean frequency first; a single unit last."""
  frequency, found = frequencies(units), pairs(units)
  found.sort(key=lambda pair: (frequency[list(pair)].mean(), pair))
  order = [i for pair in found for i in pair]
  return order + sorted(set(range(len(units))) - set(order))


def by_frequency(units: np.ndarray) -> list[int]:
  """Order of the units: the lowest frequency first."""
  return [int(i) for i in np.argsort(frequencies(units), kind='stable')]


def red_and_blue(units: np.ndarray) -> np.ndarray:
  """(units, rows, columns) -> uint8 RGB tiles: red above zero, white at it, blue below.

  Each unit is scaled by its own largest weight, so that small weights are visible.
  """
  value = _scaled(units)[..., None]
  red, blue = np.array([178, 24, 43]), np.array([33, 102, 172])
  ends = np.where(value > 0, red, blue)
  return np.rint(255 + np.abs(value) * (ends - 255)).astype(np.uint8)


def as_colours(units: np.ndarray) -> np.ndarray:
  """(units, rows, columns, 1 or 3 channels) -> uint8 RGB tiles; zero is medium grey."""
  tiles = np.rint(127.5 + 127.5 * _scaled(units)).astype(np.uint8)
  return np.broadcast_to(tiles, (*tiles.shape[:3], 3))


def columns(count: int) -> int:
  """Columns of a nearly square arrangement of `count` tiles: even, so that pairs stay together."""
  least = 2 * math.ceil(math.sqrt(count) / 2)
  full = [c for c in range(least, 2 * least, 2) if count % c == 0]  # without a gap at the end
  return full[0] if full else least


def _scaled(units: np.ndarray) -> np.ndarray:
  largest = np.abs(units).max(axis=tuple(range(1, units.ndim)), keepdims=True)
  return units / np.where(largest > 0, largest, 1.0)
