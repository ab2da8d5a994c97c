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
from mixer.models import scanning
from mixer.pretrained import description, sources
from mixer.pretrained.sources import Pretrained
from mixer.pretrained.trees import check, flatten, nest

_PARAMS_FILE = 'model.npz'
__all__ = ['Pretrained', 'check', 'flatten', 'load', 'nest', 'open', 'save', 'save_model']


def load(path: epath.PathLike) -> dict:
  """The parameters of a file or a run: a nested dict of float32 arrays in the released layout.

  Args:
    path: an .npz, .safetensors or PyTorch .pth file in any of `layouts.LAYOUTS`, with any name, or
      the workdir of a run, of which the newest intact checkpoint is read.

  Raises:
    InputError: no such file, or one that is something else.
  """
  return sources.read(epath.Path(path).expanduser()).params


def open(
  path: epath.PathLike,
  *,
  which: int | str = 'newest',
  keep_best: str | None = None,
  cluster: Cluster = SINGLE,
) -> Pretrained:
  """The parameters of a file or a run, with their identity and description.

  Args:
    path: as for `load`.
    which: of a workdir: 'newest' or 'best' for an intact checkpoint, the step of one, or 'final'
      for the model.npz of a finished run and the newest checkpoint of any other.
    keep_best: the result by which a checkpoint is the best, such as 'val/top1'.
    cluster: the processes that open the same path together, and read the same checkpoint.

  Raises:
    InputError: no such file or checkpoint, or one that is something else.
  """
  path = epath.Path(path).expanduser()
  if which == 'final':
    finished = path / _PARAMS_FILE
    path, which = (finished if path.is_dir() and finished.exists() else path), 'newest'
  found = sources.read(path, which, keep_best, cluster)
  return dataclasses.replace(found, description=description.read(path))


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
    save(workdir / _PARAMS_FILE, params)
