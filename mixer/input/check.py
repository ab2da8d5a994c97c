"""Decodes every image of a data set, and lists those that are bad: run it before a long training.

  python -m mixer.input.check --config=configs/finetune.py:data=/path/to/photos --output=report.json
  python -m mixer.input.check --source=folder --path=/path/to/photos
  python -m mixer.input.check --source=tfds --name=imagenet2012 --data_dir=/path/to/sets

With --config, all the inputs of the config are read, but evaluations whose data are not on disk;
they are named. Exit status: 0 all images can be decoded, 1
some cannot, 2 a set cannot be opened at all. Verifies the checksums of TFRecord files too.
"""

import json
import os
import sys

from absl import flags
from ml_collections import config_flags

from mixer import cli, files, settings
from mixer import input as inputs
from mixer.errors import InputError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'FILE[:ARGUMENT]', lock_config=True)
_SOURCE = flags.DEFINE_enum('source', None, ['folder', 'tfds'], 'Instead of --config.')
_PATH = flags.DEFINE_string('path', None, 'With --source=folder: the folder.')
_NAME = flags.DEFINE_string('name', None, 'With --source=tfds: the set.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, "With --source=tfds: None for TFDS's default.")
_SPLIT = flags.DEFINE_string('split', None, 'With --source: one split; None for all.')
_OUTPUT = flags.DEFINE_string('output', None, 'A JSON file for the whole report.')

_TOLD = 20  # bad images that are printed


def main() -> None:
  if (_CONFIG.value is None) == (_SOURCE.value is None):
    raise InputError('give either --config or --source.')
  opened = _of_config() if _SOURCE.value is None else _of_flags()
  report = {}
  for title, data in opened.items():
    # Inputs of arrays have no examples: there is nothing to decode.
    if not hasattr(data, 'examples'):
      print(f'{title}: {data.num_examples} images in memory, with nothing to decode')
      continue
    from mixer.input import inspection  # loads TensorFlow

    found = inspection.inspect(data.examples, title)
    report[title] = _described(data, found, inspection.ODD)
    _tell(title, report[title])
  if _OUTPUT.value:
    files.write(files.absolute(_OUTPUT.value), json.dumps(report, indent=1).encode())
    print(f'written to {_OUTPUT.value}')
  if any(part['bad'] for part in report.values()):
    sys.exit(1)


def _of_config() -> dict:
  """{what the config calls it: an input}; tells which evaluations are left out."""
  config = settings.config(_CONFIG)
  opened = {}
  if 'train_input' in config:  # configs of evaluations alone have none
    opened['train_input'] = inputs.build(**config['train_input'])
  evals, skipped = inputs.open_evals(config['evals'], opened.get('train_input'))
  for name, of in evals.items():
    titles = {'data': name, 'support_set': f'{name}.train_input'}
    opened |= {titles[role]: data for role, data in of.items()}
  if skipped:
    print(f'LEFT OUT, not on disk: {inputs.describe_skipped(skipped)}')
  return opened


def _of_flags() -> dict:
  """{split: its input}."""
  if _SOURCE.value == 'folder':
    if _PATH.value is None:
      raise InputError('--source=folder needs --path.')
    own = {'path': _PATH.value, 'val_fraction': 0}
    path = os.path.expanduser(_PATH.value)
    there = [
      split
      for split, names in {'val': ('val', 'validation'), 'test': ('test',)}.items()
      if os.path.isdir(os.path.join(path, 'train'))
      and any(os.path.isdir(os.path.join(path, name)) for name in names)
    ]
    splits = [_SPLIT.value] if _SPLIT.value else ['train', *there]
  else:
    if _NAME.value is None:
      raise InputError('--source=tfds needs --name.')
    own = {'name': _NAME.value, 'data_dir': _DATA_DIR.value}
    splits = [_SPLIT.value or 'all']
  own |= {'source': _SOURCE.value, 'batch_size': 1, 'image_size': 32, 'crop': 'direct'}
  return {split: inputs.build(**own, split=split) for split in splits}


def _described(data, found, odd: dict[str, str]) -> dict:
  """The findings of one input, for JSON."""
  counts = found.per_class.tolist()
  empty = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
  return {
    'examples': found.examples,
    'bad': found.bad,
    'bad_places': found.bad_places,
    'odd': {
      kind: {'meaning': odd[kind], 'count': count, 'first': found.odd_places[kind]}
      for kind, count in sorted(found.odd.items())
    },
    'classes': len(counts),
    'smallest_class': min(counts),
    'largest_class': max(counts),
    'empty_classes': empty,
  }


def _tell(title: str, part: dict) -> None:
  print(
    f'{title}: {part["examples"]:,} images, {part["bad"]:,} bad; {part["classes"]:,} classes of '
    f'{part["smallest_class"]:,} to {part["largest_class"]:,} good images'
  )
  for place in part['bad_places'][:_TOLD]:
    print(f'  bad: {place["where"]}: {place["reason"]}')
  if part['bad'] > _TOLD:
    print(f'  and {part["bad"] - _TOLD:,} more; --output=FILE has them')
  for kind in part['odd'].values():
    print(f'  {kind["count"]:,} of them: {kind["meaning"]}; the first is {kind["first"][0]}')
  if part['empty_classes']:
    named = ', '.join(part['empty_classes'][:_TOLD])
    print(f'  {len(part["empty_classes"]):,} classes have no image: {named}')


if __name__ == '__main__':
  cli.run(main)
