"""What a description lacks: inferred from the parameters, else as in the released files."""

from collections.abc import Mapping
import dataclasses

from mixer import labels, models
from mixer.errors import InputError
from mixer.input import describe_preprocessing
from mixer.pretrained import dimensions, released, trees
from mixer.pretrained.description import Description, not_described
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
_BIT_SIZE = (224, 224)  # of the images that BiT's files are trained on, or cropped from


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
    size = _image_size(params, source)
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
    loss=_loss(description, loss, arguments, assumed),
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
    own = dimensions.unnamed(params, {'name': name})
    return {'name': name, 'num_classes': _num_outputs(params), **own}
  found = dimensions.infer(params, source).model
  count = found['num_classes']
  head = 'no head' if count is None else f'a head of {count} classes'
  assumed.append(f'the model is {dimensions.called(found)} with {head}{_variant(found)}')
  return found


def _variant(model: Mapping) -> str:
  """What the name of a ViT does not say."""
  words = [' on the mean of the tokens'] if model.get('pool') == 'gap' else []
  words += [' after a representation layer'] if model.get('representation_layer') else []
  return ''.join(words)


def _image_size(params: Mapping, source: str) -> tuple[int, int]:
  """That of a square grid of patches, which a position table or token mixing determines."""
  if dimensions.family(params) == 'BiT':
    return _BIT_SIZE
  try:
    size = dimensions.infer(params, source).image_size
  except InputError:  # of another model: its parameters do not determine the size
    size = None
  if size is None:
    raise InputError(
      f'{source}: its parameters do not determine the size of the images; give '
      '--image_size=HEIGHT,WIDTH.'
    )
  return size


def _loss(
  description: Description, given: str | None, model: Mapping, assumed: list[str]
) -> str | None:
  found = given or description.loss
  num_classes = model['num_classes']
  if description.partial and found and not given:
    assumed.append(f'loss: {found}')
  if found is None and num_classes in released.NUM_CLASSES:
    family = model['name'].partition('-')[0]
    found = released.loss(family, num_classes)
    why = 'as in the released models' if family == 'Mixer' else 'not confirmed, see --loss'
    assumed.append(f'loss: {found}, {why}')
    return found
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
  """Of the images, by the first convolution of any model; without one, `trees.check` fails."""
  stem = dimensions.stem(params)
  return 3 if stem is None else stem.shape[2]


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
