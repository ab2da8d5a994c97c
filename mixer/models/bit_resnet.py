"""BiT: the ResNet-v2 that the paper compares with (Kolesnikov et al. 2020, arXiv 1912.11370).

A ResNet with pre-activation, group normalisation and standardised convolution kernels. Parameter
names are those of big_vision. In BiT's released files, `conv1`, `conv2` and `conv3` of a unit are
named `a`, `b` and `c`, each with the preceding `gn`; `conv_proj` is `a/proj`; `scale` and `bias`
are `gamma` and `beta`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.errors import InputError
from mixer.models import layers
from mixer.values import Count

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
# The sizes in the tables and figures of the Mixer, ViT (R101x1) and BiT (R152x4) papers, and those
# that are released (R50x3, R101x3).
_FACTORS = {50: (1, 2, 3), 101: (1, 3), 152: (1, 2, 4), 200: (3,)}
SIZES = {
  f'R{depth}x{factor}': dict(stage_sizes=_DEPTHS[depth], width=64 * factor)
  for depth, factors in _FACTORS.items()
  for factor in factors
}


def standardize(kernel: jax.Array) -> jax.Array:
  """Kernel (height, width, in, out) with mean 0 and variance 1 for each output channel."""
  kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
  variance = jnp.mean(jnp.square(kernel), axis=(0, 1, 2), keepdims=True)
  return kernel / jnp.sqrt(variance + 1e-10)


class StdConv(nn.Module):
  """A convolution with a standardised kernel, zero padding of side // 2 and no bias."""

  features: int
  side: int
  stride: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.side, self.side, x.shape[-1], self.features)
    kernel = standardize(self.param('kernel', nn.initializers.lecun_normal(), shape))
    return jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      window_strides=(self.stride, self.stride),
      padding=[(self.side // 2, self.side // 2)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


class Unit(nn.Module):
  """A bottleneck with pre-activation: (n, h, w, c) -> (n, h / stride, w / stride, 4 * width)."""

  width: int
  stride: int
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = layers.shard_batch(x)
    out_dim = 4 * self.width
    y = self._norm_relu(x, 'gn1')
    if x.shape[-1] != out_dim or self.stride > 1:
      x = StdConv(out_dim, 1, self.stride, self.dtype, name='conv_proj')(y)
    y = StdConv(self.width, 1, 1, self.dtype, name='conv1')(y)
    y = self._norm_relu(y, 'gn2')
    y = StdConv(self.width, 3, self.stride, self.dtype, name='conv2')(y)
    y = self._norm_relu(y, 'gn3')
    return x + StdConv(out_dim, 1, 1, self.dtype, name='conv3')(y)

  def _norm_relu(self, x: jax.Array, name: str) -> jax.Array:
    return nn.relu(_group_norm(self.groups, self.dtype, name)(x))


class RootBlock(nn.Module):
  """Images -> (n, about h / 4, about w / 4, width)."""

  width: int
  dtype: str

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = StdConv(self.width, 7, 2, self.dtype, name='conv_root')(images)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # BiT pads with zeros, not -inf
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))


class Stage(nn.Module):
  """A sequence of units; the first one has the stride."""

  size: int
  width: int
  stride: int
  groups: int
  dtype: str
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    unit = nn.remat(Unit) if self.remat else Unit
    for i in range(self.size):
      stride = self.stride if i == 0 else 1
      x = unit(self.width, stride, self.groups, self.dtype, name=f'unit{i + 1:02d}')(x)
    return x


class BitResNet(nn.Module):
  """The whole network; `apply({'params': p}, images)` gives logits or pooled features.

  Parameters, normalisation statistics, pooled features and logits are float32 for any `dtype`.
  The parameters do not depend on the image size.

  Attributes:
    num_classes: width of the linear head; None returns the pre-logits instead.
    stage_sizes: units in each stage; all stages but the first halve the resolution.
    width: channels of the root block and of the first stage's 3x3 convolutions, 64 in R50x1;
      doubled from stage to stage.
    groups: number of groups of each normalisation; divides `width`.
    head_bias: initial value of the head's bias (its kernel starts at zero).
    dtype: compute type, 'float32' or 'bfloat16'.
    remat: recompute each unit in the backward pass instead of storing its activations.
  """

  num_classes: int | None
  stage_sizes: Sequence[Count]
  width: Count
  groups: Count = 32
  head_bias: float = 0.0
  dtype: layers.Dtype = 'float32'
  remat: bool = False

  def __post_init__(self):
    layers.check_fields(self)
    if not self.stage_sizes:
      raise InputError('stage_sizes is empty; give the number of units of each stage.')
    if self.width % self.groups:
      raise InputError(
        f'width is {self.width} and groups {self.groups}: each normalisation needs equal groups '
        'of channels, so use a width that is a multiple of the groups.'
      )
    super().__post_init__()

  @property
  def hidden_dim(self) -> int:
    """Channels of the pre-logits."""
    return 4 * self.width * 2 ** (len(self.stage_sizes) - 1)

  @property
  def layer_names(self) -> tuple[str, ...]:
    """The layers whose outputs `models.intermediates` returns."""
    return ('root_block', *(f'block{i + 1}' for i in range(len(self.stage_sizes))))

  @property
  def trunk(self) -> tuple[str, ...]:
    """Patterns of the parameters of the stem and of each block, from the input on."""
    return (
      'root_block',
      *(f'block{i + 1}/unit{k + 1:02d}' for i, n in enumerate(self.stage_sizes) for k in range(n)),
    )

  @nn.compact
  def __call__(self, images: jax.Array, example_keys: jax.Array | None = None) -> jax.Array:
    """Images (n, height, width, channels) in [-1, 1] -> (n, num_classes) or (n, hidden_dim).

    `example_keys` is not used: nothing here is random.
    """
    x = RootBlock(self.width, self.dtype, name='root_block')(images)
    for i, size in enumerate(self.stage_sizes):
      x = Stage(
        size,
        width=self.width * 2**i,
        stride=2 if i else 1,
        groups=self.groups,
        dtype=self.dtype,
        remat=self.remat,
        name=f'block{i + 1}',
      )(x)
    x = nn.relu(_group_norm(self.groups, self.dtype, 'norm-pre-head')(x))
    return layers.classify(self, jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


def _group_norm(groups: int, dtype: str, name: str) -> nn.GroupNorm:
  return nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)


def matmul_flops(model: BitResNet, image_size: layers.Size, channels: int = 3) -> dict[str, int]:
  """FLOPs (2 per multiply-add) of one image's forward convolutions and head, by part.

  Keys: 'stem' (the root block), 'block1' and so on, 'head'.
  """
  sides = [-(-side // 2) for side in layers.pair(image_size)]
  parts = {'stem': 2 * sides[0] * sides[1] * 49 * channels * model.width}
  sides = [-(-side // 2) for side in sides]
  inputs = model.width
  for i, size in enumerate(model.stage_sizes):
    width, before = model.width * 2**i, sides[0] * sides[1]
    sides = [-(-side // 2) for side in sides] if i else sides
    after = sides[0] * sides[1]
    first = before * inputs * width + after * (9 * width**2 + 4 * width**2)
    # The first unit has a projection unless it keeps both the channels and the resolution.
    first += after * inputs * 4 * width if i or inputs != 4 * width else 0
    others = (size - 1) * after * (4 * width**2 + 9 * width**2 + 4 * width**2)
    parts[f'block{i + 1}'] = 2 * (first + others)
    inputs = 4 * width
  return {**parts, 'head': 2 * model.hidden_dim * (model.num_classes or 0)}
