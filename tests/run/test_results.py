"""What a run and its evaluations leave, whatever fails at their end."""

import json
import os
import shutil
import signal
import time

import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from mixer import files, pretrained
from mixer.errors import DiskError, InputError
from mixer.input.sources import arrays
from mixer.report import run_files, sections
from mixer.run import evaluation
from mixer.visualize import plots
import runs
from runs import small_digits as config

BEST = {'checkpoints.keep_best': 'test/top1', 'checkpoints.keep_last': 2, 'every.evaluate': 3}


def train(workdir, values=None, **options) -> None:
  runs.train_here(values or config(), workdir, **options)


def evaluate(checkpoint, values=None, **options) -> dict[str, float]:
  return evaluation.evaluate(
    evaluation.Options(config=values or config(), checkpoint=str(checkpoint), **options)
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The workdir of a run in which nothing failed."""
  workdir = tmp_path_factory.mktemp('whole')
  train(workdir, config(**BEST))
  return workdir


def assert_ends_as(workdir, whole) -> None:
  assert list(map(runs.learned, runs.rows(workdir))) == list(map(runs.learned, runs.rows(whole)))
  assert (workdir / 'model.npz').read_bytes() == (whole / 'model.npz').read_bytes()


class Faulty:
  """Raises a fault instead of the `at`-th call of a function."""

  def __init__(self, function, fault, at=1):
    self._function, self._fault, self._left = function, fault, at

  def __call__(self, *args, **kwargs):
    self._left -= 1
    if self._left == 0:
      raise self._fault
    return self._function(*args, **kwargs)


@pytest.mark.parametrize(
  ('fault', 'at', 'changes'),
  [
    (InputError('dog.jpg is truncated.'), 1, {'every.checkpoint': 0}),
    (InputError('dog.jpg is truncated.'), 2, {}),
    (RuntimeError('no memory'), 1, {}),
  ],
)
def test_an_evaluation_that_fails_costs_no_step(tmp_path, monkeypatch, whole, fault, at, changes):
  """With a checkpoint due at its step or not, in the middle of the run or at its end."""
  best = None if changes else 'test/top1'
  values = config(**{**BEST, 'checkpoints.keep_best': best, **changes})
  failing = Faulty(arrays.Arrays.eval_batches, fault, at)
  with monkeypatch.context() as patched:
    patched.setattr(arrays.Arrays, 'eval_batches', lambda *args, **kwargs: failing(*args, **kwargs))
    with pytest.raises(type(fault), match=str(fault)) as caught:
      train(tmp_path, values)
  assert runs.saved_steps(tmp_path)[-1] == 3 * at and runs.rows(tmp_path)[-1]['postponed'] is True
  if isinstance(fault, InputError):
    end = f' The state of step {3 * at} is saved; the same command repeats this evaluation and '
    assert f'{end}continues.' in str(caught.value)
  train(tmp_path, values)
  assert_ends_as(tmp_path, whole)


@pytest.mark.parametrize('what', ['results of a checkpoint', 'record of an evaluator'])
def test_a_full_disk_in_an_evaluation(tmp_path, monkeypatch, whole, what):
  original = files.write

  def write(path, content):
    if path.name == 'metrics' or path.parts[-1].startswith('evals.'):
      raise DiskError(f'{path} cannot be written: No space left on device.')
    original(path, content)

  values = config(**BEST)
  if what.startswith('record'):
    section = {'kind': 'fewshot', 'shots': (1,), 'seeds': (0,), 'l2': 1.0, 'images_per_device': 8}
    one = {'source': 'digits'}
    values['evals']['few'] = {
      **section, 'input': {**one, 'split': 'test'}, 'train_input': {**one, 'split': 'train'}
    }  # fmt: skip
    values['checkpoints']['keep_best'] = None
  with monkeypatch.context() as patched:
    patched.setattr(files, 'write', write)
    with pytest.raises(InputError, match=r'No space left on device\. The state of step 3 is saved'):
      train(tmp_path, values)
  train(tmp_path, values)
  assert runs.rows(tmp_path)[-1]['step'] == 6
  if not what.startswith('record'):
    assert_ends_as(tmp_path, whole)


def test_a_picture_that_cannot_be_drawn(tmp_path, monkeypatch, caplog, whole):
  monkeypatch.setattr(plots, 'curves', Faulty(None, ValueError('no such font')))
  train(tmp_path, config(**BEST))
  assert_ends_as(tmp_path, whole)
  assert 'the curves were not drawn: no such font' in caplog.text


def test_results_are_not_replaced_by_a_run_from_the_beginning(tmp_path):
  """By the command of a run whose checkpoints were removed to free space."""
  train(tmp_path)
  for path in sorted((tmp_path / 'checkpoints').rglob('*'), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  before = {path: path.read_bytes() for path in tmp_path.glob('m*')}
  text = 'has the results of a run, .*model.npz and metrics.jsonl, and no checkpoint to resume from'
  with pytest.raises(InputError, match=text):
    train(tmp_path)
  (tmp_path / 'checkpoints').rmdir()
  with pytest.raises(InputError, match=text):
    train(tmp_path)
  (tmp_path / 'metrics.jsonl').rename(tmp_path / 'metrics.old')
  with pytest.raises(InputError, match=text):
    train(tmp_path)
  (tmp_path / 'metrics.old').rename(tmp_path / 'metrics.jsonl')
  assert {path: path.read_bytes() for path in tmp_path.glob('m*')} == before
  (tmp_path / 'model.npz').unlink()
  with pytest.raises(
    InputError, match='has the results of a run, 6 steps in metrics.jsonl, and no'
  ):
    train(tmp_path)
  with pytest.raises(InputError, match=r'belongs to a run with another config'):
    train(tmp_path, config(total_steps=100))
  (tmp_path / 'checkpoints').mkdir()  # as a kill before the end of the first save leaves it
  train(tmp_path)
  assert runs.rows(tmp_path)[-1]['step'] == 6


def test_a_finished_run_with_more_steps(whole):
  with pytest.raises(InputError, match=r'--config.init.path=.*/model.npz\.$'):
    train(whole, config(**BEST, total_steps=9))


def test_a_run_that_is_finished_early(tmp_path, monkeypatch, capsys, whole):
  failing = Faulty(arrays.Arrays.eval_batches, RuntimeError('stop'), at=2)
  values = config(**BEST, **{'total_steps': 12})
  with monkeypatch.context() as patched:
    patched.setattr(arrays.Arrays, 'eval_batches', lambda *args, **kwargs: failing(*args, **kwargs))
    with pytest.raises(RuntimeError, match='stop'):
      train(tmp_path, values)
  for which, message in {
    '4': r'--finish=4: .* has no such checkpoint; it has those of the steps \[3, 6\]\.',
    'newer': r'--finish=newer: give best, latest or the step of a checkpoint\.',
  }.items():
    with pytest.raises(InputError, match=message):
      train(tmp_path, values, finish=which)
  shutil.copytree(tmp_path, tmp_path / 'damaged')
  manifest = tmp_path / 'damaged' / 'checkpoints' / '3' / 'manifest.json'
  manifest.write_text(manifest.read_text(encoding='utf-8').replace('[', '[1', 1), encoding='utf-8')
  for which in ('3', 'best'):
    pattern = r'no such checkpoint; it has those of the steps \[6\]'
    with pytest.raises(InputError, match=f'--finish={which}: .* has {pattern}'):
      train(tmp_path / 'damaged', values, finish=which)
  assert not (tmp_path / 'model.npz').exists()
  for which, step in {'latest': 6, 'best': 3, '3': 3, '6': 6}.items():
    train(tmp_path, values, finish=which)
    found = json.loads((tmp_path / 'model.json').read_text())
    assert (found['step'], found['metrics']['step'], len(found['class_names'])) == (step, step, 10)
    assert f'the model is that of step {step} of 12' in capsys.readouterr().out
    saved = pretrained.open(tmp_path, which=step).params
    model = pretrained.load(tmp_path / 'model.npz')
    np.testing.assert_array_equal(saved['head']['kernel'], model['head']['kernel'])
  assert (tmp_path / 'curves.png').exists()
  train(tmp_path, values)
  assert json.loads((tmp_path / 'model.json').read_text())['step'] == 12


def test_workdirs_of_any_name(tmp_path, monkeypatch, whole):
  name = 'é run[1] lr=[0.1]*?'
  workdir = tmp_path / name
  failing = Faulty(arrays.Arrays.eval_batches, RuntimeError('stop'), at=2)
  with monkeypatch.context() as patched:
    patched.setattr(arrays.Arrays, 'eval_batches', lambda *args, **kwargs: failing(*args, **kwargs))
    with pytest.raises(RuntimeError, match='stop'):
      train(workdir, config(**BEST))
  train(workdir, config(**BEST), tensorboard=True)
  assert_ends_as(workdir, whole)
  assert evaluate(workdir)['test/n'] == 360
  assert list((workdir / 'tensorboard').iterdir())
  assert [run.label for run in run_files.read([str(workdir)])] == [name]
  with pytest.raises(InputError, match=r'is not a workdir .* Its subdirectories .* are workdirs'):
    run_files.read([str(tmp_path)])


def test_each_evaluation_has_its_file(tmp_path, capsys, whole):
  values = config()
  other = config(**{'evals.test.input.batch_size': 8})
  results = [evaluate(whole, values), evaluate(whole, other)]
  evaluate(whole, values)
  evaluate(whole, values, which='best', name='digits')
  evaluate(whole / 'model.npz', values, name='digits')
  params = pretrained.open(whole / 'model.npz').params
  params['head']['bias'] = params['head']['bias'] + 1
  twin = whole / 'model.safetensors'  # of other content, and with the same directory of results
  twin.write_bytes(safetensors.numpy.save(pretrained.flatten(params)))
  evaluate(twin, values, name='digits')
  evaluate(twin, values, name='digits')
  names = sorted(str(p.relative_to(whole)) for p in whole.glob('*evaluation/*.json'))
  best = pretrained.open(whole, which='best', keep_best='test/top1').identity['step']
  assert names == sorted([
    'evaluation/evaluation-step_6.json', 'evaluation/evaluation-step_6-2.json',
    f'evaluation/digits-step_{best}.json', 'model.evaluation/digits.json',
    'model.evaluation/digits-2.json',
  ])  # fmt: skip
  (run,) = run_files.read([str(whole)])
  assert len(run.evaluations) == 5
  assert run.evaluations['evaluation-step_6']['test/top1'] == results[0]['test/top1']
  rows = [row[0] for row in sections.results([run]).rows]
  assert sum(row.startswith('test/top1 % (') for row in rows) == 5

  (whole / 'evaluation' / 'evaluation-step_6.json').write_text('{"dam')
  capsys.readouterr()
  with pytest.raises(InputError, match=r'--output=.*/metrics.jsonl/a.json cannot be written'):
    evaluate(whole, values, output=str(whole / 'metrics.jsonl' / 'a.json'))
  evaluate(whole, values, output=str(tmp_path / 'new' / 'a.json'))
  assert json.loads((tmp_path / 'new' / 'a.json').read_text())['test/n'] == 360


def test_results_beside_a_read_only_checkpoint_are_printed(monkeypatch, capsys, whole):
  monkeypatch.setattr(files, 'is_writable', lambda directory: False)
  before = sorted(whole.rglob('*'))
  assert evaluate(whole, name='new')['test/n'] == 360
  printed = capsys.readouterr().out
  assert f'not written: {whole}/evaluation is read-only; --output=FILE gives' in printed
  assert 'test/top1' in printed and sorted(whole.rglob('*')) == before


def test_writing_to_a_place_that_is_none(tmp_path):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file' / 'a.json', tmp_path / ('x' * 300)):
    with pytest.raises(InputError, match='cannot be written: .* give a place that can be written'):
      files.write(path, b'')
  assert not files.is_writable(tmp_path / 'file')
  assert files.is_writable(tmp_path / 'new') and list((tmp_path / 'new').iterdir()) == []


def write_folder(root, **sizes: int) -> None:
  for split, count in sizes.items():
    for name in ('cat', 'dog'):
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / split / name / f'{i}.jpg')


SMALL = """
from configs import finetune

def get_config(folder):
  config = finetune.get_config(f'model=S/32,resolution=32,data={folder}')
  config.model.update(num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
  config.init.path = None
  config.train_input.batch_size = 16
  config.total_steps = 12
  config.optim.schedule.warmup_steps = 2
  return config
"""


@pytest.fixture
def run_on_photos(tmp_path):
  """Trains on tmp_path/photos on one core: (arguments, stop=None) -> (status, output).

  SIGTERM is sent once `stop(process)` is true. The process ends within 2 seconds of its last save,
  or of its last line if that is later.
  """
  (tmp_path / 'small.py').write_text(SMALL)
  workdir = tmp_path / 'run'
  env = runs.environment()

  def run(*arguments, stop=None) -> tuple[int, str]:
    config = f'{tmp_path}/small.py:{tmp_path}/photos'
    process = runs.start('train.py', *runs.train_flags(workdir, *arguments, config=config), env=env)
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    if stop:
      assert runs.wait_for(stop, process)
      process.send_signal(signal.SIGTERM)
    output = ''
    with process.stdout:
      for line in process.stdout:
        output, last = output + line, time.time()
    status = process.wait(timeout=60)
    saved = workdir / 'checkpoints' / str(runs.saved_steps(workdir)[-1])
    assert time.time() - max(saved.stat().st_mtime, last) < 2, output
    return status, output

  return run


@pytest.mark.slow
def test_a_run_on_images_ends_at_once(tmp_path, run_on_photos):
  """After an error in an evaluation, and at the end."""
  write_folder(tmp_path / 'photos', train=40, val=10)
  bad = tmp_path / 'photos/val/cat/bad.jpg'
  whole = bad.with_name('0.jpg').read_bytes()
  bad.write_bytes(whole[:300])
  status, output = run_on_photos()
  assert status == 2 and 'bad.jpg' in output and 'Traceback' not in output, output
  assert 'The state of step 12 is saved; the same command repeats this' in output
  assert runs.saved_steps(tmp_path / 'run') == [12]
  bad.write_bytes(whole)
  status, output = run_on_photos()
  assert status == 0 and 'done: ' in output, output
  assert runs.rows(tmp_path / 'run')[-1]['step'] == 12


@pytest.mark.slow
@pytest.mark.parametrize('place', ['training', 'evaluation'])
def test_a_stopped_run_on_images_ends_at_once(tmp_path, run_on_photos, place):
  write_folder(tmp_path / 'photos', train=100, val=1500)

  def training(rows):
    return rows and rows[-1]['step'] > 20

  def evaluating(rows):
    return rows and rows[-1].get('postponed')

  reached, steps = {'training': (training, 10**6), 'evaluation': (evaluating, 12)}[place]
  path = tmp_path / 'run' / 'metrics.jsonl'
  status, output = run_on_photos(
    f'--config.total_steps={steps}', '--config.every.log=1',
    stop=lambda: reached(runs.rows(path.parent) if path.exists() else []),
  )  # fmt: skip
  assert status == 75 and 'stopped: at step' in output, output
  assert runs.rows(path.parent)[-1]['step'] == runs.saved_steps(path.parent)[-1]
