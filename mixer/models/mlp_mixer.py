"""MLP-Mixer: sections 2 and 3 of the paper, under the released parameter names."""

from collections.abc import Sequence
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.models import layers, variants

# Table 1 of the paper: num_blocks, hidden_dim C, tokens_mlp_dim D_S, channels_mlp_dim D_C.
SIZES = {
  'S': dict(num_blocks=8, hidden_dim=512, tokens_mlp_dim=256, channels_mlp_dim=2048),
  'B': dict(num_blocks=12, hidden_dim=768, tokens_mlp_dim=384, channels_mlp_dim=3072),
  'L': dict(num_blocks=24, hidden_dim=1024, tokens_mlp_dim=512, channels_mlp_dim=4096),
  'H': dict(num_blocks=32, hidden_dim=1280, tokens_mlp_dim=640, channels_mlp_dim=5120),
}


class MixerBlock(nn.Module):
  """One Mixer layer, equation (1): (n, tokens S, channels C) -> (n, S, C).

  `out_tokens` is what a block of a pyramid leaves of the tokens; None leaves them all.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  dropout_rate: float = 0.0
  rescale_drop_path: bool = False
  dtype: jnp.dtype = jnp.float32
  untie_tokens: bool = False
  channel_groups: int = 1
  grouping: str = 'concat'
  out_tokens: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, drop_rate: jax.Array, keys: jax.Array | None) -> jax.Array:
    x = layers.split_examples(x)
    tokens = self._mix_tokens(nn.LayerNorm(dtype=self.dtype)(x), layers.fold(keys, 0))
    if self.out_tokens is None:
      u = x + layers.drop_path(
        tokens, drop_rate, layers.fold(keys, 1), rescale=self.rescale_drop_path
      )
    else:
      u = tokens

    channels = nn.LayerNorm(dtype=self.dtype)(u)
    channels = layers.MlpBlock(
      self.channels_mlp_dim, self.dropout_rate, self.dtype, name='channel_mixing'
    )(channels, layers.fold(keys, 2))
    return u + layers.drop_path(
      channels, drop_rate, layers.fold(keys, 3), rescale=self.rescale_drop_path
    )

  def _mix_tokens(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
    mlp = dict(hidden_dim=self.tokens_mlp_dim, dropout_rate=self.dropout_rate, dtype=self.dtype)
    if self.untie_tokens:
      return variants.untied(x, keys, mlp)
    if self.channel_groups > 1:
      views = self.grouping == 'views'
      return variants.grouped(x, keys, mlp, groups=self.channel_groups, views=views)
    if self.out_tokens is not None:
      return variants.shrinking(x, keys, mlp, tokens=self.out_tokens)
    x = jnp.swapaxes(x, 1, 2)  # (n, C, S)
    x = layers.MlpBlock(**mlp, name='token_mixing')(x, keys)
    return jnp.swapaxes(x, 1, 2)  # (n, S, C)


class MlpMixer(nn.Module):
  """The whole network; `apply({'params': p}, images)` gives logits or pooled features.

  Parameters are float32 whatever `dtype` is; so are the LayerNorm statistics, the pooled
  pre-logits and the logits. Randomness is given per example: `example_keys` (n,) switches
  dropout and stochastic depth on, and an example's draws do not depend on the others in its
  batch, on the number of devices or of microbatches, on `scan` or on `remat`.

  Attributes:
    num_classes: width of the linear head; None returns the pre-logits instead.
    num_blocks, hidden_dim, tokens_mlp_dim, channels_mlp_dim: L, C, D_S, D_C of Table 1.
    patch_size: an int or (height, width), in pixels.
    tiles: for weights grown to a higher resolution (`mixer.pretrained.growth`): how many times
      higher, an int or (vertically, horizontally). The token-mixing MLPs are that much wider.
    head_bias: initial value of the head's bias (its kernel starts at zero).
    stochastic_depth: drop rate s of the last block; block i drops with i / (L - 1) * s, each
      of its two MLPs by its own draw.
    rescale_drop_path: divide a kept branch by its keep rate. False is big_vision's choice.
    dropout: rate after each of the two layers of every MLP.
    dtype: compute type of the blocks, 'float32' or 'bfloat16'.
    remat: recompute each block in the backward pass instead of keeping its activations.
    scan: run the blocks as one `lax.scan` over parameters stacked under 'MixerBlocks'
      (`mixer.pretrained.stack_blocks` and `unstack_blocks` convert).
    untie_tokens, channel_groups, grouping, pyramid: what did not help (appendix A of the paper,
      `mixer.models.variants`), one at a time: a token-mixing MLP for each channel; G, and how
      channels are grouped, 'concat' or 'views'; (block, tokens that its token-mixing MLP leaves)
      for each block that reduces them.
  """

  num_classes: int | None
  num_blocks: int
  hidden_dim: int
  tokens_mlp_dim: int
  channels_mlp_dim: int
  patch_size: layers.Size
  tiles: layers.Size = 1
  head_bias: float = 0.0
  stochastic_depth: float = 0.0
  rescale_drop_path: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'
  remat: bool = False
  scan: bool = False
  untie_tokens: bool = False
  channel_groups: int = 1
  grouping: str = 'concat'
  pyramid: Sequence[Sequence[int]] = ()

  def __post_init__(self):
    variants.check(self)
    super().__post_init__()

  @property
  def layer_names(self) -> tuple[str, ...]:
    """What `models.intermediates` gives the outputs of."""
    return ('stem', *(f'MixerBlock_{i}' for i in range(self.num_blocks)))

  @nn.compact
  def __call__(self, images: jax.Array, example_keys: jax.Array | None = None) -> jax.Array:
    """Images (n, height, width, channels) in [-1, 1] -> (n, num_classes) or (n, hidden_dim)."""
    patch = layers.pair(self.patch_size)
    layers.patch_grid(images.shape[1:3], patch)
    x = nn.Conv(self.hidden_dim, patch, patch, 'VALID', dtype=self.dtype, name='stem')(images)
    x = x.reshape(x.shape[0], -1, self.hidden_dim)  # (n, S, C), row-major
    x = self._blocks(x, example_keys)
    x = nn.LayerNorm(dtype=self.dtype, name='pre_head_layer_norm')(x)
    x = jnp.mean(x, axis=1, dtype=jnp.float32)  # (n, C)
    self.sow('intermediates', 'pre_logits', x)
    if self.num_classes is None:
      return x
    return nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias),
      name='head',
    )(x)

  def _blocks(self, x: jax.Array, example_keys: jax.Array | None) -> jax.Array:
    rates = jnp.linspace(0.0, self.stochastic_depth, self.num_blocks)
    if not (self.stochastic_depth or self.dropout):
      example_keys = None
    block = nn.remat(MixerBlock, prevent_cse=not self.scan) if self.remat else MixerBlock
    sizes: dict[str, Any] = dict(
      tokens_mlp_dim=math.prod(layers.pair(self.tiles)) * self.tokens_mlp_dim,
      channels_mlp_dim=self.channels_mlp_dim,
      dropout_rate=self.dropout,
      rescale_drop_path=self.rescale_drop_path,
      dtype=self.dtype,
      untie_tokens=self.untie_tokens,
      channel_groups=self.channel_groups,
      grouping=self.grouping,
    )
    if not self.scan:
      left = dict(map(tuple, self.pyramid))
      for i in range(self.num_blocks):
        layer = block(name=f'MixerBlock_{i}', out_tokens=left.get(i), **sizes)
        x = layer(x, rates[i], layers.fold(example_keys, i))
      return x

    def body(stacked, carry, i):
      return stacked(carry, rates[i], layers.fold(example_keys, i)), None

    scanned = nn.scan(
      body,
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True},
      length=self.num_blocks,
    )
    x, _ = scanned(block(name='MixerBlocks', **sizes), x, jnp.arange(self.num_blocks))
    return x


def matmul_flops(model: MlpMixer, image_size: layers.Size, channels: int = 3) -> dict[str, int]:
  """FLOPs (2 per multiply-add) of one image's forward matmuls, by part of the network.

  Keys: 'stem', 'tokens', 'channels', 'head'. Their sum is the forward GFLOP row of Table 1's
  extension in the README; element-wise work is left out, as is usual for MFU.
  """
  rows, columns = layers.patch_grid(image_size, model.patch_size)
  height, width = layers.pair(model.patch_size)
  tokens = rows * columns
  tokens_mlp_dim = math.prod(layers.pair(model.tiles)) * model.tokens_mlp_dim
  left = dict(map(tuple, model.pyramid))
  seen = [tokens]  # by the first block, by the second, ..., by the pool
  for i in range(model.num_blocks):
    seen.append(left.get(i, seen[-1]))
  is_viewed = model.channel_groups > 1 and model.grouping == 'views'
  views = model.num_blocks * 2 * tokens * model.hidden_dim**2 if is_viewed else 0
  return {
    'stem': 2 * tokens * height * width * channels * model.hidden_dim,
    'tokens': 2 * (sum(seen[:-1]) + sum(seen[1:])) * tokens_mlp_dim * model.hidden_dim + views,
    'channels': 2 * 2 * sum(seen[1:]) * model.hidden_dim * model.channels_mlp_dim,
    'head': 2 * model.hidden_dim * (model.num_classes or 0),
  }
