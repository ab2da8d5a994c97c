"""Training that begins from trained weights: which head, which resolution, do they fit."""

from collections.abc import Mapping
import math

import numpy as np

from mixer import models, pretrained
from mixer.errors import InputError
from mixer.models import bit_resnet, layers, mlp_mixer, variants
from mixer.pretrained import growth

Model = mlp_mixer.MlpMixer | bit_resnet.BitResNet
HEAD_POLICIES = ('auto', 'keep', 'reset')


def load(
  *,
  path: str,
  head: str,
  from_size: layers.Size,
  model: Model,
  image_size: layers.Size,
  channels: int,
) -> tuple[dict, dict]:
  """(parameters laid out for `model`, what they come from and what was done); see `start_from`.

  The arguments up to `from_size` are `config.init`; an empty `from_size` means a square.
  """
  params, words = start_from(
    pretrained.load(path),
    model,
    source=path,
    image_size=image_size,
    channels=channels,
    head=head,
    from_size=from_size or None,
  )
  facts = {**pretrained.identify(path), 'changes': words}
  return models.to_model_layout(model, params), facts


def start_from(
  params: Mapping,
  model: Model,
  *,
  source: str,
  image_size: layers.Size,
  channels: int,
  head: str,
  from_size: layers.Size | None = None,
) -> tuple[dict, str]:
  """(parameters in the released layout that fit `model`, what was done to them, in words).

  Args:
    params: in the released layout.
    source: where they come from, for messages.
    image_size, channels: of the images to come.
    head: 'keep', 'reset' (a zero kernel and the model's `head_bias`), or 'auto': keep where the
      number of classes agrees, else reset.
    from_size: the image size that `params` were trained at; None for a square one.

  Raises:
    InputError: the parameters do not fit, or cannot grow to this size.
  """
  words = []
  if isinstance(model, mlp_mixer.MlpMixer):  # nothing else depends on the image's size
    params, words = _grown(params, model, source, image_size, from_size)
  params, head_words = _with_head(params, model, head)
  plain = models.in_released_layout(model)
  pretrained.check(params, models.shapes(plain, image_size, channels), source)
  return params, ', '.join([*words, head_words])


def has_zero_head(params: Mapping) -> bool:
  """True if the head's kernel is all zeros: nothing has trained it."""
  return 'head' in params and not np.any(params['head']['kernel'])


def check_head(params: Mapping, source: str, tests: Mapping) -> int | None:
  """The number of classes of the head that the evaluations `tests` need; None where there are none.

  Args:
    tests: {section of `config.evals`: its `mixer.input.Input`}.

  Raises:
    InputError: the parameters have no trained head for the classes of a test.
  """
  if not tests:
    return None
  hint = 'fine-tune it first (configs/finetune.py), or evaluate its features (configs/fewshot.py).'
  if 'head' not in params:
    raise InputError(f'{source} has no head, so it classifies nothing: {hint}')
  if has_zero_head(params):
    raise InputError(f'the head of {source} is all zeros, so it classifies nothing: {hint}')
  outputs = len(params['head']['bias'])
  for name, data in tests.items():
    if outputs != data.num_classes:
      raise InputError(
        f'{source} tells {outputs} classes apart, and config.evals.{name}.input has '
        f'{data.num_classes}: {hint}'
      )
  return outputs


def _grown(params, model, source, image_size, from_size) -> tuple[Mapping, list[str]]:
  """(the parameters for the grid of such images, what was done, in words)."""
  grid = layers.patch_grid(image_size, model.patch_size)
  # Changed token mixing cannot grow: it fits this very grid, or `check` says what does not.
  old = grid if variants.active(model) else _grid(params, model, from_size, source)
  if old == grid:
    return params, []
  tiles = growth.tiling(old, grid)
  if tiles != layers.pair(model.tiles):
    raise InputError(
      f'{source} has a grid of {old} patches and {image_size} pixels make {grid}: set '
      f'config.model.tiles={tiles}, so that the token-mixing MLPs grow along.'
    )
  return growth.grow(params, old, tiles), [f'grown from a grid of {old} patches to {grid}']


def _grid(params, model, from_size, source) -> tuple[int, int]:
  """The grid of patches that the parameters were made for."""
  try:
    tokens = params['MixerBlock_0']['token_mixing']['Dense_0']['kernel'].shape[0]
  except KeyError as fault:
    raise InputError(f'{source} has no MixerBlock_0/token_mixing/Dense_0/kernel.') from fault
  if from_size is not None:
    grid = layers.patch_grid(from_size, model.patch_size)
  else:
    grid = (math.isqrt(tokens),) * 2
  if math.prod(grid) != tokens:
    raise InputError(
      f'{source} was made for {tokens} patches, which is not the {grid} of '
      f'config.init.from_size={from_size}; give the size of the images it was trained on.'
    )
  return grid


def _with_head(params, model, policy) -> tuple[dict, str]:
  if policy not in HEAD_POLICIES:
    raise InputError(f'config.init.head is {policy!r}; use one of {HEAD_POLICIES}.')
  have = params['head']['bias'].shape[0] if 'head' in params else None
  agrees = have == model.num_classes
  if policy == 'keep' and not agrees:
    raise InputError(
      f'config.init.head=keep, but the file has {have or "no"} classes and the data '
      f'{model.num_classes}; use auto or reset.'
    )
  if policy != 'reset' and agrees:
    zero = ' (all zeros: it was never trained)' if has_zero_head(params) else ''
    return dict(params), f'head kept: {have} classes{zero}'
  head = {
    'kernel': np.zeros((model.hidden_dim, model.num_classes), np.float32),
    'bias': np.full(model.num_classes, model.head_bias, np.float32),
  }
  had = f'the file has {have} classes' if have else 'the file has none'
  return {**params, 'head': head}, f'head RESET to zeros for {model.num_classes} classes ({had})'
