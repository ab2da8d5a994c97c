"""Trackers: which rows they get, through faults and restarts, and what is left in their stores."""

import json
import os
import sqlite3
import struct
import sys
import time
import types

from etils import epath
import pytest

from mixer.checkpoints import manager
from mixer.errors import InputError
from mixer.run import metrics_log, reporter, trackers
import runs

CONFIG = {'model': {'name': 'Mixer-B/16', 'text (1)': 'x' * 7000}, 'none': None, 'pair': (1, 2)}


class Fake:
  """A tracker that keeps its rows in a list for each run, and can fail."""

  def __init__(self, monkeypatch):
    self.sent, self.closed, self.config, self.fault = {}, [], None, None
    monkeypatch.setitem(sys.modules, 'mlflow', types.ModuleType('mlflow'))
    monkeypatch.setitem(trackers.TRACKERS, 'mlflow', self.open)

  def open(self, workdir, run_id, config, last_sent):
    run_id = run_id or f'run {len(self.sent)}'
    rows, self.config = self.sent.setdefault(run_id, []), config

    def log(step, values):
      if self.fault and step >= 5:
        raise self.fault
      rows.append({'step': step, **values})

    last = max((row['step'] for row in rows), default=0)
    return trackers.Tracker(log, self.closed.append, last, run_id, 'in a list')


def test_a_run_that_is_killed_and_resumed(tmp_path, monkeypatch, capsys):
  """It goes on in the same tracked run, in which no row is missing and none is there twice."""
  fake, changes = Fake(monkeypatch), {'every.log': 1, 'every.evaluate': 3}
  fake.fault = KeyboardInterrupt()
  with pytest.raises(KeyboardInterrupt):
    runs.train_here(runs.small_digits(**changes), tmp_path, track='mlflow')
  assert [row['step'] for row in fake.sent['run 0']] == [1, 2, 3, 4] and fake.closed == [False]
  fake.fault, close = None, manager.Checkpoints.close

  def close_last(saved):
    close(saved)
    assert fake.closed == [False]  # a run has not ended before its last checkpoint is complete

  monkeypatch.setattr(manager.Checkpoints, 'close', close_last)
  runs.train_here(runs.small_digits(**changes), tmp_path, track='mlflow')
  wanted = [
    {k: v for k, v in row.items() if k.split('/')[0] in ('step', 'train', 'test', 'epoch')}
    for row in runs.rows(tmp_path)
  ]
  (sent,) = fake.sent.values()
  found = [{k: row[k] for k in w if k in row} for row, w in zip(sent, wanted, strict=True)]
  timed = 'test/images_per_sec'
  assert [{k: v for k, v in row.items() if k != timed} for row in found] == [
    {k: v for k, v in row.items() if k != timed} for row in wanted
  ]
  assert fake.closed == [False, True] and fake.config['model.hidden_dim'] == 16
  assert json.loads((tmp_path / 'trackers.json').read_text()) == {'mlflow': 'run 0'}
  assert 'mlflow: run run 0, in a list' in capsys.readouterr().out


def write(workdir, *steps, first_step=0, output=None):
  """Rows of a reporter in a workdir."""
  log = metrics_log.MetricsLog(epath.Path(workdir), first_step=first_step)
  for step in steps:
    row = {'step': step, 'epoch': step / 2, 'time': 60 * step, 'train/loss': 1 / step}
    row['val@1 (x)'] = 2.0
    log.append(row)
    if output:
      output.write(row)


def test_a_tracker_that_fails_is_left_until_the_next_start(tmp_path, monkeypatch, caplog):
  fake = Fake(monkeypatch)
  fake.fault = OSError('no route to host')
  broken = trackers.open_run('mlflow', epath.Path(tmp_path), CONFIG, 0)
  report = reporter.Reporter(
    epath.Path(tmp_path), reporter.Workload(9, 2, 4, 8), first_step=0, outputs={'mlflow': broken}
  )
  for step in (4, 5, 6):
    report._write_row({'step': step, 'train/loss': 1.0, 'train/accuracy': 0.5, 'images_per_sec': 1,
                       'input_wait': 0})  # fmt: skip
  with report:
    pass
  text = 'no more mlflow output until the next start; metrics.jsonl continues: no route to host'
  assert [record.message for record in caplog.records] == [text] and fake.closed == []
  assert [row['step'] for row in fake.sent['run 0']] == [4]
  assert [row['step'] for row in metrics_log.read_rows(tmp_path)] == [4, 5, 6]

  fake.fault = None
  trackers.open_run('mlflow', epath.Path(tmp_path), CONFIG, 5)
  assert [row['step'] for row in fake.sent['run 0']] == [4, 5]  # 6 will be computed again


def test_a_tracker_that_cannot_be_opened(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise ConnectionError('refused')

  monkeypatch.setitem(trackers.TRACKERS, 'wandb', refuse)
  assert trackers.open_run('wandb', epath.Path(tmp_path), {}, 0) is None
  assert caplog.records[0].message == (
    'no wandb output until the next start; metrics.jsonl has all rows: refused'
  )


@pytest.mark.parametrize('name', sorted(trackers.TRACKERS))
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(InputError, match=f'^--track={name} needs .* Run: pip install {name}$'):
    runs.train_here(runs.small_digits(), tmp_path, track=name)
  assert os.listdir(tmp_path) == ['.lock']


@pytest.fixture(params=sorted(trackers.TRACKERS))
def stored(request, tmp_path, monkeypatch):
  """(tracker, its workdir) after a stop and two starts; skipped where it is not installed."""
  name = request.param
  pytest.importorskip(name)
  trackers.load(name)
  for variable in ('MLFLOW_TRACKING_URI', 'WANDB_API_KEY', 'WANDB_MODE'):
    monkeypatch.delenv(variable, raising=False)
  if name == 'trackio':
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, 'TRACKIO_DIR', tmp_path / 'trackio')
  workdir = epath.Path(tmp_path) / 'a run'
  workdir.mkdir()
  write(workdir, 1)  # before it was tracked
  for first, steps, ended in ((1, (2, 3, 4), False), (2, (3, 4, 5), True)):
    opened = trackers.open_run(name, workdir, CONFIG, first)
    assert opened is not None
    write(workdir, *steps, first_step=first, output=opened)
    opened.close(ended)
    if name == 'wandb':
      time.sleep(1)  # the folder of an offline start has the time to the second
  return name, workdir, opened.run_id


def query(path, text):
  connection = sqlite3.connect(path)
  try:
    return connection.execute(text).fetchall()
  finally:
    connection.close()


def wandb_rows(path):
  """(step, loss) of each row in a file of wandb, which is a LevelDB log of protocol buffers."""
  from wandb.proto import wandb_internal_pb2

  content, place, record = path.read_bytes(), 7, b''
  while len(content) - place >= 7:
    _, size, kind = struct.unpack_from('<IHB', content, place)
    if size:
      record += content[place + 7 : place + 7 + size]
    place += 7 + size if size else 2**15 - place % 2**15
    if kind in (1, 4):  # whole, or the last part
      found, record = wandb_internal_pb2.Record.FromString(record), b''
      if found.HasField('history'):
        values = {item.nested_key[0]: item.value_json for item in found.history.item}
        yield int(values['_step']), float(values['train/loss'])


@pytest.mark.filterwarnings('ignore')  # of these packages
def test_what_is_in_the_store(stored):
  """One run with each row once, read from the file."""
  name, workdir, run_id = stored
  if name == 'wandb':
    parts = sorted((workdir / 'wandb').glob(f'offline-run-*-{run_id}/*.wandb'))
    assert [[step for step, _ in wandb_rows(p)] for p in parts] == [[1, 2, 3, 4], [4, 5]]
    found = sorted({row for p in parts for row in wandb_rows(p)})  # a row of 30 s before the stop
  elif name == 'mlflow':
    path = workdir / 'mlflow.db'
    found = query(path, "select step, value from metrics where key = 'train/loss' order by step")
    assert query(path, 'select run_uuid, name, status from runs') == [(run_id, 'a run', 'FINISHED')]
    params = dict(query(path, 'select key, value from params'))
    assert params['model.name'] == 'Mixer-B/16' and params['pair'] == '(1, 2)'
    assert params['model.text _1_'] == 'x' * 6000
    names = {key for (key,) in query(path, 'select distinct key from metrics')}
    assert names == {'epoch', 'train/loss', 'val_1 _x_'}
  else:
    path = workdir.parent / 'trackio' / 'mixer.db'
    rows = query(path, 'select run_name, step, metrics from metrics order by step')
    assert {row[0] for row in rows} == {run_id}
    found = [(step, json.loads(values)['train/loss']) for _, step, values in rows]
  assert found == [(step, 1 / step) for step in (1, 2, 3, 4, 5)]
