"""The VTAB-1k protocol: its configs, choices, reports, restarts, and the command as a whole."""

import csv
import fcntl
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading

from etils import epath
import jax
import numpy as np
import pytest

from configs import vtab as config
from mixer import errors, files, models, pretrained, sweep, vtab
import runs
import sets

GROUPS = {'a': 'natural', 'b': 'natural', 'c': 'specialized', 'd': 'structured'}


# Typed again from the paper's rules: side, crop in training, crop in evaluation.
SIDES_AND_CROPS = {
  'caltech101': (448, 'resize_random', 'resize'),
  'cifar100': (224, 'resize_random', 'resize'),
  'dtd': (448, 'resize_random', 'resize'),
  'flowers102': (448, 'resize_random', 'resize'),
  'pets': (448, 'resize_random', 'resize'),
  'sun397': (448, 'resize_random', 'resize'),
  'svhn': (224, 'resize_random', 'resize'),
  'patch_camelyon': (448, 'resize_random', 'resize'),
  'eurosat': (224, 'resize_random', 'resize'),
  'resisc45': (448, 'resize_random', 'resize'),
  'retinopathy': (448, 'resize_random', 'resize'),
  'clevr_count': (448, 'direct_flip', 'direct'),
  'clevr_distance': (448, 'direct_flip', 'direct'),
  'dmlab': (448, 'direct_flip', 'direct'),
  'kitti_distance': (448, 'direct_flip', 'direct'),
  'dsprites_location': (224, 'direct', 'direct'),
  'dsprites_orientation': (224, 'resize_random_unflipped', 'resize'),
  'smallnorb_azimuth': (448, 'resize_random_unflipped', 'resize'),
  'smallnorb_elevation': (448, 'resize_random', 'resize'),
}


@pytest.mark.parametrize('task', SIDES_AND_CROPS)
def test_the_protocol_of_a_task(task):
  side, train_crop, test_crop = SIDES_AND_CROPS[task]
  for stage, splits in (('dev', ('train800', 'val200')), ('final', ('train800val200', 'test'))):
    found = config.get_config(f'task={task},model=L/16,stage={stage}')
    test = found.evals['dev' if stage == 'dev' else 'test'].input
    assert (found.train_input.split, test.split) == splits
    assert (found.train_input.crop, test.crop) == (train_crop, test_crop)
    for one in (found.train_input, test):
      assert one.task == task and one.image_size == (side, side)
      assert one.get('resize') == (None if 'direct' in one.crop else (side * 8 // 7,) * 2)
    assert found.model.name == 'Mixer-L/16' and found.model.tiles == (side // 224,) * 2
    assert found.total_steps == 2500 and found.train_input.batch_size == 512
    assert found.optim.optimizer.name == 'sgd' and found.optim.optimizer.momentum == 0.9
    assert found.optim.schedule.decay == 'cosine' and found.optim.clip_norm == 1.0
    assert found.optim.weight_decay == 0 and found.loss == 'softmax' and found.init.head == 'reset'
  found.train_input.data_dir = '/sets'
  assert found.evals.test.input.data_dir == '/sets'


@pytest.mark.parametrize(
  ('argument', 'text'),
  [
    ('tsk=pets', "'tsk=pets' is not KEY=VALUE with a key of"),
    ('stage=first', "stage='first'; use one of"),
  ],
)
def test_arguments_that_are_wrong(argument, text):
  with pytest.raises(ValueError, match=text):
    config.get_config(argument)


VAL = {
  'a': {'0.003': 0.5, '0.01': 0.9, '0.03': 0.1},
  'b': {'0.003': 0.6, '0.01': 0.2, '0.03': 0.8},
  'c': {'0.003': 0.7, '0.01': 0.7, '0.03': 0.0},
}


def known(calls):
  def run(task, stage, rate, seed):
    calls.append((task, stage, rate, seed))
    return VAL[task][rate] if stage == 'dev' else float(rate) + seed

  return run


def test_each_task_has_its_own_rate_and_of_equal_ones_the_first():
  calls, reports = [], []
  results = vtab.protocol(
    known(calls), ['a', 'b', 'c'], rates=vtab.RATES, seeds=2, one_learning_rate=False,
    report=lambda results: reports.append(list(results)),
  )  # fmt: skip
  assert {task: one['learning_rate'] for task, one in results.items()} == {
    'a': '0.01', 'b': '0.03', 'c': '0.003'
  }  # fmt: skip
  assert results['b'] == {'learning_rate': '0.03', 'dev': VAL['b'], 'test': [0.03, 1.03]}
  assert reports == [['a'], ['a', 'b'], ['a', 'b', 'c']]
  assert [call for call in calls if call[1] == 'final'] == [
    (task, 'final', rate, seed)
    for task, rate in (('a', '0.01'), ('b', '0.03'), ('c', '0.003'))
    for seed in (0, 1)
  ]


def test_one_rate_for_all_has_the_best_mean():
  results = vtab.protocol(
    known([]), ['a', 'b', 'c'], rates=vtab.RATES, seeds=1, one_learning_rate=True,
    report=lambda results: None,
  )  # fmt: skip
  # The means are 0.6, 0.6 and 0.3: of equal ones the first.
  assert [one['learning_rate'] for one in results.values()] == ['0.003'] * 3
  assert [one['test'] for one in results.values()] == [[0.003]] * 3


RESULTS = {
  'a': {'learning_rate': '0.01', 'dev': {'0.003': 0.2, '0.01': 0.4}, 'test': [0.5, 0.7]},
  'b': {'learning_rate': '0.003', 'dev': {'0.003': 0.9, '0.01': 0.4}, 'test': [0.8, 0.8]},
  'c': {'learning_rate': '0.003', 'dev': {'0.003': 0.9, '0.01': 0.4}, 'test': [0.1, 0.1]},
  'd': {'learning_rate': '0.01', 'dev': {'0.003': 0.3, '0.01': 0.4}, 'test': [0.3, 0.3]},
}


def test_the_report_of_all_tasks(tmp_path):
  facts = vtab.summary(RESULTS, GROUPS, 'L/16', {})
  assert facts['complete'] and facts['mean'] == pytest.approx((0.6 + 0.8 + 0.1 + 0.3) / 4)
  assert facts['groups']['natural'] == {'mean': pytest.approx(0.7), 'tasks': 2, 'of': 2}
  text = vtab.markdown(facts)
  assert '| a | natural | 0.01 | 40.00 | 60.00 ± 10.00 |' in text
  assert '| **natural**, mean of 2 | | | | 70.00 |' in text
  assert '| **VTAB-1k, mean of all 19 tasks** | | | | 45.00 |' in text
  assert text.endswith('| the paper, pre-trained on ImageNet-21k | | | | 74.95 |\n')
  files.write_csv(epath.Path(tmp_path / 'vtab.csv'), vtab.table(facts))
  read = list(csv.DictReader((tmp_path / 'vtab.csv').read_text().splitlines()))
  assert [row['task'] for row in read] == list(RESULTS)
  assert float(read[0]['test_top1']) == 0.6 and float(read[0]['val_top1']) == 0.4


def test_the_report_of_some_tasks_is_not_called_vtab():
  facts = vtab.summary({'a': {**RESULTS['a'], 'test': [0.5]}}, GROUPS, 'B/16', {'total_steps': '5'})
  text = vtab.markdown(facts)
  assert not facts['complete'] and 'paper' not in text and facts['groups']['structured']['of'] == 1
  assert '| a | natural | 0.01 | 40.00 | 50.00 |' in text
  assert '| **natural**, mean of 1 of 2 | | | | 50.00 |' in text and 'specialized' not in text
  assert '| **mean of 1 tasks, not VTAB-1k** | | | | 50.00 |' in text
  assert text.endswith('\n\nDiffers from configs/vtab.py in: total_steps=5.\n')


def test_the_papers_numbers():
  found = {m: vtab.summary(RESULTS, GROUPS, m, {}).get('paper') for m in ('B/16', 'L/16', 'H/14')}
  assert found == {
    'B/16': None,
    'L/16': {'pretrained_on': 'ImageNet-21k', 'vtab_1k': 74.95 / 100},
    'H/14': {'pretrained_on': 'JFT-300M', 'vtab_1k': 75.33 / 100},
  }
  assert vtab.RATES == ('0.003', '0.01', '0.03')


FAKE_TRAIN = """
import json, os, pathlib, re, sys
flags = dict(re.fullmatch('--([^=]+)=(.*)', word).groups() for word in sys.argv[1:])
workdir = pathlib.Path(flags['workdir'])
(workdir / 'checkpoints' / '5').mkdir(parents=True, exist_ok=True)
(workdir / 'model.npz').write_text('weights')
name = 'dev' if 'stage=dev' in flags['config'] else 'test'
row = {'step': 5, name + '/top1': float(flags['config.optim.learning_rate']), 'flags': flags}
(workdir / 'metrics.jsonl').write_text(json.dumps(row) + '\\n')
with open(workdir.parent / 'started', 'a') as file:
  file.write(workdir.name + ' ')
"""


def test_a_run_is_made_once_and_of_dev_the_weights_go(tmp_path, monkeypatch):
  (tmp_path / 'fake.py').write_text(FAKE_TRAIN)
  monkeypatch.setattr(sweep, 'TRAIN', tmp_path / 'fake.py')
  for _ in range(2):
    run = vtab.runner('B/16', epath.Path(tmp_path), ['--config.init.path=x.npz'])
    assert run('pets', 'dev', '0.01', 0) == 0.01
    assert run('pets', 'final', '0.03', 0) == run('pets', 'final', '0.03', 2) == 0.03
  assert (tmp_path / 'pets' / 'started').read_text() == 'dev-0.01 final-0.03 final-0.03-seed2 '
  assert sorted(p.name for p in (tmp_path / 'pets' / 'dev-0.01').glob('[a-z]*')) == [
    'metrics.jsonl', 'result.json'
  ]  # fmt: skip
  assert (tmp_path / 'pets' / 'final-0.03' / 'model.npz').exists()
  last = json.loads((tmp_path / 'pets' / 'final-0.03-seed2' / 'result.json').read_text())['flags']
  assert last['config'] == f'{vtab.CONFIG}:task=pets,model=B/16,stage=final'
  assert last['config.seed'] == '2' and last['config.init.path'] == 'x.npz'


def test_a_run_waits_for_one_that_a_kill_has_left(tmp_path, monkeypatch, capsys):
  (tmp_path / 'fake.py').write_text(FAKE_TRAIN)
  monkeypatch.setattr(sweep, 'TRAIN', tmp_path / 'fake.py')
  own = epath.Path(tmp_path / 'pets' / 'dev-0.01')
  own.mkdir(parents=True)
  with open(own / '.sweep-lock', 'w', encoding='utf-8') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    end = threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
    end.start()
    row = sweep.train_stage('configs/vtab.py:task=pets', 'dev', '0.01', own, [])
    assert not end.is_alive() and row['dev/top1'] == 0.01
  assert f'waiting for the run that is still active in {own}' in capsys.readouterr().out


@pytest.mark.slow
def test_the_run_ends_with_its_program(tmp_path):
  """On SIGTERM, and saves first; after a kill -9 it goes on, holding the lock."""
  (tmp_path / 'fake.py').write_text(
    'import os, signal, sys, time\n'
    f'save = lambda *_: (open({str(tmp_path / "saved")!r}, "w").close(), sys.exit(75))\n'
    'signal.signal(signal.SIGTERM, save)\n'
    f'open({str(tmp_path / "pid")!r}, "w").write(f"{{os.getpid()}}\\n")\n'
    'time.sleep(60)\n'
  )
  program = (
    'from etils import epath; from mixer import sweep; import pathlib; sweep.exit_on_sigterm();'
    f'sweep.TRAIN = pathlib.Path({str(tmp_path / "fake.py")!r});'
    f'sweep.train_stage("c:task=pets", "dev", "0.01", epath.Path({str(tmp_path / "run")!r}), [])'
  )
  env = runs.environment(JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'cache'))
  written = tmp_path / 'pid'
  for end in (signal.SIGKILL, signal.SIGTERM):
    written.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, '-c', program], cwd=runs.ROOT, env=env)
    assert runs.wait_for(lambda: written.exists() and written.read_text()[-1:] == '\n', process)
    started = int(written.read_text())
    process.send_signal(end)
    assert process.wait() == {signal.SIGKILL: -9, signal.SIGTERM: 75}[end]
    assert (tmp_path / 'saved').exists() == (end == signal.SIGTERM)
    with open(tmp_path / 'run' / '.sweep-lock', encoding='utf-8') as lock:
      if end == signal.SIGKILL:
        with pytest.raises(BlockingIOError):
          fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(started, signal.SIGKILL)
      fcntl.flock(lock, fcntl.LOCK_EX)  # at once, or when the kernel has ended it


@pytest.mark.parametrize(
  'word',
  [
    '--config=configs/digits.py', '--config.seed=3', '--config.optim.learning_rate=1',
    '--config.init.path=x', '--config.train_input.task=pets', '5', '-config=x',
  ],
)  # fmt: skip
def test_what_the_protocol_sets_itself(word):
  with pytest.raises(
    errors.InputError, match=re.escape(f"['{word}'] cannot be passed to train.py")
  ):
    vtab.check_rest([word])


def test_what_goes_to_train():
  rest = ['--config.microbatches=8', '--notensorboard', '--config.init.from_size=(1,2)']
  found = vtab.check_rest([*rest, '--noconfig.model.remat'])
  assert found == {'microbatches': '8', 'init.from_size': '(1,2)', 'noconfig.model.remat': ''}


def test_missing_data_are_listed_or_fatal(tmp_path, capsys, monkeypatch):
  data = pytest.importorskip('mixer.input.sources.vtab', reason='needs TensorFlow and TFDS')
  with pytest.raises(errors.MissingData) as fault:
    vtab.find_data([], str(tmp_path), require_all=False)
  text = str(fault.value)
  assert text.startswith('19 of the tasks have no data; to prepare them:\n  caltech101')
  for name, task in data.TASKS.items():
    assert f'  {name:<22} python -m mixer.input.prepare --name={task.dataset} --data_dir=' in text
  with pytest.raises(errors.InputError, match="unknown VTAB task 'cifar'; use one of"):
    vtab.find_data(['cifar'], None, require_all=False)
  monkeypatch.setattr(data, 'TRAIN', 8)
  monkeypatch.setattr(data, 'VAL', 4)
  examples = [
    {'image': np.zeros((32, 32, 3), np.uint8), 'label': 0, 'id': str(i)} for i in range(40)
  ]
  sets.write_registered(tmp_path, 'svhn_cropped', {'train': examples, 'test': examples})
  asked = ['svhn', 'retinopathy']
  assert vtab.find_data(asked, str(tmp_path), require_all=False) == {'svhn': 'svhn_cropped/3.1.0'}
  told = capsys.readouterr().out
  assert 'SKIPPED: 1 of the tasks have no data' in told
  assert 'btgraham-300 --data_dir=' in told and "--manual_dir=FOLDER   (Kaggle's" in told
  with pytest.raises(errors.MissingData, match='1 of the tasks have no data'):
    vtab.find_data(asked, str(tmp_path), require_all=True)


@pytest.mark.slow
def test_the_command_itself(tmp_path):
  """All of it but train.py: data, report, restart, and what it refuses."""
  pytest.importorskip('mixer.input.sources.vtab', reason='needs TensorFlow and TFDS')
  image = np.zeros((32, 32, 3), np.uint8)
  examples = [{'image': image, 'label': 0, 'id': str(i)} for i in range(40)]
  splits = {'train': examples, 'test': examples}
  sets.write_registered(tmp_path / 'sets', 'svhn_cropped', splits)
  (tmp_path / 'fake.py').write_text(FAKE_TRAIN)
  (tmp_path / 'small.npz').write_text('weights')
  program = (
    'import pathlib, runpy; from mixer import sweep; from mixer.input.sources import vtab;'
    f'sweep.TRAIN = pathlib.Path({str(tmp_path / "fake.py")!r}); vtab.TRAIN, vtab.VAL = 8, 4;'
    'runpy.run_module("mixer.vtab", run_name="__main__")'
  )
  command = [
    sys.executable, '-c', program, f'--checkpoint={tmp_path}/small.npz', '--model=L/16',
    f'--workdir={tmp_path}/vtab', '--tasks=svhn,pets', f'--data_dir={tmp_path}/sets', '--seeds=2',
    '--config.microbatches=8',
  ]  # fmt: skip

  def run(*more):
    done = subprocess.run(
      [*command, *more], cwd=runs.ROOT, env=runs.environment(), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout

  status, output = run()
  assert status == 0, output
  assert 'SKIPPED: 1 of the tasks have no data' in output and '--name=oxford_iiit_pet' in output
  assert '| svhn | natural | 0.03 | 3.00 | 3.00 ± 0.00 |' in output  # the fake's top-1 is its rate
  assert '| **mean of 1 tasks, not VTAB-1k** | | | | 3.00 |' in output
  assert 'Differs from configs/vtab.py in: microbatches=8.' in output
  facts = json.loads((tmp_path / 'vtab' / 'vtab.json').read_text())
  assert facts['sets'] == {'svhn': 'svhn_cropped/3.1.0'} and facts['mean'] == 0.03
  assert facts['tasks']['svhn']['dev'] == {'0.003': 0.003, '0.01': 0.01, '0.03': 0.03}
  assert (tmp_path / 'vtab' / 'vtab.md').read_text() in output
  assert (tmp_path / 'vtab' / 'vtab.csv').read_text().endswith('svhn,natural,0.03,0.03,0.03,0.0\n')
  started = (tmp_path / 'vtab' / 'svhn' / 'started').read_text()
  assert started == 'dev-0.003 dev-0.01 dev-0.03 final-0.03 final-0.03-seed1 '

  (tmp_path / 'vtab' / 'svhn' / 'final-0.03' / 'result.json').unlink()  # as if killed before
  status, again = run('--config.every.log=7')
  assert status == 0 and again.count('--config.optim.learning_rate') == 1
  status, output = run('--config.loss=sigmoid')
  assert status == 2 and "loss: '(absent)' in the workdir, 'sigmoid' now" in output


@pytest.mark.slow
def test_the_command_with_a_kill_and_a_restart(tmp_path):
  """Three tasks, of which one has no data, at 224 pixels and through real processes."""
  rng = np.random.default_rng(0)

  def digit(label):  # a colour for each class
    return np.clip(rng.normal(28 * label, 6, (32, 32, 3)), 0, 255).astype(np.uint8)

  def sprite(x):
    image = np.zeros((64, 64, 1), np.uint8)
    image[20:40, 2 * x : 2 * x + 2] = 1
    return image

  labels = rng.integers(0, 10, 2000)
  svhn = [{'image': digit(i), 'label': int(i), 'id': str(n)} for n, i in enumerate(labels)]
  sets.write_registered(tmp_path / 'sets', 'svhn_cropped', {'train': svhn, 'test': svhn[:50]})
  places = rng.integers(0, 32, 2000)
  values = {f'value_{key}': 0.0 for key in ('shape', 'scale', 'orientation', 'x_position')}
  dsprites = [
    {
      'image': sprite(x), 'label_x_position': int(x), 'label_y_position': 0, 'label_shape': 0,
      'label_scale': 0, 'label_orientation': int(x), 'value_y_position': 0.0, **values,
    }
    for x in places
  ]  # fmt: skip
  sets.write_registered(tmp_path / 'sets', 'dsprites', {'train': dsprites})
  model = models.build('Mixer-S/32', num_classes=7)
  pretrained.save(tmp_path / 'small.npz', models.init(model, jax.random.key(0), 224))

  env = runs.environment(
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'cache'), PYTHONPATH=str(runs.ROOT)
  )
  workdir = tmp_path / 'vtab'
  command = (
    f'--checkpoint={tmp_path}/small.npz', '--model=S/32', f'--workdir={workdir}',
    '--tasks=svhn,pets,dsprites_location', f'--data_dir={tmp_path}/sets',
    '--learning_rates=0.01,0.03', '--notensorboard', '--require=cpu', '--config.total_steps=12',
    '--config.train_input.batch_size=8', '--config.optim.schedule.warmup_steps=5',
    '--config.every.checkpoint=3', '--config.every.log=1',
  )  # fmt: skip
  log = tmp_path / 'log'  # not a pipe: nobody would empty it while we wait

  def start(*flags):
    with log.open('w') as output:
      program = [sys.executable, str(runs.ROOT / 'mixer' / 'vtab.py'), *flags]
      return subprocess.Popen(program, env=env, stdout=output, stderr=subprocess.STDOUT)

  for end, reached in (
    (signal.SIGKILL, 'svhn/dev-0.03/checkpoints/6'),  # its train.py goes on
    (signal.SIGTERM, 'dsprites_location/final-*/checkpoints/6'),
  ):
    process = start(*command)
    there = functools.partial(lambda pattern: any(workdir.glob(pattern)), reached)
    assert runs.wait_for(there, process, seconds=3600), log.read_text()
    process.send_signal(end)
    process.wait()
  process = start(*command)
  assert process.wait() == 0, log.read_text()
  output = log.read_text()
  assert 'SKIPPED: 1 of the tasks' in output and 'oxford_iiit_pet' in output
  assert output.count('train.py --config') == 1  # all but the last run had been finished

  facts = json.loads((workdir / 'vtab.json').read_text())
  assert facts['sets'] == {'svhn': 'svhn_cropped/3.1.0', 'dsprites_location': 'dsprites/2.0.0'}
  assert not facts['complete'] and set(facts['tasks']) == set(facts['sets'])
  for task, one in facts['tasks'].items():
    assert one['learning_rate'] == max(one['dev'], key=one['dev'].get)
    for rate, top1 in one['dev'].items():
      row = runs.rows(workdir / task / f'dev-{rate}')[-1]
      assert row['step'] == 12 and row['dev/top1'] == top1 and row['dev/n'] == 200
    final = workdir / task / f'final-{one["learning_rate"]}'
    row = runs.rows(final)[-1]
    assert row['step'] == 12 and one['test'] == [row['test/top1']]
    assert row['test/n'] == {'svhn': 50, 'dsprites_location': 200}[task]
    source = json.loads((final / 'init.json').read_text())
    assert 'head RESET' in source['changes'] and (final / 'model.npz').exists()
  means = [one['test'][0] for one in facts['tasks'].values()]
  assert facts['mean'] == pytest.approx(sum(means) / 2)
  assert '**mean of 2 tasks, not VTAB-1k**' in output

  assert start(*command).wait() == 0 and 'train.py --config' not in log.read_text()
  assert json.loads((workdir / 'vtab.json').read_text()) == facts
  assert start(*command, '--config.total_steps=13').wait() == 2
  assert 'belongs to a run with another config' in log.read_text()
