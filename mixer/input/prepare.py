"""Prepares a data set once, as TensorFlow Datasets keeps it; training and evaluation only read.

A set that TFDS knows, from its download or from archives in --manual_dir:

  python -m mixer.input.prepare --name=oxford_iiit_pet
  python -m mixer.input.prepare --name=imagenet2012 --manual_dir=FOLDER_OF_THE_TWO_TARS

A folder with one folder, or one .tar, of images for each class, such as one's own or ImageNet-21k:

  python -m mixer.input.prepare --name=flowers --images=FOLDER
  python -m mixer.input.prepare --name=imagenet21k --images=FOLDER_OF_SYNSETS
"""

from absl import flags

from mixer import cli
from mixer.errors import InputError
from mixer.input import class_folders, registered

_NAME = flags.DEFINE_string('name', None, 'Name of the data set.', required=True)
_IMAGES = flags.DEFINE_string('images', None, 'Folder of class folders, to make a set of.')
_SPLIT = flags.DEFINE_string(
  'split', None, 'With --images: name of its only split; "train", or "full" for imagenet21k.'
)
_MANUAL_DIR = flags.DEFINE_string(
  'manual_dir', None, 'Without --images: where archives lie that were downloaded by hand.'
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, "Where to write; None for TFDS's own default.")
_FILE_FORMAT = flags.DEFINE_enum(
  'file_format', 'tfrecord', ['tfrecord', 'array_record'], 'How to store the examples.'
)
_VERIFY = flags.DEFINE_bool(
  'verify', True, 'Without --images: compare with the official sizes and numbers of examples.'
)


def main() -> None:
  where = {'data_dir': _DATA_DIR.value, 'file_format': _FILE_FORMAT.value}
  if _IMAGES.value is None:
    if _SPLIT.value is not None:
      raise InputError('--split is for a set made from --images; TFDS sets have their own splits.')
    registered.prepare(_NAME.value, manual_dir=_MANUAL_DIR.value, verify=_VERIFY.value, **where)
    return
  if _MANUAL_DIR.value is not None:
    raise InputError('--images makes a set from a folder, --manual_dir is for those TFDS knows.')
  class_folders.prepare(_NAME.value, _IMAGES.value, split=_SPLIT.value, **where)


if __name__ == '__main__':
  cli.run(main)
