"""MLP-Mixer: sections 2 and 3 of the paper, under the released parameter names."""

from collections.abc import Sequence
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.models import layers, variants
from mixer.values import Count, OneOf, Rate

# Table 1 of the paper: num_blocks, hidden_dim C, tokens_mlp_dim D_S, channels_mlp_dim D_C.
SIZES = {
  'S': dict(num_blocks=8, hidden_dim=512, tokens_mlp_dim=256, channels_mlp_dim=2048),
  'B': dict(num_blocks=12, hidden_dim=768, tokens_mlp_dim=384, channels_mlp_dim=3072),
  'L': dict(num_blocks=24, hidden_dim=1024, tokens_mlp_dim=512, channels_mlp_dim=4096),
  'H': dict(num_blocks=32, hidden_dim=1280, tokens_mlp_dim=640, channels_mlp_dim=5120),
}


class MixerBlock(nn.Module):
  """One Mixer layer, equation (1): (n, tokens S, channels C) -> (n, S, C).

  `out_tokens` is the number of tokens that a block of a pyramid returns; None for S.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  dropout_rate: float = 0.0
  rescale_drop_path: bool = False
  dtype: str = 'float32'
  untie_tokens: bool = False
  channel_groups: int = 1
  grouping: str = 'concat'
  out_tokens: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, drop_rate: jax.Array, keys: jax.Array | None) -> jax.Array:
    def drop_path(branch, number):
      branch_keys = layers.fold_in(keys, number)
      return layers.drop_path(branch, drop_rate, branch_keys, rescale=self.rescale_drop_path)

    x = layers.shard_batch(x)
    tokens = self._mix_tokens(nn.LayerNorm(dtype=self.dtype)(x), layers.fold_in(keys, 0))
    u = x + drop_path(tokens, 1) if self.out_tokens is None else tokens
    channels = layers.MlpBlock(
      self.channels_mlp_dim, self.dropout_rate, self.dtype, name='channel_mixing'
    )(nn.LayerNorm(dtype=self.dtype)(u), layers.fold_in(keys, 2))
    return u + drop_path(channels, 3)

  def _mix_tokens(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
    mlp = dict(hidden_dim=self.tokens_mlp_dim, dropout_rate=self.dropout_rate, dtype=self.dtype)
    if self.untie_tokens:
      return variants.untied(x, keys, mlp)
    if self.channel_groups > 1:
      views = self.grouping == 'views'
      return variants.grouped(x, keys, mlp, groups=self.channel_groups, views=views)
    if self.out_tokens is not None:
      return variants.reducing(x, keys, mlp, tokens=self.out_tokens)
    x = jnp.swapaxes(x, 1, 2)  # (n, C, S)
    x = layers.MlpBlock(**mlp, name='token_mixing')(x, keys)
    return jnp.swapaxes(x, 1, 2)  # (n, S, C)


class MlpMixer(nn.Module):
  """The whole network; `apply({'params': p}, images)` gives logits or pooled features.

  Parameters, LayerNorm statistics, pooled features and logits are float32 for any `dtype`.
  `example_keys` (n,) turn dropout and stochastic depth on. Randomness is per example: an
  example's draws do not depend on the rest of its batch, nor on the number of devices or
  microbatches, `scan` or `remat`.

  Attributes:
    num_classes: width of the linear head; None returns the pre-logits instead.
    num_blocks, hidden_dim, tokens_mlp_dim, channels_mlp_dim: L, C, D_S, D_C of Table 1.
    patch_size: an int or (height, width), in pixels.
    tiles: the factor by which the resolution has grown since training (`mixer.pretrained.growth`),
      an int or (vertically, horizontally). The token-mixing MLPs are wider by their product.
    head_bias: initial value of the head's bias (its kernel starts at zero).
    stochastic_depth: drop rate s of the last block. Block i drops with rate i / (L - 1) * s,
      separately for each of its two MLPs.
    rescale_drop_path: divide a kept branch by its keep rate. False as in big_vision.
    dropout: rate after each of the two layers of every MLP.
    dtype: compute type of the blocks, 'float32' or 'bfloat16'.
    remat: recompute each block in the backward pass instead of storing its activations.
    scan: run the blocks as one `lax.scan` over parameters stacked under 'MixerBlocks'
      (`mixer.models.scanning` converts).
    untie_tokens, channel_groups, grouping, pyramid: the changes of appendix A of the paper
      (`mixer.models.variants`), at most one of them: a token-mixing MLP for each channel; the
      number of groups G and 'concat' or 'views'; (block, tokens it returns) for each block that
      reduces the tokens.
  """

  num_classes: int | None
  num_blocks: Count
  hidden_dim: Count
  tokens_mlp_dim: Count
  channels_mlp_dim: Count
  patch_size: layers.Size
  tiles: layers.Size = 1
  head_bias: float = 0.0
  stochastic_depth: Rate = 0.0
  rescale_drop_path: bool = False
  dropout: Rate = 0.0
  dtype: layers.Dtype = 'float32'
  remat: bool = False
  scan: bool = False
  untie_tokens: bool = False
  channel_groups: Count = 1
  grouping: Annotated[str, OneOf(variants.GROUPINGS)] = 'concat'
  pyramid: Sequence[Sequence[int]] = ()

  def __post_init__(self):
    layers.check_fields(self)
    variants.check(self)
    super().__post_init__()

  @property
  def layer_names(self) -> tuple[str, ...]:
    """The layers whose outputs `models.intermediates` returns."""
    return ('stem', *(f'MixerBlock_{i}' for i in range(self.num_blocks)))

  @property
  def trunk(self) -> tuple[str, ...]:
    """Patterns of the parameters of the stem and of each block, from the input on."""
    return self.layer_names

  @nn.compact
  def __call__(self, images: jax.Array, example_keys: jax.Array | None = None) -> jax.Array:
    """Images (n, height, width, channels) in [-1, 1] -> (n, num_classes) or (n, hidden_dim)."""
    if not (self.stochastic_depth or self.dropout):
      example_keys = None
    x = layers.embed_patches(images, self.patch_size, self.hidden_dim, self.dtype, 'stem')
    x = layers.run_blocks(
      self._block,
      x,  # (n, S, C)
      jnp.linspace(0.0, self.stochastic_depth, self.num_blocks),
      example_keys,
      scan=self.scan,
    )
    x = nn.LayerNorm(dtype=self.dtype, name='pre_head_layer_norm')(x)
    return layers.classify(self, jnp.mean(x, axis=1, dtype=jnp.float32))

  def _block(self, i: int | None) -> MixerBlock:
    """Block i, or for None the block that is scanned."""
    block = nn.remat(MixerBlock, prevent_cse=not self.scan) if self.remat else MixerBlock
    return block(
      tokens_mlp_dim=math.prod(layers.pair(self.tiles)) * self.tokens_mlp_dim,
      channels_mlp_dim=self.channels_mlp_dim,
      dropout_rate=self.dropout,
      rescale_drop_path=self.rescale_drop_path,
      dtype=self.dtype,
      untie_tokens=self.untie_tokens,
      channel_groups=self.channel_groups,
      grouping=self.grouping,
      out_tokens=dict(map(tuple, self.pyramid)).get(i),
      name='MixerBlocks' if i is None else f'MixerBlock_{i}',
    )


def matmul_flops(model: MlpMixer, image_size: layers.Size, channels: int = 3) -> dict[str, int]:
  """FLOPs (2 per multiply-add) of one image's forward matmuls, by part of the network.

  Keys: 'stem', 'tokens', 'channels', 'head'. Element-wise operations are not counted, as is usual
  for model FLOPs utilisation (MFU).
  """
  rows, columns = layers.patch_grid(image_size, model.patch_size)
  height, width = layers.pair(model.patch_size)
  tokens = rows * columns
  tokens_mlp_dim = math.prod(layers.pair(model.tiles)) * model.tokens_mlp_dim
  reduced = dict(map(tuple, model.pyramid))
  counts = [tokens]  # tokens at the input of each block, and at the pooling
  for i in range(model.num_blocks):
    counts.append(reduced.get(i, counts[-1]))
  has_views = model.channel_groups > 1 and model.grouping == 'views'
  views = model.num_blocks * 2 * tokens * model.hidden_dim**2 if has_views else 0
  return {
    'stem': 2 * tokens * height * width * channels * model.hidden_dim,
    'tokens': 2 * (sum(counts[:-1]) + sum(counts[1:])) * tokens_mlp_dim * model.hidden_dim + views,
    'channels': 2 * 2 * sum(counts[1:]) * model.hidden_dim * model.channels_mlp_dim,
    'head': 2 * model.hidden_dim * (model.num_classes or 0),
  }
