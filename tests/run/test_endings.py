"""Runs with an average of the parameters, early stopping, and the model of the best checkpoint."""

import csv
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from mixer import pretrained
from mixer.errors import InputError, Interrupted
from mixer.input.sources import arrays
from mixer.run import build, evaluation
import runs
from runs import small_digits as config

# No top-1 is so much higher than the first: it is measured at steps 2, 4 and 6, and the run ends.
STOPPED = {
  'ema': {'decay': 0.5, 'start': 1},
  'early_stopping': {'result': 'test_ema/top1', 'patience': 2, 'min_delta': 0.9},
  'total_steps': 20,
  'every.log': 5,
  'every.evaluate': 2,
  'every.checkpoint': 4,
  'checkpoints.keep_best': None,
  'checkpoints.keep_last': 2,
}


def stopping(**changes) -> dict:
  """The config, in which a second evaluation is made at the last step only."""
  found = config(**STOPPED, **changes)
  found['evals']['final'] = {**found['evals']['test'], 'every': 0, 'details': True}
  return found


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  runs.train_here(stopping(), workdir)
  return workdir


def learned(workdir) -> list[dict]:
  return [
    {k: v for k, v in row.items() if k.split('/')[0] in ('step', 'train', 'test', 'test_ema')
     and not k.endswith('images_per_sec')}
    for row in runs.rows(workdir)
  ]  # fmt: skip


def assert_ends_as(workdir, whole) -> None:
  assert learned(workdir) == learned(whole)
  assert (workdir / 'model.npz').read_bytes() == (whole / 'model.npz').read_bytes()
  model = json.loads((workdir / 'model.json').read_text())
  assert (model['step'], model['parameters']) == (6, 'ema')
  assert model['early_stopping'].startswith('test_ema/top1 was ')
  assert runs.saved_steps(workdir) == [4, 6]


def test_a_run_that_ends_early(whole, capsys):
  assert_ends_as(whole, whole)
  rows = runs.rows(whole)
  assert [row['step'] for row in rows] == [2, 4, 5, 6]
  last = {name for name in rows[-1] if name.endswith('/top1')}
  assert last == {'test/top1', 'test_ema/top1', 'final/top1', 'final_ema/top1'}
  assert not any('final' in name for row in rows[:-1] for name in row)
  for name in ('final', 'final_ema'):
    with (whole / 'evaluation' / 'training' / name / 'per_class.csv').open() as file:
      correct = sum(int(row['correct']) for row in csv.DictReader(file))
    assert correct / 360 == pytest.approx(rows[-1][f'{name}/top1'])
  assert rows[-1]['final/loss'] != rows[-1]['final_ema/loss']
  runs.train_here(stopping(), whole)
  assert 'is finished: 6 of 20 steps are done, see model.npz, model.json. It has ended early: ' in (
    capsys.readouterr().out
  )


def test_the_same_end_after_a_stop(tmp_path, monkeypatch, whole):
  original = arrays.Arrays.train_batches

  def train_batches(self, first_batch, *args):
    for number, batch in enumerate(original(self, first_batch, *args), first_batch + 1):
      if number == 3 and first_batch == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # the thread of the signals notes it
      yield batch

  monkeypatch.setattr(arrays.Arrays, 'train_batches', train_batches)
  with pytest.raises(Interrupted):
    runs.train_here(stopping(), tmp_path)
  assert not (tmp_path / 'model.npz').exists()
  runs.train_here(stopping(), tmp_path)
  assert_ends_as(tmp_path, whole)


def test_the_same_end_after_a_kill(tmp_path, whole):
  """Before the model is written; and before the checkpoint of the last step is, after its row."""
  shutil.copytree(whole, tmp_path / 'run')
  (tmp_path / 'run' / 'model.npz').unlink()
  runs.train_here(stopping(), tmp_path / 'run')
  assert_ends_as(tmp_path / 'run', whole)

  (tmp_path / 'run' / 'model.npz').unlink()
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '6')
  runs.train_here(stopping(), tmp_path / 'run')
  assert_ends_as(tmp_path / 'run', whole)


def test_programs_read_one_or_the_other(tmp_path, whole):
  """Of a checkpoint by default what model.npz has."""
  values, row = stopping(), runs.rows(whole)[-1]
  found = {which: pretrained.open(whole, which) for which in ('latest', '6:ema', 'latest:raw')}
  assert [one.source for one in found.values()] == [
    f'{whole}, step 6, {name}' for name in ('ema', 'ema', 'raw')
  ]
  kernels = [np.asarray(jax.tree.leaves(one.params)[-1]) for one in found.values()]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  np.testing.assert_array_equal(kernels[0], jax.tree.leaves(pretrained.load(whole))[-1])
  assert (kernels[0] != kernels[2]).any()
  for which, section in {'newest': 'test_ema', 'latest:raw': 'test'}.items():
    results = evaluation.evaluate(
      evaluation.Options(config=values, checkpoint=str(whole), which=which)
    )
    assert results['test/loss'] == pytest.approx(row[f'{section}/loss'], rel=1e-6)
  assert {file.name for file in (whole / 'evaluation').glob('*.json')} == {
    'evaluation-step_6-ema.json', 'evaluation-step_6-raw.json',
  }  # fmt: skip
  shutil.copytree(whole, tmp_path / 'run')
  runs.train_here(values, tmp_path / 'run', finish='latest:raw')
  model = json.loads((tmp_path / 'run' / 'model.json').read_text())
  assert model['parameters'] == 'raw'
  np.testing.assert_array_equal(
    jax.tree.leaves(pretrained.load(tmp_path / 'run' / 'model.npz'))[-1], kernels[2]
  )
  for which in ('latest:best', 'latest:'):
    with pytest.raises(
      InputError, match=f'--which={which}: after the colon give raw or ema, as in'
    ):
      pretrained.open(whole, which)


def test_the_model_of_the_best_checkpoint(tmp_path):
  """And of a run without an average, which has no other parameters."""
  best = {'checkpoints.keep_best': 'test/top1', 'checkpoints.keep_last': 3, 'every.evaluate': 3}
  runs.train_here({**config(**best, total_steps=9), 'export': 'best'}, tmp_path)
  found = {row['step']: row['test/top1'] for row in runs.rows(tmp_path) if 'test/top1' in row}
  step = max(found, key=lambda step: (found[step], step))
  model = json.loads((tmp_path / 'model.json').read_text())
  assert (model['step'], model['metrics']['test/top1']) == (step, found[step])
  assert 'parameters' not in model
  saved = pretrained.open(tmp_path, which=step).params
  for one, other in zip(
    *map(jax.tree.leaves, (saved, pretrained.load(tmp_path / 'model.npz'))), strict=True
  ):
    np.testing.assert_array_equal(one, other)
  with pytest.raises(InputError, match='has no averaged parameters: the run has no config.ema'):
    pretrained.open(tmp_path, 'best:ema')


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'export': 'best'}, r"^config\.export='best' needs config\.checkpoints\.keep_best"),
    ({'export': 'first'}, r"^config\.export is 'first'; use one of \['best', 'latest'\]"),
    ({'ema': {'decay': 1}}, r'^config\.ema\.decay is 1; use a number above 0 and below 1'),
    ({'ema': {'start': 10}}, r"^config\.ema: 'decay' is missing"),
    ({'early_stopping': {'result': 'test/top1', 'patience': 0}}, r'early_stopping\.patience is 0;'),
    (
      {'ema': {'decay': 0.9}, 'evals': {'test': {}, 'test_ema': {}}},
      r'^config\.evals\.test_ema has the name under which config\.ema reports the results',
    ),
  ],
)
def test_settings_that_cannot_be(changes, message):
  """Before data are opened."""
  values = {**config(**{'checkpoints.keep_best': None}), **changes}
  if 'evals' in changes:
    values['evals'] = dict.fromkeys(changes['evals'], config()['evals']['test'])
  with pytest.raises(InputError, match=message):
    build.check(values)
