"""Training that starts from pretrained weights: their head, their resolution, and do they fit."""

from collections.abc import Mapping, Sequence
import math
import shlex
from typing import Annotated

from absl import logging
import numpy as np

from mixer import labels, models, pretrained
from mixer.cluster.coordination import SINGLE, Cluster
from mixer.errors import InputError
from mixer.models import bit_resnet, layers, mlp_mixer, position_tables, variants, vit
from mixer.pretrained import dimensions, growth, trees
from mixer.values import OneOf

Model = mlp_mixer.MlpMixer | vit.VisionTransformer | bit_resnet.BitResNet
HEAD_POLICIES = ('auto', 'keep', 'reset')


def load(
  *,
  path: str | None,
  head: Annotated[str, OneOf(HEAD_POLICIES)],
  from_size: layers.Size | tuple[()] | None,
  model: Model,
  image_size: tuple[int, int],
  channels: int,
  permutation: Mapping | None,
  class_names: Sequence[str] = (),
  resample: bool = False,
  cluster: Cluster = SINGLE,
) -> tuple[dict, dict]:
  """(parameters in the layout of `model`, their identity and 'changes'); see `start_from`.

  The arguments up to `from_size`, and `resample`, are `config.init`, where an empty `from_size`
  means a square; `permutation` is `config.permutation`; `class_names` are those of the data. Where
  head='auto' keeps a head of other classes, or of the same in another order, a warning says so.
  """
  found = pretrained.open(path, cluster=cluster)
  found.check_permutation(permutation, image_size)
  params, changes = start_from(
    found.params,
    model,
    source=found.source,
    image_size=image_size,
    channels=channels,
    head=head,
    from_size=from_size or None,
    resample=resample,
  )
  if head == 'auto' and not has_zero_head(params):  # a head that is reset is zero
    _warn_of_other_classes(found, class_names)
  return models.to_model_layout(model, params), {**found.identity, 'changes': changes}


def start_from(
  params: Mapping,
  model: Model,
  *,
  source: str,
  image_size: layers.Size,
  channels: int,
  head: str,
  from_size: layers.Size | None = None,
  resample: bool = False,
) -> tuple[dict, str]:
  """(parameters in the released layout that fit `model`, how they were changed).

  Args:
    params: in the released layout.
    source: of the parameters, for messages.
    image_size, channels: of the images to train on.
    head: 'keep', 'reset' (a zero kernel and the model's `head_bias`), or 'auto': keep where the
      number of classes agrees, else reset.
    from_size: the image size that `params` were trained at; None for a square one.
    resample: of a Mixer without tiles on another grid, see `growth.resample`.

  Raises:
    InputError: the parameters do not fit, or cannot grow to this size.
  """
  changes = []
  check_network(params, model, source, channels)
  if isinstance(model, mlp_mixer.MlpMixer):
    params, changes = _grow(params, model, source, image_size, from_size, resample)
  elif isinstance(model, vit.VisionTransformer):
    params, changes = _resize_positions(params, model, image_size, from_size)
  old_head = params.get('head')
  params, head_change = _with_head(params, model, head)
  if 'pre_logits' in params and not getattr(model, 'representation_layer', True):
    if params['head'] is old_head:
      raise InputError(
        f'{source}: the head that is kept follows a representation layer (pre_logits), and the '
        'config builds none: use config.model.representation_layer=True, or config.init.head=reset.'
      )
    params = {name: part for name, part in params.items() if name != 'pre_logits'}
    changes.append('representation layer left out')
  plain = models.in_released_layout(model)
  trees.check(params, models.shapes(plain, image_size, channels), source)
  return params, ', '.join([*changes, head_change])


def check_family(params: Mapping, model: Model, source: str) -> None:
  """Raises InputError if the parameters are of another family of networks than `model`."""
  have, built = dimensions.family(params), dimensions.of_model(model)
  if have in (None, built['name']):
    return
  try:
    found = dimensions.infer(params, source).model
  except InputError:  # its dimensions are not in its shapes
    found = {}
  weights = dimensions.called(found) if found else f'a {have}'
  raise InputError(
    f'{source}: these weights are {weights}, and the config builds {dimensions.called(built)}; '
    + (_cure(found, {}) if found else 'use a config of the same network.')
  )


def check_network(params: Mapping, model: Model, source: str, channels: int | None = None) -> None:
  """Raises InputError if the parameters are of another network, or another size, than `model`.

  Patches, widths, depth and, if given, the channels of the images are compared; the message names
  all that differs and says what to set. `trees.check` compares the rest.
  """
  check_family(params, model, source)
  have = dimensions.family(params)
  if have is None or dimensions.is_changed(params):
    return
  if have == 'Mixer' and variants.active(model):
    return
  found, built = dimensions.infer(params, source).model, dimensions.of_model(model)
  names = [n for n in built if n not in ('name', 'tokens_mlp_dim', 'representation_layer')]
  differing = [name for name in names if found[name] != built[name]]
  is_whole = have == 'BiT' or all(
    block in params.get('Transformer', params)
    for block in (_block(have, i) for i in range(found['num_blocks']))
  )
  stem = dimensions.stem(params)
  of_images = stem.shape[-2] if channels and stem is not None else channels
  images = '' if of_images == channels else (
    f'these weights are for images of {of_images} channels, and the images have {channels}; '
    'take weights and images of the same kind'
  )  # fmt: skip
  if is_whole and images and not differing:
    raise InputError(f'{source}: {images}.')
  if not differing or not is_whole:
    return
  weights, wanted = dimensions.called(found), dimensions.called(built)
  if weights == wanted:  # they differ in what is not in a name
    weights, wanted = (
      f'{name} with {", ".join(f"{key}={of[key]!r}" for key in differing)}'
      for name, of in ((weights, found), (wanted, built))
    )
  raise InputError(
    f'{source}: these weights are {weights}, and the config builds {wanted}: '
    f'{_cure(found, _changes(found, built, differing))}' + (f' Also, {images}.' if images else '')
  )


def _changes(found: Mapping, built: Mapping, differing: Sequence[str]) -> dict:
  """The options of `config.model` that give `found`."""
  has_preset = dimensions.size_name(built, ignore_tokens=True) and differing != ['pool']
  return {
    key: found[key]
    for key in built
    if key != 'representation_layer' and (has_preset or found[key] != built[key])
  }


def _block(family: str, index: int) -> str:
  return f'encoderblock_{index}' if family == 'ViT' else f'MixerBlock_{index}'


def _cure(found: Mapping, changes: Mapping) -> str:
  """What to set for the model `found`: its size or, of the same family, the options `changes`."""
  name = dimensions.size_name(found, ignore_tokens=True)
  if name and not changes.keys() <= {'name', 'pool'}:
    return f'use --config=FILE:model={name.removeprefix("Mixer-")}.'
  if changes:
    flags = (f'--config.model.{key}={value}' for key, value in changes.items())
    return f'use {" ".join(map(shlex.quote, flags))}.'
  if name:
    return f'use --config=FILE:model={name.removeprefix("Mixer-")}.'
  return 'use a config of the same network.'


def has_zero_head(params: Mapping) -> bool:
  """True if the head's kernel is all zeros: nothing has trained it."""
  return 'head' in params and not np.any(params['head']['kernel'])


def check_head(params: Mapping, source: str, tests: Mapping) -> int | None:
  """The number of classes of the head that the evaluations `tests` need; None without `tests`.

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
        f'{source} has a head of {outputs} classes, and config.evals.{name}.input has '
        f'{data.num_classes}: {hint}'
      )
  return outputs


def _warn_of_other_classes(found: pretrained.Pretrained, class_names: Sequence[str]) -> None:
  """Warns if the head that is kept is known to be of other classes than those of the data."""
  known = found.description.class_names
  bundled = [name for name, count in labels.BUNDLED.items() if count == len(class_names)]
  if known is None and found.description.file is None and bundled:
    classes = labels.load(bundled[0], len(class_names))
    known = tuple(synset for synset, _ in classes)
    if tuple(class_names) == tuple(name for _, name in classes):
      return
  numbered = tuple(class_names) == tuple(map(str, range(len(class_names))))
  if known is None or numbered or tuple(known) == tuple(class_names):
    return
  differing = [pair for pair in zip(known, class_names, strict=True) if pair[0] != pair[1]]
  what = 'IN ANOTHER ORDER' if set(known) == set(class_names) else 'OF OTHER NAMES'
  logging.warning(
    '%s: THE HEAD IS KEPT, WITH CLASSES %s: %d of %d differ, such as %r in the file and %r in the '
    'data. If they are other classes, start with --config.init.head=reset; head=keep says that '
    'they are the same.', found.source, what, len(differing), len(known), *differing[0],
  )  # fmt: skip


def _grow(params, model, source, image_size, from_size, resample) -> tuple[Mapping, list[str]]:
  """(the parameters for the patch grid of such images, how they were changed)."""
  grid = layers.patch_grid(image_size, model.patch_size)
  if variants.active(model):  # changed token mixing cannot grow; `trees.check` says what differs
    return params, []
  old = _grid(params, model, from_size, source)
  if old == grid:
    return params, []
  if resample and layers.pair(model.tiles) == (1, 1):
    changed = f'RESAMPLED, an approximation, from a grid of {old} patches to {grid}'
    return growth.resample(params, old, grid), [changed]
  tiles = growth.tiling(old, grid)
  if tiles != layers.pair(model.tiles):
    raise InputError(
      f'{source} has a grid of {old} patches and {image_size} pixels make {grid}: set '
      f'config.model.tiles={tiles}, so that the token-mixing MLPs grow along.'
    )
  return growth.grow(params, old, tiles), [f'grown from a grid of {old} patches to {grid}']


def _resize_positions(params, model, image_size, from_size) -> tuple[Mapping, list[str]]:
  """(the parameters with a position table for such images, how it was changed)."""
  try:
    table = params['Transformer']['posembed_input']['pos_embedding']
  except KeyError:  # `trees.check` names it
    return params, []
  new = layers.patch_grid(image_size, model.patch_size)
  old = None if from_size is None else layers.patch_grid(from_size, model.patch_size)
  resized = position_tables.resize(table, new, old)
  if resized.shape == table.shape:
    return params, []
  positions = {'posembed_input': {'pos_embedding': resized}}
  transformer = {**params['Transformer'], **positions}
  return {**params, 'Transformer': transformer}, [f'position table resized to a grid of {new}']


def _grid(params, model, from_size, source) -> tuple[int, int]:
  """The grid of patches that the parameters were trained on."""
  tokens = dimensions.infer(params, source).tokens
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
