"""Prepares a data set of TensorFlow Datasets, and verifies the result."""

from collections.abc import Iterator, Mapping
import contextlib
import difflib
import logging
import os
import pathlib
import tempfile

from etils import epath

from mixer import runtime
from mixer.errors import InputError

# Examples of each split, as published.
COUNTS = {
  'cifar10': {'train': 50_000, 'test': 10_000},
  'cifar100': {'train': 50_000, 'test': 10_000},
  'clevr': {'train': 70_000, 'validation': 15_000, 'test': 15_000},
  'diabetic_retinopathy_detection': {'train': 35_126, 'validation': 10_906, 'test': 42_670},
  'dmlab': {'train': 65_550, 'validation': 22_628, 'test': 22_735},
  'dsprites': {'train': 737_280},
  'dtd': {'train': 1_880, 'validation': 1_880, 'test': 1_880},
  'eurosat': {'train': 27_000},
  'fashion_mnist': {'train': 60_000, 'test': 10_000},
  'imagenet2012': {'train': 1_281_167, 'validation': 50_000},
  'imagenet2012_real': {'validation': 50_000},
  'imagenet_a': {'test': 7_500},
  'imagenet_r': {'test': 30_000},
  'imagenet_v2': {'test': 10_000},
  'kmnist': {'train': 60_000, 'test': 10_000},
  'mnist': {'train': 60_000, 'test': 10_000},
  'oxford_flowers102': {'train': 1_020, 'validation': 1_020, 'test': 6_149},
  'oxford_iiit_pet': {'train': 3_680, 'test': 3_669},
  'patch_camelyon': {'train': 262_144, 'validation': 32_768, 'test': 32_768},
  'resisc45': {'train': 31_500},
  'smallnorb': {'train': 24_300, 'test': 24_300},
  'svhn_cropped': {'train': 73_257, 'test': 26_032, 'extra': 531_131},
}

_VAL_TAR = {'ILSVRC2012_img_val.tar': 6_744_924_160}
# What TFDS wants in --manual_dir, with its bytes; None for a folder or where they are not known.
MANUAL: dict[str, dict[str, int | None]] = {
  'imagenet2012': {'ILSVRC2012_img_train.tar': 147_897_477_120, **_VAL_TAR},
  'imagenet2012_real': _VAL_TAR,
  'resisc45': {'NWPU-RESISC45': None},
  'diabetic_retinopathy_detection': {
    'sample': None, 'train': None, 'test': None, 'trainLabels.csv': None,
  },
}  # fmt: skip
_NAMELESS, _NAMED = b'\x1f\x8b\x08\x00', b'\x1f\x8b\x08\x08'  # headers of gzip files
# Archives that are packed without a name and time by some who ship them, such as Debian, with the
# time (seconds since 1970) in the official ones, of which TFDS has the checksums.
PACKED_AT = {
  'fashion_mnist': {
    'train-images-idx3-ubyte.gz': 1_504_176_606,
    'train-labels-idx1-ubyte.gz': 1_504_176_606,
    't10k-images-idx3-ubyte.gz': 1_504_176_627,
    't10k-labels-idx1-ubyte.gz': 1_504_176_627,
  },
}


def prepare(
  name: str, *, manual_dir: str | None, data_dir: str | None, file_format: str, verify: bool
) -> None:
  """Runs TFDS's preparation of a data set unless it is prepared, and prints its splits.

  Args:
    name: of the set, with '/config' where it has several.
    manual_dir: the directory of archives that were downloaded by hand: those that TFDS does not
      download, and any others under their original names.
    data_dir: None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    file_format: 'tfrecord' or 'array_record'.
    verify: compare the archives' sizes with MANUAL before, and the examples with COUNTS after.

  Raises:
    InputError: TFDS does not know the set, a file or the network is missing, or the numbers are
      not the official ones.
  """
  runtime.tensorflow()
  import tensorflow_datasets as tfds

  bare = name.split(':')[0].split('/')[0]
  expand = os.path.expanduser
  data_dir = expand(data_dir) if data_dir else None
  try:
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
      builder = tfds.builder(name, data_dir=data_dir, file_format=file_format)
  except (tfds.core.DatasetNotFoundError, ValueError) as fault:
    close = difflib.get_close_matches(bare, tfds.list_builders(with_community_datasets=False))
    raise InputError(
      f'TFDS does not know a set {name!r} ({str(fault).strip().splitlines()[0]})'
      f'{f"; close to it are {close}" if close else ""}. To make a set of a folder of class '
      'folders, give --images=FOLDER.'
    ) from fault
  if builder.is_prepared():
    print(f'{builder.info.full_name} is prepared already, in {builder.data_dir}.')
  else:
    where = epath.Path(expand(manual_dir)) if manual_dir else None
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      check_manual(name, MANUAL.get(bare), where, builder.MANUAL_DOWNLOAD_INSTRUCTIONS, verify)
    with named(where, PACKED_AT.get(bare, {})) as folder:
      _run(builder, folder)
  counts = {split: info.num_examples for split, info in builder.info.splits.items()}
  listed = ', '.join(f'{split} {count:,}' for split, count in counts.items())
  print(f'{builder.info.full_name}: {listed}')
  if verify:
    verify_counts(builder.info.full_name, counts, COUNTS.get(bare), builder.data_dir)


def check_manual(
  name: str,
  wanted: Mapping[str, int | None] | None,
  manual_dir: epath.Path | None,
  instructions: str,
  verify: bool,
) -> None:
  """Raises InputError if `manual_dir` lacks files that a set needs, or has incomplete ones."""
  files = ''.join(
    f'\n  {file}' + (f'   {size:,} bytes' if size else '') for file, size in (wanted or {}).items()
  )
  text = ' '.join(instructions.split())
  if manual_dir is None or not manual_dir.is_dir():
    raise InputError(
      f'{name} must be downloaded by hand; give the folder of its files as --manual_dir'
      + (f' ({manual_dir} is not a folder)' if manual_dir else '')
      + (f'. It must hold{files}\n' if files else '.\n')
      + f'TFDS says: {text}'
    )
  absent = [file for file in wanted or {} if not (manual_dir / file).exists()]
  if absent and (verify or len(absent) == len(wanted)):
    raise InputError(f'{name}: {manual_dir} lacks {absent}. It must hold{files}\nTFDS says: {text}')
  sizes = {file: (manual_dir / file).stat().length for file in wanted or {} if file not in absent}
  other = [
    f'\n  {file}: {sizes[file]:,} bytes, and the official one has {wanted[file]:,}'
    for file in sizes
    if wanted[file] not in (None, sizes[file])
  ]
  if verify and other:
    raise InputError(
      f'{name}: archives in {manual_dir} are incomplete or not the official ones:{"".join(other)}\n'
      'Download them again, or give --noverify to use them as they are.'
    )


def verify_counts(
  name: str, counts: Mapping[str, int], official: Mapping[str, int] | None, data_dir
) -> None:
  """Prints that the numbers of examples are the official ones, or raises InputError."""
  if official is None:
    print('The official numbers of examples are not known here, so these were not verified.')
    return
  wrong = [
    f'\n  {split}: {counts.get(split, 0):,} examples, and officially {count:,}'
    for split, count in official.items()
    if counts.get(split, 0) != count
  ]
  if wrong:
    raise InputError(
      f'{name} in {data_dir} is not the official set:{"".join(wrong)}\nAn archive was incomplete, '
      'or the set was changed. Remove that folder and prepare it again, or give --noverify to use '
      'it as it is.'
    )
  print('The numbers of examples are the official ones.')


@contextlib.contextmanager
def named(manual_dir: epath.Path | None, times: Mapping[str, int]) -> Iterator[epath.Path | None]:
  """`manual_dir`, or a copy of its .gz files in which each header has the official name and time.

  Args:
    manual_dir: the folder of the files.
    times: those of `PACKED_AT`; a copy is made if one of these files has neither.
  """
  paths = [manual_dir / name for name in times] if manual_dir else []
  contents = {path.name: path.read_bytes() for path in paths if path.exists()}
  if not any(content.startswith(_NAMELESS) for content in contents.values()):
    yield manual_dir
    return
  with tempfile.TemporaryDirectory() as folder:
    for name, content in contents.items():
      if content.startswith(_NAMELESS):
        time, title = times[name].to_bytes(4, 'little'), name.removesuffix('.gz').encode()
        content = _NAMED + time + content[8:10] + title + b'\0' + content[10:]
      pathlib.Path(folder, name).write_bytes(content)
    yield epath.Path(folder)


def _run(builder, manual_dir: epath.Path | None) -> None:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import download_manager, downloader, extractor, util

  downloader.MAX_RETRIES = 3  # not ten: the last of them wait for minutes
  logging.getLogger('urllib3').setLevel(logging.ERROR)  # it logs each retry
  broken = (download_manager.NonMatchingChecksumError, extractor.ExtractError)
  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
    )
  except (downloader.requests.exceptions.RequestException, util.DownloadError) as fault:
    raise InputError(_without_network(builder, fault)) from fault
  except ImportError as fault:
    raise InputError(
      f'TFDS needs another package to prepare {builder.info.full_name}: {fault}'
    ) from fault
  except (OSError, AssertionError, *broken) as fault:
    raise InputError(f'{builder.info.full_name} was not prepared: {fault}') from fault


def _without_network(builder, fault: Exception) -> str:
  files = ''.join(
    f'\n  {info.filename}   {int(info.size):,} bytes   {url}'
    for url, info in builder.url_infos.items()
    if info.filename
  )
  return (
    f'{builder.info.full_name} cannot be downloaded from here: {str(fault).splitlines()[0]}\n'
    f'On a machine with a network, download{files}\ninto a folder, and use it as --manual_dir.'
  )
