"""Prepares a data set in the format of TensorFlow Datasets; training and evaluation only read.

A set that TFDS knows, from its download or from archives in --manual_dir:

  python -m mixer.input.prepare --name=oxford_iiit_pet
  python -m mixer.input.prepare --name=imagenet2012 --manual_dir=FOLDER_OF_THE_TWO_TARS

A folder with one folder, or one .tar, of images for each class, such as one's own or ImageNet-21k:

  python -m mixer.input.prepare --name=flowers --images=FOLDER
  python -m mixer.input.prepare --name=imagenet21k --images=FOLDER_OF_SYNSETS

A table of images and labels, as docs/data.md describes:

  python -m mixer.input.prepare --name=flowers --images=labels.csv --table=label_column=kind

Where FOLDER holds train, val and test with class folders in them, the set has these splits.
"""

import ast
from collections.abc import Sequence

from absl import flags

from mixer import cli
from mixer.errors import InputError
from mixer.input import class_folders, registered


def define_flags() -> None:
  flags.DEFINE_string('name', None, 'Name of the data set.', required=True)
  flags.DEFINE_string('images', None, 'Folder of class folders, or table, to make a data set of.')
  flags.DEFINE_string(
    'split', None, 'With --images of class folders: the split; "train", or "full" for imagenet21k.'
  )
  flags.DEFINE_multi_string(
    'table', [],
    'With --images of a table: KEY=VALUE, an argument of source="table", as multi_label=True.',
  )  # fmt: skip
  flags.DEFINE_string(
    'manual_dir', None, 'Without --images: directory of archives that were downloaded by hand.'
  )
  flags.DEFINE_string('data_dir', None, "Output directory; None for TFDS's default.")
  flags.DEFINE_enum(
    'file_format', 'tfrecord', ['tfrecord', 'array_record'], 'How to store the examples.'
  )
  flags.DEFINE_bool(
    'verify', True,
    'Compare with the official sizes and numbers of examples; with --images, decode every image '
    'before anything is written.',
  )  # fmt: skip
  flags.DEFINE_enum(
    'on_bad_image', 'fail', ['fail', 'skip'], 'With --images: what an image that is bad does.'
  )


def main() -> None:
  given = flags.FLAGS
  output = {'data_dir': given.data_dir, 'file_format': given.file_format}
  if given.images is None:
    if given.split is not None:
      raise InputError('--split needs --images; the data sets of TFDS have their own splits.')
    if given.on_bad_image != 'fail':
      raise InputError('--on_bad_image needs --images; the data sets of TFDS are kept whole.')
    registered.prepare(given.name, manual_dir=given.manual_dir, verify=given.verify, **output)
    return
  if given.manual_dir is not None:
    raise InputError('--manual_dir is for the data sets of TFDS; do not give it with --images.')
  class_folders.prepare(
    given.name, given.images, split=given.split, verify=given.verify,
    on_bad_image=given.on_bad_image, table=_options(given.table), **output,
  )  # fmt: skip


def _options(given: Sequence[str]) -> dict:
  """KEY=VALUE, in which a value may be True, False or a tuple of names."""
  options = {}
  for part in given:
    key, equals, value = part.partition('=')
    if not equals:
      raise InputError(f'--table={part} is not KEY=VALUE.')
    try:
      options[key] = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      options[key] = value
  return options


if __name__ == '__main__':
  define_flags()
  cli.run(main)
