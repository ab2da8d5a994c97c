"""Input permutations: section 3.4 and figure 4 of the paper.

One fixed permutation moves the pixels of every image, in training and in evaluation.
`models.apply_function` and `models.features_function` put it in front of the model. It commutes
with `batch_ops.normalize` and mixup.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from mixer import settings
from mixer.errors import InputError
from mixer.input import order
from mixer.models import layers
from mixer.values import OneOf, Seed


def patch_pixel(image_size: tuple[int, int], patch_size: layers.Size, seed: int) -> np.ndarray:
  """Permutes the patches, and the pixels within each patch, in every patch alike.

  It makes no difference to a Mixer with patches of this size: its stem and its token-mixing MLPs
  learn the same with their weights permuted.
  """
  rows, columns = layers.patch_grid(image_size, patch_size)
  height, width = layers.pair(patch_size)
  patches = order.shuffled(rows * columns, seed, 0, order.PIXELS)
  pixels = order.shuffled(height * width, seed, 1, order.PIXELS)
  positions = np.arange(rows * height * columns * width)
  by_patch = positions.reshape(rows, height, columns, width).swapaxes(1, 2)
  by_patch = by_patch.reshape(rows * columns, height * width)
  moved = by_patch[patches][:, pixels].reshape(rows, columns, height, width)
  return moved.swapaxes(1, 2).reshape(-1)


def everywhere(image_size: tuple[int, int], patch_size: layers.Size, seed: int) -> np.ndarray:
  """One permutation of all the pixels of an image; the patch size does not matter."""
  return order.shuffled(image_size[0] * image_size[1], seed, 2, order.PIXELS)


# kind -> the source (row-major) of the pixel at each position. Channels stay together.
KINDS: dict[str, Callable[..., np.ndarray]] = {
  'patch_pixel': patch_pixel,
  'global': everywhere,
}


def wrap(
  function: Callable,
  *,
  image_size: layers.Size,
  kind: Annotated[str, OneOf(('none', *KINDS))],
  seed: Seed,
  patch_size: layers.Size,
) -> Callable:
  """`function(params, images, *rest)`, given permuted images (n, height, width, channels).

  Args:
    function: of parameters, images and any other arguments.
    image_size: of the images.
    kind, seed, patch_size: the section `config.permutation`; a kind of KINDS, or 'none' for the
      function itself.

  Raises:
    InputError: the kind is unknown, or the patches do not divide the image.
  """
  if kind == 'none':
    return function
  if kind not in KINDS:
    raise InputError(f'config.permutation.kind is {kind!r}; use one of {["none", *sorted(KINDS)]}.')
  size = layers.pair(image_size)
  sources = KINDS[kind](size, patch_size, seed).astype(np.int32)

  def wrapped(params, images: jax.Array, *rest):
    if images.shape[1:3] != size:
      raise InputError(f'the permutation is of images of {size}; got {images.shape[1:3]}.')
    flat = images.reshape(len(images), -1, images.shape[-1])  # (n, height * width, channels)
    moved = jnp.take(flat, sources, axis=1, unique_indices=True, mode='clip')
    return function(params, moved.reshape(images.shape), *rest)

  return wrapped


def before(function: Callable, section: Mapping | None, image_size: layers.Size) -> Callable:
  """`wrap` with the section `config.permutation`; None permutes nothing."""
  if section is None:
    return function
  wrapped = functools.partial(wrap, function)
  return settings.call('config.permutation', wrapped, section, image_size=image_size)


def normalize(section: Mapping | None) -> dict:
  """The part of `config.permutation` that determines the permutation; {} for none."""
  if section is None or section['kind'] == 'none':
    return {}
  patch = {'patch_size': layers.pair(section['patch_size'])}
  own = patch if section['kind'] == 'patch_pixel' else {}
  return {'kind': section['kind'], 'seed': section['seed'], **own}
