"""ViT: the Vision Transformer that the paper compares with (Dosovitskiy et al. 2021, 2010.11929).

Parameter names are those in the files released with vision_transformer, so these load as they are.
"""

from collections.abc import Callable
import functools
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.errors import InputError
from mixer.models import attention, layers
from mixer.values import Count, OneOf, Rate

# B, L and H are in Table 1 of the ViT paper; Ti and S are later.
SIZES = {
  'Ti': dict(num_blocks=12, hidden_dim=192, mlp_dim=768, num_heads=3),
  'S': dict(num_blocks=12, hidden_dim=384, mlp_dim=1536, num_heads=6),
  'B': dict(num_blocks=12, hidden_dim=768, mlp_dim=3072, num_heads=12),
  'L': dict(num_blocks=24, hidden_dim=1024, mlp_dim=4096, num_heads=16),
  'H': dict(num_blocks=32, hidden_dim=1280, mlp_dim=5120, num_heads=16),
}
POOLS = ('token', 'gap')
_KERNEL_INIT = nn.initializers.xavier_uniform()
_Dense = functools.partial(
  nn.Dense,
  kernel_init=_KERNEL_INIT,
  bias_init=nn.initializers.normal(1e-6),
  dot_general=layers.dense_product,
)


class SelfAttention(nn.Module):
  """Multi-head self-attention: (n, tokens, C) -> (n, tokens, C)."""

  num_heads: int
  dtype: str
  fused: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=_KERNEL_INIT)
    heads = (self.num_heads, channels // self.num_heads)
    query, key, value = (dense(heads, name=name)(x) for name in ('query', 'key', 'value'))
    x = attention.attend(query, key, value, fused=self.fused)  # (n, tokens, heads, C / heads)
    return dense(channels, axis=(-2, -1), name='out')(x)


class EncoderBlock(nn.Module):
  """One Transformer layer, equations (2) and (3) of the ViT paper: (n, tokens, C) -> the same."""

  mlp_dim: int
  num_heads: int
  dropout_rate: float
  rescale_drop_path: bool
  dtype: str
  fused_attention: bool

  @nn.compact
  def __call__(self, x: jax.Array, drop_rate: jax.Array, keys: jax.Array | None) -> jax.Array:
    def drop_path(branch, number):
      branch_keys = layers.fold_in(keys, number)
      return layers.drop_path(branch, drop_rate, branch_keys, rescale=self.rescale_drop_path)

    x = layers.shard_batch(x)
    tokens = SelfAttention(
      self.num_heads, self.dtype, self.fused_attention, name='MultiHeadDotProductAttention_1'
    )(nn.LayerNorm(dtype=self.dtype, name='LayerNorm_0')(x))
    tokens = layers.dropout(tokens, self.dropout_rate, layers.fold_in(keys, 0))
    u = x + drop_path(tokens, 1)
    channels = layers.MlpBlock(
      self.mlp_dim, self.dropout_rate, self.dtype, dense=_Dense, name='MlpBlock_3'
    )(nn.LayerNorm(dtype=self.dtype, name='LayerNorm_2')(u), layers.fold_in(keys, 2))
    return u + drop_path(channels, 3)


class PositionTable(nn.Module):
  """Adds a learned vector to each token: (n, tokens, C) -> (n, tokens, C)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    table = self.param('pos_embedding', nn.initializers.normal(0.02), (1, *x.shape[1:]))
    return x + table.astype(x.dtype)


class Encoder(nn.Module):
  """Positions, blocks and the last LayerNorm: (n, tokens, C) -> (n, tokens, C), float32."""

  block: Callable[..., nn.Module]
  num_blocks: int
  stochastic_depth: float
  dropout: float
  scan: bool

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
    x = PositionTable(name='posembed_input')(x)
    x = layers.dropout(x, self.dropout, layers.fold_in(keys, self.num_blocks))
    x = layers.run_blocks(
      lambda i: self.block(name='encoderblock' if i is None else f'encoderblock_{i}'),
      x,
      jnp.linspace(0.0, self.stochastic_depth, self.num_blocks),
      keys,
      scan=self.scan,
    )
    return nn.LayerNorm(name='encoder_norm')(x)


class VisionTransformer(nn.Module):
  """The whole network; `apply({'params': p}, images)` gives logits or features.

  Parameters, LayerNorm statistics, softmax, features and logits are float32 for any `dtype`.
  `example_keys` (n,) turn dropout and stochastic depth on, per example as in `mlp_mixer.MlpMixer`.

  Attributes:
    num_classes: width of the linear head; None returns the pre-logits instead.
    num_blocks, hidden_dim, mlp_dim, num_heads: L, C, hidden width of the MLPs, attention heads.
    patch_size: an int or (height, width), in pixels.
    pool: 'token' for a class token, as in the released files; 'gap' for the mean over the tokens.
    representation_layer: a dense layer with tanh before the head, as in the first files released
      for ImageNet-21k.
    head_bias: initial value of the head's bias (its kernel starts at zero).
    stochastic_depth: drop rate s of the last block. Block i drops with rate i / (L - 1) * s,
      separately for its attention and its MLP.
    rescale_drop_path: divide a kept branch by its keep rate.
    dropout: rate after adding the positions, after attention and after each layer of the MLPs.
      Attention weights are never dropped, as in the released configurations.
    dtype: compute type of the blocks, 'float32' or 'bfloat16'.
    remat: recompute each block in the backward pass instead of storing its activations.
    scan: run the blocks as one `lax.scan` over parameters stacked under 'encoderblock'
      (`mixer.models.scanning` converts).
    fused_attention: use cuDNN's fused attention on the GPUs and with the types that it serves
      (`mixer.models.attention`); False uses XLA's everywhere.
  """

  num_classes: int | None
  num_blocks: Count
  hidden_dim: Count
  mlp_dim: Count
  num_heads: Count
  patch_size: layers.Size
  pool: Annotated[str, OneOf(POOLS)] = 'token'
  representation_layer: bool = False
  head_bias: float = 0.0
  stochastic_depth: Rate = 0.0
  rescale_drop_path: bool = False
  dropout: Rate = 0.0
  dtype: layers.Dtype = 'float32'
  remat: bool = False
  scan: bool = False
  fused_attention: bool = True

  def __post_init__(self):
    layers.check_fields(self)
    if self.hidden_dim % self.num_heads:
      raise InputError(
        f'num_heads is {self.num_heads}; use a divisor of hidden_dim={self.hidden_dim}.'
      )
    super().__post_init__()

  @property
  def layer_names(self) -> tuple[str, ...]:
    """The layers whose outputs `models.intermediates` returns."""
    return ('embedding', *(f'encoderblock_{i}' for i in range(self.num_blocks)))

  @property
  def trunk(self) -> tuple[str, ...]:
    """Patterns of the parameters of the stem and of each block, from the input on."""
    return (
      'embedding|cls|Transformer/posembed_input',
      *(f'Transformer/encoderblock_{i}' for i in range(self.num_blocks)),
    )

  @nn.compact
  def __call__(self, images: jax.Array, example_keys: jax.Array | None = None) -> jax.Array:
    """Images (n, height, width, channels) in [-1, 1] -> (n, num_classes) or (n, hidden_dim)."""
    if not (self.stochastic_depth or self.dropout):
      example_keys = None
    x = layers.embed_patches(images, self.patch_size, self.hidden_dim, self.dtype, 'embedding')
    if self.pool == 'token':
      cls = self.param('cls', nn.initializers.zeros, (1, 1, self.hidden_dim)).astype(x.dtype)
      x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], *cls.shape[1:])), x], axis=1)
    x = Encoder(
      self._block(),
      num_blocks=self.num_blocks,
      stochastic_depth=self.stochastic_depth,
      dropout=self.dropout,
      scan=self.scan,
      name='Transformer',
    )(x, example_keys)
    x = x[:, 0] if self.pool == 'token' else jnp.mean(x, axis=1)  # (n, C)
    if self.representation_layer:
      x = nn.tanh(nn.Dense(self.hidden_dim, name='pre_logits')(x))
    return layers.classify(self, x)

  def _block(self) -> Callable[..., nn.Module]:
    block = nn.remat(EncoderBlock, prevent_cse=not self.scan) if self.remat else EncoderBlock
    return functools.partial(
      block,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dropout_rate=self.dropout,
      rescale_drop_path=self.rescale_drop_path,
      dtype=self.dtype,
      fused_attention=self.fused_attention,
    )


def matmul_flops(
  model: VisionTransformer, image_size: layers.Size, channels: int = 3
) -> dict[str, int]:
  """FLOPs (2 per multiply-add) of one image's forward matmuls, by part of the network.

  Keys: 'stem' (the patch embedding), 'projections' (query, key, value, output), 'attention' (the
  two matmuls between tokens), 'mlp', 'head' (with the representation layer).
  """
  rows, columns = layers.patch_grid(image_size, model.patch_size)
  height, width = layers.pair(model.patch_size)
  tokens = rows * columns + (model.pool == 'token')
  representation = model.hidden_dim**2 if model.representation_layer else 0
  return {
    'stem': 2 * rows * columns * height * width * channels * model.hidden_dim,
    'projections': model.num_blocks * 2 * tokens * 4 * model.hidden_dim**2,
    'attention': model.num_blocks * 2 * 2 * tokens**2 * model.hidden_dim,
    'mlp': model.num_blocks * 2 * 2 * tokens * model.hidden_dim * model.mlp_dim,
    'head': 2 * (representation + model.hidden_dim * (model.num_classes or 0)),
  }
