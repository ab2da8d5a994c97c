"""Checkpoints of a whole train state: asynchronous, guarded against damage, newest and best."""

from concurrent import futures
import contextlib
import glob
import json
import os
import shutil
import tempfile
import time
import traceback
import weakref

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from mixer import files
from mixer.checkpoints import integrity, save_faults
from mixer.cluster.coordination import SINGLE, Cluster
from mixer.errors import Diverged, InputError, Interrupted
from mixer.training import plan
from mixer.values import Count


class Checkpoints:
  """The checkpoints in one directory.

  Orbax restores flipped bits without an error, so every checkpoint carries a manifest with the size
  and CRC-32 of each of its files. It is written before the checkpoint is renamed into place:
  a checkpoint without one, or that disagrees with it, is damaged and never restored.

  A save goes on in the background, and its fault is raised by the next call of `check`, `save`,
  `wait` or `close`. Orbax's `CheckpointManager` raises it only at the next save, and on several
  processes only after a barrier that the others do not reach; `AsyncCheckpointer` alone does not.
  """

  def __init__(
    self,
    directory: epath.Path,
    *,
    keep_last: Count = 1,
    keep_best: str | None = None,
    read_only: bool = False,
    cluster: Cluster = SINGLE,
  ):
    """Opens `directory`.

    Args:
      directory: absolute; the first save creates it.
      keep_last: how many of the newest checkpoints to keep.
      keep_best: an evaluation's result, such as 'val/top1', or 'val/loss', of which lower is
        better; the checkpoint with the best is kept too.
      read_only: change nothing: another program may be training there.
      cluster: the processes that save and restore together.
    """
    if keep_last < 1:
      raise InputError(f'checkpoints.keep_last is {keep_last}; keep at least 1.')
    self.directory = epath.Path(directory)
    self._link: epath.Path | None = None  # to the directory, see `_orbax_path`
    self.copies = keep_last + (keep_best is not None) + 1  # on disk at once, while saving
    self.keep_best, self._keep_last = keep_best, keep_last
    self._read_only, self._cluster = read_only, cluster
    self._damaged_directory = self.directory.with_name(self.directory.name + '.damaged')
    self._restored_step = self._saving_step = None
    self._save: futures.Future | None = None  # the newest one, until its checkpoint is complete
    self._checkpointer: ocp.AsyncCheckpointer | None = None
    self._resources = contextlib.ExitStack()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error: BaseException | None, trace) -> None:
    """Closes, except after a fault of one of several processes, which may wait for it in vain."""
    if error is None or isinstance(error, Interrupted):
      self.close()
    elif isinstance(error, Diverged) or not self._cluster.is_multiprocess:
      with contextlib.suppress(Exception):  # `error` is what the user is to see
        self.close()

  def close(self) -> None:
    """Waits for the last save, and raises its fault."""
    with self._resources:
      self.wait()

  @property
  def is_multiprocess(self) -> bool:
    """Whether several processes save together."""
    return self._cluster.is_multiprocess

  def check(self) -> None:
    """Raises the fault of a save that has failed by now, as InputError if the disk is to blame."""
    if self._save is not None and self._save.done():
      self.wait()

  def wait(self) -> None:
    """Waits for the save under way, and raises its fault."""
    if self._save is not None:
      with self._explained():
        self._save.result()

  def save(self, step: int, state) -> None:
    """Starts to save `state`, unless the run was restored from this step.

    Raises the fault of an earlier save.
    """
    self.wait()
    if self._cluster.process_id == 0:  # others may see the files of a network filesystem later
      self._check_directory(step)
    if step == self._restored_step:
      return
    self._saving_step = step
    if self._checkpointer is None:
      self._open()
    args = ocp.args.Composite(state=ocp.args.StandardSave(state))
    with self._explained():
      self._checkpointer.save(self._orbax_path(step), args=args, force=True)
    self._save = self._thread.submit(self._finish_save)

  def add_results(self, step: int, results: dict[str, float]) -> None:
    """Adds the results of an evaluation to the checkpoint of `step`, for `keep_best`.

    Waits until that checkpoint is complete.
    """
    if self.keep_best is None or not results:
      return
    if self.keep_best not in results:
      raise InputError(
        f'config.checkpoints.keep_best={self.keep_best!r} is no result of an evaluation; '
        f'use one of {sorted(results)}.'
      )
    self.wait()
    self._cluster.on_process_0(lambda: self._write_results(step, results))

  def restore(self, step: int, like):
    """The state saved at `step`, as `like`: ShapeDtypeStructs that carry shardings."""
    self._restored_step = step
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
      return checkpointer.restore(self._orbax_path(step), args=args)['state']

  def restore_params(self, step: int, *, averaged: bool = False) -> dict:
    """The parameters alone of the state saved at `step`, or their average, as numpy arrays."""
    path, part = self._orbax_path(step), 'ema' if averaged else 'params'
    handler = ocp.CompositeCheckpointHandler(
      state=ocp.PyTreeCheckpointHandler(), metrics=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as checkpointer:
      found = checkpointer.metadata(path).item_metadata['state'].tree.get(part)
      if found is None:
        raise InputError(
          f'the checkpoint of step {step} in {self.directory} has no averaged parameters: the run '
          'has no config.ema. Leave out :ema.'
        )
      whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found)
      args = ocp.args.PyTreeRestore(
        item={part: found}, restore_args={part: whole}, partial_restore=True
      )
      return checkpointer.restore(path, args=ocp.args.Composite(state=args))['state'][part]

  def steps(self) -> list[int]:
    """The steps with a complete checkpoint, in ascending order."""
    entries = self.directory.iterdir() if self.directory.exists() else ()
    return sorted(
      int(entry.name)
      for entry in entries
      if entry.name.isdigit() and ocp.path.step.is_path_finalized(entry)
    )

  def latest_intact(self) -> int | None:
    """The newest step whose files are as they were written, or None.

    Logs which ones are damaged, and moves them into '<directory>.damaged' unless this is read-only.
    """
    return self._cluster.on_process_0(self._find_latest_intact)

  def best(self) -> int | None:
    """The intact step whose `keep_best` result is best, or None where none has one."""
    return self._cluster.on_process_0(self._find_best)

  def find(self, which: str) -> int | None:
    """The intact step that `which` names: 'latest' or 'newest', 'best' or its number; or None."""
    if which in ('latest', 'newest'):
      return self.latest_intact()
    if which == 'best':
      return self.best()
    path = self._path(int(which))
    return self._cluster.on_process_0(lambda: None if integrity.damage(path) else int(which))

  def remove_unfinished(self) -> None:
    """Removes what interrupted saves and removals have left."""
    for path in ocp.path.step.all_temporary_paths(self.directory):
      self._delete(path.get())

  def _path(self, step: int) -> epath.Path:
    return self.directory / str(step)

  def _orbax_path(self, step: int) -> epath.Path:
    """The same by a path without the characters `*?[`: orbax uses paths as glob patterns."""
    if glob.escape(str(self.directory)) == str(self.directory):
      return self._path(step)
    if '://' in str(self.directory):
      raise InputError(f'{self.directory} has one of the characters *?[ in its name; use another.')
    if self._link is None:
      parent = tempfile.mkdtemp(prefix='mixer-')
      weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)
      self._link = epath.Path(parent) / 'checkpoints'
      os.symlink(self.directory, self._link)
    return self._link / str(step)

  def _find_latest_intact(self) -> int | None:
    intact = []
    for step in reversed(self.steps()):
      damage = integrity.damage(self._path(step))
      if damage is None:
        intact.append(step)
        continue
      action = 'skipped' if self._read_only else f'moved to {self._set_aside(step)}'
      logging.warning('checkpoint %d is damaged (%s): %s.', step, damage, action)
    if not intact and not self._read_only and self._damaged_directory.exists():
      raise InputError(
        f'all checkpoints in {self.directory} are damaged; they were moved to '
        f'{self._damaged_directory}. To train from the beginning, use another --workdir or remove '
        'this one.'
      )
    return intact[0] if intact else None

  def _set_aside(self, step: int) -> epath.Path:
    self._damaged_directory.mkdir(parents=True, exist_ok=True)
    return self._path(step).rename(self._damaged_directory / f'{step}-{time.time_ns()}')

  def _find_best(self) -> int | None:
    evaluated = {}
    for step in self.steps():
      results = self._results(step)
      if results and integrity.damage(self._path(step)) is None:
        if self.keep_best not in results:
          raise InputError(
            f'config.checkpoints.keep_best={self.keep_best!r} is no result of step {step} in '
            f'{self.directory}; it has {sorted(results)}.'
          )
        evaluated[step] = results
    return self._best_of(evaluated)

  def _best_of(self, evaluated: dict[int, dict[str, float]]) -> int | None:
    """Of steps with the same result, the newest."""

    def rank(step: int) -> tuple[float, int]:
      return plan.gain(self.keep_best, evaluated[step][self.keep_best]), step

    return max(evaluated, key=rank, default=None)

  def _results(self, step: int) -> dict[str, float]:
    """The results that were saved with the checkpoint of `step`; {} if there are none."""
    path = self._path(step) / 'metrics' / 'metrics'
    return json.loads(path.read_text()) if path.exists() else {}

  def _write_results(self, step: int, results: dict[str, float]) -> None:
    """Writes the results, then the manifest: a kill between them leaves an intact checkpoint."""
    root = self._path(step)
    (root / 'metrics').mkdir(exist_ok=True)
    files.write(root / 'metrics' / 'metrics', json.dumps(results).encode())
    files.write(root / integrity.FILE, integrity.content(root))
    self._remove_superseded()

  def _open(self) -> None:
    """Starts what saving needs; `close` ends it."""
    self._resources.enter_context(save_faults.hidden_tracebacks())
    self._thread = self._resources.enter_context(futures.ThreadPoolExecutor(1, 'save'))
    handler = ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler())
    options = ocp.AsyncOptions(timeout_secs=600, post_finalization_callback=self._write_manifest)
    self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)
    self._resources.callback(self._close_checkpointer)

  def _close_checkpointer(self) -> None:
    checkpointer, self._checkpointer = self._checkpointer, None
    checkpointer.close()

  def _check_directory(self, step: int) -> None:
    """Creates the directory for the first save; raises if `step` cannot be saved there."""
    if self._saving_step is None and self._restored_step is None:
      self.directory.mkdir(parents=True, exist_ok=True)
    self._check_not_gone(step)
    newest = max(self.steps(), default=-1)
    if newest >= step != self._restored_step:
      raise RuntimeError(
        f'step {step} was not saved: {self.directory} holds a checkpoint of step {newest}.'
      )

  def _write_manifest(self) -> None:
    """Called by orbax on process 0 when all files are written, before the rename."""
    root = self._temporary_path(self._saving_step)
    (root / integrity.FILE).write_bytes(integrity.content(root))

  def _temporary_path(self, step: int) -> epath.Path:
    """Where a checkpoint is while it is incomplete: in a store without renames, where it stays."""
    return self._checkpointer.get_temporary_path(self._path(step)).get()

  def _finish_save(self) -> None:
    """In a thread: waits until the checkpoint is complete, then removes those not to be kept."""
    self._checkpointer.wait_until_finished()
    if self._cluster.process_id == 0:
      self._remove_superseded()

  def _remove_superseded(self) -> None:
    """Removes the checkpoints that are neither among the newest ones nor the best."""
    steps = self.steps()
    results = {step: self._results(step) for step in steps}
    best = self._best_of({s: found for s, found in results.items() if self.keep_best in found})
    kept = {*steps[-self._keep_last :], best}
    for step in steps:
      if step not in kept:
        self._remove(step)

  def _remove(self, step: int) -> None:
    """Removes a checkpoint; it is marked as incomplete first, so a kill leaves no damaged one."""
    path, temporary_path = self._path(step), self._temporary_path(step)
    try:
      if temporary_path == path:
        (path / ocp.path.atomicity.COMMIT_SUCCESS_FILE).unlink()
      else:
        path.rename(temporary_path)
      self._delete(temporary_path)
    except OSError as fault:
      logging.warning('checkpoint %d could not be removed: %s', step, fault)

  def _delete(self, path: epath.Path) -> None:
    ocp.path.deleter.PathDeleter(self.directory).delete(path)

  def _check_not_gone(self, step: int) -> None:
    """Raises InputError on process 0 if the directory no longer exists."""
    if (
      self._cluster.process_id == 0
      and '://' not in str(self.directory)  # object stores have no empty directories
      and not self.directory.exists()
    ):
      raise InputError(
        f'{self.directory} is gone: it was moved or removed, or its disk is not mounted any more. '
        f'Step {step} was not saved.'
      )

  @contextlib.contextmanager
  def _explained(self):
    """Raises the fault of a save as InputError if the disk or a missing directory is to blame."""
    try:
      yield
    except Exception as fault:
      traceback.clear_frames(fault.__traceback__)  # frees the tasks that orbax has not awaited
      self._check_not_gone(self._saving_step)
      error = save_faults.disk_error(fault, self.directory, self._saving_step, self.steps())
      if error is None:
        raise
      raise error from fault
