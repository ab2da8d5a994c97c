"""Where parameters are read: a file, or a checkpoint in the workdir of a run."""

import hashlib
import json
from typing import NamedTuple

from absl import logging
from etils import epath
import numpy as np

from mixer.checkpoints import integrity
from mixer.cluster.coordination import SINGLE, Cluster
from mixer.errors import InputError
from mixer.models import scanning
from mixer.pretrained import formats, layouts, trees


class Stored(NamedTuple):
  """Parameters as they are stored, and the identity of the bytes that were read."""

  flat: dict[str, np.ndarray]  # under the released names
  kind: str  # '.npz', '.safetensors', '.pth' or 'workdir of a run'
  layout: str  # a key of `layouts.LAYOUTS`, and what wraps it
  identity: dict  # 'bytes', 'sha256' and, of a checkpoint, 'step'


def read(
  path: epath.Path,
  which: int | str = 'newest',
  keep_best: str | None = None,
  cluster: Cluster = SINGLE,
) -> Stored:
  """The parameters at `path`; the arguments are those of `mixer.pretrained.open`."""
  return _read_workdir(path, which, keep_best, cluster) if path.is_dir() else _read_file(path)


def _read_file(path: epath.Path) -> Stored:
  if not path.exists():
    raise InputError(
      f'no file {path}; give the path of an .npz, .safetensors or .pth file with parameters, or '
      'the workdir of a run.'
    )
  content = path.read_bytes()
  kind, arrays = formats.parse(content, str(path))
  try:
    flat, layout, dropped = layouts.to_released(arrays)
  except InputError as fault:
    raise InputError(f'{path}: {fault}') from fault
  if dropped:
    logging.warning(
      '%s: %d arrays beside the parameters are left out: %s%s',
      path, len(dropped), ', '.join(dropped[:4]), ', ...' if len(dropped) > 4 else '',
    )  # fmt: skip
  return Stored(flat, kind, layout, {'bytes': len(content), 'sha256': _sha256(content)})


def _read_workdir(
  path: epath.Path, which: int | str, keep_best: str | None, cluster: Cluster
) -> Stored:
  """Reads a checkpoint; the next one, if the run in `path` removes it before it is read."""
  from mixer.checkpoints import manager  # loads orbax, which takes seconds

  saved = manager.Checkpoints(
    path.resolve() / 'checkpoints', keep_best=keep_best, read_only=True, cluster=cluster
  )
  while True:
    step = _choose(path, saved, which, keep_best, cluster)
    manifest = saved.directory / str(step) / integrity.FILE
    try:
      content = manifest.read_bytes()
      params = saved.restore_params(step)
      unchanged = manifest.read_bytes() == content
    except Exception:
      if integrity.damage(manifest.parent) is None:
        raise
      unchanged = False
    if unchanged:
      break
    if cluster.is_multiprocess:  # one process must not choose again alone
      raise InputError(
        f'{path}: the checkpoint of step {step} was replaced while it was read, by the run that '
        'trains there. Start again.'
      )
  sizes = [size for size, _ in json.loads(content).values()]
  return Stored(
    flat={k: np.asarray(x) for k, x in trees.flatten(scanning.unstack_blocks(params)).items()},
    kind='workdir of a run',
    layout='scanned' if scanning.STACKED in params else 'released',
    identity={'step': step, 'bytes': sum(sizes), 'sha256': _sha256(content)},
  )


def _choose(path: epath.Path, saved, which, keep_best: str | None, cluster: Cluster) -> int:
  """The step of the checkpoint to read, the same on all processes."""
  if which == 'newest':
    step = saved.latest_intact()
    what = 'is a directory without an intact checkpoint'
  elif which == 'best':
    if not keep_best:
      raise InputError('--which=best needs config.checkpoints.keep_best, such as val/top1.')
    step = saved.best()
    what = f'is a directory without an intact checkpoint that has a result {keep_best}'
  else:
    damage = cluster.on_process_0(lambda: integrity.damage(saved.directory / str(which)))
    step = which if damage is None else None
    what = f'has no intact checkpoint of step {which}'
  if step is None:
    names = sorted(file.name for file in path.glob('*.npz'))
    hint = f', or one of its files, {", ".join(names)}' if names else ' or a file'
    raise InputError(f'{path} {what}; give a workdir of train.py{hint}.')
  return step


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
