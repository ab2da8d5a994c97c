"""The studies: what they start, what they write, and that they resume after a kill."""

import csv
import os
import signal
import subprocess
import sys

from etils import epath
from PIL import Image
import pytest

from mixer import studies, sweep
from mixer.errors import InputError, Interrupted
from mixer.visualize import plots
import runs

TINY = (
  '--config.train_input.copies=1',
  '--config.evals.val.input.copies=1',
  '--config.evals.test.input.copies=1',
  '--config.total_steps=6',
  '--config.every.evaluate=2',
  '--config.every.checkpoint=2',
)


TRAIN = """
import json, pathlib, sys
flags = dict(flag.lstrip('-').partition('=')[::2] for flag in sys.argv[1:])
workdir = pathlib.Path(flags['workdir'])
top1 = sum(map(ord, workdir.name)) % 997 / 1000  # another for each run
rows = [{'step': 100}, {'step': 200, 'test/top1': top1 / 3, 'val/top1': 0.1}]
rows += [{'step': 300, 'test/top1': top1 / 2, 'val/top1': 0.1}]
(workdir / 'metrics.jsonl').write_text(''.join(json.dumps(row) + chr(10) for row in rows))
"""
EVALUATE = """
import json, pathlib, sys
flags = dict(flag.lstrip('-').partition('=')[::2] for flag in sys.argv[1:])
top1 = sum(map(ord, pathlib.Path(flags['checkpoint']).name)) % 997 / 1000
found = {'checkpoint': flags['checkpoint'] + ', step 200', 'val/top1': 0.5, 'test/top1': top1}
pathlib.Path(flags['output']).write_text(json.dumps(found))
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
  """Programs in place of train.py and evaluate.py, and the commands by which they were started."""
  for module, name, program in ((sweep, 'TRAIN', TRAIN), (studies, 'EVALUATE', EVALUATE)):
    path = tmp_path / f'{name}.py'
    path.write_text(program)
    monkeypatch.setattr(module, name, path)
  started, run = [], sweep.run_to_end

  def record(command, *args, **kwargs):
    started.append((command[0].rsplit('/')[-1], *command[1:]))
    return run(command, *args, **kwargs)

  monkeypatch.setattr(sweep, 'run_to_end', record)
  return started


def study(workdir, seeds, rest, models=('mixer', 'resnet')) -> studies.Study:
  return studies.Study(epath.Path(workdir), seeds, models, rest)


def read(path):
  with open(path, encoding='utf-8') as file:
    return list(csv.DictReader(file))


def test_permutations(commands, tmp_path, capsys):
  studies.permutations(study(tmp_path, ['0', '1'], ['--config.x=1']))
  configs = [
    f'permutations_small.py:model={model},kind={kind}'
    for model in ('mixer', 'resnet') for kind in ('original', 'patch_pixel', 'global')
  ]  # fmt: skip
  assert [command[1].rsplit('/')[-1] for command in commands] == 2 * configs
  assert {command[0] for command in commands} == {'TRAIN.py'}
  assert [command[-2:] for command in commands] == [
    (f'--config.seed={seed}', '--config.x=1') for seed in '0' * 6 + '1' * 6
  ]
  table = read(tmp_path / 'permutations.csv')
  assert len(table) == 24 and {row['step'] for row in table} == {'200', '300'}
  last = [float(row['test_top1']) for row in table
          if (row['model'], row['kind'], row['step']) == ('resnet', 'global', '300')]  # fmt: skip
  assert last[0] != last[1]
  assert capsys.readouterr().out.split()[-1] == f'{50 * sum(last):.1f}'
  with Image.open(tmp_path / 'permutations.png') as picture:
    assert picture.width > 600


def test_data_size(commands, tmp_path, capsys):
  studies.data_size(study(tmp_path, ['0'], ['--config.x=1', '--require=cpu']))
  configs = [
    f'data_size_small.py:model={model},subset={percent}'
    for model in ('mixer', 'resnet') for percent in (3, 10, 30, 100)
  ]  # fmt: skip
  for program in ('TRAIN.py', 'EVALUATE.py'):
    own = [command for command in commands if command[0] == program]
    assert [command[1].rsplit('/')[-1] for command in own] == configs
    assert all('--config.x=1' in command for command in own)
  assert all('--which=best' in command and '--require=cpu' not in command for command in own)
  table = read(tmp_path / 'data_size.csv')
  assert [row['percent'] for row in table] == ['3', '10', '30', '100'] * 2
  assert {(row['best_step'], row['steps'], row['val_top1']) for row in table} == {
    ('200', '300', '0.5')
  }
  for row in table:
    assert float(row['last_test_top1']) == pytest.approx(float(row['test_top1']) / 2)
  assert capsys.readouterr().out.split()[-1] == f'{100 * float(table[-1]["test_top1"]):.1f}'
  del commands[:]
  studies.data_size(study(tmp_path, ['0'], []))
  assert {command[0] for command in commands} == {'TRAIN.py'}  # nothing is evaluated again


def test_means():
  table = [
    {'model': model, 'step': step, 'test_top1': value}
    for model, step, value in (('a', 1, 0.2), ('b', 1, 9), ('a', 2, 0.5), ('a', 1, 0.4))
  ]
  assert studies.means(table, 'step', model='a') == [(1, pytest.approx(0.3)), (2, 0.5)]


def test_unknown_study():
  with pytest.raises(InputError, match=r"^unknown study 'vit'; use one of \['data_size', 'perm"):
    studies.main('vit')


def test_an_evaluation_that_fails(commands, tmp_path):
  (tmp_path / 'EVALUATE.py').write_text('raise SystemExit(2)')
  text = rf'^the evaluation of {tmp_path}/data_size-mixer-3-seed0 ended with status 2; see its '
  with pytest.raises(InputError, match=text):
    studies.data_size(study(tmp_path, ['0'], []))


def test_a_run_that_is_stopped(commands, tmp_path):
  (tmp_path / 'TRAIN.py').write_text('raise SystemExit(75)')
  text = 'data_size-mixer-3-seed0 was stopped; the same command continues it'
  with pytest.raises(Interrupted, match=text):
    studies.data_size(study(tmp_path, ['0'], []))
  (tmp_path / 'TRAIN.py').write_text(TRAIN)
  (tmp_path / 'EVALUATE.py').write_text('raise SystemExit(75)')
  with pytest.raises(Interrupted, match='^the evaluation of .*seed0 was stopped; the same command'):
    studies.data_size(study(tmp_path, ['0'], []))


def test_the_figure_names_its_curves_in_words(commands, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(plots, 'png', lambda panels, *_, **__: drawn.append(panels))
  studies.permutations(study(tmp_path, ['0'], []))
  ((mixer, resnet),) = [panels.items() for panels in drawn]
  assert (mixer[0], resnet[0]) == ('Mixer', 'ResNet')
  assert list(mixer[1]) == list(resnet[1]) == [
    'original images', 'patches and the pixels within them shuffled', 'all pixels shuffled'
  ]  # fmt: skip


# --- Real runs ------------------------------------------------------------------------------


def start(study, workdir, env) -> subprocess.Popen:
  """The study as a command; what it prints goes to workdir/output.txt, so that no pipe fills."""
  workdir.mkdir(exist_ok=True)
  command = [sys.executable, str(runs.ROOT / 'mixer/studies.py'), study, f'--workdir={workdir}']
  with open(workdir / 'output.txt', 'w', encoding='utf-8') as output:
    return subprocess.Popen([*command, *TINY], env=env, stdout=output, stderr=output)


def kill_with_its_program(process: subprocess.Popen) -> None:
  children = subprocess.run(
    ['ps', '--ppid', str(process.pid), '-o', 'pid='], capture_output=True, text=True, check=True
  )
  process.send_signal(signal.SIGKILL)
  for child in children.stdout.split():
    os.kill(int(child), signal.SIGKILL)
  process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('study', 'victim', 'config', 'rows'),
  [
    ('permutations', 'mixer-patch_pixel', 'permutations_small.py:model=mixer,kind=patch_pixel', 18),
    ('data_size', 'mixer-10', 'data_size_small.py:model=mixer,subset=10', 8),
  ],
)
def test_a_study_that_is_killed_goes_on(study, victim, config, rows, tmp_path):
  """The same command ends it: what was done stays, and the killed run ends as if undisturbed."""
  env = runs.environment(tmp_path / 'cache', PYTHONPATH=str(runs.ROOT))
  workdir = tmp_path / 'study'
  run = workdir / f'{study}-{victim}-seed0'
  process = start(study, workdir, env)
  assert runs.wait_for((run / 'checkpoints' / '2').exists, process, 1200)
  kill_with_its_program(process)
  assert not (workdir / f'{study}.csv').exists()
  process = start(study, workdir, env)
  assert process.wait(3600) == 0, (workdir / 'output.txt').read_text()
  assert (workdir / 'output.txt').read_text().count('is finished: 6 of 6 steps') == 1
  table = read(workdir / f'{study}.csv')
  assert len(table) == rows and (workdir / f'{study}.png').read_bytes().startswith(b'\x89PNG')

  alone = tmp_path / 'alone'
  flags = runs.train_flags(alone, '--config.seed=0', *TINY, config=f'configs/{config}')
  status, output = runs.run('train.py', *flags, env=env)
  assert status == 0, output
  assert [runs.learned(row) for row in runs.rows(run)] == [
    runs.learned(row) for row in runs.rows(alone)
  ]
  last = [row for row in table if victim.rsplit('-', 1)[-1] in row.values()
          and row['model'] == 'mixer'][-1]  # fmt: skip
  key = 'test_top1' if study == 'permutations' else 'last_test_top1'
  assert float(last[key]) == runs.rows(alone)[-1]['test/top1']
