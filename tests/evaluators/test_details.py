"""Results of each class and image, against scikit-learn and NumPy on logits that are given."""

import csv
import functools
import json

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest
from sklearn import metrics

import lookup
from mixer.errors import InputError
from mixer.evaluators import classification, details, per_image
from mixer.run import evaluation
from mixer.training import sharding
from mixer.visualize import plots
import runs

CLASSES = 12
NAMES = ('n01440764', 'cat, "tabby"', *(f'class {i}' for i in range(2, CLASSES)))
SHOWN = ('n01440764 tench, Tinca tinca', *NAMES[1:])


class Given(lookup.Images):
  """Images with the names of classes and places."""

  class_names = NAMES

  def __init__(self, labels):
    super().__init__(labels, CLASSES)

  def describe(self, index):
    return f'/photos/{index}, {NAMES[1]}.jpg'

  def image(self, index):
    return np.full((8, 4, 3), index, np.uint8)


def run(make, logits, data, place, *, loss):
  """(results without details, results with them)."""
  mesh = sharding.make_mesh()
  params = jax.device_put(logits, sharding.replicated(mesh))
  found = []
  for collect in (None, functools.partial(details.collect, 'val', place)):
    results = make(apply=lookup.apply, data=data, loss=loss, mesh=mesh, collect=collect)(params)
    found.append({k: v for k, v in results.items() if k != 'images_per_sec'})
  return found


def read_csv(path):
  with open(path, newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def number(cell):
  return np.nan if cell == '' else float(cell)


def probabilities_of(logits, loss):
  x = logits.astype(np.float64)
  return (
    1 / (1 + np.exp(-x)) if loss == 'sigmoid' else np.exp(x - np.logaddexp.reduce(x, 1)[:, None])
  )


def expected_calibration_error(sure, correct, bins=15):
  total = 0.0
  for b in range(bins):
    inside = [i for i, p in enumerate(sure) if b / bins < p <= (b + 1) / bins]
    if inside:
      gap = np.mean([correct[i] for i in inside]) - np.mean([sure[i] for i in inside])
      total += len(inside) / len(sure) * abs(gap)
  return total


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_against_scikit_learn(loss, tmp_path):
  rng = np.random.default_rng(0)
  n = 203  # in batches of 16, on 8 devices
  labels = rng.integers(0, CLASSES - 2, n).astype(np.int32)  # two classes have no image
  logits = rng.normal(0.0, 1.5, (n, CLASSES)).astype(np.float32)
  logits[np.arange(n), labels] += 1.5
  logits[:, -1] = -20.0  # and one is never guessed
  file = epath.Path(tmp_path / 'images.csv')
  with per_image.writing(file) as write_image:
    place = details.Place(epath.Path(tmp_path), True, plots.reliability, write_image)
    plain, found = run(classification.make, logits, Given(labels), place, loss=loss)
    assert not file.exists()  # before its last line
  assert plain == found
  probabilities = probabilities_of(logits, loss)
  ranked = np.argsort(-logits, axis=1, kind='stable')
  guess, sure = ranked[:, 0], probabilities.max(1)

  want = metrics.confusion_matrix(labels, guess, labels=range(CLASSES))
  have = np.zeros_like(want)
  for row in read_csv(tmp_path / 'val' / 'confusion.csv'):
    assert row['label_name'] == SHOWN[int(row['label'])]
    assert row['guess_name'] == SHOWN[int(row['guess'])] and int(row['n']) > 0
    have[int(row['label']), int(row['guess'])] = row['n']
  np.testing.assert_array_equal(have, want)

  rows = read_csv(tmp_path / 'val' / 'per_class.csv')
  assert [(int(row['class']), row['name']) for row in rows] == list(enumerate(SHOWN))
  of = {'labels': range(CLASSES), 'average': None, 'zero_division': np.nan}
  for column, values in {
    'n': want.sum(1), 'correct': np.diag(want), 'guessed': want.sum(0),
    'accuracy': metrics.recall_score(labels, guess, **of),
    'precision': metrics.precision_score(labels, guess, **of),
  }.items():  # fmt: skip
    np.testing.assert_allclose([number(row[column]) for row in rows], values, rtol=1e-12)
  assert rows[-1]['accuracy'] == rows[-1]['precision'] == ''

  found = json.loads((tmp_path / 'val' / 'mistakes.json').read_text())
  wrong = sorted(np.flatnonzero(guess != labels), key=lambda i: (-sure[i], i))
  assert len(wrong) > 50 == len(found['mistakes'])
  for i, mistake in zip(wrong, found['mistakes']):
    assert (mistake['index'], mistake['labels'], mistake['guess']) == (i, [labels[i]], guess[i])
    assert mistake['path'] == f'/photos/{i}, {NAMES[1]}.jpg'
    assert mistake['guess_name'] == SHOWN[guess[i]]
    assert mistake['probability'] == pytest.approx(sure[i], rel=1e-5)
    assert mistake['label_probability'] == pytest.approx(probabilities[i, labels[i]], rel=1e-5)
  with Image.open(tmp_path / 'val' / found['sprite']) as picture:
    sprite = np.asarray(picture).astype(int)
  assert sprite.shape == (5 * 64, 10 * 64, 3)
  for i, index in enumerate(wrong[:50]):  # the image in the middle, black at its sides
    tile = sprite[i // 10 * 64 :, i % 10 * 64 :][:64, :64]
    assert np.abs(tile[:, 18:46] - index).max() < 12 and tile[:, :14].max() < 12

  found = json.loads((tmp_path / 'val' / 'calibration.json').read_text())
  assert (found['probabilities'], found['n'], len(found['bins'])) == (loss, n, 15)
  assert found['ece'] == pytest.approx(expected_calibration_error(sure, guess == labels), rel=1e-5)
  assert found['accuracy'] == np.mean(guess == labels)
  assert found['confidence'] == pytest.approx(sure.mean(), rel=1e-6)
  if loss == 'softmax':
    want = metrics.log_loss(labels, probabilities, labels=range(CLASSES))
    assert found['nll'] == pytest.approx(want, rel=1e-6)
  else:
    assert found['nll'] is None
  assert sum(one['n'] for one in found['bins']) == n
  with Image.open(tmp_path / 'val' / 'calibration.png') as picture:
    assert picture.size == (500, 600)

  lines = read_csv(file)
  assert [int(line['index']) for line in lines] == list(range(n))
  for i, line in enumerate(lines):
    assert (line['evaluation'], line['path']) == ('val', f'/photos/{i}, {NAMES[1]}.jpg')
    assert (line['label'], line['label_name']) == (str(labels[i]), SHOWN[labels[i]])
    top = [line[f'class_{k}'] for k in range(1, 6)]
    assert top == [str(k) for k in ranked[i, :5]] and line['name_2'] == SHOWN[ranked[i, 1]]
    have = [float(line[f'probability_{k}']) for k in range(1, 6)]
    np.testing.assert_allclose(have, probabilities[i, ranked[i, :5]], rtol=1e-5)


@pytest.mark.parametrize('make', [classification.make, classification.make_real])
@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_of_several_labels_or_none(make, loss, tmp_path):
  rng = np.random.default_rng(1)
  labels = (rng.random((53, CLASSES)) < 0.2).astype(np.uint8)
  logits = rng.normal(size=labels.shape).astype(np.float32)
  file = epath.Path(tmp_path / 'images.jsonl')
  with per_image.writing(file) as write_image:
    place = details.Place(epath.Path(tmp_path), True, plots.reliability, write_image)
    plain, found = run(make, logits, Given(labels), place, loss=loss)
  assert plain == found
  some, guess = labels.any(1), logits.argmax(1)
  assert 0 < some.sum() < 53
  correct = labels[np.arange(53), guess] > 0
  rows = read_csv(tmp_path / 'val' / 'per_class.csv')
  for k, row in enumerate(rows):
    of, guessed = labels[:, k] > 0, some & (guess == k)
    assert [int(row[name]) for name in ('n', 'correct', 'guessed')] == [
      of.sum(), correct[of].sum(), guessed.sum()
    ]  # fmt: skip
    assert number(row['precision']) == pytest.approx(of[guessed].mean(), nan_ok=True)
  mistakes = json.loads((tmp_path / 'val' / 'mistakes.json').read_text())['mistakes']
  assert {mistake['index'] for mistake in mistakes} == set(np.flatnonzero(some & ~correct))
  assert all(one['labels'] == np.flatnonzero(labels[one['index']]).tolist() for one in mistakes)
  sure = probabilities_of(logits, loss).max(1)
  if (make, loss) == (classification.make, 'softmax'):
    assert not (tmp_path / 'val' / 'calibration.json').exists()
  else:
    found = json.loads((tmp_path / 'val' / 'calibration.json').read_text())
    want = expected_calibration_error(sure[some], correct[some])
    assert found['ece'] == pytest.approx(want, rel=1e-5) and found['nll'] is None
  assert not (tmp_path / 'val' / 'confusion.csv').exists()
  lines = list(map(json.loads, file.read_text().splitlines()))
  assert [line['index'] for line in lines] == list(range(53))
  for line, row, one in zip(lines, labels, logits):
    assert line['labels'] == np.flatnonzero(row).tolist()
    assert line['label_names'] == [SHOWN[k] for k in line['labels']]
    assert [guess['class'] for guess in line['top']] == np.argsort(-one)[:5].tolist()
    assert line['top'][0]['probability'] == pytest.approx(sure[line['index']], rel=1e-5)


def test_results_that_are_not_finite_have_no_files(tmp_path, caplog):
  place = details.Place(epath.Path(tmp_path), True, plots.reliability)
  logits = np.full((20, CLASSES), np.nan, np.float32)
  with caplog.at_level('WARNING', 'absl'):
    run(classification.make, logits, Given(np.zeros(20, np.int32)), place, loss='softmax')
  assert f'no {tmp_path}/val: some results are not finite' in caplog.text
  assert not list(tmp_path.iterdir())


def photos(path):
  """Two classes of the training set; one of them, and names that need care, in 'val'."""
  for split, folder, count in (('train', 'cat, black', 4), ('train', 'dog', 4), ('val', 'dog', 5)):
    (path / split / folder).mkdir(parents=True)
    for i in range(count):
      pixels = np.random.default_rng(i).integers(0, 255, (20, 30, 3), np.uint8)
      Image.fromarray(pixels).save(path / split / folder / f'{i}, "a".jpg')


def test_train_and_evaluate_write_them(tmp_path, monkeypatch):
  """Training where a section asks for it, and evaluate.py; images of a folder and in memory."""
  photos(tmp_path / 'photos')
  image = {'source': 'folder', 'path': str(tmp_path / 'photos'), 'image_size': 16, 'crop': 'resize'}
  values = runs.small_digits(**{'total_steps': 2, 'every.checkpoint': 2, 'every.evaluate': 2})
  values['checkpoints']['keep_best'] = None
  values['model'] |= {'patch_size': 8}
  values['train_input'] = {**image, 'split': 'train', 'batch_size': 8, 'resize': 16}
  section = {'kind': 'classification', 'input': {**image, 'split': 'val', 'batch_size': 3}}
  section['input']['resize'] = 16
  values['evals'] = {'val': {**section, 'details': True}, 'other': section}
  runs.train_here(values, tmp_path / 'run')
  place = tmp_path / 'run' / 'evaluation' / 'training'
  assert [path.name for path in place.iterdir()] == ['val']
  (row, absent) = sorted(read_csv(place / 'val' / 'per_class.csv'), key=lambda row: -int(row['n']))
  assert (row['name'], row['n'], absent['name'], absent['n']) == ('dog', '5', 'cat, black', '0')
  assert row['accuracy'] == str(runs.rows(tmp_path / 'run')[-1]['val/top1'])

  def evaluate(**options):
    given = {'config': values, 'checkpoint': str(tmp_path / 'run'), **options}
    return evaluation.evaluate(evaluation.Options(**given))

  results = evaluate(per_image=str(tmp_path / 'a.csv'))
  where = tmp_path / 'run' / 'evaluation' / 'evaluation-step_2'
  assert sorted(path.name for path in where.iterdir()) == ['other', 'val']
  for name in ('per_class.csv', 'confusion.csv', 'mistakes.json', 'calibration.json'):
    assert (where / 'val' / name).read_bytes() == (place / 'val' / name).read_bytes()
  lines = read_csv(tmp_path / 'a.csv')
  assert [line['evaluation'] for line in lines] == ['val'] * 5 + ['other'] * 5
  for i, line in enumerate(lines):
    assert line['path'] == str(tmp_path / 'photos' / 'val' / 'dog' / f'{i % 5}, "a".jpg')
    assert line['label_name'] == 'dog' and line['class_3'] == ''
    assert float(line['probability_1']) + float(line['probability_2']) == pytest.approx(1)
  right = [line['name_1'] == 'dog' for line in lines[:5]]
  assert np.mean(right) == results['val/top1']

  for path, text in {
    'a.txt': r'--per_image=.*a\.txt: give a name that ends in \.csv or \.jsonl\.',
    'none/a.csv': r'none/a\.csv cannot be written: ',
  }.items():
    with pytest.raises(InputError, match=text):
      evaluate(per_image=str(tmp_path / path))
  before = (tmp_path / 'a.csv').read_bytes()
  with monkeypatch.context() as patched:
    patched.setattr(details.Details, 'write', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      evaluate(per_image=str(tmp_path / 'a.csv'))
  assert (tmp_path / 'a.csv').read_bytes() == before
  assert not list(tmp_path.glob('*.partial'))
