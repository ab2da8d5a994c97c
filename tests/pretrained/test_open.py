"""One read gives parameters and identity: those of the same bytes, whatever happens meanwhile."""

import hashlib
import json
import os
import pathlib
import re
import shutil

from etils import epath
import jax
import numpy as np
import pytest

from mixer import pretrained
from mixer.checkpoints import integrity, manager
from mixer.cluster import coordination
from mixer.errors import InputError
from mixer.models import scanning
from mixer.pretrained import __main__ as program
import weights
from weights import equal, tree


def make_run(path, *steps, keep_best=None, scores=()):
  """A workdir with a checkpoint of the parameters `tree(seed=step)` of each step."""
  path = epath.Path(path)
  options = {} if keep_best is None else {'keep_best': keep_best}
  saved = manager.Checkpoints(path / 'checkpoints', keep_last=len(steps), **options)
  for step, score in zip(steps, [*scores, *[None] * len(steps)]):
    params = jax.tree.map(jax.numpy.asarray, tree(seed=step))
    results = {} if score is None else {keep_best: score}
    saved.save(step, {'params': params, 'step': np.int32(step)})
    saved.add_results(step, results)
  saved.close()
  return path


def identity_of(path, step):
  """Read in another way than by `open`: of the manifest that is on disk."""
  content = (path / 'checkpoints' / str(step) / integrity.FILE).read_bytes()
  return {
    'source': str(path),
    'step': step,
    'bytes': sum(size for size, _ in json.loads(content).values()),
    'sha256': hashlib.sha256(content).hexdigest(),
  }


# --- Files ---------------------------------------------------------------------------------


@pytest.mark.parametrize('write', [weights.npz, weights.safetensors_bytes, weights.pth])
def test_a_file(tmp_path, write):
  path = tmp_path / 'weights'
  path.write_bytes(write(weights.timm(tree())))
  found = pretrained.open(str(path))
  equal(found.params, tree())
  content = path.read_bytes()
  assert found.identity == {
    'source': str(path),
    'bytes': len(content),
    'sha256': hashlib.sha256(content).hexdigest(),
  }
  assert (found.source, found.layout, found.dtypes) == (str(path), 'timm', ('float32',))
  assert found.description.file is None


def test_no_file(tmp_path):
  with pytest.raises(InputError, match='^no file .*; give the path of an .npz, .safetensors or'):
    pretrained.open(tmp_path / 'none')


@pytest.mark.parametrize(
  ('path', 'why'),
  [
    ('https://x.org/Mixer-B_16.npz', 'no filesystem of this kind can be reached from here'),
    ('hf://timm/mixer_b16_224', '.+'),
    ('s3://bucket/model.npz', '.+'),
  ],
)
def test_a_url(path, why):
  text = f'^{path} cannot be read: {why}. Fetch the file, and give its path.$'
  for use in (pretrained.open, pretrained.load, program.summarize):
    with pytest.raises(InputError, match=text):
      use(path)


@pytest.mark.parametrize('name', ['model.npz', 'checkpoints'])
def test_a_path_that_cannot_be_read(tmp_path, name, monkeypatch):
  """For a file, and for a folder within a workdir."""
  (tmp_path / 'checkpoints').mkdir()
  pretrained.save(tmp_path / 'model.npz', tree())
  cls = type(epath.Path(tmp_path))

  def refuse(self):
    raise PermissionError(13, 'Permission denied', str(self))

  monkeypatch.setattr(cls, 'read_bytes' if name == 'model.npz' else 'iterdir', refuse)
  path = tmp_path / (name if name == 'model.npz' else '')
  which = None if name == 'model.npz' else 'latest'
  with pytest.raises(InputError, match=f'^{tmp_path}/{name} cannot be read: Permission denied.$'):
    pretrained.open(path, which)


def test_a_file_is_read_once(tmp_path, monkeypatch):
  """Another one takes its place as soon as it has been read."""
  path, other = tmp_path / 'model.npz', tmp_path / 'other.npz'
  pretrained.save(path, tree())
  pretrained.save(other, tree(seed=1))
  content = path.read_bytes()
  cls, opened = type(epath.Path(path)), []
  read_bytes, open_file = cls.read_bytes, cls.open

  def read_and_replace(self):
    found = read_bytes(self)
    os.replace(other, path)
    return found

  def open_and_count(self, *arguments, **options):
    opened.append(str(self))
    return open_file(self, *arguments, **options)

  monkeypatch.setattr(cls, 'read_bytes', read_and_replace)
  monkeypatch.setattr(cls, 'open', open_and_count)
  found = pretrained.open(path)
  monkeypatch.undo()
  assert opened == [str(path)]
  equal(found.params, tree())
  assert found.identity['sha256'] == hashlib.sha256(content).hexdigest()
  equal(pretrained.load(path), tree(seed=1))


# --- Runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize('which', ['latest', 'newest', None, '20'])
def test_a_checkpoint(tmp_path, which):
  run = make_run(tmp_path, 10, 20)
  found = pretrained.open(run, which)
  equal(found.params, tree(seed=20))
  assert found.identity == identity_of(run, 20)
  assert found.source == f'{run}, step 20' and found.kind == 'workdir of a run'
  equal(pretrained.load(run), tree(seed=20))


def test_a_step(tmp_path):
  run = make_run(tmp_path, 10, 20)
  found = pretrained.open(run, which='10')
  equal(found.params, tree(seed=10))
  assert found.identity == identity_of(run, 10)
  text = (
    f'{run} has no intact checkpoint of step 15 (there are: 10, 20); give a workdir of train.py or '
    'a file.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    pretrained.open(run, which='15')


def test_the_best(tmp_path):
  run = make_run(tmp_path, 10, 20, 30, keep_best='val/top1', scores=(0.2, 0.7, 0.1))
  found = pretrained.open(run, which='best', keep_best='val/top1')
  equal(found.params, tree(seed=20))
  assert found.identity == identity_of(run, 20)
  text = '--which=best needs config.checkpoints.keep_best, such as val/top1.'
  with pytest.raises(InputError, match=f'^{text}$'):
    pretrained.open(run, which='best')
  plain = make_run(tmp_path / 'plain', 10)
  with pytest.raises(InputError, match='without an intact checkpoint that has a result val/top1;'):
    pretrained.open(plain, which='best', keep_best='val/top1')
  (run / 'config.json').write_text(json.dumps({'checkpoints': {'keep_best': 'val/top1'}}))
  assert pretrained.open(run, which='best').identity == found.identity  # as the run recorded
  (run / 'config.json').write_text('{')
  with pytest.raises(InputError, match='config.json is damaged in line 1: Expecting'):
    pretrained.open(run, which='best')


@pytest.mark.parametrize('which', ['final', '1e3', '-1', 'step 10', ''])
def test_a_checkpoint_that_has_no_such_name(tmp_path, which):
  text = f'--which={which}: give best, latest or the step of a checkpoint.'
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    pretrained.open(tmp_path, which=which)


@pytest.mark.parametrize('which', ['best', 'latest', '10'])
def test_a_file_has_no_checkpoints(tmp_path, which):
  path = tmp_path / 'model.npz'
  pretrained.save(path, tree())
  text = (
    f'--which={which} is for the workdir of a run, and {path} is a file of weights; leave it out.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    pretrained.open(path, which=which)


def test_final_parameters_of_a_finished_run(tmp_path):
  run = make_run(tmp_path, 10)
  pretrained.save_model(run, tree(seed=3), {'loss': 'softmax'})
  found = pretrained.open(run)
  equal(found.params, tree(seed=3))
  assert found.source == f'{run}/model.npz' and found.description.loss == 'softmax'
  for which in ('latest', '10'):
    found = pretrained.open(run, which=which)
    equal(found.params, tree(seed=10))
    assert found.description.loss == 'softmax'


def test_a_damaged_checkpoint(tmp_path):
  run = make_run(tmp_path, 10, 20)
  files = [p for p in pathlib.Path(run, 'checkpoints', '20').rglob('*') if p.is_file()]
  max(files, key=lambda path: path.stat().st_size).write_bytes(b'')
  found = pretrained.open(run)
  equal(found.params, tree(seed=10))
  assert found.identity == identity_of(run, 10)
  with pytest.raises(InputError, match='has no intact checkpoint of step 20'):
    pretrained.open(run, which='20')


def removing(monkeypatch, run, change):
  """Calls `change` as soon as the newest checkpoint has been chosen; returns the steps read."""
  read, restore = [], manager.Checkpoints.restore_params

  def after_a_change(self, step, **which):
    read.append(step)
    if len(read) == 1:
      change()
    return restore(self, step, **which)

  monkeypatch.setattr(manager.Checkpoints, 'restore_params', after_a_change)
  return read


def test_a_checkpoint_that_is_removed_before_it_is_read(tmp_path, monkeypatch):
  """As by the run that trains there, which has saved the next one."""
  run = make_run(tmp_path, 10)
  newer = make_run(tmp_path / 'newer', 20)

  def train_on():
    (newer / 'checkpoints' / '20').rename(run / 'checkpoints' / '20')
    (run / 'checkpoints' / '10').rmtree()

  read = removing(monkeypatch, run, train_on)
  found = pretrained.open(run)
  assert read == [10, 20]
  equal(found.params, tree(seed=20))
  assert found.identity == identity_of(run, 20)


def test_a_checkpoint_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
  """By others of the same step: parameters and identity are those of the new one."""
  run = make_run(tmp_path, 10)
  other = make_run(tmp_path / 'other', 5)

  def replace():
    (run / 'checkpoints' / '10').rmtree()
    shutil.move(str(other / 'checkpoints' / '5'), str(run / 'checkpoints' / '10'))

  read = removing(monkeypatch, run, replace)
  found = pretrained.open(run)
  assert read == [10, 10]
  equal(found.params, tree(seed=5))
  assert found.identity == identity_of(run, 10)


def test_a_last_checkpoint_that_is_removed(tmp_path, monkeypatch):
  run = make_run(tmp_path, 10)
  removing(monkeypatch, run, (run / 'checkpoints' / '10').rmtree)
  with pytest.raises(InputError, match='is a directory without an intact checkpoint'):
    pretrained.open(run)


class Several(coordination.Cluster):
  """Process 0 of two, without the other."""

  is_multiprocess = True

  def on_process_0(self, decide):
    return decide()


def test_one_of_several_processes_does_not_choose_again(tmp_path, monkeypatch):
  run = make_run(tmp_path, 10)
  read = removing(monkeypatch, run, (run / 'checkpoints' / '10').rmtree)
  text = (
    f'{run}: the checkpoint of step 10 was replaced while it was read, by the run that trains '
    'there. Start again.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    pretrained.open(run, cluster=Several())
  assert read == [10]


def test_all_processes_read_the_checkpoint_of_process_0(tmp_path, monkeypatch):
  """Which has chosen before the newest one was there."""
  run = make_run(tmp_path, 10, 20)
  monkeypatch.setattr(Several, 'on_process_0', lambda self, decide: 10)
  found = pretrained.open(run, cluster=Several())
  equal(found.params, tree(seed=10))
  assert found.identity == identity_of(run, 10)


def test_another_fault_is_raised(tmp_path, monkeypatch):
  run = make_run(tmp_path, 10)

  def fail():
    raise RuntimeError('a fault')

  removing(monkeypatch, run, fail)
  with pytest.raises(RuntimeError, match='^a fault$'):
    pretrained.open(run)


def test_a_run_with_stacked_blocks(tmp_path):
  saved = manager.Checkpoints(epath.Path(tmp_path) / 'checkpoints')
  stacked = jax.tree.map(jax.numpy.asarray, scanning.stack_blocks(tree()))
  saved.save(1, {'params': stacked, 'step': np.int32(1)})
  saved.close()
  found = pretrained.open(tmp_path)
  equal(found.params, tree())
  assert found.layout == 'scanned'
