"""Turns a folder of class folders into a TensorFlow Datasets set on disk.

For image sets that TFDS does not know, such as ImageNet-21k or one's own:

  python -m mixer.input.prepare --name=imagenet21k --split=full --images=/path/to/folders

Every file of the formats below under FOLDER/CLASS/ becomes an example with the features 'image'
(its bytes, as they are), 'label' (the class folders in sorted order) and 'file_name'.
"""

from collections.abc import Iterator, Sequence
import os
import re

from absl import flags
from etils import epath

from mixer import settings
from mixer.errors import InputError
from mixer.files import IMAGE_ENDINGS

FORMATS = tuple(ending for ending in IMAGE_ENDINGS if ending != '.webp')  # TFDS takes no WebP

_NAME = flags.DEFINE_string('name', None, 'Name of the data set.', required=True)
_SPLIT = flags.DEFINE_string('split', 'train', 'Name of its only split.')
_IMAGES = flags.DEFINE_string('images', None, 'Folder of class folders.', required=True)
_DATA_DIR = flags.DEFINE_string('data_dir', None, "Where to write; None for TFDS's own default.")


def list_images(folder: epath.Path) -> tuple[list[str], list[tuple[str, str]]]:
  """(class names in sorted order, (path, class name) of every image, sorted)."""
  classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
  files = [
    (str(path), name)
    for name in classes
    for path in sorted(parent / file for parent, _, own in (folder / name).walk() for file in own)
    if path.suffix.lower() in FORMATS
  ]
  empty = sorted(set(classes) - {name for _, name in files})
  if not files or empty:
    raise InputError(
      f'{folder} is to hold one folder a class with {", ".join(FORMATS)} files in each; '
      + (f'without any: {empty[:10]}.' if classes else 'it holds no folder.')
    )
  return classes, files


def prepare(
  name: str, split: str, folder: epath.PathLike, data_dir: str | None, file_format: str = 'tfrecord'
) -> None:
  """Writes the set; raises InputError if the folder is not one of class folders."""
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'the name {name!r} must be lower-case letters, digits and _ for TFDS to open.'
    )
  folder = epath.Path(folder).expanduser()
  if not folder.is_dir():
    raise InputError(f'no folder {folder}.')
  classes, files = list_images(folder)

  import tensorflow_datasets as tfds  # takes seconds, so after what a mistake can be found in

  builder = tfds.dataset_builders.AdhocBuilder(
    name=name,
    version='1.0.0',
    features=tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(shape=(None, None, 3)),
        'label': tfds.features.ClassLabel(names=classes),
        'file_name': tfds.features.Text(),
      }
    ),
    split_datasets={split: _Examples(folder, files)},
    data_dir=os.path.expanduser(data_dir) if data_dir else None,
    file_format=file_format,
  )
  if builder.is_prepared():
    raise InputError(f'{name} is there already; take another name, or remove {builder.data_dir}.')
  builder.download_and_prepare()
  print(f'{name}: {len(files)} images of {len(classes)} classes in split {split!r}.')


class _Examples:
  """(key, example) pairs, made one at a time."""

  def __init__(self, folder: epath.Path, files: Sequence[tuple[str, str]]):
    self._folder, self._files = folder, files

  def __iter__(self) -> Iterator[tuple[str, dict]]:
    for path, label in self._files:
      name = os.path.relpath(path, self._folder)
      yield name, {'image': path, 'label': label, 'file_name': name}


def main() -> None:
  prepare(_NAME.value, _SPLIT.value, _IMAGES.value, _DATA_DIR.value)


if __name__ == '__main__':
  settings.run(main)
