"""Input permutations: section 3.4 and figure 4 of the paper.

One fixed permutation moves the pixels of every image, in training and in evaluation. It stands
between the input and the model: `wrap` puts it in front of any function of (params, images). As it
only moves pixels, it does not matter whether that is before or after `batch_ops.normalize` and
mixup.
"""

from collections.abc import Callable, Mapping
import functools
import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from mixer import files, settings
from mixer.errors import InputError
from mixer.input import order
from mixer.models import layers


def patch_pixel(image_size: tuple[int, int], patch_size: layers.Size, seed: int) -> np.ndarray:
  """Other patches, and other pixels within each: the same ones in every patch.

  A Mixer with patches of this size cannot tell: its stem and its token-mixing MLPs would have
  learned the same with their weights permuted.
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


# kind -> where in the image (row-major) the pixel at each place comes from. Colours stay together.
KINDS: dict[str, Callable[..., np.ndarray]] = {
  'patch_pixel': patch_pixel,
  'global': everywhere,
}


def wrap(
  function: Callable, *, image_size: layers.Size, kind: str, seed: int, patch_size: layers.Size
) -> Callable:
  """`function(params, images, *rest)`, given permuted images (n, height, width, channels).

  Args:
    function: of parameters, images and what it likes besides: logits, features and so on.
    image_size: of the images to come.
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
  """`wrap` by the section `config.permutation`; a config without it permutes nothing."""
  if section is None:
    return function
  wrapped = functools.partial(wrap, function)
  return settings.call('config.permutation', wrapped, section, image_size=image_size)


def check_same(path: epath.Path, section: Mapping | None, image_size: layers.Size) -> None:
  """Raises InputError if the weights at `path` are of a run with another permutation.

  Args:
    path: a workdir, or a file of parameters; what the run recorded there or beside it counts, and
      nothing is known of a file that has nothing beside it.
    section: `config.permutation` of what is to be done with the weights.
    image_size: of the images that it is to be done with.
  """
  known, trained_size = recorded(path)
  have, want = known or {}, _facts(section)
  if known is not None and have != want:
    raise InputError(
      f'{path} was trained with the input permutation {have or "none"}, and config.permutation is '
      f'{want or "none"}; under another one than its own a model knows nothing. Use the config '
      'of its run.'
    )
  if have and trained_size not in (None, layers.pair(image_size)):
    raise InputError(
      f'{path} was trained on permuted images of {trained_size}, and those here are of '
      f'{layers.pair(image_size)}; another size has another permutation. Use the same size.'
    )


def recorded(path: epath.Path) -> tuple[dict | None, tuple[int, int] | None]:
  """(the permutation that the weights at `path` were trained with, their image size).

  {} is none; None is that nobody says: neither the .json of a finished run nor, in a workdir, its
  config.
  """
  file = path / 'model.json' if path.is_dir() else path.with_suffix('.json')
  finished = file.exists()
  file = file if finished else path / files.CONFIG_FILE
  if not file.exists():
    return None, None
  try:
    found = json.loads(file.read_text())
    size = (found if finished else found.get('train_input', {})).get('image_size')
    return _facts(found.get('permutation')), size and layers.pair(size)
  except (ValueError, AttributeError, KeyError, TypeError) as fault:
    raise InputError(
      f'{file} does not describe a model as train.py does: {fault!r}. Move it away if it is not of '
      'these weights.'
    ) from fault


def _facts(section: Mapping | None) -> dict:
  """What counts of `config.permutation`."""
  if section is None or section['kind'] == 'none':
    return {}
  patch = {'patch_size': layers.pair(section['patch_size'])}
  own = patch if section['kind'] == 'patch_pixel' else {}
  return {'kind': section['kind'], 'seed': section['seed'], **own}
