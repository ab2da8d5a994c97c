"""Runs with every option of a recipe: exact resuming, their teacher, and their pictures."""

import json
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from mixer import input as inputs
from mixer import pretrained
from mixer.cost import dry_run
from mixer.errors import InputError
from mixer.pretrained import distillation
from mixer.run import build, memory, show_batch
import runs

RECIPE = {
  'cutmix': 1.0, 'label_smoothing': 0.1, 'class_weights': 'balanced',
  'random_erasing': {'probability': 0.5}, 'total_steps': 4, 'every.log': 1, 'every.evaluate': 4,
  'every.checkpoint': 2, 'checkpoints.keep_last': 2,
}  # fmt: skip


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  """The workdir of a finished run."""
  workdir = tmp_path_factory.mktemp('teacher')
  runs.train_here(runs.small_digits(total_steps=3), workdir)
  return workdir


def recipe(path):
  return {**runs.small_digits(**RECIPE), 'distill': {'path': str(path)}}


def test_a_run_with_everything_resumes_exactly(teacher, tmp_path, capsys):
  workdir, config = tmp_path / 'run', recipe(teacher)
  runs.train_here(config, workdir)
  rows = [runs.learned(row) for row in runs.rows(workdir)]
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  assert all(0 < row['train/distill_loss'] < 10 for row in rows)
  known = json.loads((workdir / 'teacher.json').read_text())
  assert known['sha256'] == pretrained.open(teacher).identity['sha256']
  trained = pretrained.load(workdir)

  # From step 2 again, with the teacher in another place.
  moved, other = tmp_path / 'moved', tmp_path / 'other.npz'
  shutil.copytree(teacher, moved)
  shutil.rmtree(workdir / 'checkpoints' / '4')
  (workdir / 'model.npz').unlink()
  params = pretrained.load(moved)
  params['head']['bias'] = params['head']['bias'] + 1
  pretrained.save(other, params)
  with pytest.raises(InputError, match='belongs to a run with another teacher: .*Give config'):
    runs.train_here(recipe(other), workdir)
  runs.train_here(recipe(moved), workdir)
  assert [runs.learned(row) for row in runs.rows(workdir)] == rows
  for name, array in pretrained.flatten(pretrained.load(workdir)).items():
    np.testing.assert_array_equal(array, pretrained.flatten(trained)[name])

  # Where nothing is trained, the teacher may be gone.
  runs.train_here(recipe(tmp_path / 'gone'), workdir)
  assert 'is finished: 4 of 4 steps are done' in capsys.readouterr().out
  runs.train_here(recipe(tmp_path / 'gone'), workdir, finish='2')
  assert json.loads((workdir / 'model.json').read_text())['step'] == 2
  show_batch.write(recipe(tmp_path / 'gone'), str(tmp_path / 'batch.png'), count=2)


def test_teachers_that_cannot_teach(teacher, tmp_path):
  data = inputs.build(source='digits', split='train', batch_size=64)

  def refuses(words, path=teacher, loss='softmax', **changes):
    for name, value in changes.items():
      setattr(data, name, value)
    with pytest.raises(InputError, match=words):
      distillation.load(path=str(path), data=data, loss=loss, dtype='float32')

  refuses(
    "trained with the softmax loss and config.loss is 'sigmoid'.*targets=hard", loss='sigmoid'
  )
  params = pretrained.load(teacher)
  params['head']['kernel'] = 0 * params['head']['kernel']
  pretrained.save(tmp_path / 'zero.npz', params)
  refuses('has no trained head, so it cannot teach', path=tmp_path / 'zero.npz')
  names = data.class_names
  refuses(r"other classes .*: 2 of 10 differ, such as \[\('0', '1'\), \('1', '0'\)\]",
          class_names=('1', '0', *names[2:]))  # fmt: skip
  refuses('has 10 classes, and config.train_input 3', class_names=names[:3])
  refuses(r'takes images of \(8, 8\), and config.train_input has \(8, 16\)', image_size=(8, 16))
  refuses('takes images of 1 channels, and config.train_input has 3', channels=3)


def test_the_teacher_is_in_the_estimated_memory(teacher):
  """Its parameters, and twice the hidden layer of a channel-mixing MLP: 16 tokens of 32 values."""
  plain, taught = (
    memory.estimate(config, build.build(config, inputs.build(**config.train_input), ()))
    for config in map(build.check, (runs.small_digits(**RECIPE), recipe(teacher)))
  )
  size = sum(x.nbytes for x in pretrained.flatten(pretrained.load(teacher)).values())
  assert taught.state - plain.state == size
  assert taught.activations - plain.activations == pytest.approx(2 * 16 * 32 * 4)


@pytest.mark.slow
def test_the_teacher_counts(teacher):
  """Its parameters in the memory, its forward pass in the FLOPs."""
  plain, taught = (
    build.build(config, inputs.build(**config.train_input), ())
    for config in map(build.check, (runs.small_digits(**RECIPE), recipe(teacher)))
  )
  batch = dry_run.abstract_batch(taught.data, taught.mesh)
  size = sum(x.nbytes for x in pretrained.flatten(pretrained.load(teacher)).values())
  arguments = [
    dry_run.compile_step(p.step_fn, p.like, batch, p.mesh, p.teacher_like)
    .memory_analysis()
    .argument_size_in_bytes
    for p in (plain, taught)
  ]
  assert arguments[1] - arguments[0] >= size
  assert taught.like == plain.like  # the state has no teacher
  ratio = taught.train_flops_per_image / plain.train_flops_per_image
  assert 1.3 < ratio < 1.4  # the teacher is of the same size: a third more


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ([1.0] * 9, 'has 9 numbers, of which 9 are not 0; give one for each of the 10 classes'),
    ('balanced', 'needs the labels of all images, which this source has in its records'),
  ],
)
def test_class_weights_that_cannot_be(given, words):
  source = {'source': 'synthetic', 'num_classes': 10, 'num_examples': 20, 'image_size': 8}
  with pytest.raises(InputError, match=re.escape(words)):
    build._class_weights(given, inputs.build(**source, batch_size=4))


def test_balanced_class_weights():
  """scikit-learn's own."""
  from sklearn.utils.class_weight import compute_class_weight

  data = inputs.build(source='digits', split='train', batch_size=64)
  labels = data._labels
  wanted = compute_class_weight('balanced', classes=np.arange(10), y=labels)
  np.testing.assert_allclose(build._class_weights('balanced', data), wanted, rtol=1e-6)


def test_show_batch(tmp_path):
  """The same bytes each time; the shares of a mixture are in its caption."""
  config = {**runs.small_digits(**RECIPE), 'mixup': 0.0}
  for name in 'ab':
    show_batch.write(config, str(tmp_path / f'{name}.png'), count=12)
  assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()
  assert np.asarray(Image.open(tmp_path / 'a.png').convert('RGB')).std() > 10
  assert not list(tmp_path.glob('checkpoints'))
  with pytest.raises(
    InputError, match=r'--show_batch=a\.jpg is to be a PNG; give a name that ends'
  ):
    show_batch.write(config, 'a.jpg')
  names = ('cat', 'dog', 'eel', 'fox')
  assert show_batch.caption(np.float32([0, 1, 0, 0]), names) == 'dog'
  assert show_batch.caption(np.float32([0.3, 0, 0.7, 0]), names) == 'eel 0.70\ncat 0.30'
  assert show_batch.caption(np.float32([1, 1, 1, 1]), names) == 'cat\ndog\neel\nand 1 more'
  assert show_batch.caption(np.zeros(4), names) == 'no label'
