"""Evaluations of a model on images that it was not trained on, or that have fewer classes."""

from collections.abc import Collection, Mapping
import os

from absl import logging
from etils import epath

from mixer import console, files
from mixer import input as inputs
from mixer.errors import InputError
from mixer.input import folders, tables
from mixer.pretrained import description

_EXISTS = {'folder': folders.is_folder, 'table': os.path.exists}  # source -> is the path there


def adapt(evals: Mapping[str, Mapping], checkpoint: epath.Path) -> dict[str, dict]:
  """`config.evals` in which a folder or table has the class numbers of the model.

  Where one without splits is not the one that the model was trained on, all of its images are
  evaluated, and no part of them is taken for training images.

  Args:
    evals: `config.evals`.
    checkpoint: of the model; a file, or the workdir of a run.
  """
  facts = _recorded(checkpoint)
  return {name: _section(name, section, *facts) for name, section in evals.items()}


def adapt_to_run(evals: Mapping[str, Mapping], section: Mapping, data: inputs.Input) -> dict:
  """The same for a run, whose `config.train_input` is `section` and has opened `data`."""
  facts = data.class_names, section, inputs.movable({}, data)
  return {name: _section(name, section, *facts) for name, section in evals.items()}


def _section(name: str, section: Mapping, classes, training: Mapping, data: Mapping) -> dict:
  given = section.get('input', {})
  if given.get('source') not in _EXISTS or 'train_input' in section:
    return dict(section)
  path = os.path.expanduser(given['path'])
  exists = _EXISTS[given['source']](path)
  divided = given['split'] not in ('val', 'validation', 'test') or (exists and _splits(given))
  if classes is None:
    if not divided and given['split'] != 'test':
      logging.warning(
        'config.evals.%s: it is not recorded on which images the model was trained. The part of '
        '%s that training would hold out is evaluated; --config.evals.%s.input.val_fraction=1 '
        'evaluates all.', name, path, name,
      )  # fmt: skip
    return dict(section)
  given = {**given, 'class_names': classes}
  if not divided and exists and not _is_same(given, training, data):
    console.print_line(
      f'config.evals.{name}: the model was not trained on {path}, so all of its images are '
      'evaluated.'
    )
    given['val_fraction'] = 1.0
  return {**section, 'input': given}


def _splits(given: Mapping) -> Collection[str]:
  if given['source'] == 'table':
    return tables.splits(given['path'], given.get('split_column'))
  return folders.split_folders(os.path.expanduser(given['path']))


def _is_same(given: Mapping, training: Mapping, data: Mapping) -> bool:
  """Whether the folder or table is that of the training, which may have moved."""
  if training.get('source') != given['source']:
    return False
  path = os.path.expanduser(given['path'])
  if os.path.realpath(path) == os.path.realpath(os.path.expanduser(training['path'])):
    return True
  known = data.get('config.train_input')
  if known is None:
    if folders.is_folder(os.path.expanduser(training['path'])):
      return False
    logging.warning(
      'the run has no record of its images, and %s is no longer there: %s is taken for it. '
      'val_fraction=1 evaluates all images.', training['path'], path,
    )  # fmt: skip
    return True
  try:
    place = {key: given[key] for key in ('path', 'images_dir') if key in given}
    here = inputs.build(**{**training, **place})
  except InputError:
    return False
  return inputs.movable({}, here)['config.train_input'] == known


def _recorded(checkpoint: epath.Path) -> tuple[list[str] | None, dict, dict]:
  """(class names, config.train_input, `inputs.movable`) of the run; (None, {}, {}) if unknown."""
  names = description.read(checkpoint).class_names
  if names is None:
    return None, {}, {}
  if checkpoint.is_dir():
    config, data = (
      files.read_json(file, advice='Restore it from a copy.') if file.exists() else {}
      for file in (checkpoint / files.CONFIG_FILE, checkpoint / files.DATA_FILE)
    )
  else:
    facts = files.read_json(checkpoint.with_suffix('.json'), advice='Move it away.')
    config, data = facts.get('config', {}), facts.get('data', {})
  return list(names), config.get('train_input', {}), data
