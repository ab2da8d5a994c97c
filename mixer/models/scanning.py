"""Conversion between one subtree per block, the released layout, and blocks stacked for a scan."""

from collections.abc import Mapping, Sequence

import jax

STACKED = 'MixerBlocks'
_STACKED_OF_VIT = 'encoderblock'


def stack_blocks(params: Mapping) -> dict:
  """The released layout -> all blocks in one subtree, with a leading axis over the blocks.

  The subtree is 'MixerBlocks' of a Mixer and 'Transformer/encoderblock' of a ViT.
  """
  if 'Transformer' in params:
    return {**params, 'Transformer': _stack(params['Transformer'], _STACKED_OF_VIT)}
  return _stack(params, STACKED)


def unstack_blocks(params: Mapping) -> dict:
  """The inverse of `stack_blocks`; a tree in the released layout is returned unchanged."""
  if 'Transformer' in params:
    return {**params, 'Transformer': _unstack(params['Transformer'], _STACKED_OF_VIT)}
  return _unstack(params, STACKED)


def released_names(path: Sequence[str], count: int) -> list[str] | None:
  """The names that a leaf stacked over `count` blocks has in the released layout; else None."""
  for i, part in enumerate(path):
    if part in (STACKED, _STACKED_OF_VIT):
      blocks = (f'{_prefix(part)}{k}' for k in range(count))
      return ['/'.join((*path[:i], block, *path[i + 1 :])) for block in blocks]
  return None


def _stack(params: Mapping, stacked: str) -> dict:
  prefix = _prefix(stacked)
  names = sorted((n for n in params if n.startswith(prefix)), key=lambda n: int(n[len(prefix) :]))
  rest = {name: leaf for name, leaf in params.items() if name not in names}
  blocks = (params[name] for name in names)
  return {**rest, stacked: jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *blocks)}


def _unstack(params: Mapping, stacked: str) -> dict:
  if stacked not in params:
    return dict(params)
  count = len(jax.tree.leaves(params[stacked])[0])
  blocks = {
    f'{_prefix(stacked)}{i}': jax.tree.map(lambda x, i=i: x[i], params[stacked])
    for i in range(count)
  }
  return {**{k: v for k, v in params.items() if k != stacked}, **blocks}


def _prefix(stacked: str) -> str:
  """'MixerBlock_' for 'MixerBlocks', 'encoderblock_' for 'encoderblock'."""
  return stacked.removesuffix('s') + '_'
