"""The nineteen tasks of VTAB-1k by name: 800 + 200 training images of each, and its test set.

Which images, labels and classes are those of the benchmark's own code (Zhai et al. 2020), over
today's TFDS sets; a slice counts examples in the order of the files. See docs/vtab.md.
"""

from collections.abc import Callable, Sequence
import os
from typing import NamedTuple

import tensorflow_datasets as tfds

from mixer import runtime
from mixer.errors import InputError, MissingData
from mixer.input.sources import tfds as prepared

tf = runtime.tensorflow()

TRAIN, VAL = 800, 200  # images
SPLITS = ('train800', 'val200', 'train800val200', 'test')
_NO_VEHICLE = 1000.0  # metres to the closest vehicle if the image has none


class Task(NamedTuple):
  """What is read of which set, and how it becomes an image and a label."""

  group: str
  dataset: str  # as TFDS calls it
  num_classes: int
  val: str = 'validation'  # the set's split that VAL images are taken from, ...
  val_percent: int = 0  # ... beginning at this share of the size of its 'train'
  test: str = 'test'
  test_percent: int = 0  # where `test` is 'train': the share between the begin of val and of test
  key: str = 'label'  # the feature that the label is made of, ...
  label: Callable | None = None  # ... with this function; without, it is the label
  class_names: tuple[str, ...] = ()  # with a function; without, the feature has them
  image: Callable = lambda encoded: encoded  # encoded -> encoded, before the crop
  manual: str = ''  # what is to be downloaded by hand into FOLDER


def _binned(distance: Callable, edges: Sequence[float]) -> Callable:
  """The class i of an image whose distance is in (edges[i], edges[i + 1]]."""
  return lambda objects: tf.reduce_sum(tf.cast(distance(objects) > edges, tf.int32)) - 1


def _closest_object(objects):
  return tf.reduce_min(objects['pixel_coords'][:, 2])


def _closest_vehicle(objects):
  """Of the types car, van and truck."""
  metres = tf.where(objects['type'] < 3, objects['location'][:, 2], _NO_VEHICLE)
  return tf.reduce_min(tf.concat([metres, [_NO_VEHICLE]], axis=0))


def _stretched(encoded):
  """dSprites stores black and white as 0 and 1."""
  return tf.io.encode_png(tf.io.decode_png(encoded, channels=1) * 255)


_CLEVR = {'group': 'structured', 'dataset': 'clevr', 'key': 'objects'}
_CLEVR |= {'val': 'train', 'val_percent': 90, 'test': 'validation'}
_CLEVR_EDGES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
_KITTI_EDGES = (-100.0, 8.0, 20.0, 999.0)
_DSPRITES = {'group': 'structured', 'dataset': 'dsprites', 'num_classes': 16, 'image': _stretched}
_DSPRITES |= {'val': 'train', 'val_percent': 80, 'test': 'train', 'test_percent': 10}
_DSPRITES |= {'class_names': tuple(f'{i}/16' for i in range(16))}
_SMALLNORB = {'group': 'structured', 'dataset': 'smallnorb', 'val': 'test', 'test': 'test[50%:]'}
_OF_TRAIN = {'val': 'train', 'test': 'train', 'val_percent': 60, 'test_percent': 20}
_RESISC45 = "NWPU-RESISC45.rar of the set's homepage, unpacked to FOLDER/NWPU-RESISC45/CLASS/*.jpg"
_RETINOPATHY = (
  "Kaggle's diabetic-retinopathy-detection, unpacked to FOLDER/train, FOLDER/test and "
  'FOLDER/sample, with FOLDER/trainLabels.csv'
)

TASKS = {
  'caltech101': Task('natural', 'caltech101', 102, 'train', 90),
  'cifar100': Task('natural', 'cifar100', 100, 'train', 90),
  'dtd': Task('natural', 'dtd', 47),
  'flowers102': Task('natural', 'oxford_flowers102', 102),
  'pets': Task('natural', 'oxford_iiit_pet', 37, 'train', 80),
  'sun397': Task('natural', 'sun397/tfds', 397),
  'svhn': Task('natural', 'svhn_cropped', 10, 'train', 90),
  'patch_camelyon': Task('specialized', 'patch_camelyon', 2),
  'eurosat': Task('specialized', 'eurosat/rgb', 10, **_OF_TRAIN),
  'resisc45': Task('specialized', 'resisc45', 45, **_OF_TRAIN, manual=_RESISC45),
  'retinopathy': Task(
    'specialized', 'diabetic_retinopathy_detection/btgraham-300', 5, manual=_RETINOPATHY
  ),
  'clevr_count': Task(
    **_CLEVR,
    num_classes=8,
    label=lambda objects: tf.size(objects['size']) - 3,
    class_names=tuple(f'{i} objects' for i in range(3, 11)),
  ),
  'clevr_distance': Task(
    **_CLEVR,
    num_classes=6,
    label=_binned(_closest_object, _CLEVR_EDGES),
    class_names=tuple(f'up to {edge:g}' for edge in _CLEVR_EDGES[1:]),
  ),
  'dmlab': Task('structured', 'dmlab', 6),
  'kitti_distance': Task(
    'structured',
    'kitti',
    4,
    key='objects',
    label=_binned(_closest_vehicle, _KITTI_EDGES),
    class_names=('up to 8 m', 'up to 20 m', 'beyond 20 m', 'no vehicle'),
  ),
  'dsprites_location': Task(**_DSPRITES, key='label_x_position', label=lambda x: x // 2),
  'dsprites_orientation': Task(
    **_DSPRITES,
    key='label_orientation',
    label=lambda angle: 2 * angle // 5,  # 40 angles
  ),
  'smallnorb_azimuth': Task(**_SMALLNORB, num_classes=18, key='label_azimuth'),
  'smallnorb_elevation': Task(**_SMALLNORB, num_classes=9, key='label_elevation'),
}


def open_split(*, task: str, split: str, data_dir: str | None = None) -> prepared.Split:
  """One split of a task.

  Args:
    task: a name in `TASKS`.
    split: a name in `SPLITS`.
    data_dir: the directory of TFDS sets; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Raises:
    InputError: no such task or split, or the set has not what the task reads.
    MissingData: the set is not prepared; says which command does it.
  """
  builder = _open(task, data_dir)
  if split not in SPLITS:
    raise InputError(f'VTAB task {task!r}: unknown split {split!r}; use one of {SPLITS}.')
  _check_features(task, builder)
  read = TASKS[task]
  sizes = {part: info.num_examples for part, info in builder.info.splits.items()}
  chosen = slices(read, sizes.get('train', 0))[split]
  fault = f'its label for {task} is not one of the {read.num_classes} classes'

  def to_label(stored):
    label = tf.cast(stored if read.label is None else read.label(stored), tf.int32)
    inside = tf.logical_and(label >= 0, label < read.num_classes)
    with tf.control_dependencies([tf.debugging.Assert(inside, [fault, label])]):
      return tf.identity(label)

  names = read.class_names or builder.info.features[read.key].names
  return prepared.Split(
    builder, chosen, ('image', read.key), names, to_label=to_label, to_image=read.image
  )


def find(task: str, data_dir: str | None = None) -> str:
  """The prepared set that a task reads, with its version; raises as `open_split` does."""
  for split in ('train800val200', 'test'):
    open_split(task=task, split=split, data_dir=data_dir)
  return _open(task, data_dir).info.full_name


def preparation(task: str, data_dir: str | None = None) -> str:
  """The command that prepares the set of a task, and what it wants by hand."""
  dataset, manual = TASKS[task].dataset, TASKS[task].manual
  command = f'python -m mixer.input.prepare --name={dataset}'
  command += f' --data_dir={data_dir}' if data_dir else ''
  return f'{command} --manual_dir=FOLDER   ({manual})' if manual else command


def slices(task: Task, train_size: int) -> dict[str, str]:
  """{name in SPLITS: slice in TFDS's syntax} for a set with so many images in its 'train'.

  Raises:
    InputError: they are so few that training, validation and test images would overlap.
  """
  begin = task.val_percent * train_size // 100
  test_begin = begin + task.test_percent * train_size // 100
  end = test_begin if task.test == 'train' else train_size
  if task.val == 'train' and not TRAIN <= begin <= end - VAL:
    raise InputError(
      f"{task.dataset} has {train_size} images in 'train': too few to take {TRAIN} + {VAL} as "
      'VTAB-1k does. Prepare the whole set.'
    )
  train, val = f'train[:{TRAIN}]', f'{task.val}[{begin}:{begin + VAL}]'
  test = f'train[{test_begin}:]' if task.test == 'train' else task.test
  return dict(zip(SPLITS, (train, val, f'{train}+{val}', test), strict=True))


def _open(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  if name not in TASKS:
    raise InputError(f'unknown VTAB task {name!r}; use one of {sorted(TASKS)}.')
  try:
    return prepared.open_builder(TASKS[name].dataset, data_dir)
  except MissingData as fault:
    where = data_dir or os.environ.get('TFDS_DATA_DIR') or os.path.join('~', 'tensorflow_datasets')
    raise MissingData(
      f'VTAB task {name!r} needs the data set {TASKS[name].dataset!r}, which is not prepared in '
      f'{where}. To prepare it:\n  {preparation(name, data_dir)}\n'
      'If it is elsewhere, give --config.train_input.data_dir=DIR or set TFDS_DATA_DIR.'
    ) from fault


def _check_features(name: str, builder: tfds.core.DatasetBuilder) -> None:
  """Raises InputError if the two features that a task reads are not what VTAB has."""
  features, task = builder.info.features, TASKS[name]
  missing = [key for key in ('image', task.key) if key not in features]
  if missing:
    raise InputError(
      f'{builder.info.full_name} has no feature {missing}, which VTAB task {name!r} reads; it has '
      f'{list(features)}.'
    )
  found = getattr(features[task.key], 'num_classes', None)
  if task.label is None and found != task.num_classes:
    raise InputError(
      f'{builder.info.full_name}: {task.key!r} has {found} classes, and VTAB task {name!r} '
      f'{task.num_classes}.'
    )
