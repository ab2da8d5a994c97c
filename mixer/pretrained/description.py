"""All that is needed to use parameters, from the record of their run or from their shapes."""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import NamedTuple

from mixer import labels, models
from mixer.errors import InputError
from mixer.models import mlp_mixer
from mixer.pretrained import records, released, trees
from mixer.sizes import pair
from mixer.training import losses

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


@dataclasses.dataclass(frozen=True)
class Description:
  """All that is needed to use parameters in the released layout.

  Attributes:
    model: arguments of `models.build`; 'num_classes' is None without a head.
    image_size: (height, width).
    channels: of an image.
    preprocessing: that of an `input.Input`.
    loss: a key of `losses.LOSSES`, or None where it is not known.
    classes: (synset, name) of each output of the head, or None where they are not known.
    permutation: `config.permutation`, see `mixer.models.permutations`.
    assumed: a sentence for each fact that is not recorded and was inferred.
  """

  model: dict
  image_size: tuple[int, int]
  channels: int
  preprocessing: dict
  loss: str | None
  classes: labels.Classes | None
  permutation: Mapping | None = None
  assumed: tuple[str, ...] = ()


def infer(params: Mapping, source: str) -> Inferred:
  """The Mixer whose parameters these are; `params` has anything with a shape as leaves.

  Raises:
    InputError: a parameter that determines the model is missing or has another rank, or token
      mixing is not that of the paper's main model.
  """
  flat = trees.flatten(params)
  changed = sorted({m[1] for name in flat if (m := _CHANGED.match(name))})
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


def size_name(model: Mapping) -> str | None:
  """'Mixer-B/16' of the arguments in `Inferred.model` where they are a size of the paper."""
  height, width = pair(model['patch_size'])
  names = [
    f'Mixer-{s}/{height}' for s, of in mlp_mixer.SIZES.items() if of.items() <= model.items()
  ]
  return names[0] if names and height == width else None


def complete(
  params: Mapping,
  record: records.Record,
  source: str,
  *,
  model: str | None = None,
  image_size: tuple[int, int] | None = None,
  loss: str | None = None,
  label_map: str | None = None,
) -> Description:
  """The description of parameters in the released layout, with every name and shape checked.

  Args:
    params, record, source: the parameters, what is recorded about them, and where they are from.
    model, image_size, loss: name of the model, (height, width) and training loss, of parameters
      without a record; None infers them.
    label_map: a bundled list or a file, see `labels.load`; None for the model's own.

  Raises:
    InputError: a fact is missing or does not fit the others or the parameters.
  """
  given = {'model': model, 'image_size': image_size, 'loss': loss}
  if record.file is None:
    found = _infer_description(params, source, **given, label_map=label_map)
  else:
    known = {name: getattr(record, name) for name in given}
    surplus = [f'--{n}' for n, v in given.items() if None not in (v, known[n]) and v != known[n]]
    if surplus:
      raise InputError(f'{record.file} describes {source}; leave out {surplus}.')
    found = _complete_record(params, record, image_size, label_map)
  net = models.build(**found.model)
  trees.check(params, models.shapes(net, found.image_size, found.channels), source)
  return found


def _complete_record(
  params: Mapping, record: records.Record, image_size: tuple[int, int] | None, label_map: str | None
) -> Description:
  missing = [n for n in ('model', 'preprocessing', 'loss') if getattr(record, n) is None]
  if missing:
    raise records.not_described(record.file, f'it lacks {missing}')
  try:
    # Both say how to compute, not what; `scan` is about another layout.
    model = {key: value for key, value in record.model.items() if key not in ('remat', 'scan')}
    model.setdefault('num_classes', _num_outputs(params))
    assumed = []
    size = record.image_size or image_size
    if size is None:
      size = _square_size(params, record)
      assumed.append(f'images of {size[0]} x {size[1]} pixels')
    preprocessing = dict(record.preprocessing)
    if preprocessing['name'] == 'inception':  # the random crop of a run without evaluations
      preprocessing = _resize_small(size)
      assumed.append(f'preprocessing, as the run had no evaluation: {_format(preprocessing)}')
    classes = None
    if label_map:
      classes = labels.load(label_map, model['num_classes'])
    elif record.class_names is not None:
      classes = labels.describe(record.class_names, model['num_classes'], str(record.file))
    return Description(
      model=model,
      image_size=size,
      channels=record.channels or _num_channels(params),
      preprocessing=preprocessing,
      loss=_check_loss(record.loss, str(record.file)),
      classes=classes,
      permutation=record.permutation,
      assumed=tuple(assumed),
    )
  except (AttributeError, KeyError, TypeError) as fault:
    raise records.not_described(record.file, repr(fault)) from fault


def _infer_description(
  params: Mapping,
  source: str,
  *,
  model: str | None,
  image_size: tuple[int, int] | None,
  loss: str | None,
  label_map: str | None,
) -> Description:
  """Of parameters without a record: the shapes give the model, the released Mixers the rest."""
  found = infer(params, source)
  num_classes = found.model['num_classes']
  assumed = [] if model else [f'the model is {_describe_model(found.model)}']
  if image_size is None:
    if found.image_size is None:
      raise InputError(
        f'{source}: its {found.tokens} patches are not a square; give --image_size=HEIGHT,WIDTH.'
      )
    image_size = found.image_size
    assumed.append(f'images of {image_size[0]} x {image_size[1]} pixels')
  preprocessing = _resize_small(image_size)
  assumed.append(f'preprocessing: {_format(preprocessing)}')
  if loss is None and num_classes in released.NUM_CLASSES:
    loss = released.LOSS
    assumed.append(f'loss: {loss}, as in the released models')
  bundled = {count: name for name, count in labels.BUNDLED.items()}
  if label_map is None and num_classes in bundled:
    label_map = bundled[num_classes]
    assumed.append(f'classes: {label_map}, from their number')
  return Description(
    model={'name': model, 'num_classes': num_classes} if model else found.model,
    image_size=image_size,
    channels=found.channels,
    preprocessing=preprocessing,
    loss=loss and _check_loss(loss, '--loss'),
    classes=labels.load(label_map, num_classes) if label_map and num_classes else None,
    assumed=tuple(assumed),
  )


def _describe_model(model: Mapping) -> str:
  """'Mixer-B/16 with a head of 1000 classes', or all the dimensions of another size."""
  count = model['num_classes']
  head = 'no head' if count is None else f'a head of {count} classes'
  if name := size_name(model):
    return f'{name} with {head}'
  own = ', '.join(f'{k} {v}' for k, v in model.items() if k not in ('name', 'num_classes'))
  return f'a Mixer of {own}, with {head}'


def _num_outputs(params: Mapping) -> int | None:
  return len(params['head']['bias']) if 'head' in params else None


def _num_channels(params: Mapping) -> int:
  """Of the images, by the first convolution of any model."""
  stem = params['stem'] if 'stem' in params else params['root_block']['conv_root']
  return stem['kernel'].shape[2]


def _square_size(params: Mapping, record: records.Record) -> tuple[int, int]:
  """The size of the images where only the parameters give it."""
  try:
    size = infer(params, '').image_size
  except InputError:  # not the paper's main model: other sizes have the same shapes
    size = None
  if size is None:
    raise InputError(
      f'{record.file} does not have the size of the images; give --image_size=HEIGHT,WIDTH.'
    )
  return size


def _check_loss(loss: str, source: str) -> str:
  if loss not in losses.LOSSES:
    raise InputError(f'{source}: unknown loss {loss!r}; use one of {sorted(losses.LOSSES)}.')
  return loss


def _resize_small(image_size: tuple[int, int]) -> dict:
  """The evaluation of the released models: 256 to 224, and the same ratio for other sizes."""
  return {
    'name': 'resize_small',
    'resize': tuple(round(side * 8 / 7) for side in image_size),
    'crop': image_size,
    'value_range': [-1, 1],
  }


def _format(preprocessing: Mapping) -> str:
  resize, crop = (
    ' x '.join(map(str, side)) if side[0] != side[1] else str(side[0])
    for side in (preprocessing['resize'], preprocessing['crop'])
  )
  return f'shorter side to {resize}, centre crop of {crop}, values in [-1, 1]'
