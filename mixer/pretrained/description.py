"""Descriptions of models: what a run of train.py records, in model.json and before in config.json.

A finished run describes its model in model.json; before the end of the run, config.json and
classes.json contain the same.
"""

from collections.abc import Mapping
import dataclasses
import json

from etils import epath

from mixer import files, labels
from mixer.errors import InputError
from mixer.models import permutations
from mixer.sizes import pair

MODEL_FILE = 'model.json'


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
  directory = path.is_dir()
  file, parse = (path / MODEL_FILE if directory else beside(path)), _from_model_file
  if directory and not file.exists():
    file, parse = path / files.CONFIG_FILE, _from_config
  if not file.exists():
    return Description()
  try:
    found = parse(file, _read_object(file))
    moves = permutations.normalize(found.permutation)
    return found if moves else dataclasses.replace(found, permutation=None)
  except (ValueError, AttributeError, KeyError, TypeError) as fault:
    raise not_described(file, repr(fault)) from fault


def read_model_file(workdir: epath.Path) -> dict | None:
  """The content of model.json, or None if the run has not finished."""
  file = workdir / MODEL_FILE
  try:
    return _read_object(file) if file.exists() else None
  except (ValueError, TypeError) as fault:
    raise not_described(file, repr(fault)) from fault


def recorded_keep_best(workdir: epath.Path) -> str | None:
  """`config.checkpoints.keep_best` of the run in `workdir`; None if it is not recorded."""
  file = workdir / files.CONFIG_FILE
  try:
    return _read_object(file)['checkpoints'].get('keep_best') if file.exists() else None
  except (ValueError, AttributeError, KeyError, TypeError) as fault:
    raise not_described(file, repr(fault)) from fault


def write(workdir: epath.Path, facts: Mapping) -> None:
  """Writes model.json: the fields of a `Description`, and any other facts."""
  files.write(workdir / MODEL_FILE, json.dumps(facts, indent=1).encode())


def _read_object(file: epath.Path) -> dict:
  found = json.loads(file.read_text())
  if not isinstance(found, dict):
    raise TypeError(f'it is a JSON {type(found).__name__}')
  return found


def _from_model_file(file: epath.Path, facts: Mapping) -> Description:
  names = facts.get('class_names')
  return Description(
    file=file,
    model=facts.get('model'),
    image_size=pair(facts['image_size']) if 'image_size' in facts else None,
    channels=facts.get('channels'),
    preprocessing=facts.get('preprocessing'),
    loss=facts.get('loss'),
    class_names=None if names is None else tuple(names),
    permutation=facts.get('permutation'),
  )


def _from_config(file: epath.Path, config: Mapping) -> Description:
  """Of a run that has not finished; the preprocessing is that of its first evaluation."""
  training = config.get('train_input', {})
  own = [s['input'] for s in config.get('evals', {}).values() if 'train_input' not in s]
  size = training.get('image_size', training.get('side'))
  classes = file.with_name(files.CLASSES_FILE)
  names = tuple(json.loads(classes.read_text())) if classes.exists() else None
  model = config.get('model')
  if model is not None and names is not None:
    model = {**model, 'num_classes': len(names)}
  return Description(
    file=file,
    model=model,
    image_size=None if size is None else pair(size),
    preprocessing=_preprocessing((own or [training])[0]),
    loss=config.get('loss'),
    class_names=names,
    permutation=config.get('permutation'),
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
  return InputError(
    f'{file} does not describe a model as train.py does: {fault}. If it does not belong to these '
    'parameters, move it away, and the model is inferred from their shapes.'
  )


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
