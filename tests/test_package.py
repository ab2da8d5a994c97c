"""The installed package: its programs work from any directory."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from mixer import __main__ as command
from mixer import config_file
from mixer.errors import InputError
import runs
from test_architecture import ENTRY_POINTS


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """A directory with what `pip install .` puts into site-packages."""
  root = tmp_path_factory.mktemp('package')
  for name in ('mixer', 'configs'):
    shutil.copytree(runs.ROOT / name, root / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('train.py', 'evaluate.py', 'pyproject.toml', 'README.md'):
    shutil.copy(runs.ROOT / name, root)
  build = 'from setuptools import build_meta; print(build_meta.build_wheel("."))'
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', build], cwd=root, text=True, capture_output=True
  )
  assert done.returncode == 0, done.stderr
  zipfile.ZipFile(root / done.stdout.split()[-1]).extractall(root / 'site')
  return root / 'site'


def run(site, cwd, *words, **env):
  """(exit status, everything printed) of Python with the package installed."""
  done = subprocess.run(
    [sys.executable, *words], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    env={**runs.environment(), 'PYTHONPATH': str(site), **env}, timeout=300,
  )  # fmt: skip
  return done.returncode, done.stdout


def test_every_module_and_config_is_in_it(site):
  wanted = {
    str(path.relative_to(runs.ROOT))
    for path in (runs.ROOT / 'mixer').rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }
  others = [*runs.ROOT.glob('configs/*.py'), runs.ROOT / 'train.py', runs.ROOT / 'evaluate.py']
  wanted |= {f'mixer/programs/{path.relative_to(runs.ROOT)}' for path in others}
  found = {str(path.relative_to(site)) for path in site.rglob('*') if path.is_file()}
  assert {name for name in found if '.dist-info/' not in name} == wanted


def test_a_config_is_found_from_another_directory(site, tmp_path):
  """fewshot.py imports another shipped config; one of the user's with that name comes first."""
  command = ['-m', 'mixer.input.check', '--config=configs/fewshot.py:data=digits']
  status, output = run(site, tmp_path, *command)
  assert status == 0 and output.count('images in memory, nothing to decode') == 2, output
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'fewshot.py').write_text('def get_config(a): raise ValueError("mine")')
  assert run(site, tmp_path, *command) == (2, 'error: mine\n')
  assert run(site, tmp_path, '-m', 'mixer', 'check', '--config=fewshot:a') == (2, 'error: mine\n')


def test_the_command_starts_every_program(site, tmp_path, capsys, monkeypatch):
  (points,) = site.glob('*.dist-info/entry_points.txt')
  assert points.read_text() == '[console_scripts]\nmixer = mixer.__main__:main\n'
  modules = [str(f.relative_to(runs.ROOT).with_suffix('')) for f in command.COMMANDS.values()]
  own = [name for name in ENTRY_POINTS if name != 'mixer.__main__']
  assert sorted(name.replace('/', '.') for name in modules) == sorted(own)
  monkeypatch.setattr(sys, 'argv', ['mixer'])
  command.main()
  listed = capsys.readouterr().out
  assert re.search('^  train +Trains a model$', listed, re.M)
  assert listed.count('\n') == len(command.COMMANDS) + 4
  monkeypatch.setattr(sys, 'argv', ['mixer', 'trian'])
  with pytest.raises(SystemExit, match='^2$'):
    command.main()
  assert capsys.readouterr().err == "error: there is no command 'trian'; did you mean train?\n"
  code = 'from mixer.__main__ import main; main()'  # what the installed script contains
  status, output = run(site, tmp_path, '-c', code, 'train', '--config=digits')
  assert status == 2 and output.startswith('error: --workdir=DIR is missing'), output
  with pytest.raises(InputError, match='--config=finetun:model=B/16: .* Did you mean finetune?'):
    config_file.read('finetun:model=B/16')


def test_python_versions_are_those_that_are_tested():
  project = tomllib.loads((runs.ROOT / 'pyproject.toml').read_text())['project']
  assert project['requires-python'] == '>=3.11,<3.14'
  assert 'Python 3.11 to 3.13' in (runs.ROOT / 'README.md').read_text()
  assert '(3, 11) <= sys.version_info < (3, 14)' in (runs.ROOT / 'Makefile').read_text()


def readme_snippet():
  """The Python of README's section on the library, at a small size."""
  text = (runs.ROOT / 'README.md').read_text().partition('## As a library')[2]
  assert 'pip install .\n' in text.partition('```python')[0]
  return re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]


@pytest.mark.slow
def test_programs_of_the_package(site, tmp_path):
  """All start; a program that starts train.py finds it, and README's snippet runs as written."""
  for module in ENTRY_POINTS:
    if module.startswith('mixer.'):
      status, output = run(site, tmp_path, '-m', module.removesuffix('.__main__'), '--help')
      assert status == 0 and 'Try --helpfull' in output, output
  flags = [*runs.TINY, '--config.total_steps=2', '--notensorboard', '--require=cpu']
  code = f"""
from etils import epath
from mixer import sweep
print(sweep.train('configs/digits.py', epath.Path('run'), *{flags}))
"""
  status, output = run(site, tmp_path, '-c', code)
  assert status == 0 and "'step': 2" in output, output
  assert os.listdir(tmp_path / 'run' / 'checkpoints') == ['2']
  status, output = run(site, tmp_path, '-c', readme_snippet())
  assert status == 0 and pathlib.Path(tmp_path / 'model.npz').exists(), output
