"""Models of a hub: weights beside a config.json in which timm records how to use them."""

from collections.abc import Mapping
import json
import math
from typing import NamedTuple

from absl import logging
from etils import epath
import numpy as np

from mixer import labels
from mixer.errors import InputError
from mixer.files import CONFIG_FILE
from mixer.pretrained import dimensions
from mixer.pretrained.description import Description

ENDINGS = ('.safetensors', '.bin', '.pth', '.pt', '.npz')
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')  # the first one that is there is read
# What is in the names of timm's Mixers that are not normalised to [-1, 1] -> (mean, std).
_OTHERS = {'miil': (0, 1)}


class Model(NamedTuple):
  """A file of weights and the config.json beside it."""

  weights: epath.Path
  config: epath.Path


class _Config(NamedTuple):
  """What a config.json says; None where it says nothing."""

  size: tuple[int, int, int] | None  # channels, height, width
  num_classes: int | None
  classes: labels.Classes | None
  loss: str | None
  mean: np.ndarray | None
  std: np.ndarray | None
  preprocessing: dict


def find(path: epath.Path) -> Model | None:
  """The model in a folder, or of a file of weights; None if timm has recorded nothing there.

  Raises:
    InputError: it is not clear which of the files of a folder to read.
  """
  folder = path if path.is_dir() else path.parent
  config = folder / CONFIG_FILE
  if not config.exists():
    return None
  there = sorted(file.name for file in folder.iterdir() if file.suffix in ENDINGS)
  try:
    content = json.loads(config.read_text())
  except ValueError as fault:
    if path.name in _WEIGHTS or (path.is_dir() and set(there) & set(_WEIGHTS)):
      raise InputError(
        f'{config} is damaged: {fault}. It may say how the weights beside it are to be used: fetch '
        'it again, or move it away.'
      ) from fault
    return None
  if not isinstance(content, dict) or not content.keys() & {'pretrained_cfg', 'architecture'}:
    return None
  if not path.is_dir():
    return Model(path, config) if path.name in _WEIGHTS or there == [path.name] else None
  named = [name for name in _WEIGHTS if name in there] or there
  if not named or (len(named) > 1 and named[0] not in _WEIGHTS):
    what = f'several files of weights, {", ".join(named)}' if named else 'no file of weights'
    raise InputError(f'{path} has the {CONFIG_FILE} of a hub, and {what}; give one file.')
  if len(there) > 1:
    left = ', '.join(name for name in there if name != named[0])
    logging.warning('%s: %s is read, and not %s.', path, named[0], left)
  return Model(folder / named[0], config)


def describe(model: Model, params: Mapping) -> tuple[dict, Description]:
  """(the parameters for pixels in [-1, 1], what the config says about them).

  The normalisation by mean and std is folded into the stem. It has no padding, so this is exact.

  Raises:
    InputError: the config is damaged or does not fit the parameters.
  """
  try:
    config = _parse(json.loads(model.config.read_text()))
  except (ValueError, TypeError, KeyError, AttributeError) as fault:
    raise InputError(
      f'{model.config} does not describe a model as timm does: {fault!r}. If it does not belong to '
      f'{model.weights.name}, move one of them away.'
    ) from fault
  outputs = len(params['head']['bias']) if 'head' in params else 0
  if config.num_classes not in (None, outputs):
    raise InputError(
      f'{model.config} has {config.num_classes} classes, and the head in {model.weights.name} '
      f'{outputs or "is missing"}; give the files of one model.'
    )
  if config.classes and len(config.classes) != outputs:
    raise InputError(
      f'{model.config} has the names of {len(config.classes)} classes, and the head in '
      f'{model.weights.name} has {outputs}.'
    )
  mean, std = _normalisation(config, model)
  usual = np.all(mean == 0.5) and np.all(std == 0.5)
  if not usual:
    params = _fold(params, mean, std, model)
    logging.warning(
      '%s: its normalisation by mean %s and std %s is folded into the stem, which takes pixels in '
      '[-1, 1] so.', model.config, mean.tolist(), std.tolist(),
    )  # fmt: skip
  return params, Description(
    file=model.config,
    image_size=config.size and config.size[1:],
    channels=config.size and config.size[0],
    preprocessing=config.preprocessing or None,
    # timm has no key for the loss and trains with softmax by default; its usual normalisation is
    # that of the released files.
    loss=config.loss or (None if usual else 'softmax'),
    classes=config.classes,
    partial=True,
  )


def num_heads(model: Model) -> int | None:
  """The number of attention heads that the config gives as an argument of timm's model, or None."""
  arguments = json.loads(model.config.read_text()).get('model_args')
  return arguments.get('num_heads') if isinstance(arguments, Mapping) else None


def warn_of_name(path: epath.Path, layout: str) -> None:
  """Warns of a file without a record that is named like weights of another normalisation."""
  for word, (mean, std) in _OTHERS.items():
    if layout.startswith('timm') and word in f'{path.parent.name}/{path.name}'.lower():
      logging.warning(
        '%s is named like weights of timm (%s) for pixels of mean %s and std %s, and is used for '
        'pixels in [-1, 1]: if it is one of these, put its config.json beside it, or one of '
        '{"pretrained_cfg": {"mean": [%s], "std": [%s]}}.', path, word, mean, std, mean, std,
      )  # fmt: skip


def _parse(content: Mapping) -> _Config:
  """Newer files have the data's side under 'pretrained_cfg', older ones have all side by side."""
  own = content.get('pretrained_cfg') or content
  size = own.get('input_size')
  names = content.get('label_names') or own.get('label_names')
  described = content.get('label_descriptions') or own.get('label_descriptions') or {}
  if names is not None:
    names = [
      (name if name in described and labels.is_synset(name) else '', described.get(name, name))
      for name in names
    ]
  num_classes = content.get('num_classes', own.get('num_classes'))
  return _Config(
    size=None if size is None else _positive(size, 3),
    num_classes=None if num_classes is None else int(num_classes),
    classes=names,
    loss=content.get('loss'),
    mean=None if own.get('mean') is None else np.asarray(own['mean'], np.float64).ravel(),
    std=None if own.get('std') is None else np.asarray(own['std'], np.float64).ravel(),
    preprocessing={} if size is None else _preprocessing(_positive(size, 3)[1:], own),
  )


def _positive(values, count: int) -> tuple[int, ...]:
  found = tuple(int(value) for value in values)
  if len(found) != count or min(found) < 1:
    raise ValueError(f'{list(values)} where {count} sizes are due')
  return found


def _preprocessing(size: tuple[int, int], own: Mapping) -> dict:
  """That of timm's evaluation, as `mixer.input.single_images` takes it."""
  share = float(own.get('crop_pct', 0.875))
  if not 0 < share <= 1:
    raise ValueError(f'crop_pct {share}')
  return {
    'name': 'timm',
    'resize': tuple(math.floor(side / share) for side in size),
    'crop': size,
    'interpolation': own.get('interpolation', 'bicubic'),
    'mode': own.get('crop_mode', 'center'),
    'value_range': [-1, 1],
  }


def _normalisation(config: _Config, model: Model) -> tuple[np.ndarray, np.ndarray]:
  """(mean, std), each of one value or one a channel."""
  if config.mean is None or config.std is None:
    logging.warning('%s lacks mean or std; both are taken to be 0.5.', model.config)
    return np.full(1, 0.5), np.full(1, 0.5)
  both = np.concatenate([config.mean, config.std])
  if not np.isfinite(both).all() or not (config.std > 0).all():
    raise InputError(f'{model.config}: mean {config.mean.tolist()}, std {config.std.tolist()}.')
  return config.mean, config.std


def _fold(params: Mapping, mean: np.ndarray, std: np.ndarray, model: Model) -> dict:
  """Parameters whose stem has the same outputs for 2 p - 1 as the given one for (p - mean) / std.

  With y = 2 p - 1, (p - mean) / std = y / (2 std) + (1/2 - mean) / std, for each channel.
  """
  name = {'Mixer': 'stem', 'ViT': 'embedding'}.get(dimensions.family(params))
  if name not in params:
    raise InputError(
      f'{model.config} has mean {mean.tolist()} and std {std.tolist()}; only the stem of a Mixer '
      'or a ViT can take them in.'
    )
  kernel, bias = (params[name][leaf].astype(np.float64) for leaf in ('kernel', 'bias'))
  channels = kernel.shape[2]
  if {mean.size, std.size} - {1, channels}:
    raise InputError(
      f'{model.config} has mean {mean.tolist()} and std {std.tolist()}, and the stem takes '
      f'{channels} channels.'
    )
  scale = np.broadcast_to(0.5 / std, channels)[:, None]
  shift = np.broadcast_to((0.5 - mean) / std, channels)[:, None]
  stem = {'kernel': kernel * scale, 'bias': bias + (kernel * shift).sum((0, 1, 2))}
  return {**params, name: {leaf: array.astype(np.float32) for leaf, array in stem.items()}}
