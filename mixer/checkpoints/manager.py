"""Checkpoints of a whole train state: asynchronous, guarded against damage, newest and best."""

from collections.abc import Sequence
import contextlib
import json
import threading
import time

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mixer import files
from mixer.checkpoints import integrity, save_faults
from mixer.cluster import coordination
from mixer.errors import Diverged, InputError, Interrupted

_POLL_SECONDS = 0.01
GOING_FILE = 'going.json'  # the steps that orbax is removing, or is about to
# Where a checkpoint is complete by a file of orbax's, and not by a rename.
_COMMIT_FILE, _STORES_WITHOUT_RENAMES = 'commit_success.txt', ('gs://',)


class Checkpoints:
  """The checkpoints in one directory.

  Orbax restores flipped bits in silence, so every checkpoint carries a manifest with the size
  and CRC-32 of each of its files. It is written before the checkpoint is renamed into place:
  a checkpoint without one, or that disagrees with it, is damaged and never restored.
  """

  def __init__(
    self,
    directory: epath.Path,
    *,
    keep_last: int = 1,
    keep_best: str | None = None,
    read_only: bool = False,
    cluster: coordination.Cluster = coordination.SINGLE,
  ):
    """Opens `directory`.

    Args:
      directory: absolute; made if it is not there.
      keep_last: how many of the newest checkpoints stay.
      keep_best: an evaluation's result, such as 'val/top1'; the checkpoint with the highest
        stays too.
      read_only: change nothing: another program may be training there.
      cluster: the processes that save and restore together.
    """
    if keep_last < 1:
      raise InputError(f'checkpoints.keep_last is {keep_last}; keep at least 1.')
    self.directory = epath.Path(directory)
    policies = [preservation_policy.LatestN(keep_last)]
    self._score = None if keep_best is None else lambda metrics: metrics[keep_best]
    if keep_best is not None:
      policies.append(
        preservation_policy.BestN(
          get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
        )
      )
    self.copies = keep_last + (keep_best is not None) + 1  # on disk at once, while saving
    self._aside = self.directory.with_name(self.directory.name + '.damaged')
    self._saving_step = self._restored_step = None
    self._policy = _Announced(policies, self.directory / GOING_FILE)
    self._keep_best = keep_best
    self._read_only = read_only
    self._manager, self._cluster = None, cluster
    save_faults.seen.clear()  # those of an earlier run in this process

  @property
  def manager(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=self._policy,
          best_fn=self._score,  # without it orbax does not write the metrics
          cleanup_tmp_directories=not self._read_only,
          read_only=self._read_only,
          async_options=ocp.AsyncOptions(
            timeout_secs=600, post_finalization_callback=self._write_manifest
          ),
        ),
        item_names=('state',),
      )
    return self._manager

  def check(self) -> None:
    """Raises what has made a save fail by now; with the disk to blame, as InputError. Quick."""
    if save_faults.seen:
      raise self._explained(save_faults.seen[0])

  def save(self, step: int, state, results: dict[str, float]) -> None:
    """Starts to save `state`; `results` are this step's evaluation, or {}.

    Of the step that the run was restored from, only the results are added. Raises what made an
    earlier save fail.
    """
    self._finish()
    if self._gone():
      raise self._of_what_is_gone(step)
    if results and self._keep_best is not None and self._keep_best not in results:
      raise InputError(
        f'config.checkpoints.keep_best={self._keep_best!r} is no result of an evaluation; '
        f'use one of {sorted(results)}.'
      )
    metrics = results if self._keep_best is not None and results else None
    if step == self._restored_step:
      self._add(metrics)
      return
    self._saving_step = step
    args = ocp.args.Composite(state=ocp.args.StandardSave(state))
    if not self.manager.save(step, args=args, metrics=metrics):
      raise RuntimeError(
        f'{self.directory} holds a checkpoint of step {self.manager.latest_step()}, so that of '
        f'step {step} was not saved.'
      )

  def latest_intact(self) -> int | None:
    """The newest step whose files are as they were written, or None.

    Those that are damaged are named, and set aside into '<directory>.damaged'
    unless this is read-only.
    """
    return self._cluster.on_process_0(self._first_intact)

  def remove_unfinished(self) -> None:
    """Frees the disk of what saves that were cut short have left, before anyone asks for room.

    Orbax does so too, but while training goes on.
    """
    for path in self.directory.glob('*.orbax-checkpoint-tmp*'):
      path.rmtree()

  def restore(self, step: int, like):
    """The state saved at `step`, as `like`: ShapeDtypeStructs that carry shardings."""
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    self._restored_step = step
    return self.manager.restore(step, args=args)['state']

  def restore_params(self, step: int) -> dict:
    """The parameters alone of the state saved at `step`, as numpy arrays."""
    path = self.directory / str(step)
    handler = ocp.CompositeCheckpointHandler(
      state=ocp.PyTreeCheckpointHandler(), metrics=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as checkpointer:
      found = checkpointer.metadata(path).item_metadata['state'].tree['params']
      whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found)
      args = ocp.args.PyTreeRestore(
        item={'params': found}, restore_args={'params': whole}, partial_restore=True
      )
      return checkpointer.restore(path, args=ocp.args.Composite(state=args))['state']['params']

  def best(self) -> int | None:
    """The intact step whose `keep_best` result is highest, or None where none has one."""
    return self._cluster.on_process_0(self._find_best)

  def _find_best(self) -> int | None:
    scores = {}
    for step in self.steps():
      path = self.directory / str(step) / 'metrics' / 'metrics'
      if path.exists() and integrity.damage(self.directory / str(step)) is None:
        found = json.loads(path.read_text())
        if self._keep_best not in found:
          raise InputError(
            f'config.checkpoints.keep_best={self._keep_best!r} is no result of step {step} in '
            f'{self.directory}; it has {sorted(found)}.'
          )
        scores[step] = found[self._keep_best]
    return max(reversed(scores), key=scores.get) if scores else None  # of equals, the newest

  def close(self) -> None:
    """Waits for the last save, and raises what made it fail."""
    if self._manager is not None:
      self._finish()
      self._manager.close()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error: BaseException | None, trace) -> None:
    """Closes; after a fault of its own, one of several processes may wait in vain, and does not."""
    if error is None or isinstance(error, Interrupted):
      self.close()
    elif isinstance(error, Diverged) or not self._cluster.is_multiprocess:
      with contextlib.suppress(Exception):  # the first fault is the one to be told
        self.close()

  def _finish(self) -> None:
    """Waits for the save under way, and raises what made it fail.

    At once: of several processes the others still wait for the one that failed, and in orbax it
    waits for them, until a time-out.
    """
    manager, faults = self.manager, []

    def wait() -> None:
      try:
        manager.wait_until_finished()
      except Exception as fault:
        faults.append(fault)

    waiter = threading.Thread(target=wait, name='save', daemon=True)
    waiter.start()
    while waiter.is_alive():
      self.check()
      waiter.join(_POLL_SECONDS)
    if faults:
      raise self._explained(faults[0]) from faults[0]

  def _gone(self) -> bool:
    """Whether the directory, which was made when this was opened, is no longer there."""
    return (
      jax.process_index() == 0  # on a network filesystem others may not see it yet
      and '://' not in str(self.directory)  # where empty ones do not exist
      and not self.directory.exists()
    )

  def _of_what_is_gone(self, step: int) -> InputError:
    return InputError(
      f'{self.directory} is gone: it was moved or removed, or its disk is no longer there. Step '
      f'{step} was not saved, for nothing would be found there.'
    )

  def _explained(self, fault: BaseException) -> BaseException:
    if self._gone():
      return self._of_what_is_gone(self._saving_step)
    kept = [step for step in self.steps() if step != self._saving_step]
    return save_faults.explained(
      fault,
      step=self._saving_step,
      directory=self.directory,
      kept=kept[-1] if kept else None,
    )

  def _add(self, metrics: dict[str, float] | None) -> None:
    """Puts the results of an evaluation into the checkpoint that the run was restored from."""
    if metrics is not None and jax.process_index() == 0:
      root = self.directory / str(self._restored_step)
      (root / 'metrics').mkdir(exist_ok=True)
      files.write(root / 'metrics' / 'metrics', json.dumps(metrics).encode())
      files.write(root / integrity.FILE, integrity.content(root))
    self._cluster.on_process_0(lambda: None)  # the files are there
    self.manager.reload()

  def _first_intact(self) -> int | None:
    intact, going = [], _read_going(self.directory / GOING_FILE)
    for step in reversed(self.steps()):  # a damaged best one is set aside too
      fault = integrity.damage(self.directory / str(step))
      if fault is None:
        intact.append(step)
        continue
      if intact and step in going and not self._read_only:
        logging.warning('removed the rest of checkpoint %d: its removal had been cut short.', step)
        (self.directory / str(step)).rmtree()
        continue
      where = 'skipped' if self._read_only else f'set aside as {self._set_aside(step)}'
      logging.warning('checkpoint %d is damaged (%s): %s.', step, fault, where)
    if not intact and not self._read_only and self._aside.exists():
      raise InputError(
        f'all checkpoints in {self.directory} were damaged and lie in {self._aside} now. To train '
        'from the beginning, use another --workdir or remove this one.'
      )
    return intact[0] if intact else None

  def steps(self) -> list[int]:
    """The steps with a complete checkpoint, in ascending order."""
    entries = self.directory.iterdir() if self.directory.exists() else ()
    found = [entry for entry in entries if entry.name.isdigit()]
    if str(self.directory).startswith(_STORES_WITHOUT_RENAMES):
      found = [entry for entry in found if (entry / _COMMIT_FILE).exists()]
    return sorted(int(entry.name) for entry in found)

  def _set_aside(self, step: int) -> epath.Path:
    self._aside.mkdir(parents=True, exist_ok=True)
    return (self.directory / str(step)).rename(self._aside / f'{step}-{time.time_ns()}')

  def _write_manifest(self) -> None:
    """Called by orbax in its saving thread when all files are written, before the rename."""
    if jax.process_index() != 0:
      return
    unfinished = sorted(self.directory.glob(f'{self._saving_step}.orbax-checkpoint-tmp*'))
    root = unfinished[-1] if unfinished else self.directory / str(self._saving_step)
    (root / integrity.FILE).write_bytes(integrity.content(root))


class _Announced:
  """A preservation policy that writes down which checkpoints are to go, before they do.

  So what a kill leaves of one that was being removed is not taken for damage, nor damage for it.
  """

  def __init__(self, policies: Sequence[preservation_policy.PreservationPolicy], path: epath.Path):
    """Preserves what any of `policies` does."""
    self._policy, self._path = preservation_policy.AnyPreservationPolicy(policies), path

  def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
    found = self._policy.should_preserve(checkpoints, context=context)
    if jax.process_index() == 0:
      going = [one.step for one, stays in zip(checkpoints, found) if not stays]
      with contextlib.suppress(OSError):  # a full disk: then it would be set aside
        files.write(self._path, json.dumps(going).encode())
    return found


def _read_going(path: epath.Path) -> list[int]:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return []
  return found if isinstance(found, list) else []
