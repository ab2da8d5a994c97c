"""BiT: the ResNet-v2 that the paper compares with (Kolesnikov et al. 2020, arXiv 1912.11370).

Convolutions have standardised kernels, normalisation is by groups, and both come before the
activation. Parameter names are big_vision's. In the files of BiT itself, `block1/unit01/a`, `b` and
`c` are `conv1`, `conv2` and `conv3` here with the `gn` of the same number before each, `a/proj` is
`conv_proj`, and `gamma` and `beta` are `scale` and `bias`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.errors import InputError
from mixer.models import layers

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
# Those of the paper's tables and figures, R101x1 of ViT's, and BiT's largest.
SIZES = {
  f'R{depth}x{factor}': dict(stage_sizes=_DEPTHS[depth], width=64 * factor)
  for depth, factor in ((50, 1), (50, 2), (101, 1), (152, 1), (152, 2), (152, 4), (200, 3))
}


def standardize(kernel: jax.Array) -> jax.Array:
  """Kernel (height, width, in, out) with mean 0 and variance 1 for each output channel."""
  kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
  variance = jnp.mean(jnp.square(kernel), axis=(0, 1, 2), keepdims=True)
  return kernel / jnp.sqrt(variance + 1e-10)


def check(stage_sizes: Sequence[int], width: int, groups: int) -> None:
  """Raises InputError for dimensions that make no network."""
  if not stage_sizes or min(stage_sizes) < 1:
    raise InputError(f'stage_sizes is {stage_sizes}; give each stage at least 1 unit.')
  if width < 1 or groups < 1 or width % groups:
    raise InputError(
      f'width is {width} and groups {groups}: each normalisation needs equal groups of channels, '
      'so use a width that is a multiple of the groups.'
    )


class StdConv(nn.Module):
  """A convolution with a standardised kernel and no bias, padded by zeros to keep the side."""

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
    x = layers.split_examples(x)
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
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # BiT's maximum is over zeros as well
    return nn.max_pool(x, (3, 3), (2, 2))


class Stage(nn.Module):
  """Units at one resolution, the first of which may halve it."""

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

  Parameters are float32 whatever `dtype` is; so are the statistics of the norms, the pooled
  pre-logits and the logits. Any image size goes with any parameters.

  Attributes:
    num_classes: width of the linear head; None returns the pre-logits instead.
    stage_sizes: units in each stage; all stages but the first halve the resolution.
    width: channels after the root block, and of the first stage's 3x3 convolutions; doubled from
      stage to stage. 64 in R50x1.
    groups: of each normalisation; 32 in BiT. Divides `width`.
    head_bias: initial value of the head's bias (its kernel starts at zero).
    dtype: compute type, 'float32' or 'bfloat16'.
    remat: recompute each unit in the backward pass instead of keeping its activations.
  """

  num_classes: int | None
  stage_sizes: Sequence[int]
  width: int
  groups: int = 32
  head_bias: float = 0.0
  dtype: str = 'float32'
  remat: bool = False

  @property
  def hidden_dim(self) -> int:
    """Channels of the pre-logits."""
    return 4 * self.width * 2 ** (len(self.stage_sizes) - 1)

  @property
  def layer_names(self) -> tuple[str, ...]:
    """What `models.intermediates` gives the outputs of."""
    return ('root_block', *(f'block{i + 1}' for i in range(len(self.stage_sizes))))

  @nn.compact
  def __call__(self, images: jax.Array, example_keys: jax.Array | None = None) -> jax.Array:
    """Images (n, height, width, channels) in [-1, 1] -> (n, num_classes) or (n, hidden_dim).

    `example_keys` are there as in the other models; nothing here is random.
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
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)  # (n, hidden_dim)
    self.sow('intermediates', 'pre_logits', x)
    if self.num_classes is None:
      return x
    return nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias),
      name='head',
    )(x)


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
    # A first unit has a projection, unless it changes neither the channels nor the resolution.
    first += after * inputs * 4 * width if i or inputs != 4 * width else 0
    others = (size - 1) * after * (4 * width**2 + 9 * width**2 + 4 * width**2)
    parts[f'block{i + 1}'] = 2 * (first + others)
    inputs = 4 * width
  return {**parts, 'head': 2 * model.hidden_dim * (model.num_classes or 0)}
