"""Checkpoints: what stays, what comes back, and what is refused."""

import contextlib
import errno
import json
import logging
import pathlib
import re
import runpy
import shutil
import sys
import time
import types

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.path import atomicity, atomicity_defaults, gcs_utils
import pytest

from mixer import errors
from mixer.checkpoints import integrity, manager, save_faults
from mixer.training import sharding

SHAPES = {'params': {'kernel': (64, 48), 'bias': (48,)}, 'step': ()}


def mesh(count: int, fsdp: int):
  """A mesh over the first `count` devices."""
  devices = np.array(jax.devices()[:count]).reshape(count // fsdp, fsdp)
  return jax.sharding.Mesh(devices, sharding.BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def like(over) -> dict:
  shapes = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    SHAPES,
    is_leaf=lambda x: type(x) is tuple,
  )
  where = sharding.state(shapes, over)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
  )


def state(value: float, over) -> dict:
  """Every leaf holds value + 0, 1, 2, ..."""
  return jax.tree.map(
    lambda x: jax.device_put(value + np.arange(x.size, dtype='f4').reshape(x.shape), x.sharding),
    like(over),
  )


def assert_holds(tree: dict, value: float) -> None:
  for leaf in jax.tree.leaves(tree):
    expected = value + np.arange(leaf.size, dtype='f4').reshape(leaf.shape)
    np.testing.assert_array_equal(np.asarray(leaf), expected)


@pytest.fixture
def directory(tmp_path):
  return epath.Path(tmp_path) / 'checkpoints'


@pytest.fixture
def opened(directory):
  """Opens checkpoints in `directory`, or another one, and closes them after the test."""
  with contextlib.ExitStack() as stack:

    def open_checkpoints(where=directory, **options):
      saved = manager.Checkpoints(where, **options)
      stack.callback(close_quietly, saved)
      return saved

    yield open_checkpoints


def close_quietly(saved) -> None:
  with contextlib.suppress(Exception):  # of a save that was to fail
    saved.close()


def fault_of(saved, seconds: float = 60.0) -> Exception:
  """What `check` raises when the save under way has failed."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    try:
      saved.check()
    except Exception as fault:
      return fault
  raise TimeoutError(f'no fault within {seconds} s')


def fill(directory, steps, over=None, **options) -> None:
  saved = manager.Checkpoints(directory, **options)
  for step in steps:
    saved.save(step, state(step, over or mesh(1, 1)))
  saved.close()


def on_disk(directory) -> list[int]:
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


@pytest.mark.parametrize('saved_on', [(1, 1), (8, 8), (8, 1)])
@pytest.mark.parametrize('restored_on', [(1, 1), (8, 4), (2, 2)])
def test_restores_on_other_devices(directory, monkeypatch, saved_on, restored_on):
  monkeypatch.setattr(sharding, '_MIN_SHARDED_SIZE', 1)
  fill(directory, [7], mesh(*saved_on))
  target = like(mesh(*restored_on))
  found = manager.Checkpoints(directory).restore(7, target)
  assert_holds(found, 7)
  assert found['params']['kernel'].sharding == target['params']['kernel'].sharding
  parameters = manager.Checkpoints(directory, read_only=True).restore_params(7)
  assert set(parameters) == {'kernel', 'bias'}
  assert_holds(parameters, 7)


def test_the_newest_and_the_best_stay(directory):
  saved = manager.Checkpoints(directory, keep_last=1, keep_best='val/top1')
  for step, top1 in enumerate([0.1, 0.9, 0.2, 0.3]):
    saved.save(step, state(step, mesh(1, 1)))
    saved.add_results(step, {'val/top1': top1, 'val/n': 5.0})
  saved.save(4, state(4, mesh(1, 1)))
  saved.close()
  assert on_disk(directory) == [1, 4]
  again = manager.Checkpoints(directory, keep_last=1, keep_best='val/top1')
  assert again.best() == 1 and again.latest_intact() == 4
  again.save(5, state(5, mesh(1, 1)))
  again.add_results(5, {'val/top1': 0.95, 'val/n': 5.0})
  again.close()
  assert on_disk(directory) == [5] and again.best() == 5
  other = manager.Checkpoints(directory, keep_best='few/5shot', read_only=True)
  with pytest.raises(errors.InputError, match=r"'few/5shot' is no result of step 5 in .*\['val/n'"):
    other.best()
  of_loss = manager.Checkpoints(directory, keep_best='val/loss', read_only=True)
  found = {step: {'val/loss': loss} for step, loss in enumerate((0.3, 0.1, 0.1, 0.2, float('nan')))}
  assert of_loss._best_of(found) == 2  # the lowest, and of two the newer


def test_results_come_to_a_checkpoint_that_had_none(directory):
  """As when a run was stopped in an evaluation, and makes up for it."""
  saved = manager.Checkpoints(directory, keep_last=1, keep_best='val/top1')
  saved.save(1, state(1, mesh(1, 1)))
  saved.close()
  again = manager.Checkpoints(directory, keep_last=1, keep_best='val/top1')
  again.restore(1, like(mesh(1, 1)))
  again.save(1, state(1, mesh(1, 1)))
  again.add_results(1, {'val/top1': 0.5})
  assert integrity.damage(directory / '1') is None and again.best() == 1
  again.save(2, state(2, mesh(1, 1)))
  again.add_results(2, {'val/top1': 0.25})
  again.close()
  assert on_disk(directory) == [1, 2] and again.best() == 1
  assert_holds(manager.Checkpoints(directory).restore(1, like(mesh(1, 1))), 1)


def test_keep_best_must_be_a_result(directory):
  saved = manager.Checkpoints(directory, keep_best='val/top2')
  with pytest.raises(errors.InputError, match=r"'val/top2' is no result .* \['val/top1'\]"):
    saved.add_results(1, {'val/top1': 0.5})


def test_a_step_is_not_saved_twice(directory):
  fill(directory, [3])
  saved = manager.Checkpoints(directory)
  with pytest.raises(RuntimeError, match='step 2 was not saved: .* holds a checkpoint of step 3'):
    saved.save(2, state(2, mesh(1, 1)))


def test_every_file_is_in_the_manifest(directory):
  fill(directory, [1])
  root = directory / '1'
  manifest = json.loads((root / integrity.FILE).read_text())
  files = {
    str(path.relative_to(root))
    for path in pathlib.Path(root).rglob('*')
    if path.is_file() and path.name not in ('manifest.json', '_CHECKPOINT_METADATA')
  }
  assert set(manifest) <= files and files - set(manifest) <= {'commit_success.txt'}
  assert sum(size for size, _ in manifest.values()) > 64 * 48 * 4 * 0.1


def largest(root):
  return max((p for p in pathlib.Path(root / 'state').rglob('*')), key=lambda p: p.stat().st_size)


def flip(root):
  path = largest(root)
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 0x10
  path.write_bytes(bytes(content))


DAMAGE = {
  'has changed since it was written': flip,
  'bytes instead of': lambda root: largest(root).write_bytes(b'short'),
  'is missing': lambda root: largest(root).unlink(),
  'no readable manifest.json': lambda root: (root / 'manifest.json').unlink(),
  'not enough values to unpack': lambda root: (root / 'manifest.json').write_text('{"a": [1]}'),
  'no readable': lambda root: [shutil.rmtree(root), root.mkdir()],
}


@pytest.mark.parametrize('text', DAMAGE)
def test_damage_is_noticed_and_the_one_before_used(directory, text, caplog):
  fill(directory, [1, 2], keep_last=2)
  DAMAGE[text](directory / '2')
  assert text in integrity.damage(directory / '2')
  watching = manager.Checkpoints(directory, keep_last=2, read_only=True)
  assert watching.latest_intact() == 1 and on_disk(directory) == [1, 2]
  saved = manager.Checkpoints(directory, keep_last=2)
  assert saved.latest_intact() == 1 and on_disk(directory) == [1]
  assert_holds(saved.restore(1, like(mesh(1, 1))), 1)
  saved.save(2, state(20, mesh(1, 1)))  # the step that was damaged can be saved again
  saved.close()
  assert_holds(manager.Checkpoints(directory).restore(2, like(mesh(1, 1))), 20)


@pytest.mark.parametrize('renames', [True, False])
def test_a_removal_that_is_cut_short_leaves_no_damaged_checkpoint(
  directory, opened, monkeypatch, caplog, renames
):
  """As by a kill: its rest counts as an unfinished save, which is removed by the next start."""
  if not renames:
    make_store_without_renames(monkeypatch)

  def rmtree(path):
    (path / 'state' / '_METADATA').unlink(missing_ok=True)
    raise OSError(errno.EBUSY, 'Device or resource busy')

  with monkeypatch.context() as cut_short:
    cut_short.setattr(type(directory), 'rmtree', rmtree)
    fill(directory, [1, 2, 3], keep_last=2)
  assert 'checkpoint 1 could not be removed: [Errno 16] Device or resource busy' in caplog.text
  caplog.clear()
  saved = opened(keep_last=2)
  left = directory / ('1.orbax-checkpoint-tmp' if renames else '1')
  assert left.exists() and saved.steps() == [2, 3] and saved.latest_intact() == 3
  assert not caplog.text and not directory.with_name('checkpoints.damaged').exists()
  saved.remove_unfinished()
  assert not left.exists() and on_disk(directory) == [2, 3]


@pytest.mark.parametrize('loss', ['a file', 'the manifest'])
def test_a_checkpoint_that_was_to_stay_is_set_aside(directory, loss):
  """Not all files of it are there, but nobody was removing it: what is left of it is kept."""
  fill(directory, [1, 2], keep_last=2)
  (largest(directory / '1') if loss == 'a file' else directory / '1' / 'manifest.json').unlink()
  assert manager.Checkpoints(directory, keep_last=2).latest_intact() == 2
  aside = directory.with_name('checkpoints.damaged')
  assert [path.name.split('-')[0] for path in aside.iterdir()] == ['1']


def test_room_of_unfinished_saves_is_freed_before_it_is_missed(directory):
  fill(directory, [1])
  left = directory / '2.orbax-checkpoint-tmp'
  shutil.copytree(directory / '1', left)
  saved = manager.Checkpoints(directory)
  assert saved.latest_intact() == 1
  saved.remove_unfinished()
  assert [path.name for path in directory.iterdir() if path.is_dir()] == ['1']


def make_store_without_renames(monkeypatch) -> None:
  """Makes orbax treat every directory as one of gs://."""
  commits = atomicity.CommitFileTemporaryPath
  for kind in ('', 'item_'):
    name = f'get_{kind}default_temporary_path_class'
    monkeypatch.setattr(atomicity_defaults, name, lambda *_, **__: commits)
  monkeypatch.setattr(gcs_utils, 'is_gcs_path', lambda path: True)


def test_a_store_without_renames(directory, monkeypatch):
  """As gs://, where an unfinished checkpoint has its name from the beginning."""
  make_store_without_renames(monkeypatch)
  fill(directory, [1, 2], keep_last=2)
  saved = manager.Checkpoints(directory, keep_last=2)
  assert saved.latest_intact() == 2
  for step in (2, 1):  # the save was cut short, later also the first one
    (directory / str(step) / 'commit_success.txt').unlink()
    assert saved.latest_intact() == (1 if step == 2 else None)
  assert not directory.with_name('checkpoints.damaged').exists()
  saved.remove_unfinished()
  saved.save(1, state(10, mesh(1, 1)))
  saved.close()
  assert_holds(manager.Checkpoints(directory).restore(1, like(mesh(1, 1))), 10)


@pytest.mark.parametrize('before', ['saved', 'restored'])
def test_nothing_is_saved_where_the_directory_is_gone(directory, opened, before):
  saved = opened()
  if before == 'saved':
    saved.save(1, state(1, mesh(1, 1)))
    saved.wait()
  else:
    fill(directory, [1])
    saved.restore(1, like(mesh(1, 1)))
  directory.rename(directory.with_name('elsewhere'))
  with pytest.raises(errors.InputError, match='checkpoints is gone: .* Step 2 was not saved'):
    saved.save(2, state(2, mesh(1, 1)))
  assert not directory.exists()


def test_the_directory_is_removed_during_a_save(directory, opened, monkeypatch):
  saved = opened()

  def remove_and_fail(root):
    directory.rmtree()
    raise FileNotFoundError(errno.ENOENT, 'No such file')

  monkeypatch.setattr(integrity, 'content', remove_and_fail)
  saved.save(1, state(1, mesh(1, 1)))
  fault = fault_of(saved)
  assert isinstance(fault, errors.InputError)
  assert 'checkpoints is gone: ' in str(fault) and 'Step 1 was not saved' in str(fault)


def test_every_damaged_one_is_set_aside(directory):
  fill(directory, [1, 2, 3], keep_last=3)
  flip(directory / '1')
  saved = manager.Checkpoints(directory, keep_last=3)
  assert saved.latest_intact() == 3 and on_disk(directory) == [2, 3]


def test_none_intact_is_not_a_fresh_start(directory):
  fill(directory, [1])
  flip(directory / '1')
  for _ in range(2):
    with pytest.raises(
      errors.InputError, match=r'checkpoints are damaged; .* moved to .*\.damaged\. To '
    ):
      manager.Checkpoints(directory).latest_intact()


def test_nothing_saved_yet(directory):
  assert manager.Checkpoints(directory).latest_intact() is None
  assert manager.Checkpoints(directory, keep_best='val/top1', read_only=True).best() is None


def fail_in(monkeypatch, directory, fault: Exception) -> None:
  """Saves below `directory` fail in the background with `fault`."""
  original = integrity.content

  def content(root):
    if directory in root.parents:
      raise fault
    return original(root)

  monkeypatch.setattr(integrity, 'content', content)


FULL = OSError(errno.ENOSPC, 'No space left on device')


def test_a_full_disk_is_an_error_for_the_user(directory, opened, monkeypatch):
  """Which each call raises, from the end of the save on."""
  saved = opened()
  saved.save(1, state(1, mesh(1, 1)))
  saved.wait()
  fail_in(monkeypatch, directory, FULL)
  saved.save(2, state(2, mesh(1, 1)))
  text = (
    r'the checkpoint of step 2 could not be written to .*: \[Errno 28\] No space left on device\. '
    r'The checkpoint of step 1 is intact\. [\d,.]+ MB are free there\. Check free space, quotas '
    r'and permissions, then start the same command again\.$'
  )
  assert re.match(text, str(fault_of(saved)))
  for call in (saved.wait, saved.close, lambda: saved.save(3, state(3, mesh(1, 1)))):
    with pytest.raises(errors.InputError, match=text):
      call()
  assert manager.Checkpoints(directory).latest_intact() == 1


def test_a_fault_that_is_not_of_the_disk_stays_itself(directory, opened, monkeypatch):
  saved = opened()
  fail_in(monkeypatch, directory, KeyError('a bug'))
  saved.save(1, state(1, mesh(1, 1)))
  assert isinstance(fault_of(saved), KeyError)


def test_a_full_disk_before_a_save_goes_to_the_background(opened, monkeypatch):
  def save(*_, **__):
    raise FULL

  monkeypatch.setattr(ocp.AsyncCheckpointer, 'save', save)
  with pytest.raises(errors.InputError, match='step 1 could not .* No other was saved yet'):
    opened().save(1, state(1, mesh(1, 1)))


def test_a_fault_is_noticed_without_a_log_or_another_save(directory, opened, monkeypatch):
  saved = opened()
  fail_in(monkeypatch, directory, FULL)
  logging.disable(logging.CRITICAL)
  try:
    saved.save(1, state(1, mesh(1, 1)))
    assert isinstance(fault_of(saved), errors.InputError)
  finally:
    logging.disable(logging.NOTSET)


def test_two_directories_do_not_share_faults(directory, opened, monkeypatch):
  failing, working = opened(), opened(directory.with_name('other'))
  fail_in(monkeypatch, directory, FULL)
  for step in (1, 2):
    if step == 1:
      failing.save(step, state(step, mesh(1, 1)))
    assert isinstance(fault_of(failing), errors.InputError)
    working.save(step, state(step, mesh(1, 1)))
    working.check()
  working.close()
  assert working.latest_intact() == 2 and failing.steps() == []


def process_wide_state():
  """What the saving threads of orbax write to."""
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  return sys.unraisablehook, [list(logger.filters) for logger in loggers]


def test_importing_changes_nothing_in_the_process():
  before = process_wide_state()
  for module in (save_faults, manager):
    runpy.run_path(module.__file__)
  assert process_wide_state() == before


@pytest.mark.parametrize('fails', [False, True])
def test_tracebacks_are_hidden_only_while_saves_may_fail(
  directory, opened, monkeypatch, caplog, fails
):
  before = process_wide_state()
  saved = opened()
  assert process_wide_state() == before
  if fails:
    fail_in(monkeypatch, directory, FULL)
  saved.save(1, state(1, mesh(1, 1)))
  assert process_wide_state() != before
  close_quietly(saved)
  assert process_wide_state() == before
  assert 'background save thread' not in caplog.text


def test_hiding_tracebacks_leaves_all_others(caplog, monkeypatch):
  shown = []
  monkeypatch.setattr(sys, 'unraisablehook', lambda found: shown.append(str(found.exc_value)))
  with save_faults.hidden_tracebacks():
    for text in ('Event loop is closed', 'something else'):
      sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    for name in ('absl', 'asyncio'):
      logging.getLogger(name).error('failed: %s', name, exc_info=RuntimeError('of ours'))
    with pytest.raises(FileNotFoundError) as of_orbax, ocp.StandardCheckpointer() as checkpointer:
      checkpointer.restore('/nowhere')
    for name in ('absl', 'asyncio'):
      logging.getLogger(name).error('hidden', exc_info=of_orbax.value)
  assert shown == ['something else']
  assert [record.getMessage() for record in caplog.records] == ['failed: absl', 'failed: asyncio']


def test_keep_last():
  with pytest.raises(errors.InputError, match='keep_last is 0; keep at least 1'):
    manager.Checkpoints(epath.Path('/nowhere'), keep_last=0)
