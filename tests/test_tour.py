"""The notebook docs/tour.ipynb: that its names exist, and that it runs."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
import types

import pytest

import runs

NOTEBOOK = json.loads((runs.ROOT / 'docs' / 'tour.ipynb').read_text())
CODE = [
  ''.join(cell['source']) for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code'
]  # fmt: skip


def imported(tree):
  """{name: what the imports of mixer and configs in a syntax tree give it}."""
  found = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.partition('.')[0] in ('mixer', 'configs'):
      for name in node.names:
        try:
          value = importlib.import_module(f'{node.module}.{name.name}')
        except ModuleNotFoundError:
          value = getattr(importlib.import_module(node.module), name.name)
        found[name.asname or name.name] = value
  return found


def test_names_and_arguments_exist():
  tree = ast.parse('\n'.join(CODE))
  names, used = imported(tree), set()
  for node in ast.walk(tree):
    function = node.func if isinstance(node, ast.Call) else node
    if not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)):
      continue
    owner = names.get(function.value.id)
    if isinstance(owner, types.ModuleType):
      value = getattr(owner, function.attr)
      used.add(function.value.id)
      if isinstance(node, ast.Call):
        keywords = {word.arg: None for word in node.keywords}
        inspect.signature(value).bind(*node.args, **keywords)
  assert used == set(names)


def test_outputs_are_there_and_small():
  for cell in NOTEBOOK['cells']:
    if cell['cell_type'] == 'code':
      assert cell['execution_count']
      assert all(output['output_type'] != 'error' for output in cell['outputs'])
  assert len(json.dumps(NOTEBOOK)) < 500_000


@pytest.mark.slow
def test_it_runs():
  """As in Jupyter: in docs/, cell by cell; the model that it exports is the one that it trained."""
  checks = 'print(json.dumps([tuned, float(accuracy)]))'
  done = subprocess.run(
    [sys.executable, '-c', '\n'.join([*CODE, checks])], cwd=runs.ROOT / 'docs', text=True,
    capture_output=True, env=runs.optimised(), timeout=900,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  trained, exported = json.loads(done.stdout.splitlines()[-1])
  assert exported == pytest.approx(trained) and trained > 0.5
