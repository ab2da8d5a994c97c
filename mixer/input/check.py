"""Decodes every image of a data set and reports those that are bad: run it before a long training.

  python -m mixer.input.check --config=configs/finetune.py:data=/path/to/photos --output=report.json
  python -m mixer.input.check --source=folder --path=/path/to/photos
  python -m mixer.input.check --source=table --path=/path/to/labels.csv
  python -m mixer.input.check --source=tfds --name=imagenet2012 --data_dir=/path/to/sets

With --config, it reads all inputs of the config, and prints which evaluations are skipped because
their data are not on disk. It verifies the checksums of TFRecord files too. Exit status: 0 if all
images can be decoded, 1 if some cannot, 2 if a data set cannot be opened.
"""

import json
import sys

from absl import flags

from mixer import cli, config_file, files, settings
from mixer import input as inputs
from mixer.errors import InputError
from mixer.input import tables

_PRINTED = 20  # bad images


def define_flags() -> None:
  config_file.define_flags()
  flags.DEFINE_enum('source', None, ['folder', 'table', 'tfds'], 'Instead of --config.')
  flags.DEFINE_string('path', None, 'With --source=folder or table: the folder or file.')
  flags.DEFINE_string('name', None, 'With --source=tfds: the data set.')
  flags.DEFINE_string('data_dir', None, "With --source=tfds: None for TFDS's default.")
  flags.DEFINE_string('split', None, 'With --source: one split; None for all.')
  flags.DEFINE_string('output', None, 'A JSON file for the whole report.')


def main() -> None:
  given = flags.FLAGS
  if (given.config is None) == (given.source is None):
    raise InputError('give either --config or --source.')
  if given.source is None:
    opened = open_config(config_file.load())
  elif given.source == 'folder':
    opened = open_folder(given.path, given.split)
  elif given.source == 'table':
    opened = open_table(given.path, given.split)
  else:
    opened = open_tfds(given.name, given.data_dir, given.split)
  report = {}
  for title, data in opened.items():
    if not hasattr(data, 'examples'):
      print(f'{title}: {data.num_examples} images in memory, nothing to decode')
      continue
    from mixer.input import inspection  # loads TensorFlow

    report[title] = describe(
      data, inspection.inspect(data.examples, title, data.conversion), inspection.ODD
    )
    print_findings(title, report[title])
  if given.output:
    files.write(files.absolute(given.output), json.dumps(report, indent=1).encode())
    print(f'written to {given.output}')
  if any(part['bad'] for part in report.values()):
    sys.exit(1)


def open_config(config: dict) -> dict[str, inputs.Input]:
  """The inputs of a config by their names in it; prints which evaluations are skipped."""
  faults = inputs.evals_faults(config['evals'])
  if 'train_input' in config:
    faults += inputs.faults('config.train_input', config['train_input'])
  settings.check(faults)
  opened = {}
  if 'train_input' in config:  # not in a config of evaluations alone
    opened['train_input'] = inputs.build(**config['train_input'])
  evals, skipped = inputs.open_evals(config['evals'], opened.get('train_input'))
  for name, of in evals.items():
    titles = {'data': name, 'support_set': f'{name}.train_input'}
    opened |= {titles[role]: data for role, data in of.items()}
  if skipped:
    print(f'SKIPPED, not on disk: {inputs.describe_skipped(skipped)}')
  return opened


def open_folder(path: str | None, split: str | None) -> dict[str, inputs.Input]:
  """The splits of a folder, or the one that is given."""
  if path is None:
    raise InputError('--source=folder needs --path.')
  from mixer.input.sources import folder  # loads TensorFlow

  found = folder.splits(path)
  splits = [split] if split else found if 'train' in found else ['train']
  return {name: _open('folder', path=path, split=name, val_fraction=0) for name in splits}


def open_table(path: str | None, split: str | None) -> dict[str, inputs.Input]:
  """The splits of a table with the usual columns, or the one that is given."""
  if path is None:
    raise InputError('--source=table needs --path.')
  found = tables.splits(path)
  splits = [split] if split else found or ['train']
  return {name: _open('table', path=path, split=name, val_fraction=0) for name in splits}


def open_tfds(name: str | None, data_dir: str | None, split: str | None) -> dict[str, inputs.Input]:
  """All splits of a data set as one, or the one that is given."""
  if name is None:
    raise InputError('--source=tfds needs --name.')
  split = split or 'all'
  return {split: _open('tfds', name=name, data_dir=data_dir, split=split)}


def _open(source: str, **own) -> inputs.Input:
  return inputs.build(source=source, **own, batch_size=1, image_size=32, crop='direct')


def describe(data: inputs.Input, found, odd: dict[str, str]) -> dict:
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


def print_findings(title: str, part: dict) -> None:
  print(
    f'{title}: {part["examples"]:,} images, {part["bad"]:,} bad; {part["classes"]:,} classes of '
    f'{part["smallest_class"]:,} to {part["largest_class"]:,} good images'
  )
  for place in part['bad_places'][:_PRINTED]:
    print(f'  bad: {place["where"]}: {place["reason"]}')
  if part['bad'] > _PRINTED:
    print(f'  and {part["bad"] - _PRINTED:,} more; --output=FILE has them')
  for kind in part['odd'].values():
    print(f'  {kind["count"]:,} of them: {kind["meaning"]}; the first is {kind["first"][0]}')
  if part['empty_classes']:
    named = ', '.join(part['empty_classes'][:_PRINTED])
    print(f'  {len(part["empty_classes"]):,} classes have no image: {named}')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
