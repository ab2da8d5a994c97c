"""What the train step does to a batch before the model sees it: images, and their targets."""

from collections.abc import Callable
import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from mixer.errors import InputError
from mixer.training import batch_ops, sharding
from mixer.values import Fraction, OneOf, Range, Share

MIXUP_MODES = ('batch', 'elem')
_ATTEMPTS = 10  # boxes that random erasing tries
# Folded into an example's key. RandAugment has 2**31, and the model's own numbers are small.
_MIXING, _ERASING = 2**31 + 1, 2**31 + 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing:
  """Fills a random box of an image (Zhong et al. 2017), with the rule and the names of timm.

  Attributes:
    probability: of an image to be erased.
    mode: what the box gets, in the range [-1, 1] of the model's images: 'const' zeros (grey),
      'rand' a draw of N(0, 1) for each channel, 'pixel' one for each value.
    min_area, max_area: of the box before it is rounded, as parts of the image.
    min_aspect: the ratio of height to width is log-uniform from this to its inverse.

  The box is the first of ten draws that is smaller than the image along both axes.
  """

  probability: Share
  mode: Annotated[str, OneOf(('const', 'rand', 'pixel'))] = 'const'
  min_area: Fraction = 0.02
  max_area: Fraction = 1 / 3
  min_aspect: Annotated[float, Range(above=0, most=1)] = 0.3

  def __post_init__(self):
    if self.min_area > self.max_area:
      raise InputError(
        f'config.random_erasing: min_area={self.min_area} is above max_area={self.max_area}.'
      )

  def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
    """Float32 (height, width, channels) -> the same, with a box or without."""
    height, width, channels = image.shape
    chance, area, aspect, top, left, fill = jax.random.split(key, 6)
    areas = height * width * jax.random.uniform(
      area, (_ATTEMPTS,), minval=self.min_area, maxval=self.max_area
    )  # fmt: skip
    reach = -math.log(self.min_aspect)
    aspects = jnp.exp(jax.random.uniform(aspect, (_ATTEMPTS,), minval=-reach, maxval=reach))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    erased = fits[first] & (jax.random.uniform(chance) < self.probability)
    top = jax.random.randint(top, (), 0, jnp.maximum(height - heights[first], 0) + 1)
    left = jax.random.randint(left, (), 0, jnp.maximum(width - widths[first], 0) + 1)
    box = batch_ops.box((height, width), top, top + heights[first], left, left + widths[first])
    shape = {'const': (), 'rand': (1, 1, channels), 'pixel': image.shape}[self.mode]
    values = jax.random.normal(fill, shape) if shape else 0.0
    return jnp.where(box & erased, values, image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
  """What happens to a batch on the device: `augment`, mixup or CutMix, erasing, label smoothing.

  The names and rules are those of timm's Mixup, except that mixup has one more draw of big_vision:
  see `batch_ops.mixup_weight`. An example's partner is its predecessor in the batch. Every draw
  depends on the key of the step, and on the row in the batch if it is of one example.

  Attributes:
    num_classes: of the label vectors.
    mixup: p of mixup's Beta(p, p); 0 for none.
    cutmix: p of CutMix's Beta(p, p); 0 for none. A box of the partner replaces the same place of
      the image, and the labels are mixed by the pixels of each.
    mixup_prob: of a mixture at all.
    mixup_switch_prob: of CutMix, where both are on.
    mixup_mode: 'batch' draws once for the whole batch, 'elem' for each example.
    random_erasing: after mixing, as in timm; None for none.
    label_smoothing: s in (1 - s) * target + s / num_classes, for both losses; of images with
      several labels, each class has that floor and an image's labels share nothing.
    augment: (uint8 images, example_keys) -> uint8 images, each from its own image and key. It comes
      first, so both parts of a mixture have theirs.
  """

  num_classes: int
  mixup: float = 0.0
  cutmix: float = 0.0
  mixup_prob: float = 1.0
  mixup_switch_prob: float = 0.5
  mixup_mode: str = 'batch'
  random_erasing: RandomErasing | None = None
  label_smoothing: float = 0.0
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None

  def __post_init__(self):
    for name in ('mixup', 'cutmix'):
      if getattr(self, name) < 0:
        value = getattr(self, name)
        raise InputError(f'{name} is {value}; it is the p of Beta(p, p), or 0 for none.')

  @property
  def mixes(self) -> bool:
    return bool(self.mixup or self.cutmix)

  def on(self, mesh: Mesh) -> 'Augmentation':
    """The same on a mesh, where each device augments its own rows."""
    if self.augment is None:
      return self
    rows = jax.P(sharding.BATCH_AXES)
    spread = jax.shard_map(self.augment, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    return dataclasses.replace(self, augment=spread)

  def begin(self, batch: dict, key: jax.Array) -> tuple[dict, tuple | None]:
    """(the whole batch with all that an example needs, what is drawn for all of them).

    Args:
      batch: 'image' (n, height, width, channels) uint8 and 'label' (n,) or (n, classes).
      key: of the step.
    """
    mixing_key, example_key = jax.random.split(key)
    rows = jnp.arange(batch['image'].shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(example_key, rows)
    if self.augment is not None:
      batch = {**batch, 'image': self.augment(batch['image'], keys)}
    drawn = None
    if self.mixes and self.mixup_mode == 'batch':
      drawn = self._mixture(mixing_key, batch['image'].shape[1:3])
    batch = batch_ops.with_partners(batch) if self.mixes else batch
    return {**batch, 'key': keys}, drawn

  def finish(self, part: dict, drawn: tuple | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(images in [-1, 1], labels, targets of the loss) of some rows of what `begin` returned."""
    labels = batch_ops.label_vectors(part['label'], self.num_classes)
    images, targets = batch_ops.normalize(part['image']), labels
    if self.mixes:
      if self.mixup_mode == 'elem':
        keys = jax.vmap(jax.random.fold_in, (0, None))(part['key'], _MIXING)
        drawn = jax.vmap(self._mixture, (0, None))(keys, images.shape[1:3])
      pixels, share = drawn
      others = batch_ops.label_vectors(part['partner_label'], self.num_classes)
      partners = batch_ops.normalize(part['partner_image'])
      images = batch_ops.mix(images, partners, _for_rows(pixels, 4))
      targets = batch_ops.mix(labels, others, _for_rows(share, 2))
    if self.random_erasing is not None:
      keys = jax.vmap(jax.random.fold_in, (0, None))(part['key'], _ERASING)
      images = jax.vmap(self.random_erasing)(images, keys)
    if self.label_smoothing:
      targets = optax.smooth_labels(targets, self.label_smoothing)
    return images, labels, targets

  def _mixture(self, key: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """(the weight of an image's own pixels, () or (height, width, 1); the share of its labels)."""
    if not self.cutmix and self.mixup_prob == 1:
      weight = batch_ops.mixup_weight(key, self.mixup)
      return weight, weight
    mixup_key, cutmix_key, key = jax.random.split(key, 3)
    switch, chance = jax.random.uniform(key, (2,))
    pixels = share = batch_ops.mixup_weight(mixup_key, self.mixup) if self.mixup else 1.0
    if self.cutmix:
      is_cut = switch < self.mixup_switch_prob if self.mixup else True
      mask, rest = batch_ops.cutmix_mask(cutmix_key, self.cutmix, size)
      pixels, share = jnp.where(is_cut, mask, pixels), jnp.where(is_cut, rest, share)
    is_mixed = chance < self.mixup_prob
    return jnp.where(is_mixed, pixels, 1.0), jnp.where(is_mixed, share, 1.0)


def _for_rows(weight: jax.Array, rank: int) -> jax.Array:
  """A weight for arrays of `rank`: (), (height, width, 1) for all rows, or one for each row."""
  if weight.ndim == 1:
    return weight.reshape(-1, *(1,) * (rank - 1))
  return weight[None] if weight.ndim == 3 else weight
