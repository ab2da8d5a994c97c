"""The input that costs nothing."""

from itertools import islice
import subprocess
import sys

import numpy as np
import pytest

from mixer import input as inputs
from mixer.errors import InputError
import sets

FACTS = {'num_classes': 7, 'num_examples': 50, 'image_size': (6, 10), 'batch_size': 8}


def build(**changes):
  return inputs.build(source='synthetic', **{**FACTS, **changes})


def test_one_batch_is_handed_out_again():
  data = build(channels=2)
  first, second, third = islice(data.train_batches(0, seed=3), 3)
  assert first['image'] is second['image'] is third['image']
  assert first['image'].shape == (8, 6, 10, 2) and first['image'].dtype == np.uint8
  assert first['label'].shape == (8,) and first['label'].dtype == np.int32
  assert first['label'].min() >= 0 and first['label'].max() < 7
  assert len(np.unique(first['image'])) > 200
  assert (data.num_examples, data.num_classes, len(data.class_names)) == (50, 7, 7)
  assert data.image_size == (6, 10) and data.channels == 2


def test_it_depends_on_seed_and_process_but_not_on_where_a_run_starts():
  def batch(*where):
    return next(build().train_batches(*where))

  sets.assert_same([batch(0, 3)], [batch(11, 3)])
  for other in ((0, 4), (0, 3, 1, 2)):
    assert (batch(*other)['image'][:4] != batch(0, 3)['image'][:4]).mean() > 0.9
  assert len(batch(0, 3, 1, 2)['label']) == 4


def test_several_labels():
  label = next(build(multi_label=True, num_classes=3000).train_batches(0, 0))['label']
  assert label.shape == (8, 3000) and label.dtype == np.uint8
  assert 0.005 < label.mean() < 0.015 and label.max() == 1


@pytest.mark.parametrize('shards', [1, 2])
def test_an_evaluation_counts_every_example(shards):
  masks = [b['mask'] for s in range(shards) for b in build().eval_batches(16, s, shards)]
  assert np.concatenate(masks).sum() == 50 and len(masks) == 4 * shards


def test_what_cannot_be():
  with pytest.raises(InputError, match='num_examples is 0; use an int from 1 to '):
    build(num_examples=0)


def test_needs_no_tensorflow():
  program = (
    "import sys; from mixer import input as i; d = i.build(source='synthetic', num_classes=2, "
    'num_examples=4, image_size=2, batch_size=2); next(d.train_batches(0, 0)); '
    "sys.exit('tensorflow' in sys.modules)"
  )
  assert subprocess.run([sys.executable, '-c', program]).returncode == 0
