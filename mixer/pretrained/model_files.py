"""Trained models as they lie on disk: parameters, and how they are to be used.

A model that train.py wrote says so itself in the `.json` beside its `.npz`. Of a foreign file the
shapes tell the model, and the rest is taken to be as in the released Mixers unless it is given.
"""

from collections.abc import Mapping
import dataclasses
import json

from etils import epath

from mixer import labels, models, pretrained
from mixer.errors import InputError
from mixer.models import layers, mlp_mixer
from mixer.pretrained import layouts
from mixer.training import losses

# Heads of the released files: number of classes -> (label map, training loss).
RELEASED_HEADS = {
  1000: ('imagenet1k', 'sigmoid'),
  21843: ('imagenet21k', 'sigmoid'),
}


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """Parameters with all that is needed to use them.

  Attributes:
    params: in the released layout.
    model: arguments of `models.build`; its 'num_classes' is None for a file without a head.
    image_size: (height, width).
    channels: of an image.
    preprocessing: that of an `input.Input`.
    loss: a name in `losses.LOSSES`, or None where it is not known.
    classes: (synset, name) of each output of the head, or None where they are not known.
    source: the file.
    assumed: what the file does not say and was inferred, in words.
    permutation: the run's `config.permutation`, see `mixer.models.permutations`.
  """

  params: dict
  model: dict
  image_size: tuple[int, int]
  channels: int
  preprocessing: dict
  loss: str | None
  classes: labels.Classes | None
  source: str
  assumed: tuple[str, ...] = ()
  permutation: dict | None = None


def read(
  path: epath.PathLike,
  *,
  model: str | None = None,
  image_size: tuple[int, int] | None = None,
  loss: str | None = None,
  label_map: str | None = None,
) -> TrainedModel:
  """Reads an `.npz` or the workdir of a finished run, and checks every name and shape.

  Args:
    path: the file or the workdir.
    model, image_size, loss: for a file without a `.json` beside it: name of the model, (height,
      width), training loss. None infers them.
    label_map: a bundled list or a file, see `labels.load`; None for the model's own.

  Raises:
    InputError: the file is not there, damaged, not a model, or not the one that was described.
  """
  path = epath.Path(path).expanduser()
  if path.is_dir():
    path = path / 'model.npz'
    if not path.exists():
      raise InputError(f'no {path}: the run has not ended. Let train.py end it, or give an .npz.')
  params, description = pretrained.load(path), path.with_suffix('.json')
  given = {'model': model, 'image_size': image_size, 'loss': loss}
  if description.exists():
    known = [f'--{name}' for name, value in given.items() if value is not None]
    if known:
      raise InputError(f'{description} tells how {path.name} was trained; leave out {known}.')
    found = _described(params, path, description, label_map)
  else:
    found = _inferred(params, path, **given, label_map=label_map)
  net = models.build(**found.model)
  pretrained.check(params, models.shapes(net, found.image_size, found.channels), found.source)
  return found


def _described(
  params: dict, path: epath.Path, description: epath.Path, label_map: str | None
) -> TrainedModel:
  """The model that its own `.json` describes."""
  try:
    facts = json.loads(description.read_text())
    model = {**facts['model'], 'remat': False}
    model |= {'scan': False} if 'scan' in model else {}
    num_classes = model['num_classes']
    preprocessing, assumed = _for_evaluation(facts['preprocessing'], facts['image_size'])
    return TrainedModel(
      params=params,
      model=model,
      image_size=layers.pair(facts['image_size']),
      channels=facts['channels'],
      preprocessing=preprocessing,
      loss=_known_loss(facts['loss'], str(description)),
      classes=labels.load(label_map, num_classes)
      if label_map
      else labels.describe(facts['class_names'], num_classes, str(description)),
      source=str(path),
      assumed=assumed,
      permutation=facts.get('permutation'),
    )
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as fault:
    raise InputError(
      f'{description} does not describe a model as train.py does: {fault!r}. Move it away to have '
      'the model inferred from the shapes.'
    ) from fault


def _inferred(
  params: dict,
  path: epath.Path,
  *,
  model: str | None,
  image_size: tuple[int, int] | None,
  loss: str | None,
  label_map: str | None,
) -> TrainedModel:
  """The model that the shapes tell, trained as the released ones were."""
  arguments, size = mixer_of_shapes(params, str(path))
  num_classes = arguments['num_classes']
  assumed = [] if model else [f'the model is {describe(arguments)}']
  if image_size is None:
    if size is None:
      raise InputError(
        f'{path}: its {_tokens(params)} patches are not a square; give --image_size=HEIGHT,WIDTH.'
      )
    image_size = size
    assumed.append(f'images of {image_size[0]} x {image_size[1]} pixels')
  preprocessing = _resize_small(image_size)
  assumed.append(f'preprocessing: {_words(preprocessing)}')
  released_map, released_loss = RELEASED_HEADS.get(num_classes, (None, None))
  if loss is None and released_loss:
    assumed.append(f'loss: {released_loss}, as in the released models')
  if label_map is None and released_map:
    assumed.append(f'classes: {released_map}, from their number')
  label_map = label_map or released_map
  return TrainedModel(
    params=params,
    model={'name': model, 'num_classes': num_classes} if model else arguments,
    image_size=image_size,
    channels=params['stem']['kernel'].shape[2],
    preprocessing=preprocessing,
    loss=_known_loss(loss, '--loss') if loss else released_loss,
    classes=labels.load(label_map, num_classes) if label_map and num_classes else None,
    source=str(path),
    assumed=tuple(assumed),
  )


def mixer_of_shapes(params: Mapping, source: str) -> tuple[dict, tuple[int, int] | None]:
  """(arguments of `models.build`, size of the images) that the shapes of a Mixer tell.

  The size is None where the number of patches is no square, so that the shapes do not tell it.
  """
  try:
    found = layouts.dimensions(pretrained.flatten(params))
  except InputError as fault:
    raise InputError(f'{source}: {fault}') from fault
  sizes = ('num_classes', 'num_blocks', 'hidden_dim', 'tokens_mlp_dim', 'channels_mlp_dim')
  arguments = {name: found[name] for name in (*sizes, 'patch_size')}
  return {'name': 'Mixer', **arguments}, found['image_size']


def describe(arguments: Mapping) -> str:
  """'Mixer-B/16' where the dimensions are a size's, else 'Mixer' with the dimensions."""
  height, width = layers.pair(arguments['patch_size'])
  for size, dimensions in mlp_mixer.SIZES.items():
    if height == width and dimensions.items() <= arguments.items():
      return f'Mixer-{size}/{height} with {_head(arguments)}'
  own = {k: v for k, v in arguments.items() if k not in ('name', 'num_classes')}
  listed = ', '.join(f'{name} {value}' for name, value in own.items())
  return f'a Mixer of {listed}, with {_head(arguments)}'


def _head(arguments: Mapping) -> str:
  classes = arguments['num_classes']
  return 'no head' if classes is None else f'a head of {classes} classes'


def _tokens(params: Mapping) -> int:
  return len(params['MixerBlock_0']['token_mixing']['Dense_0']['kernel'])


def _known_loss(loss: str, source: str) -> str:
  if loss not in losses.LOSSES:
    raise InputError(f'{source}: unknown loss {loss!r}; use one of {sorted(losses.LOSSES)}.')
  return loss


def _resize_small(image_size: tuple[int, int]) -> dict:
  """What the released models were evaluated with: 256 to 224, and the same ratio elsewhere."""
  return {
    'name': 'resize_small',
    'resize': tuple(round(side * 8 / 7) for side in image_size),
    'crop': image_size,
    'value_range': [-1, 1],
  }


def _for_evaluation(preprocessing: Mapping, image_size) -> tuple[dict, tuple[str, ...]]:
  """Of a run without evaluations only the random training crop is on record."""
  if preprocessing['name'] != 'inception':
    return dict(preprocessing), ()
  usual = _resize_small(layers.pair(image_size))
  return usual, (f'preprocessing, as the run had no evaluation: {_words(usual)}',)


def _words(preprocessing: Mapping) -> str:
  resize, crop = (
    ' x '.join(map(str, side)) if side[0] != side[1] else str(side[0])
    for side in (preprocessing['resize'], preprocessing['crop'])
  )
  return f'shorter side to {resize}, centre crop of {crop}, values in [-1, 1]'
