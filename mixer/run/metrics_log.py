"""What a workdir has of the progress of its run, in lines of JSON.

metrics.jsonl has an object per logged step, and is continued exactly after a restart. starts.jsonl
has an object per start, and only grows.
"""

from collections.abc import Mapping
import json

from absl import logging
from etils import epath

from mixer import files
from mixer.cluster import coordination
from mixer.errors import InputError

METRICS_FILE = 'metrics.jsonl'
PARTIAL_FILE = 'metrics.partial.json'
STARTS_FILE = 'starts.jsonl'


def read_rows(workdir: epath.Path) -> list[dict]:
  """The complete lines of a run's metrics.jsonl; a last line cut short by a kill is ignored.

  Raises:
    InputError: a line is no object with a 'step'.
  """
  path = epath.Path(workdir) / METRICS_FILE
  if not path.exists():
    return []
  advice = 'Delete this line: its row is lost, and all else of the run stays as it is.'
  rows = files.read_json_lines(path, advice=advice)
  for line, row in rows:
    if not isinstance(row.get('step'), int):
      raise files.damaged(path, line, "it has no number 'step'", advice)
  return [row for _, row in rows]


def record_start(workdir: epath.Path, *, time: float, step: int, cores: int) -> None:
  """Adds a start to starts.jsonl: its Unix time, the step it resumes from, `core_count`."""
  try:
    with (workdir / STARTS_FILE).open('a') as file:
      file.write(json.dumps({'time': time, 'step': step, 'cores': cores}) + '\n')
  except OSError as fault:
    logging.warning('%s could not be written: %s', workdir / STARTS_FILE, fault)


def read_starts(workdir: epath.Path) -> list[dict]:
  """The objects of `record_start`, in order; [] of a run of an earlier version."""
  path = epath.Path(workdir) / STARTS_FILE
  if not path.exists():
    return []
  return [start for _, start in files.read_json_lines(path, advice='Delete this line.')]


class MetricsLog:
  """The rows of one run, which process 0 writes.

  Rows after `first_step` are dropped when it is opened: they will be written again.
  """

  def __init__(
    self,
    workdir: epath.Path,
    *,
    first_step: int,
    cluster: coordination.Cluster = coordination.SINGLE,
  ):
    self._path, self._partial_path = workdir / METRICS_FILE, workdir / PARTIAL_FILE
    self._first_step, self._is_writer = first_step, cluster.process_id == 0
    rows = [row for row in read_rows(workdir) if row['step'] <= first_step]
    if self._is_writer:
      self._rewrite(rows)
    self.last = cluster.on_process_0(lambda: rows[-1] if rows else {})  # row

  def append(self, row: Mapping, *, replace: bool = False) -> None:
    """Writes a row; with `replace`, in place of the last one.

    Raises:
      InputError: the file has been removed, or the disk is full.
    """
    if not self._is_writer:
      return
    if not self._path.exists():
      raise InputError(
        f'{self._path} was moved or removed, or its disk is unavailable. The run ends, because no '
        'more of it could be saved.'
      )
    try:
      if replace:
        self._rewrite([*read_rows(self._path.parent)[:-1], row])
      else:
        with self._path.open('a') as file:
          file.write(json.dumps(row) + '\n')
    except OSError as fault:
      cause = fault.__cause__ or fault
      raise InputError(
        f'step {row["step"]} could not be written to {self._path}: {cause}. Free disk space '
        '(quotas count too), then start the same command again.'
      ) from fault
    self.last = dict(row)

  def read_partial(self) -> dict:
    """What `write_partial` stored at the step from which the run resumes; {} for nothing."""
    since, value = self._read_partials().get(str(self._first_step), (None, {}))
    return value if since == self.last.get('step', 0) else {}

  def write_partial(self, step: int, value: Mapping) -> None:
    """Stores what has accumulated since the last row, for a run that resumes at `step`."""
    if not self._is_writer:
      return
    entry = self.last.get('step', 0), value
    try:
      content = json.dumps({**self._read_partials(), str(step): entry})
      files.write(self._partial_path, content.encode())
    except OSError as fault:
      logging.warning(
        '%s could not be written (%s): the first logged loss after the restart is the mean of '
        'fewer steps.', self._partial_path, fault,
      )  # fmt: skip

  def _read_partials(self) -> dict:
    """{step: (step of the row before, what was stored)} up to the first step of this run."""
    if not self._partial_path.exists():
      return {}
    try:
      found = files.read_json(self._partial_path, advice='It is ignored.')
      kept = {step: entry for step, entry in found.items() if int(step) <= self._first_step}
      return {step: (int(since), dict(value)) for step, (since, value) in kept.items()}
    except (OSError, AttributeError, TypeError, ValueError):  # damaged
      return {}

  def _rewrite(self, rows: list[Mapping]) -> None:
    files.write(self._path, ''.join(json.dumps(row) + '\n' for row in rows).encode())
