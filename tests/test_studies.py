"""The studies: what they start, what they make of it, and that they go on after a kill."""

import csv
import json
import signal

from PIL import Image
import pytest

from mixer import studies
from mixer.errors import InputError, Interrupted
import runs

TINY = (
  '--config.train_input.copies=1',
  '--config.evals.val.input.copies=1',
  '--config.evals.test.input.copies=1',
  '--config.total_steps=6',
  '--config.every.evaluate=2',
  '--config.every.checkpoint=2',
)


@pytest.fixture
def programs(monkeypatch):
  """In place of train.py and evaluate.py: accuracies that tell the run; the calls so far."""
  calls = []

  def top1(workdir):
    return sum(map(ord, workdir.rsplit('/', 1)[-1])) % 997 / 1000

  def start(program, config, *arguments):
    options = dict(argument.lstrip('-').partition('=')[::2] for argument in arguments)
    calls.append((program, config, options))
    if program == 'evaluate.py':
      value = top1(options['checkpoint'])
      found = {'checkpoint': f'{options["checkpoint"]}, step 200', 'val/top1': 0.5}
      found['test/top1'] = value
      with open(options['output'], 'w') as file:
        json.dump(found, file)
      return
    workdir = studies.files.absolute(options['workdir'])
    workdir.mkdir(parents=True, exist_ok=True)
    rows = [{'step': step} for step in (100, 200, 300)]
    for i in (1, 2):
      rows[i] |= {'test/top1': top1(str(workdir)) / (4 - i), 'val/top1': 0.1}
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))

  monkeypatch.setattr(studies, 'start', start)
  return calls


def read(path):
  with open(path) as file:
    return list(csv.DictReader(file))


def test_permutations(programs, tmp_path, capsys):
  studies.permutations(studies.files.absolute(str(tmp_path)), ['0', '1'], ['--config.x=1'])
  assert len(programs) == 12 and {name for name, *_ in programs} == {'train.py'}
  assert {config for _, config, _ in programs} == {
    f'configs/permutations_small.py:model={model},kind={kind}'
    for model in ('mixer', 'resnet') for kind in ('original', 'patch_pixel', 'global')
  }  # fmt: skip
  assert {options['config.seed'] for *_, options in programs} == {'0', '1'}
  assert {options['config.x'] for *_, options in programs} == {'1'}
  table = read(tmp_path / 'permutations.csv')
  assert len(table) == 24 and {row['step'] for row in table} == {'200', '300'}
  last = [float(row['test_top1']) for row in table
          if (row['model'], row['kind'], row['step']) == ('resnet', 'global', '300')]  # fmt: skip
  assert f'{50 * sum(last):.1f}' in capsys.readouterr().out.splitlines()[-1]
  with Image.open(tmp_path / 'permutations.png') as picture:
    assert picture.width > 600


def test_data_size(programs, tmp_path, capsys):
  workdir = studies.files.absolute(str(tmp_path))
  studies.data_size(workdir, ['0'], ['--config.x=1', '--require=cpu'])
  trained = [config for name, config, _ in programs if name == 'train.py']
  assert trained == [
    f'configs/data_size_small.py:model={model},subset={percent}'
    for model in ('mixer', 'resnet') for percent in (3, 10, 30, 100)
  ]  # fmt: skip
  evaluated = [options for name, _, options in programs if name == 'evaluate.py']
  assert len(evaluated) == 8
  assert all('which' in options and 'require' not in options for options in evaluated)
  table = read(tmp_path / 'data_size.csv')
  assert [row['percent'] for row in table] == ['3', '10', '30', '100'] * 2
  assert {row['best_step'] for row in table} == {'200'} and {row['steps'] for row in table} == {
    '300'
  }
  for row in table:
    assert float(row['last_test_top1']) == pytest.approx(float(row['test_top1']) / 2)
  assert f'{100 * float(table[-1]["test_top1"]):.1f}' in capsys.readouterr().out.splitlines()[-1]
  studies.data_size(workdir, ['0'], [])
  assert len([name for name, *_ in programs if name == 'evaluate.py']) == 8  # none again


def test_means():
  table = [
    {'model': model, 'step': step, 'test_top1': value}
    for model, step, value in (('a', 1, 0.2), ('b', 1, 9), ('a', 2, 0.5), ('a', 1, 0.4))
  ]
  assert studies.means(table, 'step', model='a') == [(1, pytest.approx(0.3)), (2, 0.5)]


def test_unknown_study():
  with pytest.raises(InputError, match=r"^unknown study 'vit'; use one of \['data_size', 'perm"):
    studies.main('vit')


def test_a_run_that_fails(tmp_path, monkeypatch):
  monkeypatch.setattr(studies, 'ROOT', tmp_path)
  (tmp_path / 'train.py').write_text('raise SystemExit(2)')
  with pytest.raises(InputError, match=r'^train.py ended with status 2; see its message above\.$'):
    studies.train('configs/digits.py', tmp_path / 'run', '0', [])


def test_a_run_that_is_told_to_stop(tmp_path, monkeypatch):
  monkeypatch.setattr(studies, 'ROOT', tmp_path)
  (tmp_path / 'train.py').write_text('raise SystemExit(75)')
  with pytest.raises(Interrupted, match='^in train.py; the same command again goes on there'):
    studies.train('configs/digits.py', tmp_path / 'run', '0', [])


# --- Real runs ------------------------------------------------------------------------------


def start(study, workdir, env):
  return runs.start('mixer/studies.py', study, f'--workdir={workdir}', *TINY, env=env)


def killed_and_restarted(study, workdir, env, victim):
  """The study killed, with its program, while run `victim` trains; then the same command."""
  process = start(study, workdir, {**env, 'PYTHONUNBUFFERED': '1'})
  assert runs.wait_for((workdir / victim / 'checkpoints' / '2').exists, process, 600)
  children = runs.subprocess.run(
    ['ps', '--ppid', str(process.pid), '-o', 'pid='], capture_output=True, text=True, check=True
  )
  process.send_signal(signal.SIGKILL)
  for child in children.stdout.split():
    runs.os.kill(int(child), signal.SIGKILL)
  process.communicate()
  assert not (workdir / f'{study}.csv').exists()
  process = start(study, workdir, env)
  output, _ = process.communicate(timeout=1800)
  assert process.returncode == 0, output
  return output


@pytest.mark.slow
@pytest.mark.parametrize(
  ('study', 'victim', 'rows'),
  [
    ('permutations', 'permutations-mixer-patch_pixel-seed0', 18),
    ('data_size', 'data_size-mixer-10-seed0', 8),
  ],
)
def test_a_study_that_is_killed_goes_on(study, victim, rows, tmp_path):
  env = runs.environment(tmp_path / 'cache', PYTHONPATH=str(runs.ROOT))
  straight = start(study, tmp_path / 'straight', env)
  output, _ = straight.communicate(timeout=1800)
  assert straight.returncode == 0, output
  again = killed_and_restarted(study, tmp_path / 'killed', env, victim)
  assert 'is finished: 6 of 6 steps' in again  # the run before the victim is not made twice
  found, wanted = (
    (tmp_path / name / f'{study}.csv').read_bytes() for name in ('killed', 'straight')
  )
  assert found == wanted and len(read(tmp_path / 'killed' / f'{study}.csv')) == rows
  assert (tmp_path / 'killed' / f'{study}.png').read_bytes().startswith(b'\x89PNG')
