"""Makes a TensorFlow Datasets set of a folder or .tar of images per class, or of a table."""

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import io
import itertools
import os
import re
import tarfile

from absl import logging
from etils import epath
import tqdm

from mixer import labels, runtime
from mixer.errors import InputError
from mixer.input import folders, image_files, tables

_IMAGENET_21K = 'imagenet21k'
_NAMED = 10  # classes in a message
_HINT = 'Where a CSV or JSON-lines file has the labels, give that file.'
_LISTED = 20  # bad images in a message
_AT_ONCE = 64  # images that are decoded together

Classes = dict[str, epath.Path]  # class -> its folder or archive


def prepare(
  name: str,
  images: str,
  *,
  split: str | None,
  data_dir: str | None,
  file_format: str,
  verify: bool = True,
  on_bad_image: str = 'fail',
  table: Mapping | None = None,
) -> None:
  """Writes the set, and prints what is in it.

  Every image under IMAGES/CLASS/ or in IMAGES/CLASS.tar becomes an example with the features
  'image' (its bytes, or a BMP if TensorFlow cannot read them), 'label' and 'file_name'. The classes
  are those found, in sorted order; for 'imagenet21k' they are always the 21,843 of Google's heads,
  by WordNet id. Where IMAGES holds folders of splits, as `folders` reads them, the set has these
  splits, and the classes of the training split.

  Args:
    name: of the set; lower-case letters, digits and _.
    images: the folder, or a table, see `tables.read`.
    split: of a folder of classes; None for 'train', or 'full' for 'imagenet21k'.
    data_dir: None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    file_format: 'tfrecord' or 'array_record'.
    verify: decode every image before anything is written.
    on_bad_image: 'fail' if one cannot be decoded, or 'skip' to leave it out.
    table: of a table, arguments of `sources.table.ImageTable` that say which columns have what.

  Raises:
    InputError: the name or the folder is invalid, the set exists, or an image cannot be decoded.
  """
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'the name {name!r} must be lower-case letters, digits and _ for TFDS to open.'
    )
  if on_bad_image == 'skip' and not verify:
    raise InputError('without --verify, no image is decoded, and none is found to be bad.')
  if tables.is_table(images):
    classes, examples = _of_table(images, split, table or {})
  elif table:
    raise InputError(f'{images} is no table, so {sorted(table)} have no effect.')
  else:
    classes, examples = _of_folder(name, epath.Path(images).expanduser(), split)
  several = bool(table) and table.get('multi_label', False)
  unfit = [
    name for name in classes if '\n' in name or name.encode(errors='ignore') != os.fsencode(name)
  ]
  if unfit:
    raise InputError(
      f'TFDS stores the names of classes as lines of UTF-8, which {unfit[:_NAMED]} are not; rename '
      'them.'
    )

  runtime.tensorflow()
  import tensorflow_datasets as tfds  # takes seconds, so the checks come first

  label = tfds.features.ClassLabel(names=classes)
  builder = tfds.dataset_builders.AdhocBuilder(
    name=name,
    version='1.0.0',
    features=tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(shape=(None, None, 3)),
        'label': tfds.features.Sequence(label) if several else label,
        'file_name': tfds.features.Text(),
      }
    ),
    split_datasets=examples,
    data_dir=os.path.expanduser(data_dir) if data_dir else None,
    file_format=file_format,
  )
  if builder.is_prepared():
    raise InputError(f'{name} exists; use another name, or remove {builder.data_dir}.')
  try:
    if verify:
      for of in examples.values():
        of.leave_out_bad(on_bad_image)
    builder.download_and_prepare()
  except (OSError, tarfile.TarError) as fault:
    raise InputError(f'{name} was not prepared: {fault}') from fault
  for each, of in examples.items():
    folders.warn_left_out(images, sorted(of.others))
    count = builder.info.splits[each].num_examples
    print(f'{name}: {count} images of {len(classes)} classes in split {each!r}.')


def _of_folder(name: str, folder: epath.Path, split: str | None):
  """(classes, {split: its examples}) of a folder."""
  if not folder.is_dir():
    raise InputError(f'no folder {folder}.')
  parts = _splits(folder, split, 'full' if name == _IMAGENET_21K else 'train')
  found = next(iter(parts.values()))
  if len(found) == 1 and name != _IMAGENET_21K:
    logging.warning('%s holds one class alone, %s. %s', folder, list(found), _HINT)
  classes = _imagenet_21k(folder, list(found)) if name == _IMAGENET_21K else list(found)
  return classes, {split: _Examples(of) for split, of in parts.items()}


def _of_table(path: str, split: str | None, given: Mapping):
  """(classes, {split: its examples}) of a table; `given` are arguments of `tables.read`."""
  given = dict(given)
  columns = tables.Columns(
    *(given.pop(f'{key}_column', None) for key in ('path', 'label', 'split'))
  )
  images_dir, several = given.pop('images_dir', None), given.pop('multi_label', False)
  rows = tables.read(
    path, columns, multi_label=several, label_separator=given.pop('label_separator', None)
  )
  if given:
    raise InputError(f'a table has no option {sorted(given)[0]!r}; see docs/data.md.')
  classes = tables.classes(path, rows, columns, several)
  parts: dict[str, list] = {}
  for (row, _), place in zip(
    tables.numbered(path, rows, classes), tables.find_images(path, rows, images_dir), strict=True
  ):
    parts.setdefault(row.split or split or 'train', []).append((row, place))
  if split and rows[0].split:
    raise InputError(f'{path} has the splits {sorted(parts)}, so --split={split} does not fit.')
  return classes, {split: _Listed(of, several) for split, of in parts.items()}


def _splits(folder: epath.Path, split: str | None, default: str) -> dict[str, Classes]:
  """{split: its classes}, the training split first; `default` if the folder is not divided."""
  own = folders.split_folders(str(folder))
  if not own:
    classes = _classes(folder, needed=True)
    folders.check_classes(str(folder), list(classes))
    return {split or default: classes}
  listed = sorted(itertools.chain(*own.values()))
  if split is not None:
    raise InputError(
      f'{folder} holds the splits {listed}, so --split={split} does not fit. Leave it out, or give '
      'one of these folders as --images.'
    )
  if 'train' not in own:
    raise InputError(
      f'{folder} holds {listed} with class folders in them, but no "train" with class folders, '
      'from which the classes are taken.'
    )
  twice = [names for names in own.values() if len(names) > 1]
  if twice:
    raise InputError(f'{folder} holds {twice[0]} for one split; keep one of them.')
  every = itertools.chain(*folders.entries(str(folder)))
  folders.warn_left_out(str(folder), sorted(set(every) - set(listed)))
  parts = {'train': _classes(folder / own['train'][0], needed=True)}
  for each in (split for split in own if split != 'train'):
    parts[each] = _classes(folder / own[each][0], needed=False)
    unknown = sorted(parts[each].keys() - parts['train'].keys())
    if unknown:
      raise InputError(
        f'{folder / own[each][0]} has classes that {folder / own["train"][0]} does not have: '
        f'{unknown[:_NAMED]}. Remove them, or add training images.'
      )
  return parts


def _classes(folder: epath.Path, *, needed: bool) -> Classes:
  """{class: its folder or archive}, sorted; each has an image, if `needed`."""
  inner, files = folders.entries(str(folder))
  visible = folders.class_folders(str(folder))
  archives = {
    name.removesuffix('.tar'): folder / name
    for name in files
    if name.endswith('.tar') and not folders.is_leftover(name)
  }
  both = sorted(archives.keys() & set(visible))
  if both:
    raise InputError(f'{folder} holds a folder and a .tar of {both[:_NAMED]}; keep one of them.')
  found = dict(sorted(({name: folder / name for name in visible} | archives).items()))
  try:
    empty = [name for name, path in found.items() if next(_images(path, set()), None) is None]
  except tarfile.TarError as fault:
    raise InputError(f'{folder} holds a .tar that cannot be read: {fault}.') from fault
  if not found or (empty and needed) or len(empty) == len(found):
    raise InputError(
      f'{folder} must hold one folder or .tar per class with {", ".join(image_files.ENDINGS)} '
      f'files; ' + (f'no such file in {empty[:_NAMED]}.' if found else 'it holds none. ' + _HINT)
    )
  if len(found) == 1 and len(folders.class_folders(str(*found.values()))) > 1:
    raise InputError(
      f'{folder} holds one folder, which holds others. If these are the classes, give '
      f'--images={next(iter(found.values()))}.'
    )
  taken = {path.name for path in found.values()}
  folders.warn_left_out(str(folder), sorted({*inner, *files} - taken))
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
  """(key, example) pairs, made one at a time.

  Attributes:
    others: files that are no images, which are left out.
  """

  def __init__(self, classes: Classes):
    self._classes, self._bad, self.others = classes, set(), set()

  def __iter__(self) -> Iterator[tuple[bytes, dict]]:
    for label, name, where, image in self._files():
      if where not in self._bad:
        if isinstance(image, OSError):
          raise image
        place = os.fsencode(name)  # a name need not be UTF-8
        yield place, {'image': _stored(image), 'label': label, 'file_name': place}

  def leave_out_bad(self, on_bad_image: str) -> None:
    """Decodes every image; one that cannot be is an InputError, or is left out with a warning."""
    bad: dict[str, str] = {}
    files = self._files()
    with concurrent.futures.ThreadPoolExecutor() as pool, tqdm.tqdm(unit=' images') as bar:
      while part := list(itertools.islice(files, _AT_ONCE)):
        faults = pool.map(_fault, [image for *_, image in part])
        places = (where for _, _, where, _ in part)
        bad |= {where: fault for where, fault in zip(places, faults, strict=True) if fault}
        bar.update(len(part))
    if not bad:
      return
    lines = [f'\n  {where}: {fault}' for where, fault in bad.items()]
    rest = f'\n  and {len(bad) - _LISTED} more' if len(bad) > _LISTED else ''
    listed = ''.join(lines[:_LISTED]) + rest
    if on_bad_image == 'fail':
      raise InputError(
        f'{len(bad)} images cannot be read; replace or remove them, or leave them out with '
        f'--on_bad_image=skip:{listed}'
      )
    logging.warning('%d images are left out, since they cannot be read:%s', len(bad), listed)
    self._bad = set(bad)

  def _files(self) -> Iterator[tuple[str, str, str, bytes | OSError]]:
    """(class, name with the class, path, content or why it cannot be read) of every image."""
    for label, path in self._classes.items():
      others: set[str] = set()
      for inside, image in _images(path, others):
        yield label, f'{label}/{inside}', str(path / inside), image
      self.others |= {f'{path.name}/{other}' for other in others}


class _Listed(_Examples):
  """The rows of a table with the paths of their images."""

  def __init__(self, rows: Sequence[tuple[tables.Row, str]], several: bool):
    super().__init__({})
    self._rows, self._several = rows, several

  def _files(self) -> Iterator[tuple[str | list[str], str, str, bytes | OSError]]:
    for row, place in self._rows:
      label = list(row.labels) if self._several else row.labels[0]
      try:
        yield label, row.path, place, folders.read_file(str(place))
      except OSError as fault:
        yield label, row.path, place, fault


def _images(path: epath.Path, others: set[str]) -> Iterator[tuple[str, bytes | OSError]]:
  """(name within `path`, content) of every image of a class; adds other files to `others`."""
  if path.is_dir():
    names, rest = folders.images(str(path))
    others |= set(rest)
    for name in names:
      try:
        yield name, folders.read_file(str(path / name))
      except OSError as fault:
        yield name, fault
    return
  with path.open('rb') as file:
    file.seek(max(path.stat().length - tarfile.BLOCKSIZE, 0))
    if any(file.read()):  # a whole archive ends in zeros; `tarfile` may accept a truncated one
      raise InputError(f'{path} is truncated: it has no end of archive. Copy it again.')
    file.seek(0)
    with tarfile.open(fileobj=file, mode='r|') as archive:
      for member in archive:
        name = os.path.normpath(member.name)
        above, own = os.path.split(name)
        leftover = any(map(folders.is_leftover, filter(None, above.split('/'))))
        if member.isfile() and image_files.is_image(own) and not leftover:
          yield name, archive.extractfile(member).read()
        elif not member.isdir():
          others.add(name)


def _fault(image: bytes | OSError) -> str | None:
  """Why an image cannot be decoded, or None."""
  from mixer.input import conversion, reading  # loads TensorFlow

  if isinstance(image, OSError):
    return image.strerror or str(image)
  tf = runtime.tensorflow()
  try:
    with tf.device('CPU'):
      plain = conversion.DEFAULT(tf.constant(image))
      tf.io.decode_image(plain, channels=3, expand_animations=False)
  except reading.ERRORS as fault:
    return reading.error_text(fault)
  return None


def _stored(encoded: bytes) -> io.BytesIO:
  try:
    return io.BytesIO(image_files.readable(encoded))
  except (OSError, ValueError):
    return io.BytesIO(encoded)  # a bad image; `mixer.input.check` reports it
