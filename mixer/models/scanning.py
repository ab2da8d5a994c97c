"""Conversion between one subtree per block, the released layout, and blocks stacked for a scan."""

from collections.abc import Mapping
import re

import jax

STACKED = 'MixerBlocks'
_BLOCK = re.compile(r'MixerBlock_(\d+)')


def stack_blocks(params: Mapping) -> dict:
  """The released layout -> one 'MixerBlocks' subtree with a leading axis over the blocks."""
  blocks = {int(m[1]): name for name in params if (m := _BLOCK.fullmatch(name))}
  stacked = jax.tree.map(
    lambda *leaves: jax.numpy.stack(leaves), *(params[blocks[i]] for i in sorted(blocks))
  )
  return {**{k: v for k, v in params.items() if k not in blocks.values()}, STACKED: stacked}


def unstack_blocks(params: Mapping) -> dict:
  """The inverse of `stack_blocks`; a tree in the released layout is returned unchanged."""
  if STACKED not in params:
    return dict(params)
  stacked = params[STACKED]
  count = len(jax.tree.leaves(stacked)[0])
  blocks = {f'MixerBlock_{i}': jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)}
  return {**{k: v for k, v in params.items() if k != STACKED}, **blocks}
