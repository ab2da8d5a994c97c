"""MNIST, Fashion-MNIST, KMNIST and others in files of their format, IDX. Needs no TensorFlow."""

from collections.abc import Sequence
import gzip
import hashlib
import os
import zlib

import numpy as np

from mixer.errors import InputError, MissingData
from mixer.input.sources import arrays
from mixer.values import Count, Steps

FASHION_MNIST = '/usr/share/datasets/fashion-mnist'  # of Debian's package dataset-fashion-mnist
_PREFIXES = {'train': 'train', 'test': 't10k'}
_KINDS = {'images': 'idx3', 'labels': 'idx1'}  # the digit is the number of axes
_FASHION_LABELS = (  # SHA-256 of the class numbers in Fashion-MNIST's two files of labels
  '657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7',
  '3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9',
)
_FASHION_CLASSES = (
  'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag',
  'Ankle boot',
)  # fmt: skip


def load(
  *,
  split: str,
  path: str = FASHION_MNIST,
  num_classes: Count = 10,
  label_offset: Steps = 0,
  class_names: Sequence[str] | None = None,
) -> arrays.Held:
  """The grey images of 'train-images-idx3-ubyte' and 't10k-images-idx3-ubyte' with their labels.

  Args:
    split: 'train' or 'test', or a part as in TFDS: 'train[:55000]', 'train[-5000:]', 'train[90%:]'.
    path: the folder of the files, which may be compressed by gzip.
    num_classes: without `class_names`.
    label_offset: what is subtracted from the labels, 1 where they begin at 1.
    class_names: in the order of the class numbers; None for those of Fashion-MNIST if these are
      its labels, else the class numbers.

  Raises:
    MissingData: the folder or a file does not exist.
    InputError: a file is damaged or another one than its name says, or there is no such part.
  """
  base, bounds = arrays.part_of_split(split, _PREFIXES, path)
  files = {kind: _find(os.path.expanduser(path), base, kind) for kind in _KINDS}
  images, labels = (_read(file, kind) for kind, file in files.items())
  if len(images) != len(labels):
    raise InputError(
      f'{files["images"]} has {len(images)} images and {files["labels"]} {len(labels)} labels; '
      'they are of different sets.'
    )
  if class_names is None:
    is_fashion = hashlib.sha256(labels).hexdigest() in _FASHION_LABELS
    class_names = _FASHION_CLASSES if is_fashion else tuple(map(str, range(num_classes)))
  labels = arrays.counted(labels, label_offset, files['labels'])
  begin, end = bounds(len(labels))
  return images[begin:end, ..., None], labels[begin:end], class_names


def _find(folder: str, base: str, kind: str) -> str:
  """The path of a file under one of its usual names."""
  stem = f'{_PREFIXES[base]}-{kind}'
  names = [f'{stem}{mark}{_KINDS[kind]}-ubyte{end}' for mark in '-.' for end in ('', '.gz')]
  for name in names:
    if os.path.isfile(os.path.join(folder, name)):
      return os.path.join(folder, name)
  found = f'holds {sorted(os.listdir(folder))[:8]}' if os.path.isdir(folder) else 'does not exist'
  debian = '; or apt-get install dataset-fashion-mnist' if folder == FASHION_MNIST else ''
  raise MissingData(
    f'no {names[0]} or {names[1]} in {folder}, which {found}. Give the folder of the files as '
    f'path=FOLDER{debian}.'
  )


def _read(path: str, kind: str) -> np.ndarray:
  """The uint8 array of an IDX file of `kind`."""
  try:
    with open(path, 'rb') as file:
      content = file.read()
    if content[:2] == b'\x1f\x8b':
      content = gzip.decompress(content)
  except (OSError, EOFError, zlib.error) as fault:
    raise InputError(f'{path} is unreadable, damaged or truncated: {fault}') from fault
  axes = int(_KINDS[kind][-1])
  magic, header = bytes([0, 0, 8, axes]), 4 + 4 * axes
  if not content:
    raise InputError(f'{path} is empty.')
  if content[:4] != magic:
    raise InputError(
      f'{path} begins with the bytes {content[:4].hex()}; {kind} begin with {magic.hex()}, IDX '
      f'of uint8 with {axes} axes. Are images and labels exchanged?'
    )
  shape = tuple(int.from_bytes(content[i : i + 4], 'big') for i in range(4, header, 4))
  size = np.prod(shape, dtype=object)
  if len(content) != header + size or not size:
    raise InputError(
      f'{path} declares {" x ".join(map(str, shape))} bytes after a header of {header} and has '
      f'{len(content)} in all; it is truncated or damaged.'
    )
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
