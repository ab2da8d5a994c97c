"""Descriptions of models: what a run of train.py records, in model.json and before in config.json.

A finished run describes its model in model.json; before the end of the run, config.json,
classes.json and input.json contain the same.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json

from etils import epath

from mixer import files, labels, values
from mixer.errors import InputError
from mixer.models import permutations
from mixer.sizes import pair

MODEL_FILE = 'model.json'
_NO_NAMES = 'Restore it from a copy, or move it away: the classes then have no names.'
_NO_SIZES = 'Restore it from a copy, or move it away: the config then has to have the sizes.'
_ADVICE = (
  'If it does not belong to these parameters, move it away, and the model is inferred from their '
  'shapes.'
)


@dataclasses.dataclass(frozen=True)
class Description:
  """How to use the parameters of a model; None where it is not known.

  Attributes:
    file: where a run has recorded it; None if nothing is recorded.
    model: arguments of `models.build`; its 'num_classes' is None without a head.
    image_size: (height, width).
    channels: of an image.
    preprocessing: that of an `input.Input`.
    loss: a key of `losses.LOSSES`.
    class_names: of the training data, in the order of the head's outputs.
    classes: (synset, name) of each output; see `inference.complete`.
    permutation: `config.permutation` if it moves pixels, see `mixer.models.permutations`.
    assumed: what was not recorded but inferred, for the user.
    partial: the record is not that of a run, and what it lacks can be inferred or given.
  """

  file: epath.Path | None = None
  model: Mapping | None = None
  image_size: tuple[int, int] | None = None
  channels: int | None = None
  preprocessing: Mapping | None = None
  loss: str | None = None
  class_names: tuple[str, ...] | None = None
  classes: labels.Classes | None = None
  permutation: Mapping | None = None
  assumed: tuple[str, ...] = ()
  partial: bool = False


def read(path: epath.Path) -> Description:
  """What is recorded about the parameters at `path`: a file, or the workdir of a run.

  Raises:
    InputError: a file that should describe a model does not.
  """
  if path.is_dir() and not (path / MODEL_FILE).exists():
    names = _recorded(path / files.CLASSES_FILE, list, _NO_NAMES)
    images = _recorded(path / files.INPUT_FILE, dict, _NO_SIZES) or {}
    return _described(path / files.CONFIG_FILE, lambda found: _from_config(found, names, images))
  file = path / MODEL_FILE if path.is_dir() else beside(path)
  return _described(file, _from_model_file)


def _described(file: epath.Path, parse: Callable[[dict], Description]) -> Description:
  """What `parse` makes of the object in a file; nothing, if there is none."""
  if not file.exists():
    return Description()
  content = files.read_json(file, advice=_ADVICE)
  try:
    found = dataclasses.replace(parse(content), file=file)
    _check_types(found)
    moves = permutations.normalize(found.permutation)
    return found if moves else dataclasses.replace(found, permutation=None)
  except (ValueError, AttributeError, KeyError, TypeError) as fault:
    raise not_described(file, repr(fault)) from fault


def _check_types(found: Description) -> None:
  """Raises ValueError unless classes, channels and the preprocessing's name are of their types."""
  names, preprocessing = found.class_names or (), found.preprocessing
  wrong = {
    'class_names': not all(isinstance(name, str) for name in names),
    'channels': not values.accepts(values.Count | None, found.channels),
    'preprocessing': preprocessing is not None
    and not isinstance(preprocessing.get('name', ''), str),
  }
  if any(wrong.values()):
    raise ValueError(f'{", ".join(name for name in wrong if wrong[name])} cannot be used')


def _recorded(file: epath.Path, kind: type, advice: str):
  return files.read_json(file, kind, advice=advice) if file.exists() else None


def read_model_file(workdir: epath.Path) -> dict | None:
  """The content of model.json, or None if the run has not finished."""
  file = workdir / MODEL_FILE
  return files.read_json(file, advice=_ADVICE) if file.exists() else None


def recorded_keep_best(workdir: epath.Path) -> str | None:
  """`config.checkpoints.keep_best` of the run in `workdir`; None if it is not recorded."""
  return _recorded_setting(workdir, lambda config: config['checkpoints'].get('keep_best'))


def recorded_parameters(workdir: epath.Path) -> str | None:
  """'ema' or 'raw', the parameters in model.npz of a run with `config.ema`; None of any other."""

  def exported(config: Mapping) -> str | None:
    section = config.get('ema')
    return section and ('ema' if section.get('export', True) else 'raw')

  return _recorded_setting(workdir, exported)


def _recorded_setting(workdir: epath.Path, get: Callable[[Mapping], str | None]) -> str | None:
  file = workdir / files.CONFIG_FILE
  config = _recorded(file, dict, _ADVICE)
  try:
    return None if config is None else get(config)
  except (ValueError, AttributeError, KeyError, TypeError) as fault:
    raise not_described(file, repr(fault)) from fault


def write(workdir: epath.Path, facts: Mapping) -> None:
  """Writes model.json: the fields of a `Description`, and any other facts."""
  files.write(workdir / MODEL_FILE, json.dumps(facts, indent=1).encode())


def _from_model_file(facts: Mapping) -> Description:
  names = facts.get('class_names')
  return Description(
    model=facts.get('model'),
    class_names=None if names is None else tuple(names),
    loss=facts.get('loss'),
    permutation=facts.get('permutation'),
    **_of_images(facts),
  )


def _of_images(facts: Mapping) -> dict:
  return {
    'image_size': pair(facts['image_size']) if 'image_size' in facts else None,
    'channels': facts.get('channels'),
    'preprocessing': facts.get('preprocessing'),
  }


def _from_config(config: Mapping, class_names: list | None, images: Mapping) -> Description:
  """Of a run that has not finished.

  Without `images`, the content of input.json, the size and the preprocessing of its first
  evaluation are taken from the config.
  """
  training = config.get('train_input', {})
  own = [s['input'] for s in config.get('evals', {}).values() if 'train_input' not in s]
  size = training.get('image_size', training.get('side'))
  model = config.get('model')
  if model is not None and class_names is not None:
    model = {**model, 'num_classes': len(class_names)}
  return Description(
    model=model,
    loss=config.get('loss'),
    class_names=None if class_names is None else tuple(class_names),
    permutation=config.get('permutation'),
    **_of_images(
      {'preprocessing': _preprocessing((own or [training])[0])}
      | ({} if size is None else {'image_size': size})
      | images
    ),
  )


def _preprocessing(section: Mapping) -> dict:
  """That of the `input.Input` which `section` opens; inputs in memory have no crop."""
  if 'crop' not in section:
    return {'name': 'none', 'value_range': [-1, 1]}
  resize = section.get('resize')
  return {
    'name': section['crop'],
    'resize': None if resize is None else pair(resize),
    'crop': pair(section['image_size']),
    'value_range': [-1, 1],
    **{key: section[key] for key in ('exif_orientation', 'bits_per_channel') if section.get(key)},
  }


def not_described(file: epath.Path, fault: str) -> InputError:
  return InputError(f'{file} does not describe a model as train.py does: {fault}. {_ADVICE}')


def facts(found: Description) -> dict:
  """What `write` writes, of a description that lacks nothing."""
  classes = found.class_names or (found.classes and [name for _, name in found.classes])
  return {
    'model': dict(found.model),
    'image_size': found.image_size,
    'channels': found.channels,
    'preprocessing': dict(found.preprocessing),
    'loss': found.loss,
    'class_names': classes and list(classes),
  }


def beside(weights: epath.Path) -> epath.Path:
  """The file that describes a file of weights."""
  return weights.with_suffix('.json')
