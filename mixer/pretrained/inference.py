"""What a description lacks: inferred from the parameters, else as in the released Mixers."""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import NamedTuple

from mixer import labels, models
from mixer.errors import InputError
from mixer.input import describe_preprocessing
from mixer.models import mlp_mixer
from mixer.pretrained import released, trees
from mixer.pretrained.description import Description, not_described
from mixer.sizes import pair
from mixer.training import losses

# Random crops of training -> those of `mixer.input.crops` that evaluate the same; None for the
# evaluation of the released models.
_OF_TRAINING = {
  'inception': None,
  'direct_flip': 'direct',
  'resize_random': 'resize',
  'resize_random_unflipped': 'resize',
  'resize_small_random': 'resize_small',
}
_CHANGED = re.compile(r'MixerBlock_\d+/(\w+_token_mixing)/')  # of `mixer.models.variants`


class Inferred(NamedTuple):
  """What the shapes of a Mixer's parameters determine.

  Attributes:
    model: arguments of `models.build`; 'num_classes' is None without a head.
    tokens: number of patches.
    channels: of an image.
    image_size: (height, width) of a square grid of patches; None where `tokens` is no square.
  """

  model: dict
  tokens: int
  channels: int
  image_size: tuple[int, int] | None


def is_changed(params: Mapping) -> bool:
  """Whether the token mixing of the Mixer with these parameters is a variant of appendix A."""
  return bool(_changed(trees.flatten(params)))


def _changed(flat: Mapping) -> list[str]:
  return sorted({m[1] for name in flat if (m := _CHANGED.match(name))})


def infer(params: Mapping, source: str) -> Inferred:
  """The Mixer whose parameters these are; `params` has anything with a shape as leaves.

  Raises:
    InputError: a parameter that determines the model is missing or has another rank, or token
      mixing is not that of the paper's main model.
  """
  flat = trees.flatten(params)
  changed = _changed(flat)
  if changed:
    raise InputError(
      f'{source}: token mixing is changed as in appendix A of the paper ({", ".join(changed)}), '
      'which the shapes do not determine: use the run with its config, or the .npz with its .json.'
    )
  wanted = {
    'stem/kernel': 4,
    'MixerBlock_0/token_mixing/Dense_0/kernel': 2,
    'MixerBlock_0/channel_mixing/Dense_0/kernel': 2,
  } | ({'head/kernel': 2} if 'head/kernel' in flat else {})
  faults = [
    f'{name} is {"of shape " + str(flat[name].shape) if name in flat else "missing"}'
    for name, rank in wanted.items()
    if name not in flat or flat[name].ndim != rank
  ]
  if faults:
    raise InputError(f'{source}: the shapes are not those of a Mixer: {"; ".join(faults)}.')
  stem, tokens, channels, *head = (flat[name].shape for name in wanted)
  side = math.isqrt(tokens[0])
  model = {
    'name': 'Mixer',
    'num_classes': head[0][1] if head else None,
    'num_blocks': len({m[1] for name in flat if (m := re.match(r'MixerBlock_(\d+)/', name))}),
    'hidden_dim': stem[3],
    'tokens_mlp_dim': tokens[1],
    'channels_mlp_dim': channels[1],
    'patch_size': stem[:2],
  }
  square = (side * stem[0], side * stem[1]) if side * side == tokens[0] else None
  return Inferred(model, tokens[0], stem[2], square)


def size_name(model: Mapping, *, ignore_tokens: bool = False) -> str | None:
  """'Mixer-B/16' of the arguments in `Inferred.model` where they are a size of the paper.

  `ignore_tokens`: whatever the width of the token-mixing MLPs, which grows with the resolution.
  """
  height, width = pair(model['patch_size'])
  ignored = {'tokens_mlp_dim'} if ignore_tokens else set()
  names = [
    f'Mixer-{size}/{height}'
    for size, of in mlp_mixer.SIZES.items()
    if all(model[name] == value for name, value in of.items() if name not in ignored)
  ]
  return names[0] if names and height == width else None


def complete(
  description: Description,
  params: Mapping,
  source: str,
  *,
  model: str | None = None,
  image_size: tuple[int, int] | None = None,
  loss: str | None = None,
  label_map: str | None = None,
) -> Description:
  """The description with all that is needed to use `params`, whose names and shapes are checked.

  Without a record, the loss may stay None, and so may the classes.

  Args:
    description: what is recorded.
    params: in the released layout.
    source: of the parameters, for messages.
    model, image_size, loss: name of the model, (height, width) and training loss, where they are
      not recorded; None infers them.
    label_map: a bundled list or a file, see `labels.load`; None for the model's own.

  Raises:
    InputError: a fact is missing or does not fit the others or the parameters.
  """
  known = description.file is not None
  if known:
    _check_record(description, source, model=model, image_size=image_size, loss=loss)
  assumed: list[str] = []
  arguments = _model_arguments(description, params, source, model, assumed)
  size = description.image_size or image_size
  if size is None:
    size = _square_size(params, source)
    assumed.append(f'images of {size[0]} x {size[1]} pixels')
  channels = description.channels or _num_channels(params)
  preprocessing = description.preprocessing
  if preprocessing is None or preprocessing['name'] in _OF_TRAINING:
    why = ', as the run had no evaluation' if preprocessing else ''
    preprocessing = _preprocessing(preprocessing, size, channels)
    assumed.append(f'preprocessing{why}: {describe_preprocessing(preprocessing)}')
  found = dataclasses.replace(
    description,
    model=arguments,
    image_size=size,
    channels=channels,
    preprocessing=preprocessing,
    loss=_loss(description, loss, arguments['num_classes'], assumed),
    classes=_classes(description, label_map, arguments['num_classes'], assumed),
    assumed=tuple(assumed),
  )
  net = models.build(**found.model)
  trees.check(params, models.shapes(net, found.image_size, found.channels), source)
  return found


def _check_record(description: Description, source: str, **given) -> None:
  """Raises InputError if the record lacks what is needed, or something else is given."""
  named = {'model': description.model, 'preprocessing': description.preprocessing}
  missing = [n for n, of in named.items() if not (isinstance(of, Mapping) and 'name' in of)]
  missing += [] if description.loss else ['loss']
  if missing and not description.partial:
    raise not_described(description.file, f'it lacks {missing}')
  recorded = {name: getattr(description, name) for name in given}
  if description.partial:  # its loss is not recorded
    recorded['loss'] = None
  surplus = [
    f'--{n}' for n, v in given.items() if None not in (v, recorded[n]) and v != recorded[n]
  ]
  if surplus:
    raise InputError(f'{description.file} describes {source}; leave out {surplus}.')


def _model_arguments(
  description: Description, params: Mapping, source: str, name: str | None, assumed: list[str]
) -> dict:
  if description.model is not None:  # without what says how to compute, and not what
    own = {key: value for key, value in description.model.items() if key not in ('remat', 'scan')}
    return {'num_classes': _num_outputs(params), **own}
  if name is not None:
    return {'name': name, 'num_classes': _num_outputs(params)}
  found = infer(params, source).model
  count = found['num_classes']
  dimensions = ', '.join(f'{k} {v}' for k, v in found.items() if k not in ('name', 'num_classes'))
  assumed.append(
    f'the model is {size_name(found) or f"a Mixer of {dimensions},"} with '
    + ('no head' if count is None else f'a head of {count} classes')
  )
  return found


def _square_size(params: Mapping, source: str) -> tuple[int, int]:
  """The image size that the parameters of a Mixer determine if the grid of patches is a square."""
  try:
    size = infer(params, source).image_size
  except InputError:  # of another model: its parameters do not determine the size
    size = None
  if size is None:
    raise InputError(
      f'{source}: its parameters do not determine the size of the images; give '
      '--image_size=HEIGHT,WIDTH.'
    )
  return size


def _loss(
  description: Description, given: str | None, num_classes: int | None, assumed: list[str]
) -> str | None:
  found = given or description.loss
  if description.partial and found and not given:
    assumed.append(f'loss: {found}')
  if found is None and num_classes in released.NUM_CLASSES:
    assumed.append(f'loss: {released.LOSS}, as in the released models')
    return released.LOSS
  if found not in (None, *losses.LOSSES):
    where = description.file or '--loss'
    raise InputError(f'{where}: unknown loss {found!r}; use one of {sorted(losses.LOSSES)}.')
  return found


def _classes(
  description: Description, label_map: str | None, num_classes: int | None, assumed: list[str]
) -> labels.Classes | None:
  bundled = {count: name for name, count in labels.BUNDLED.items()}
  if label_map is None and description.classes is not None:
    return description.classes
  unnamed = description.file is None or description.partial
  if label_map is None and unnamed and num_classes in bundled:
    label_map = bundled[num_classes]
    assumed.append(f'classes: {label_map}, from their number')
  if label_map is not None and num_classes is not None:
    return labels.load(label_map, num_classes)
  if description.class_names is None or num_classes is None:
    return None
  return labels.describe(description.class_names, num_classes, str(description.file))


def _num_outputs(params: Mapping) -> int | None:
  return len(params['head']['bias']) if 'head' in params else None


def _num_channels(params: Mapping) -> int:
  """Of the images, by the first convolution of any model."""
  stems = {'Mixer': params.get('stem'), 'ViT': params.get('embedding')}
  stems['BiT'] = params.get('root_block', {}).get('conv_root')
  kernels = [stem['kernel'] for stem in stems.values() if stem]
  return kernels[0].shape[2] if kernels else 3  # without one, `trees.check` fails


def _preprocessing(training: Mapping | None, image_size: tuple[int, int], channels: int) -> Mapping:
  """The one to assume where that of an evaluation is not recorded."""
  name = _OF_TRAINING[training['name']] if training else None
  if name is not None:
    return {**training, 'name': name}
  if channels != 3:  # image files have colours, so the model is of images in memory
    return {'name': 'none', 'value_range': [-1, 1]}
  return _resize_small(image_size)


def _resize_small(image_size: tuple[int, int]) -> dict:
  """The evaluation of the released models: 256 to 224, and the same ratio for other sizes."""
  return {
    'name': 'resize_small',
    'resize': tuple(round(side * 8 / 7) for side in image_size),
    'crop': image_size,
    'value_range': [-1, 1],
  }
