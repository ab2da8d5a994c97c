"""Changes to token mixing that brought no consistent gain: appendix A of the paper.

Each replaces the shared token-mixing MLP of a block. Its input is the normalised table x
(n, tokens S, channels C). Parameter names differ from the Mixer's, so that a loader cannot confuse
the two. The paper gives neither formulas nor the values of G and S'; each function documents the
choices made here.
"""

from collections.abc import Sequence
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.errors import InputError
from mixer.models import layers

GROUPINGS = ('concat', 'views')


class UntiedDense(nn.Module):
  """A separate dense layer for each row: (n, rows, a) -> (n, rows, features)."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    _, rows, width = x.shape
    init = nn.initializers.lecun_normal(batch_axis=(0,))  # fan-in of one row
    kernel = self.param('kernel', init, (rows, width, self.features))
    bias = self.param('bias', nn.initializers.zeros, (rows, self.features))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return jnp.einsum('nra,rab->nrb', x, kernel) + bias[None]


def untied(x: jax.Array, keys: jax.Array | None, mlp: dict) -> jax.Array:
  """C separate MLPs: (n, S, C) -> (n, S, C). `mlp` are the arguments of `layers.MlpBlock`."""
  x = jnp.swapaxes(x, 1, 2)  # (n, C, S)
  x = layers.MlpBlock(**mlp, dense=UntiedDense, name='untied_token_mixing')(x, keys)
  return jnp.swapaxes(x, 1, 2)


def grouped(
  x: jax.Array, keys: jax.Array | None, mlp: dict, *, groups: int, views: bool
) -> jax.Array:
  """The MLP on a table (S*G) x (C/G): (n, S, C) -> (n, S, C); its hidden width stays D_S.

  Row s*G + g of the table holds, for token s, the channels g, G + g, 2G + g, ... (column j has the
  neighbours j*G to j*G + G - 1), or with `views` the outputs of the g-th of G linear maps
  R^C -> R^(C/G), without biases. The result returns to S x C by the inverse rearrangement; the
  g-th view becomes the channels g*C/G to (g + 1)*C/G - 1, without linear maps back.
  """
  n, tokens, channels = x.shape
  rows, columns = tokens * groups, channels // groups
  if views:
    dense = nn.Dense(channels, use_bias=False, dtype=mlp['dtype'], name='views')
    x = dense(x).reshape(n, rows, columns)
  else:
    x = jnp.swapaxes(x.reshape(n, tokens, columns, groups), 2, 3).reshape(n, rows, columns)
  x = jnp.swapaxes(x, 1, 2)  # (n, C/G, S*G)
  x = layers.MlpBlock(**mlp, name='grouped_token_mixing')(x, keys)
  x = jnp.swapaxes(x, 1, 2).reshape(n, tokens, groups, columns)
  return (x if views else jnp.swapaxes(x, 2, 3)).reshape(n, tokens, channels)


def reducing(x: jax.Array, keys: jax.Array | None, mlp: dict, *, tokens: int) -> jax.Array:
  """The MLP maps S to fewer tokens: (n, S, C) -> (n, tokens, C).

  Input and output differ in shape, so this MLP has neither a residual connection nor stochastic
  depth.
  """
  if tokens >= x.shape[1]:
    raise InputError(
      f'model.pyramid asks for {tokens} tokens where there are {x.shape[1]}; ask for fewer.'
    )
  x = jnp.swapaxes(x, 1, 2)  # (n, C, S)
  x = layers.MlpBlock(**mlp, out_dim=tokens, name='pyramid_token_mixing')(x, keys)
  return jnp.swapaxes(x, 1, 2)


def active(model: nn.Module) -> list[str]:
  """The options of `model` that change token mixing, each as 'name=value'."""
  return [
    *(['untie_tokens=True'] if model.untie_tokens else []),
    *([f'channel_groups={model.channel_groups}'] if model.channel_groups > 1 else []),
    *([f'pyramid={tuple(map(tuple, model.pyramid))}'] if model.pyramid else []),
  ]


def check(model: nn.Module) -> None:
  """Raises InputError for a value out of range or a combination that is not supported."""
  if model.hidden_dim % model.channel_groups:
    raise InputError(
      f'channel_groups is {model.channel_groups}; use a divisor of hidden_dim={model.hidden_dim}.'
    )
  _check_pyramid(model.pyramid, model.num_blocks)
  changes = active(model)
  if len(changes) > 1:
    raise InputError(f'{" and ".join(changes)}: only one of these changes can be made at a time.')
  if changes and math.prod(layers.pair(model.tiles)) > 1:
    raise InputError(
      f'{changes[0]} with tiles={model.tiles}: growing to a higher resolution is defined for the '
      "paper's own token mixing only; use tiles=1."
    )
  if model.pyramid and model.scan:
    raise InputError(
      'pyramid with scan=True: the blocks of a pyramid differ in shape, so they cannot be '
      'scanned; use scan=False.'
    )


def _check_pyramid(pyramid: Sequence[Sequence[int]], num_blocks: int) -> None:
  pairs = [tuple(step) for step in pyramid if isinstance(step, Sequence) and len(step) == 2]
  good = len(pairs) == len(pyramid) and all(isinstance(v, int) for pair in pairs for v in pair)
  if good and pairs:
    blocks, tokens = zip(*pairs)
    good = list(blocks) == sorted(set(blocks)) and blocks[0] >= 0 and blocks[-1] < num_blocks
    good = good and list(tokens) == sorted(set(tokens), reverse=True) and tokens[-1] >= 1
  if not good:
    raise InputError(
      f'pyramid is {pyramid}; give (block, tokens) for each block that reduces the tokens, blocks '
      f'rising within 0 to {num_blocks - 1} and tokens falling, as in ((2, 49), (5, 16)).'
    )
