"""Prepares a data set in the format of TensorFlow Datasets; training and evaluation only read.

A set that TFDS knows, from its download or from archives in --manual_dir:

  python -m mixer.input.prepare --name=oxford_iiit_pet
  python -m mixer.input.prepare --name=imagenet2012 --manual_dir=FOLDER_OF_THE_TWO_TARS

A folder with one folder, or one .tar, of images for each class, such as one's own or ImageNet-21k:

  python -m mixer.input.prepare --name=flowers --images=FOLDER
  python -m mixer.input.prepare --name=imagenet21k --images=FOLDER_OF_SYNSETS

Where FOLDER holds train, val and test with class folders in them, the set has these splits.
"""

from absl import flags

from mixer import cli
from mixer.errors import InputError
from mixer.input import class_folders, registered


def define_flags() -> None:
  flags.DEFINE_string('name', None, 'Name of the data set.', required=True)
  flags.DEFINE_string('images', None, 'Folder of class folders, to make a data set of.')
  flags.DEFINE_string(
    'split', None, 'With --images of class folders: the split; "train", or "full" for imagenet21k.'
  )
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
    on_bad_image=given.on_bad_image, **output,
  )  # fmt: skip


if __name__ == '__main__':
  define_flags()
  cli.run(main)
