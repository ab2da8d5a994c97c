"""Labels that begin at 1, in files of records and arrays."""

import logging

import numpy as np
import pytest

from mixer import input
from mixer.errors import InputError
from mixer.input import label_numbers
import sets

COMMON = {'batch_size': 4, 'image_size': 16, 'crop': 'direct'}
WARNING = 'NO IMAGE HAS THE LABEL 0. If labels begin at 1, give label_offset=1'


def as_shards(tmp_path, labels, num_classes, **own):
  pytest.importorskip('tensorflow')
  several = isinstance(labels[0], list)
  file = sets.numbered(1)[0][0]
  records = [sets.example(image=file, label=label) for label in labels]
  sets.write_records(tmp_path / 'records', records)
  return input.build(
    source='shards', files=str(tmp_path / 'records'), num_classes=num_classes,
    image_key='image', label_key='label', multi_label=several, **COMMON, **own
  )  # fmt: skip


def as_tfds(tmp_path, labels, num_classes, label_offset=0):
  pytest.importorskip('tensorflow')
  file = sets.numbered(1)[0][0]
  if not (tmp_path / 'ours').exists():
    sets.write_examples(
      tmp_path, 'ours', {'train': [(file, label) for label in labels]},
      num_classes=max(np.max(label) for label in labels if np.size(label)) + 1,
      label_sequence=isinstance(labels[0], list),
    )  # fmt: skip
  return input.build(
    source='tfds', name='ours', data_dir=str(tmp_path), split='train', label_offset=label_offset,
    **COMMON,
  )  # fmt: skip


def as_arrays(tmp_path, labels, num_classes, **own):
  images = np.zeros((len(labels), 4, 4, 1), np.uint8)
  np.savez(tmp_path / 'a.npz', images=images, labels=np.array(labels, np.uint8))
  return input.build(
    source='arrays', images=str(tmp_path / 'a.npz'), num_classes=num_classes, batch_size=4, **own
  )


def labels_of(data):
  return np.concatenate([b['label'][b['mask']] for b in data.eval_batches(4, 0, 1)])


@pytest.mark.parametrize('make', [as_shards, as_tfds, as_arrays])
def test_labels_that_begin_at_1_are_noticed(make, tmp_path, caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    make(tmp_path, [1, 2, 3, 2, 1], 4)
    assert WARNING in caplog.text
    caplog.clear()
    data = make(tmp_path, [1, 2, 3, 2, 1], 3, label_offset=1)
    assert data.num_classes == 3 and sorted(labels_of(data)) == [0, 0, 1, 1, 2]
  assert 'NO IMAGE' not in caplog.text


@pytest.mark.parametrize('make', [as_shards, as_tfds, as_arrays])
def test_labels_that_begin_at_0_are_not(make, tmp_path, caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    make(tmp_path, [2, 1, 1, 0], 3)
  assert 'NO IMAGE' not in caplog.text


@pytest.mark.parametrize('make', [as_shards, as_tfds])
def test_several_labels(make, tmp_path, caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    make(tmp_path, [[1, 3], [], [2]], 4)
    assert WARNING in caplog.text
    data = make(tmp_path, [[1, 3], [], [2]], 3, label_offset=1)
  assert sorted(labels_of(data).tolist()) == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_labels_out_of_range_name_the_option(tmp_path):
  with pytest.raises(
    InputError, match='label 3 in .* If the labels begin at 1, give label_offset=1'
  ):
    as_shards(tmp_path, [1, 2, 3], 3)
  with pytest.raises(InputError, match='label 0 in .* of 3 counted from 1; see num_classes'):
    as_shards(tmp_path, [0, 2, 3], 3, label_offset=1)
  with pytest.raises(InputError, match='label 3; there are 3 classes, .* label_offset shifts them'):
    as_arrays(tmp_path, [1, 2, 3], 3)
  with pytest.raises(InputError, match='label_offset=1 is for class numbers alone'):
    as_arrays(tmp_path, [[0, 1], [1, 0]], 2, label_offset=1)
  with pytest.raises(InputError, match='label is below label_offset=1'):
    labels_of(as_tfds(tmp_path, [1, 2, 0], 3, label_offset=1))


def test_a_sample_too_small_to_tell_is_not_taken():
  assert list(label_numbers.sample(100, 1000)) == list(range(100))  # all of them
  assert not label_numbers.sample(10_000, 26) and len(label_numbers.sample(10_000, 25)) == 256
