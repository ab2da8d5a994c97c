"""The evaluator's numbers, against NumPy on logits that are given."""

import jax
import numpy as np
import pytest
from sklearn import metrics

import lookup
from mixer.errors import InputError
from mixer.evaluators import classification
from mixer.training import sharding


def run(logits, data, **given):
  make = classification.make if given else classification.make_real
  given = {'loss': 'softmax', **given}
  evaluate = make(apply=lookup.apply, data=data, mesh=sharding.make_mesh(), **given)
  return evaluate(jax.device_put(logits, sharding.replicated(sharding.make_mesh())))


def log_sigmoid(x):
  return -np.logaddexp(0.0, -x)


@pytest.mark.parametrize('loss', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('num_classes', [3, 12])
@pytest.mark.parametrize('multi_label', [False, True])
def test_against_numpy(loss, num_classes, multi_label):
  rng = np.random.default_rng(num_classes)
  n = 53  # in batches of 16, on 8 devices
  logits = rng.normal(0.0, 2.0, (n, num_classes)).astype(np.float32)
  if multi_label:
    labels = (rng.random((n, num_classes)) < 0.3).astype(np.uint8)
    hot = labels.astype(np.float64)
  else:
    labels = rng.integers(0, num_classes, n).astype(np.int32)
    hot = np.eye(num_classes)[labels]
  if multi_label:
    labels[3] = hot[3] = 0
  counted = hot.any(1)  # images without a label are counted apart
  logits[1] = logits[2]  # equal scores
  ranked = np.argsort(-logits, axis=1)
  right = np.take_along_axis(hot, ranked, axis=1) > 0
  x = logits.astype(np.float64)
  if loss == 'sigmoid':
    each = -(hot * log_sigmoid(x) + (1 - hot) * log_sigmoid(-x)).sum(1)
  else:
    each = -(hot * (x - np.log(np.exp(x).sum(1, keepdims=True)))).sum(1)
  found = run(logits, lookup.Images(labels, num_classes), loss=loss)
  assert found['n'] == counted.sum() and found['images_per_sec'] > 0
  assert found['top1'] == right[counted, 0].mean()
  assert found['loss'] == pytest.approx(each[counted].mean(), rel=1e-6)
  five = {}
  if num_classes > 5:
    five['top5'] = right[counted, :5].any(1).mean()
  if multi_label:
    assert 0 < counted.sum() < n and found['n_without_labels'] == n - counted.sum()
    assert found['precision_at_1'] == found['top1']
    mean = metrics.average_precision_score(hot[counted], logits[counted], average='macro')
    assert found['mean_average_precision'] == pytest.approx(mean, rel=1e-12)
    if num_classes > 5:
      of = [np.isin(row[:5], np.flatnonzero(of)).mean() for row, of in zip(ranked, labels)]
      five['precision_at_5'] = np.mean(of, where=counted)
  assert {name: value for name, value in found.items() if name.endswith('5')} == pytest.approx(five)
  several = {'precision_at_1', 'mean_average_precision', 'n_without_labels'}
  assert several & set(found) == (several if multi_label else set())


def test_average_precision_of_equal_scores_is_that_of_scikit_learn():
  """In another order of the images too; and only classes with an image are in the mean."""
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 4, (40, 3)).astype(np.float32)
  hits = rng.random((40, 3)) < 0.4
  hits[0] = True
  for order in (np.arange(40), rng.permutation(40)):
    for k in range(3):
      found = classification.average_precision(scores[order, k], hits[order, k])
      assert found == pytest.approx(metrics.average_precision_score(hits[:, k], scores[:, k]))
  labels = np.pad(hits, ((0, 0), (0, 1))).astype(np.uint8)  # a class without any image
  logits = np.pad(scores, ((0, 0), (0, 1)))
  found = run(logits, lookup.Images(labels, 4), loss='sigmoid')['mean_average_precision']
  some = hits.any(1)
  each = [metrics.average_precision_score(hits[some, k], scores[some, k]) for k in range(3)]
  assert found == pytest.approx(np.mean(each))


def test_too_many_scores_for_the_memory_are_not_kept(monkeypatch, caplog):
  monkeypatch.setattr(classification, '_RANKED', 59)
  with caplog.at_level('WARNING', 'absl'):
    found = run(
      np.zeros((20, 3), np.float32), lookup.Images(np.eye(20, 3, dtype=np.uint8), 3), loss='sigmoid'
    )
  assert 'mean_average_precision' not in found and found['n_without_labels'] == 17
  assert 'no mean average precision of 20 images and 3 classes' in caplog.text


def test_results_that_tell_the_best_step():
  def of(labels, num_classes):
    return classification.comparable(lookup.Images(labels, num_classes))

  assert of(np.zeros(3, int), 5) == ('top1', 'loss')
  assert of(np.zeros(3, int), 6) == ('top1', 'top5', 'loss')
  assert of(np.zeros((3, 2), int), 2) == ('top1', 'loss', 'mean_average_precision')


def test_real_leaves_out_images_without_labels():
  """A hit is a highest class among the labels; the denominator counts labelled images alone."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(53, 12)).astype(np.float32)
  labels = (rng.random((53, 12)) < 0.1).astype(np.uint8)
  sets_of = [set(np.flatnonzero(row)) for row in labels]
  labelled = [i for i in range(53) if sets_of[i]]
  assert 20 < len(labelled) < 53
  found = run(logits, lookup.Images(labels, 12))
  hits = sum(int(np.argmax(logits[i])) in sets_of[i] for i in labelled)
  assert hits > 0 and found['top1'] == hits / len(labelled)
  assert found['n'] == len(labelled) and found['n_without_labels'] == 53 - len(labelled)
  assert set(found) == {'top1', 'n', 'n_without_labels', 'images_per_sec'}


def test_real_refuses_what_it_is_not_for():
  with pytest.raises(InputError, match='^kind="real" needs images with a list of labels each'):
    run(np.zeros((20, 3), np.float32), lookup.Images(np.zeros(20, np.int32), 3))
  with pytest.raises(InputError, match='^none of the 20 images has a label'):
    run(np.zeros((20, 3), np.float32), lookup.Images(np.zeros((20, 3), np.uint8), 3))


def test_a_count_that_is_not_the_data_sets_is_an_error():
  labels = np.zeros(20, np.int32)
  with pytest.raises(RuntimeError, match='evaluated 20 examples of a data set of 21'):
    run(np.zeros((20, 3), np.float32), lookup.Images(labels, 3, claimed=21), loss='softmax')
