"""The studies: what they start, how they go on after a stop, and their tables and figures."""

import csv
import dataclasses
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time

from absl import flags
from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from mixer import config_file, models, pretrained, shipped
from mixer.errors import InputError, Interrupted
from mixer.studies import __main__ as program
from mixer.studies import fashion, schedule, tables
import runs

TRAIN = """
import json, os, pathlib, sys
flags = dict(flag.lstrip('-').partition('=')[::2] for flag in sys.argv[1:])
workdir = pathlib.Path(flags['workdir'])
with open(workdir.parent / 'started.txt', 'a') as file:
  file.write(f'{workdir.name} {len(os.sched_getaffinity(0))}\\n')
top1 = sum(map(ord, workdir.name)) % 997 / 1000  # another for each run
results = {f'{name}/top1': top1 for name in ('test', 'val', 'dev', 'test_ema')}
rows = [{'step': 1, 'test/top1': 0.1, 'val/top1': 0.0, 'images_per_sec': 9}]
rows += [{'step': 2, **results, 'test/loss': 1.5, 'test_ema/loss': 1.5, 'images_per_sec': 400}]
(workdir / 'metrics.jsonl').write_text(''.join(json.dumps(row) + chr(10) for row in rows))
(workdir / 'model.npz').touch()
"""
EVALUATE = """
import json, pathlib, sys
flags = dict(flag.lstrip('-').partition('=')[::2] for flag in sys.argv[1:])
assert (pathlib.Path(flags['checkpoint']) / 'model.npz').exists()
found = {f'digits/{k}shot': k / 100 for k in (1, 5, 10, 25)}
pathlib.Path(flags['output']).write_text(json.dumps(found))
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
  """Stand-ins for train.py and evaluate.py."""
  for name, text in (('TRAIN', TRAIN), ('EVALUATE', EVALUATE)):
    (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.setattr(shipped, name, tmp_path / f'{name}.py')
  return tmp_path


def scale(workdir, **changes) -> fashion.Scale:
  return dataclasses.replace(fashion.Scale(epath.Path(workdir), seeds=('0', '1')), **changes)


def started(workdir) -> list[str]:
  path = workdir / 'started.txt'
  return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def read(path) -> list[dict]:
  with open(path, encoding='utf-8') as file:
    return list(csv.DictReader(file))


def test_all_configs_load_with_their_flags():
  """Each command is one that train.py or evaluate.py takes, and no two runs share a folder."""
  whole = fashion.Scale(epath.Path('/none'))
  all_runs = schedule.with_needed(
    run for make in fashion.PARTS.values() for run in make(whole).runs
  )
  assert len({run.name for run in all_runs}) == len(all_runs)
  names = [run.name for run in schedule.with_needed(fashion.rates(whole).runs)]
  source, tuned = 'whole-ViT-S-seed0', 'rates-digits-ViT-pre-trained-0.001-seed0'
  assert names.index(source) < names.index(tuned)  # in any part alone
  for run in all_runs:
    arguments = dict(one.removeprefix('--').partition('=')[::2] for one in run.arguments)
    path, _, argument = arguments['config'].partition(':')
    module = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
    config = module.get_config(argument)
    for key in arguments:
      section, _, rest = key.removeprefix('config.').partition('.')
      if key.startswith('config.'):
        assert section in config or section in config_file.OPTIONAL_KEYS, key
        assert not rest or rest.split('.')[0] in config[section], key


def test_full_length_is_that_of_the_config():
  config = importlib.import_module('configs.fashion_mnist').get_config()
  assert fashion.Scale.full_epochs == config.total_epochs
  assert config.model.hidden_dim == 64  # of size M, the last of `Scale.sizes`


def test_a_study(programs, capsys):
  """Runs that others need come first; the same command starts nothing again."""
  whole = scale(programs, percents=(3, 100))
  chosen = ['transfer', 'full_length', 'data_size', 'permutations', 'options']
  program.study(whole, chosen, jobs=3)
  order = started(programs)
  assert len(order) == len(set(order))
  before, after = 'whole-ViT-S-seed1', 'digits-ViT-pre-trained-seed1'
  assert order.index(before) < order.index(after)
  assert {line.split()[1] for line in (programs / 'started.txt').read_text().splitlines()} == {'1'}

  def top1(name: str) -> float:
    return sum(map(ord, name)) % 997 / 1000

  table = read(programs / 'data_size.csv')
  assert len(table) == 3 * 2 * 2
  row = next(row for row in table if (row['model'], row['percent']) == ('ViT-S', '3'))
  assert float(row['test_top1']) == top1('subset-ViT-3-seed0') and row['best_step'] == '2'
  both = [top1(f'kind-BiT-global-seed{seed}') for seed in (0, 1)]
  cell = f'{100 * statistics.fmean(both):.1f} ± {100 * np.std(both, ddof=1):.1f}'
  (line,) = [
    line for line in (programs / 'permutations.md').read_text().splitlines() if 'BiT' in line
  ]
  assert line.endswith(f'| {cell} |')
  text = (programs / 'full_length.md').read_text()
  full = [top1(f'full-Mixer-M-seed{seed}') for seed in (0, 1)]
  each = f'{100 * full[0]:.2f}, {100 * full[1]:.2f}'
  assert f'| Mixer-M | 12.0 | {tables.percent(full)} | {each} |' in text
  text = (programs / 'transfer.md').read_text()
  assert '| Mixer-S, pre-trained | 1.0 ± 0.0 | 5.0 ± 0.0 |' in text
  assert (programs / 'options.md').read_text().count('\n') == 2 + len(fashion.OPTIONS)
  for name in ('data_size', 'permutations'):
    with Image.open(programs / f'{name}.png') as picture:
      assert picture.width >= 500
  printed = capsys.readouterr().out
  assert f'of {len(order) + 12} runs done, about ' in printed  # with 12 few-shot evaluations
  program.study(whole, chosen, jobs=3)
  assert started(programs) == order

  other = scale(programs, digits_steps=5)
  with pytest.raises(InputError, match=r'has a run with other arguments \(--config\.total_steps=4'):
    program.study(other, ['transfer'], jobs=1)


def test_tables_of_families(tmp_path):
  """Facts of the models are read from what the runs have written."""
  whole = scale(tmp_path, sizes=('S',), seeds=('0',))
  for run in fashion.families(whole).runs:
    config = importlib.import_module('configs.fashion_mnist').get_config(
      run.arguments[0].partition(':')[2]
    )
    facts = {**config.model.to_dict(), 'num_classes': 10}
    params = models.shapes(models.build(**facts), (28, 28), 1)
    known = {
      'model': facts, 'image_size': (28, 28), 'channels': 1, 'loss': 'softmax',
      'preprocessing': {'name': 'none', 'value_range': [-1, 1]}, 'class_names': None,
    }  # fmt: skip
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    (tmp_path / run.name).mkdir()
    pretrained.save_model(epath.Path(tmp_path / run.name), zeros, known)
    rows = [{'step': 1, 'images_per_sec': 1}, {'step': 2, 'images_per_sec': 500}]
    rows[1] |= {'test/top1': 0.5, 'test/loss': 1.0}
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (tmp_path / run.name / 'metrics.jsonl').write_text(lines)
  program.study(whole, ['families'], jobs=1)
  text = (tmp_path / 'families.md').read_text()
  assert '| Mixer-S | 47,726 | 12.1 | 500 | 50.0 | 50.00 |' in text
  with Image.open(tmp_path / 'families.png') as picture:
    assert picture.width >= 1000


def test_means_and_deviations():
  rows = [
    {'m': 'a', 'x': 1, 'v': '0.1'}, {'m': 'a', 'x': 1, 'v': 0.3}, {'m': 'b', 'x': 2, 'v': 0.5}
  ]  # fmt: skip
  assert tables.markdown(rows, 'm', 'x', 'v', corner='c') == (
    '| c | 1 | 2 |\n| --- | --- | --- |\n| a | 20.0 ± 14.1 | - |\n| b | - | 50.0 |\n'
  )


def test_a_run_that_fails_or_is_stopped(programs, capsys):
  whole = scale(programs, sizes=('S',), percents=(3,))
  (programs / 'TRAIN.py').write_text('raise SystemExit("no such thing")')
  with pytest.raises(InputError, match=r'^the run subset-Mixer-3-seed0 ended with status 1; its l'):
    program.study(whole, ['data_size'], jobs=1)
  assert 'no such thing' in capsys.readouterr().err
  (programs / 'TRAIN.py').write_text('print("nothing to do")')
  with pytest.raises(InputError, match=r'^the run subset-Mixer-3-seed0 ended without model\.npz; '):
    program.study(whole, ['data_size'], jobs=1)
  (programs / 'TRAIN.py').write_text('raise SystemExit(75)')
  with pytest.raises(Interrupted, match=r'-seed0 was stopped; the same command continues it\.$'):
    program.study(whole, ['data_size'], jobs=1)
  assert not (programs / 'data_size.csv').exists()


def test_stopping_stops_the_runs(programs, monkeypatch):
  (programs / 'TRAIN.py').write_text(
    'import pathlib, sys, time\n'
    'def stop(*_):\n  pathlib.Path(sys.argv[1][10:], "stopped").touch()\n  sys.exit(75)\n'
    'import signal; signal.signal(signal.SIGTERM, stop)\n'
    'pathlib.Path(sys.argv[1][10:], "begun").touch()\ntime.sleep(60)\n'
  )

  def sleep(_):
    if len(list(programs.glob('subset*/begun'))) == 2:
      raise KeyboardInterrupt
    time.sleep(0.01)

  monkeypatch.setattr(
    schedule, 'time', type('T', (), {'sleep': sleep, 'monotonic': time.monotonic})
  )
  with pytest.raises(KeyboardInterrupt):
    program.study(scale(programs), ['data_size'], jobs=2)
  assert len(list(programs.glob('subset*/stopped'))) == 2


def test_wrong_requests(tmp_path, monkeypatch):
  given = {
    'only': [],
    'seeds': ['0'],
    'sizes': ['S'],
    'workdir': str(tmp_path),
    'path': None,
    'fast': False,
  }
  monkeypatch.setattr(flags, 'FLAGS', type('Given', (), given))
  with pytest.raises(InputError, match="^unknown study 'vit'; the one that there is has the name "):
    program.main('vit')
  flags.FLAGS.only = ['transfer', 'few']
  with pytest.raises(InputError, match='^--only=few: give some of rates,families,full_length,t'):
    program.main()
  flags.FLAGS.only, flags.FLAGS.seeds = [], ['0', '0']
  with pytest.raises(InputError, match='^--seeds=0,0: give different numbers'):
    program.main()
  flags.FLAGS.seeds, flags.FLAGS.sizes = ['0'], ['XL']
  with pytest.raises(InputError, match='^--sizes=XL: give some of S,M'):
    program.main()
  flags.FLAGS.sizes, flags.FLAGS.path = ['S'], str(tmp_path)
  with pytest.raises(InputError, match='no train-images-idx3-ubyte or '):
    program.main()


# --- Real runs ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on(tmp_path):
  """--fast; what was done stays, and the killed runs end as if undisturbed."""
  command = [sys.executable, '-m', 'mixer.studies', 'fashion', '--fast', '--jobs=2']
  cache = str(tmp_path / 'cache')
  env = runs.optimised(JAX_COMPILATION_CACHE_DIR=cache, PYTHONPATH=str(runs.ROOT))

  def start(workdir) -> subprocess.Popen:
    with open(tmp_path / 'output.txt', 'a', encoding='utf-8') as output:
      return subprocess.Popen(
        [*command, f'--workdir={workdir}'], env=env, stdout=output, stderr=output
      )

  process = start(tmp_path / 'study')
  done = tmp_path / 'study' / 'whole-Mixer-S-seed0' / 'model.npz'
  assert runs.wait_for(done.exists, process, 1200)
  before = done.stat().st_mtime_ns
  children = subprocess.run(
    ['ps', '--ppid', str(process.pid), '-o', 'pid='], capture_output=True, text=True, check=True
  )
  process.send_signal(signal.SIGKILL)
  for child in children.stdout.split():
    os.kill(int(child), signal.SIGKILL)
  process.wait()
  process = start(tmp_path / 'study')
  assert process.wait(3600) == 0, (tmp_path / 'output.txt').read_text()
  assert done.stat().st_mtime_ns == before
  for name in fashion.PARTS:
    assert read(tmp_path / 'study' / f'{name}.csv')


# --- Published results ----------------------------------------------------------------------

RESULTS = sorted((runs.ROOT / 'docs' / 'small_scale').glob('*.csv'))


@pytest.mark.parametrize('path', RESULTS, ids=lambda path: path.stem)
def test_published_tables_are_those_of_the_published_numbers(path):
  part = fashion.PARTS[path.stem](fashion.Scale(epath.Path('/none')))
  page = (runs.ROOT / 'docs' / 'small_scale.md').read_text()
  for table in part.tables(read(path)).strip().split('\n\n'):
    assert table in page
  assert part.figure is None or path.with_suffix('.png').exists()
