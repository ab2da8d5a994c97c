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
from mixer.pretrained import description, records, sources
from mixer.pretrained.trees import check, flatten, nest

__all__ = ['Pretrained', 'check', 'flatten', 'load', 'nest', 'open', 'save', 'save_model']


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Parameters with their origin and what is recorded about them, all read at once.

  Attributes:
    params: a nested dict of float32 arrays in the released layout.
    identity: 'source', 'bytes' and 'sha256' of the file; of a workdir also 'step', and the others
      are those of its checkpoint. A checkpoint is many files: its sha256 is that of its manifest,
      which has a checksum of each.
    record: what the run that made the parameters has recorded about its model.
    kind, layout: see `sources.Stored`.
    dtypes: in which the parameters are stored.
  """

  params: dict
  identity: dict
  record: records.Record
  kind: str
  layout: str
  dtypes: tuple[str, ...]

  @property
  def source(self) -> str:
    """The file, or the workdir and the step, for messages."""
    step = f', step {self.identity["step"]}' if 'step' in self.identity else ''
    return self.identity['source'] + step

  def describe(self, **given) -> description.Description:
    """All that is needed to use the parameters; takes the options of `description.complete`."""
    return description.complete(self.params, self.record, self.source, **given)

  def check_permutation(self, section: Mapping | None, image_size: tuple[int, int]) -> None:
    """`records.check_permutation` of these parameters."""
    records.check_permutation(self.record, self.source, section, image_size)


def load(path: epath.PathLike) -> dict:
  """The parameters of a file or a run: a nested dict of float32 arrays in the released layout.

  Args:
    path: an .npz, .safetensors or PyTorch .pth file in any of `layouts.LAYOUTS`, with any name, or
      the workdir of a run, of which the newest intact checkpoint is read.

  Raises:
    InputError: no such file, or one that is something else.
  """
  path = epath.Path(path).expanduser()
  return _float32(sources.read(path))


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
  stored = sources.read(path, which, keep_best, cluster)
  return Pretrained(
    params=_float32(stored),
    identity={'source': str(path), **stored.identity},
    record=records.read(path),
    kind=stored.kind,
    layout=stored.layout,
    dtypes=tuple(sorted({str(array.dtype) for array in stored.flat.values()})),
  )


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
  """Writes a trained model: `model.json` with the facts of a `Record`, then `model.npz`."""
  if jax.process_index() == 0:
    records.write(workdir, facts)
    save(workdir / _PARAMS_FILE, params)


_PARAMS_FILE = 'model.npz'


def _float32(stored: sources.Stored) -> dict:
  return nest({k: np.array(x, np.float32, order='C') for k, x in stored.flat.items()})
