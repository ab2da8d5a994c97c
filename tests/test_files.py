"""Damaged files of a workdir: each error names the file, the line and what to do."""

import json
import os
import re
import subprocess
import sys

from etils import epath
import pytest

from mixer import files
from mixer.errors import InputError
from mixer.pretrained import description
from mixer.report import run_files
from mixer.run import metrics_log, workdirs
import runs

CONFIG = {
  'train_input': {'source': 'digits', 'split': 'train'},
  'evals': {},
  'model': {'name': 'Mixer'},
  'loss': 'softmax',
}
# what is in a file that should hold an object -> (the line, the fault)
DAMAGES = {
  b'': (1, 'it is empty'),
  b'\n \n': (3, 'it is empty'),
  b'\x00' * 40: (1, 'Expecting value'),
  b'{"model": {\n "name": ': (2, 'Expecting value'),
  b'{"loss": 1}\n{"loss": 2}\n': (2, 'Extra data'),
  b'{\n\n"a": "\xff"}': (3, 'this is not UTF-8 text'),
  b'null': (1, 'a JSON object is expected'),
  b'7\n': (1, 'a JSON object is expected'),
  b'[' * 100_000: (1, 'it is nested too deeply'),
}


def run(root, config=CONFIG, rows=()):
  (root / 'config.json').write_text(json.dumps(config))
  (root / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return epath.Path(root)


def fails(path, line, fault, function, *arguments, **named):
  """The last sentences of the error, which says what to do."""
  with pytest.raises(InputError) as caught:
    function(*arguments, **named)
  found = re.match(
    re.escape(f'{path} is damaged in line {line}: {fault}') + r'[^.]*\. (.+)', str(caught.value)
  )
  assert found, str(caught.value)
  return found[1]


@pytest.mark.parametrize('content', DAMAGES)
@pytest.mark.parametrize('name', ['config.json', 'input.json', 'model.json', 'evaluation.json'])
def test_a_damaged_object(tmp_path, name, content):
  path = run(tmp_path)
  (tmp_path / name).write_bytes(content)
  where = (tmp_path / name, *DAMAGES[content])
  if name == 'config.json':
    cure = fails(*where, workdirs.claim, path, CONFIG, started=True)
    assert cure.startswith('Restore it from a copy. Without one, delete it: it is written anew')
    workdirs.claim(path, CONFIG, started=False)  # of a run that has done nothing
    assert json.loads((tmp_path / name).read_text()) == CONFIG
    (tmp_path / name).write_bytes(content)
  if name != 'evaluation.json':
    assert 'move it away' in fails(*where, description.read, path)
  if name == 'model.json':
    fails(*where, description.read_model_file, path)
  if name != 'input.json':
    fails(*where, run_files.read, [str(path)])


@pytest.mark.parametrize(
  ('content', 'line', 'fault'),
  [(b'["a",\n "b"', 2, "Expecting ',' delimiter"), (b'{}', 1, 'a JSON list is expected')],
)
def test_damaged_classes(tmp_path, content, line, fault):
  path = run(tmp_path)
  (tmp_path / 'classes.json').write_bytes(content)
  where = (tmp_path / 'classes.json', line, fault)
  assert 'delete it' in fails(*where, workdirs.claim_classes, path, 'ab', started=True)
  assert 'move it away' in fails(*where, description.read, path)


@pytest.mark.parametrize(
  ('line', 'fault'),
  [
    (b'{"step": 2, "tr\x00\x00', 'Invalid control character, at character 16'),
    (b'\x00' * 90, 'Expecting value'),
    (b'{"step": 2}{"step": 3}', 'Extra data'),
    (b'[2, 0.5]', 'a JSON object is expected'),
    (b'"text"', 'a JSON object is expected'),
    (b'{"train/loss": 0.5}', "it has no number 'step'"),
    (b'{"step": "two"}', "it has no number 'step'"),
    (b'{"step": 2, "name": "\xe9"}', 'this is not UTF-8 text'),
  ],
)
def test_a_damaged_row(tmp_path, line, fault):
  path = run(tmp_path, rows=[{'step': 1}])
  log = tmp_path / 'metrics.jsonl'
  whole = log.read_bytes()
  log.write_bytes(whole + line + b'\n{"step": 3}\n')
  for function in (metrics_log.read_rows, lambda root: run_files.read([str(root)])):
    assert fails(log, 2, fault, function, path).startswith('Delete this line: its row is lost')
  with pytest.raises(InputError, match='line 2'):
    metrics_log.MetricsLog(path, first_step=3)
  assert log.read_bytes() == whole + line + b'\n{"step": 3}\n'  # as it was found


def test_rows_where_nothing_is_lost(tmp_path):
  """Empty lines, another end of line, a byte order mark, and a last line that a kill cut short."""
  path = run(tmp_path)
  log = tmp_path / 'metrics.jsonl'
  log.write_bytes(b'\xef\xbb\xbf{"step": 1}\r\n\n  \n{"step": 2, "x": NaN}\n{"step": 3, "tr')
  assert [row['step'] for row in metrics_log.read_rows(path)] == [1, 2]
  metrics_log.MetricsLog(path, first_step=1)
  assert log.read_text() == '{"step": 1}\n'


def test_a_file_that_cannot_be_read(tmp_path):
  with pytest.raises(InputError, match=f'{tmp_path} cannot be read: Is a directory'):
    files.read_json(epath.Path(tmp_path), advice='')


@pytest.mark.parametrize(
  ('name', 'why'),
  [
    ('folder', 'it is a directory'),
    ('file/x.npy', 'Not a directory'),
    ('none/x.npy', 'No such file or directory'),
    ('/proc/x.npy', ''),
    ('/sys/x.npy', ''),
  ],
)
def test_what_cannot_be_written(tmp_path, name, why):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').write_text('old')
  path = epath.Path(tmp_path / name)
  with pytest.raises(InputError, match=f'^{path} cannot be written: {why}.*Give a file in a dir'):
    files.check_writable(path)
  files.check_writable(epath.Path(tmp_path / 'file'))
  assert (tmp_path / 'file').read_text() == 'old'
  assert sorted(one.name for one in tmp_path.iterdir()) == ['file', 'folder']


def test_text_of_names_that_are_no_text(tmp_path):
  files.write_csv(epath.Path(tmp_path / 'a.csv'), [{'name': 'é\udcff'}])
  assert (tmp_path / 'a.csv').read_bytes() == b'name\n\xc3\xa9\\udcff\n'


PROGRAM = """
import sys
from mixer import cli, console
def main(name):
  open(name, 'wb').close()
  console.print_line(f'{sys.getfilesystemencoding()} {name}')
cli.run(main)
"""


@pytest.mark.parametrize('encoding', ['ascii', 'utf-8'])
def test_a_locale_without_the_letters(tmp_path, encoding):
  """A program runs in UTF-8 mode in any locale; what stdout lacks is escaped."""
  (tmp_path / 'program.py').write_text(PROGRAM)
  locale = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
  done = subprocess.run(
    [sys.executable, tmp_path / 'program.py', b'd\xc3\xa9_\xff'], capture_output=True, cwd=tmp_path,
    env={**os.environ, **locale, 'PYTHONPATH': str(runs.ROOT), 'PYTHONIOENCODING': encoding},
  )  # fmt: skip
  printed = {'ascii': b'd\\xe9_\\udcff', 'utf-8': b'd\xc3\xa9_\\udcff'}[encoding]
  assert (done.returncode, done.stdout, done.stderr) == (0, b'utf-8 ' + printed + b'\n', b'')
  assert b'd\xc3\xa9_\xff' in os.listdir(os.fsencode(tmp_path))
