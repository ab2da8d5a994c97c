"""Weights in and out: read from any known file or run, written in the released layout.

`python -m mixer.pretrained FILE` prints what a file is.
"""

from collections.abc import Mapping
import dataclasses
import io

from etils import epath
import jax
import numpy as np

from mixer import files
from mixer.cluster.coordination import SINGLE, Cluster
from mixer.errors import InputError
from mixer.models import scanning
from mixer.pretrained import description, hub, sources
from mixer.pretrained.description import Description
from mixer.pretrained.sources import Pretrained, local, reason, split_which
from mixer.pretrained.trees import check, flatten, nest

PARAMS_FILE = 'model.npz'
WHICH_HELP = (
  'Of a workdir: latest, best or the STEP of a checkpoint; by default model.npz if the run is '
  'finished, else the latest checkpoint. With config.ema also latest:raw, latest:ema and so on.'
)
ALLOW_INVALID_HELP = 'Accept parameters that are not finite or in the file more than once.'
__all__ = [
  'Pretrained', 'check', 'flatten', 'load', 'local', 'nest', 'open', 'reason', 'save', 'save_model',
  'split_which',
]  # fmt: skip


def load(path: epath.PathLike) -> dict:
  """The parameters of a file or a run: a nested dict of float32 arrays in the released layout.

  Args:
    path: as for `open`, which chooses the parameters.

  Raises:
    InputError: no such file, or one that is something else.
  """
  return open(path).params


def open(
  path: epath.PathLike,
  which: str | int | None = None,
  *,
  keep_best: str | None = None,
  cluster: Cluster = SINGLE,
  allow_invalid: bool = False,
  num_heads: int | None = None,
) -> Pretrained:
  """The parameters of a file or a run, with their identity and description.

  Args:
    path: an .npz, .safetensors or PyTorch .pth file in any of `layouts.LAYOUTS`, with any name, a
      folder of a model hub with one, or the workdir of a run.
    which: of a workdir: 'latest' ('newest' is the same) or 'best' for an intact checkpoint, or the
      step of one. Of a run with `config.ema`, its average is read if `export` is set there; ':raw'
      or ':ema' after any of them says which, as in 'best:raw'. None: model.npz of a finished run,
      the latest checkpoint of any other.
    keep_best: the result by which a checkpoint is the best, such as 'val/top1'; None: that of the
      run's own config.
    cluster: the processes that open the same path together, and read the same checkpoint.
    allow_invalid: accept parameters that are not finite, no floating-point numbers, or in the file
      more than once, of which the last is taken; `Pretrained.faults` names them.
    num_heads: of a ViT under timm's names, which do not have it; None for what is recorded beside
      the file, else that of the paper's size of its width, or one per 64 channels.

  Raises:
    InputError: no such file or checkpoint, one that is something else, or invalid parameters.
  """
  path, which = local(path), which if which is None else str(which)
  try:
    return _open(path, which, keep_best, cluster, allow_invalid, num_heads)
  except OSError as fault:
    raise InputError(f'{fault.filename or path} cannot be read: {reason(fault)}.') from fault


def _open(
  path: epath.Path, which, keep_best, cluster: Cluster, allow_invalid: bool, num_heads: int | None
) -> Pretrained:
  model = hub.find(path)
  sources.check_which(path, which, has_checkpoints=path.is_dir() and not model)
  finished = path / PARAMS_FILE
  if which is None and path.is_dir() and finished.exists():
    path = finished
  if which and which.startswith('best'):
    keep_best = keep_best or description.recorded_keep_best(path)
  known = Description() if model else description.read(path)
  heads = num_heads or (hub.num_heads(model) if model else _recorded_heads(known))
  weights = model.weights if model else path
  found = sources.read(weights, which or 'latest', keep_best, cluster, heads)
  if not allow_invalid:
    found.check_valid()
  if model:
    params, known = hub.describe(model, found.params)
    return dataclasses.replace(found, params=params, description=known)
  if known.file is None:
    hub.warn_of_name(path, found.layout)
  return dataclasses.replace(found, description=known)


def _recorded_heads(known: Description) -> int | None:
  return known.model.get('num_heads') if isinstance(known.model, Mapping) else None


def save(path: epath.PathLike, params: Mapping) -> None:
  """Writes `params` as an `.npz` in the released layout; an older file stays until it is whole."""
  path = epath.Path(path)
  flat = {
    n: np.asarray(leaf, order='C') for n, leaf in flatten(scanning.unstack_blocks(params)).items()
  }
  buffer = io.BytesIO()
  np.savez(buffer, **flat)
  files.write(path, buffer.getvalue())


def save_model(workdir: epath.Path, params: Mapping, facts: Mapping) -> None:
  """Writes a trained model: `model.json`, see `description.write`, then `model.npz`."""
  if jax.process_index() == 0:
    description.write(workdir, facts)
    save(workdir / PARAMS_FILE, params)
