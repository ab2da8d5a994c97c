"""Makes a TensorFlow Datasets set of a folder with a folder or .tar of images per class."""

from collections.abc import Iterator, Sequence
import io
import os
import re
import tarfile

from etils import epath

from mixer import labels, runtime
from mixer.errors import InputError
from mixer.input import image_files

FORMATS = tuple(ending for ending in image_files.ENDINGS if ending != '.webp')  # TFDS takes no WebP
_IMAGENET_21K = 'imagenet21k'
_NAMED = 10  # classes in a message


def prepare(
  name: str, images: str, *, split: str | None, data_dir: str | None, file_format: str
) -> None:
  """Writes the set, and prints what is in it.

  Every file of FORMATS under IMAGES/CLASS/ or in IMAGES/CLASS.tar becomes an example with the
  features 'image' (its bytes, or a BMP if TensorFlow cannot read them), 'label' and 'file_name'.
  The classes are those found, in sorted order; for 'imagenet21k' they are always the 21,843 of
  Google's heads, by WordNet id.

  Args:
    name: of the set; lower-case letters, digits and _.
    images: the folder.
    split: None for 'train', or 'full' for 'imagenet21k'.
    data_dir: None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    file_format: 'tfrecord' or 'array_record'.

  Raises:
    InputError: the name or the folder is invalid, or the set exists.
  """
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'the name {name!r} must be lower-case letters, digits and _ for TFDS to open.'
    )
  folder = epath.Path(images).expanduser()
  if not folder.is_dir():
    raise InputError(f'no folder {folder}.')
  found = _classes(folder)
  classes = _imagenet_21k(folder, list(found)) if name == _IMAGENET_21K else list(found)
  split = split or ('full' if name == _IMAGENET_21K else 'train')

  runtime.tensorflow()
  import tensorflow_datasets as tfds  # takes seconds, so the checks come first

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
    split_datasets={split: _Examples(found)},
    data_dir=os.path.expanduser(data_dir) if data_dir else None,
    file_format=file_format,
  )
  if builder.is_prepared():
    raise InputError(f'{name} exists; use another name, or remove {builder.data_dir}.')
  try:
    builder.download_and_prepare()
  except (OSError, tarfile.TarError) as fault:
    raise InputError(f'{name} was not prepared: {fault}') from fault
  count = builder.info.splits[split].num_examples
  print(f'{name}: {count} images of {len(classes)} classes in split {split!r}.')


def _classes(folder: epath.Path) -> dict[str, epath.Path]:
  """{class: its folder or archive}, sorted; each has an image."""
  visible = [path for path in folder.iterdir() if not path.name.startswith('.')]
  found = {path.name: path for path in visible if path.is_dir()}
  archives = {path.stem: path for path in visible if path.suffix == '.tar' and not path.is_dir()}
  both = sorted(found.keys() & archives.keys())
  if both:
    raise InputError(f'{folder} holds a folder and a .tar of {both[:_NAMED]}; keep one of them.')
  found = dict(sorted((found | archives).items()))
  try:
    empty = [name for name, path in found.items() if next(_images(path), None) is None]
  except tarfile.TarError as fault:
    raise InputError(f'{folder} holds a .tar that cannot be read: {fault}.') from fault
  if not found or empty:
    raise InputError(
      f'{folder} must hold one folder or .tar per class with {", ".join(FORMATS)} files; '
      + (f'no such file in {empty[:_NAMED]}.' if found else 'it holds none.')
    )
  return found


def _imagenet_21k(folder: epath.Path, found: Sequence[str]) -> list[str]:
  """All classes of ImageNet-21k; InputError if `found` has others."""
  synsets = [synset for synset, _ in labels.load(_IMAGENET_21K, labels.BUNDLED[_IMAGENET_21K])]
  unknown = sorted(set(found) - set(synsets))
  if unknown:
    raise InputError(
      f'{folder} holds {len(unknown)} folders or archives that are not classes of ImageNet-21k, '
      f'such as {unknown[:_NAMED]}; name each class by its WordNet id, as in n01440764. Remove the '
      'others, or use another --name.'
    )
  absent = sorted(set(synsets) - set(found))
  if absent:
    listed = ', '.join(absent[:_NAMED]) + (', ...' if len(absent) > _NAMED else '')
    print(f'no images of {len(absent)} of the {len(synsets)} classes, which remain empty: {listed}')
  return synsets


class _Examples:
  """(key, example) pairs, made one at a time."""

  def __init__(self, classes: dict[str, epath.Path]):
    self._classes = classes

  def __iter__(self) -> Iterator[tuple[str, dict]]:
    for label, path in self._classes.items():
      for inside, image in _images(path):
        name = f'{label}/{inside}'
        yield name, {'image': image, 'label': label, 'file_name': name}


def _images(path: epath.Path) -> Iterator[tuple[str, io.BytesIO]]:
  """(name within `path`, file) of every image of a class."""
  if path.is_dir():
    for file in image_files.walk(path, FORMATS):
      yield os.path.relpath(file, path), _stored(file.read_bytes())
    return
  with path.open('rb') as file:
    file.seek(max(path.stat().length - tarfile.BLOCKSIZE, 0))
    if any(file.read()):  # a whole archive ends in zeros; `tarfile` may accept a truncated one
      raise InputError(f'{path} is truncated: it has no end of archive. Copy it again.')
    file.seek(0)
    with tarfile.open(fileobj=file, mode='r|') as archive:
      for member in archive:
        if member.isfile() and image_files.is_image(os.path.basename(member.name), FORMATS):
          yield os.path.normpath(member.name), _stored(archive.extractfile(member).read())


def _stored(encoded: bytes) -> io.BytesIO:
  try:
    return io.BytesIO(image_files.readable(encoded))
  except (OSError, ValueError):
    return io.BytesIO(encoded)  # a bad image; `mixer.input.check` reports it
