"""The nineteen tasks of VTAB-1k: which images, which labels, against TFDS's own reading."""

import functools
import itertools

import numpy as np
import pytest

from configs import vtab as config
from mixer import input
from mixer.errors import InputError, MissingData
import sets

vtab = pytest.importorskip('mixer.input.sources.vtab', reason='needs TensorFlow and TFDS')

SIZES = {'train': 40, 'validation': 10, 'test': 13}  # of the small sets here
TRAIN_ONLY = ('eurosat/rgb', 'resisc45', 'dsprites')
NO_VALIDATION = ('caltech101', 'cifar100', 'oxford_iiit_pet', 'svhn_cropped', 'smallnorb')
# Which images of a set of such sizes are the 8, the 4 and the test images, worked out by hand.
HELD_OUT = {
  'caltech101': ('train', range(36, 40), 'test', range(13)),
  'cifar100': ('train', range(36, 40), 'test', range(13)),
  'svhn': ('train', range(36, 40), 'test', range(13)),
  'pets': ('train', range(32, 36), 'test', range(13)),
  'eurosat': ('train', range(24, 28), 'train', range(32, 40)),
  'resisc45': ('train', range(24, 28), 'train', range(32, 40)),
  'clevr_count': ('train', range(36, 40), 'validation', range(10)),
  'clevr_distance': ('train', range(36, 40), 'validation', range(10)),
  'dsprites_location': ('train', range(32, 36), 'train', range(36, 40)),
  'dsprites_orientation': ('train', range(32, 36), 'train', range(36, 40)),
  'smallnorb_azimuth': ('test', range(4), 'test', range(6, 13)),
  'smallnorb_elevation': ('test', range(4), 'test', range(6, 13)),
}
OWN_VALIDATION = ('validation', range(4), 'test', range(13))


def kitti_label(example):
  vehicles = [
    z
    for kind, (_, _, z) in zip(example['objects']['type'], example['objects']['location'])
    if kind in (0, 1, 2)  # car, van, truck
  ]
  return np.digitize(min(vehicles), [8, 20], right=True) if vehicles else 3


def clevr_distance_label(example):
  z = [coordinates[2] for coordinates in example['objects']['pixel_coords']]
  return np.digitize(min(z), [8, 8.5, 9, 9.5, 10], right=True)


LABELS = {
  'clevr_count': lambda example: {n: n - 3 for n in range(3, 11)}[len(example['objects']['size'])],
  'clevr_distance': clevr_distance_label,
  'kitti_distance': kitti_label,
  'dsprites_location': lambda example: np.floor(example['label_x_position'] / 2),
  'dsprites_orientation': lambda example: np.floor(example['label_orientation'] / 2.5),
  'smallnorb_azimuth': lambda example: example['label_azimuth'],
  'smallnorb_elevation': lambda example: example['label_elevation'],
}


def fill(rng, feature, key=''):
  """A random value of a feature; images have one colour, and places are around the edges."""
  from tensorflow_datasets import features

  if isinstance(feature, features.ClassLabel):
    return int(rng.integers(feature.num_classes))
  if isinstance(feature, features.Image):
    height, width, channels = feature.shape
    if key == 'sprite':
      return rng.integers(0, 2, (height, width, 1), np.uint8)
    return np.full((height or 20, width or 24, channels), rng.integers(0, 256, channels), np.uint8)
  if isinstance(feature, features.BBoxFeature):
    return features.BBox(0.0, 0.0, 1.0, 1.0)
  if isinstance(feature, features.Text):
    return str(rng.integers(10**9))
  if isinstance(feature, features.Sequence):
    return [fill(rng, feature.feature) for _ in range(rng.integers(3, 11))]
  if isinstance(feature, features.FeaturesDict):
    return {name: fill(rng, one, name) for name, one in feature.items()}
  edges = {'location': (-3, 7.9, 8, 8.1, 20, 20.5, 60), 'pixel_coords': (8, 8.2, 9, 9.5, 9.8, 11)}
  values = rng.choice(edges.get(key, (0.0, 1.0)), feature.shape)
  return values.astype(np.float32) if feature.shape else float(values)


def write(data_dir, dataset, split_sizes):
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  features = tfds.builder(dataset, data_dir=data_dir).info.features

  def example():
    made = fill(rng, features)
    if dataset == 'dsprites':
      made['image'] = fill(rng, features['image'], 'sprite')
    if dataset == 'kitti':  # also without any object
      made['objects'] = made['objects'][: rng.integers(4)]
    return made

  splits = {split: [example() for _ in range(n)] for split, n in split_sizes.items()}
  sets.write_registered(data_dir, dataset, splits)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('sets'))


@pytest.fixture
def small_splits(monkeypatch):
  monkeypatch.setattr(vtab, 'TRAIN', 8)
  monkeypatch.setattr(vtab, 'VAL', 4)


@functools.cache
def stored(dataset, data_dir):
  """{split: its examples in the order of the files}, as TFDS reads and decodes them."""
  import tensorflow_datasets as tfds

  there = dict.fromkeys(tfds.builder(dataset, data_dir=data_dir).info.splits)
  one_by_one = tfds.ReadConfig(interleave_cycle_length=1)
  found = tfds.load(dataset, split='+'.join(there), data_dir=data_dir, read_config=one_by_one)
  examples = found.as_numpy_iterator()
  return {split: list(itertools.islice(examples, SIZES[split])) for split in there}


@pytest.mark.parametrize('task', vtab.TASKS)
def test_images_and_labels(task, data_dir, small_splits):
  import tensorflow_datasets as tfds

  dataset = vtab.TASKS[task].dataset
  if not tfds.builder(dataset, data_dir=data_dir).info.splits:
    there = list(SIZES)
    there = ['train'] if dataset in TRAIN_ONLY else there
    there = ['train', 'test'] if dataset in NO_VALIDATION else there
    write(data_dir, dataset, {split: SIZES[split] for split in there})
  val, val_range, test, test_range = HELD_OUT.get(task, OWN_VALIDATION)
  want = {
    'train800val200': [('train', range(8)), (val, val_range)],
    'test': [(test, test_range)],
  }
  read = stored(dataset, data_dir)
  for split, parts in want.items():
    examples = [read[name][i] for name, span in parts for i in span]
    height, width, channels = examples[0]['image'].shape
    data = input.build(
      source='vtab', task=task, split=split, batch_size=5, image_size=(height, width),
      crop='direct', data_dir=data_dir,
    )  # fmt: skip
    assert data.num_examples == len(examples)
    batches = list(data.eval_batches(5))
    mask = np.concatenate([batch['mask'] for batch in batches])
    images, labels = (
      np.concatenate([batch[key] for batch in batches])[mask] for key in ('image', 'label')
    )
    factor = 255 if dataset == 'dsprites' else 1
    exact = [np.broadcast_to(e['image'] * np.uint8(factor), (height, width, 3)) for e in examples]
    np.testing.assert_array_equal(images, exact)
    label = LABELS.get(task, lambda example: example['label'])
    np.testing.assert_array_equal(labels, [label(example) for example in examples])
    assert len(data.class_names) == data.num_classes > max(labels)
  assert vtab.find(task, data_dir).startswith(dataset)


# The sizes of 'train' that TFDS publishes, and what VTAB's code makes of them.
PUBLISHED = {
  'caltech101': (3_060, 'train[2754:2954]', 'test'),
  'cifar100': (50_000, 'train[45000:45200]', 'test'),
  'dtd': (1_880, 'validation[0:200]', 'test'),
  'flowers102': (1_020, 'validation[0:200]', 'test'),
  'pets': (3_680, 'train[2944:3144]', 'test'),
  'sun397': (76_128, 'validation[0:200]', 'test'),
  'svhn': (73_257, 'train[65931:66131]', 'test'),
  'patch_camelyon': (262_144, 'validation[0:200]', 'test'),
  'eurosat': (27_000, 'train[16200:16400]', 'train[21600:]'),
  'resisc45': (31_500, 'train[18900:19100]', 'train[25200:]'),
  'retinopathy': (35_126, 'validation[0:200]', 'test'),
  'clevr_count': (70_000, 'train[63000:63200]', 'validation'),
  'clevr_distance': (70_000, 'train[63000:63200]', 'validation'),
  'dmlab': (65_550, 'validation[0:200]', 'test'),
  'kitti_distance': (6_347, 'validation[0:200]', 'test'),
  'dsprites_location': (737_280, 'train[589824:590024]', 'train[663552:]'),
  'dsprites_orientation': (737_280, 'train[589824:590024]', 'train[663552:]'),
  'smallnorb_azimuth': (24_300, 'test[0:200]', 'test[50%:]'),
  'smallnorb_elevation': (24_300, 'test[0:200]', 'test[50%:]'),
}


def test_the_parts_of_the_thousand_and_the_order_of_training(tmp_path, small_splits):
  write(str(tmp_path), 'smallnorb:2.1.0', {'train': 40, 'test': 13})
  data = {split: build('smallnorb_azimuth', str(tmp_path), split=split) for split in vtab.SPLITS}
  assert [one.num_examples for one in data.values()] == [8, 4, 12, 7]
  labels = {
    split: [int(i) for batch in one.eval_batches(1) for i in batch['label']]
    for split, one in data.items()
  }
  assert labels['train800'] + labels['val200'] == labels['train800val200']
  batches = data['train800val200'].train_batches(0, seed=0)
  for _ in range(2):  # epochs
    seen = np.concatenate([next(batches)['label'] for _ in range(3)])
    assert sorted(seen) == sorted(labels['train800val200'])


@pytest.mark.parametrize('task', PUBLISHED)
def test_slices_at_the_published_sizes(task):
  train_size, val, test = PUBLISHED[task]
  assert vtab.slices(vtab.TASKS[task], train_size) == {
    'train800': 'train[:800]',
    'val200': val,
    'train800val200': f'train[:800]+{val}',
    'test': test,
  }


@pytest.mark.parametrize(
  ('task', 'size'), [('caltech101', 1990), ('eurosat', 1333), ('dsprites_location', 1999)]
)
def test_too_few_images_for_parts_that_do_not_overlap(task, size):
  """The 200 would end after the set, begin within the 800, and end within the test images."""
  with pytest.raises(InputError, match=f"{size} images in 'train': too few to take 800 [+] 200"):
    vtab.slices(vtab.TASKS[task], size)
  vtab.slices(vtab.TASKS[task], size + 2)


def test_the_table_is_complete():
  assert list(vtab.TASKS) == list(PUBLISHED)
  groups = [task.group for task in vtab.TASKS.values()]
  assert [groups.count(g) for g in ('natural', 'specialized', 'structured')] == [7, 4, 8]
  classes = [102, 100, 47, 102, 37, 397, 10, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9]
  assert [task.num_classes for task in vtab.TASKS.values()] == classes
  assert [name for name, task in vtab.TASKS.items() if task.manual] == ['resisc45', 'retinopathy']
  named = {*config.SMALL, *config.NO_FLIP, *config.NO_RANDOM_CROP}
  assert named <= set(vtab.TASKS) and len(config.SMALL) == 5


def build(task, data_dir, **more):
  given = {'split': 'test', 'batch_size': 4, 'image_size': 16, 'crop': 'direct'}
  return input.build(source='vtab', task=task, data_dir=data_dir, **given | more)


def test_what_is_not_there(data_dir, tmp_path):
  with pytest.raises(InputError, match=r"unknown VTAB task 'cifar'; use one of \['caltech101', "):
    build('cifar', data_dir)
  with pytest.raises(MissingData) as fault:
    build('resisc45', str(tmp_path))
  text = str(fault.value)
  assert text.startswith(
    "VTAB task 'resisc45' needs the data set 'resisc45', which is not prepared"
  )
  command = f'python -m mixer.input.prepare --name=resisc45 --data_dir={tmp_path} --manual_dir='
  assert command in text and 'NWPU-RESISC45' in text
  with pytest.raises(MissingData, match='--name=eurosat/rgb --data_dir=.*\nIf it is elsewhere'):
    build('eurosat', str(tmp_path))


def test_sets_that_do_not_fit(tmp_path):
  sets.write(tmp_path, 'dtd', {'train': 9, 'validation': 9, 'test': 9}, num_classes=3)
  sets.write(tmp_path, 'cifar100', {'train': 50}, num_classes=100)
  with pytest.raises(InputError, match="dtd/1.0.0: 'label' has 3 classes, and VTAB task 'dtd' 47"):
    build('dtd', str(tmp_path))
  with pytest.raises(InputError, match="cifar100 has 50 images in 'train': too few to take 800"):
    build('cifar100', str(tmp_path))


def test_a_label_outside_of_the_classes_is_named(tmp_path, small_splits):
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  features = tfds.builder('clevr', data_dir=str(tmp_path)).info.features
  splits = {'train': [], 'validation': []}
  for examples in splits.values():
    examples += [fill(rng, features) for _ in range(40)]
  for example in splits['validation']:
    example['objects'] = (example['objects'] * 4)[:11]
  sets.write_registered(str(tmp_path), 'clevr', splits)
  with pytest.raises(InputError, match='bad images in one batch') as fault:
    next(build('clevr_count', str(tmp_path)).eval_batches(4))
  assert "clevr/3.1.0, split 'validation', example 0: " in str(fault.value)
  assert 'its label for clevr_count is not one of the 8 classes' in str(fault.value)
