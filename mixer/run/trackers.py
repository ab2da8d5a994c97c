"""Trackers of experiments, which receive the rows of metrics.jsonl: --track and TensorBoard.

Their packages are imported when a run asks for them. A tracker that fails does not end the run.
"""

from collections.abc import Callable, Mapping
import contextlib
import importlib
import io
import json
import numbers
import os
import re
import time
from typing import NamedTuple
import uuid

from absl import logging
from etils import epath

from mixer import console, files, runtime, settings
from mixer.errors import InputError
from mixer.run import metrics_log

RUNS_FILE = 'trackers.json'  # of a workdir: {name of the tracker: id of its run}
_PROJECT = 'mixer'
_SECONDS = 30  # for a server to answer, and for a row to be stored
_OF_MLFLOW = re.compile(r'[^\w./: -]', re.ASCII)  # characters that its names cannot have
_MAX_KEY, _MAX_VALUE, _MAX_PARAMS = 250, 6000, 100  # of MLflow: characters, and one request


class Tracker(NamedTuple):
  """An open run of a tracker.

  Attributes:
    log: called with a step and its values.
    close: called with whether the run has reached its end.
    last_step: the rows up to this step have been sent, and are not sent again.
    run_id: with which the next start continues this run.
    place: where its values are, and how to look at them.
  """

  log: Callable[[int, dict[str, float]], None]
  close: Callable[[bool], None]
  last_step: int = 0
  run_id: str | None = None
  place: str = ''

  def write(self, row: Mapping) -> None:
    """Sends a row of metrics.jsonl, unless the tracker has it."""
    if row['step'] > self.last_step:
      numeric = {k: v for k, v in row.items() if isinstance(v, numbers.Real)}
      self.log(row['step'], {k: v for k, v in numeric.items() if k not in ('step', 'time')})


def load(name: str) -> None:
  """Imports the package of a tracker; raises InputError if it is not installed."""
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  try:
    importlib.import_module(name)
  except ImportError as fault:
    raise InputError(
      f'--track={name} needs the package {name}, which cannot be imported: {fault}. '
      f'Run: pip install {name}'
    ) from fault


def open_run(name: str, workdir: epath.Path, config: Mapping, first_step: int) -> Tracker | None:
  """Opens the tracker's run of a workdir, and sends the rows up to `first_step` that it lacks.

  The rows that it has are not sent again: those of the steps after `first_step`, which are dropped
  from metrics.jsonl and computed again, are the same. So this is called before they are dropped.

  Args:
    name: a key of TRACKERS.
    workdir: of the run.
    config: the parameters of the run, nested.
    first_step: the step of the checkpoint that the run resumes from, or 0.

  Returns:
    None, after a warning, if the tracker cannot be opened.
  """
  path = workdir / RUNS_FILE
  try:
    known = files.read_json(path, advice='Delete it: new runs begin.') if path.exists() else {}
    rows = [row for row in metrics_log.read_rows(workdir) if not row.get('postponed')]
    run_id = known.get(name)
    sent = [row['step'] for row in rows if row.get('time', 0) < rows[-1].get('time', 0) - _SECONDS]
    last_sent = max(sent, default=0) if run_id else 0
    tracker = TRACKERS[name](workdir, run_id, settings.flatten(config), last_sent)
    if tracker.run_id != run_id:
      files.write(path, json.dumps({**known, name: tracker.run_id}, indent=1).encode())
    for row in rows:
      if row['step'] <= first_step:
        tracker.write(row)
  except Exception as fault:  # of the package's own kinds
    logging.warning(
      'no %s output until the next start; metrics.jsonl has all rows: %s', name, fault
    )
    return None
  console.print_line(f'{name}: run {tracker.run_id}, {tracker.place}')
  return tracker


def tensorboard(workdir: epath.Path) -> Tracker | None:
  """clu's TensorBoard writer, or None with a warning where TensorFlow is missing."""
  try:
    runtime.tensorflow()
    from clu import metric_writers
  except ImportError as fault:
    logging.warning('no TensorBoard output: %s', fault)
    return None
  writer = metric_writers.SummaryWriter(os.fsencode(workdir / 'tensorboard'))  # in any encoding

  def log(step: int, values: dict[str, float]) -> None:
    writer.write_scalars(step, values)
    writer.flush()

  return Tracker(log, close=lambda ended: writer.close())


def _mlflow(workdir: epath.Path, run_id: str | None, config: dict, last_sent: int) -> Tracker:
  """Writes to MLFLOW_TRACKING_URI, or to a database in the workdir."""
  import mlflow
  from mlflow import entities

  given = os.environ.get('MLFLOW_TRACKING_URI')
  uri = given or f'sqlite:///{workdir / "mlflow.db"}'
  client = mlflow.MlflowClient(tracking_uri=uri)
  if run_id is None:
    project = os.environ.get('MLFLOW_EXPERIMENT_NAME', _PROJECT)
    experiment = client.get_experiment_by_name(project)
    artifacts = None if given else (workdir / 'mlartifacts').as_uri()
    of = experiment.experiment_id if experiment else client.create_experiment(project, artifacts)
    run_id = client.create_run(of, run_name=workdir.name).info.run_id
    params = [
      entities.Param(_OF_MLFLOW.sub('_', key)[:_MAX_KEY], str(value)[:_MAX_VALUE])
      for key, value in config.items()
    ]
    for first in range(0, len(params), _MAX_PARAMS):
      client.log_batch(run_id, params=params[first : first + _MAX_PARAMS])
  else:
    client.update_run(run_id, status='RUNNING')

  def log(step: int, values: dict[str, float]) -> None:
    now = int(time.time() * 1000)
    named = {_OF_MLFLOW.sub('_', key)[:_MAX_KEY]: value for key, value in values.items()}
    metrics = [entities.Metric(key, value, now, step) for key, value in named.items()]
    client.log_batch(run_id, metrics=metrics)

  return Tracker(
    log,
    close=lambda ended: client.set_terminated(run_id, 'FINISHED' if ended else 'KILLED'),
    last_step=max((one.step for one in client.get_metric_history(run_id, 'epoch')), default=0),
    run_id=run_id,
    place=f'in {uri}; to look at it: mlflow ui --backend-store-uri {uri}',
  )


def _trackio(workdir: epath.Path, run_id: str | None, config: dict, last_sent: int) -> Tracker:
  """Writes where Trackio keeps its runs: TRACKIO_DIR, or the space that TRACKIO_SPACE_ID names."""
  import trackio

  run_id = run_id or f'{workdir.name}-{uuid.uuid4().hex[:8]}'
  with contextlib.redirect_stdout(io.StringIO()):  # ten lines
    run = trackio.init(_PROJECT, run_id, config=config, resume='allow', embed=False)

  def close(ended: bool) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
      run.finish()

  return Tracker(
    lambda step, values: run.log(values, step=step),
    close,
    last_step=max(run._next_step - 1, 0),  # it has no other name
    run_id=run_id,
    place=f'to look at it: trackio show --project {_PROJECT}',
  )


def _wandb(workdir: epath.Path, run_id: str | None, config: dict, last_sent: int) -> Tracker:
  """Writes to the server, or to the workdir where there is no account or network.

  What it has written to the workdir cannot be asked for. It stores a row within 15 s; so the rows
  of the last 30 s before a stop are there twice, in two files, rather than missing after a kill.
  """
  import wandb

  run_id = run_id or uuid.uuid4().hex[:8]
  options = {
    'project': os.environ.get('WANDB_PROJECT', _PROJECT),
    'id': run_id,
    'name': workdir.name,
    'resume': 'allow',
    'dir': os.fspath(workdir),
    'config': config,
    'settings': wandb.Settings(
      console='off', silent=True, init_timeout=_SECONDS, finish_timeout=2 * _SECONDS
    ),
  }
  try:
    known = 'WANDB_MODE' in os.environ or wandb.login(prompt=False)
    run = wandb.init(**options, mode=None if known else 'offline')
  except wandb.errors.Error as fault:
    logging.warning('wandb: offline, since the server does not answer: %s', fault)
    run = wandb.init(**options, mode='offline')
  offline = f'offline; to send it: wandb sync {workdir / "wandb"}/offline-run-*-{run_id}'
  return Tracker(
    lambda step, values: run.log(values, step=step, commit=True),
    close=lambda ended: run.finish(exit_code=0 if ended else 1),
    last_step=last_sent if run.offline else max(run.starting_step - 1, 0),
    run_id=run_id,
    place=offline if run.offline else run.url,
  )


# MLflow would send usage statistics, print how it makes a database, and wait for minutes.
_ENVIRONMENT = {
  'MLFLOW_DISABLE_TELEMETRY': 'true',
  'MLFLOW_LOGGING_LEVEL': 'WARNING',
  'MLFLOW_HTTP_REQUEST_TIMEOUT': str(_SECONDS),
  'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '1',
}
TRACKERS = {'mlflow': _mlflow, 'trackio': _trackio, 'wandb': _wandb}
