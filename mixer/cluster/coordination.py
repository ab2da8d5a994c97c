"""Several processes as one run: they agree, send announcements, and end together.

All of it goes through JAX's coordination service, a key-value store on process 0, and never
through the devices: a process that waits for a device still learns that another has failed.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import threading
import time
import traceback
from typing import Any, NoReturn

from absl import flags, logging
from etils import epath
import jax
from jax.experimental import multihost_utils

from mixer import cli, console, files
from mixer.cluster import detection, handshake, jax_internals
from mixer.errors import Diverged, InputError, Interrupted

_ANNOUNCEMENTS = 'mixer/announcements/'  # '<_ANNOUNCEMENTS><name>/<process>'
_HEARTBEATS = 'mixer/heartbeats/'
_EXITED = 'mixer/exited/'
_TICK_SECONDS = 1.0
# For work of process 0 that the others wait for; if process 0 fails, they get an announcement.
_LONG_MS = 3_600_000


@dataclasses.dataclass(frozen=True)
class Options:
  """How this process joins the others; None is detected."""

  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  startup_timeout: float = 300.0
  heartbeat_timeout: int = 60


def define_flags() -> None:
  """The flags of `Options`."""
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0; detected on pods and SLURM.')
  flags.DEFINE_integer('num_processes', None, 'Processes of the run; 1 to run alone in any case.')
  flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')
  flags.DEFINE_float(
    'startup_timeout', 300.0, 'Seconds to wait for the other processes.', lower_bound=1.0
  )
  flags.DEFINE_integer(
    'heartbeat_timeout', 60, 'Seconds without a heartbeat until a process counts as dead.',
    lower_bound=2,
  )  # fmt: skip


def options_from_flags() -> Options:
  """The values of the flags that `define_flags` defines."""
  fields = dataclasses.fields(Options)
  return Options(**{field.name: getattr(flags.FLAGS, field.name) for field in fields})


class Cluster:
  """The processes of one run, of which this is one; `join` makes it.

  Without a client it is this process alone, and the methods return at once. As a context manager
  it ends the run on all processes: together where they all finish, stop or diverge, and at once
  where one fails. All processes call `on_process_0` and `barrier` in the same order.
  """

  def __init__(
    self, client=None, *, process_id: int = 0, num_processes: int = 1, heartbeat_timeout: int = 60
  ):
    """`client` is that of JAX's coordination service."""
    self.client, self.process_id, self.num_processes = client, process_id, num_processes
    self._heartbeat_timeout = heartbeat_timeout
    self._numbers = itertools.count()
    self._handlers: dict[str, Callable[[int, str], None]] = {'end': self._on_end}
    self._status: dict[str, Any] = {}
    self._heartbeats: dict[int, dict] = {}
    self._finished = threading.Event()
    self._listener: threading.Thread | None = None

  @property
  def is_multiprocess(self) -> bool:
    return self.client is not None

  @property
  def heartbeats(self) -> Mapping[int, dict]:
    """On process 0, the latest heartbeat of each process."""
    return self._heartbeats

  def on_process_0(self, decide: Callable[[], Any]) -> Any:
    """The value of `decide()`, called on process 0 alone, on every process.

    For decisions that depend on files, which change while processes read them one after the
    other. The value is sent as JSON.
    """
    if not self.is_multiprocess:
      return decide()
    key = f'mixer/decisions/{next(self._numbers)}'
    if self.process_id == 0:
      self.client.key_value_set(key, json.dumps(decide()))
    return json.loads(self.client.blocking_key_value_get(key, _LONG_MS))

  def barrier(self, name: str) -> None:
    """Waits until all processes have arrived.

    Needed before the first collectives: they wait for half a minute only while they connect.
    """
    if self.is_multiprocess:
      self.client.wait_at_barrier(f'mixer/{name}', _LONG_MS)

  def check_shared(self, directory: epath.Path, seconds: float = 60.0) -> None:
    """Raises InputError on a process that cannot see a file which process 0 writes there."""
    if not self.is_multiprocess:
      return
    nonce = f'.shared-{os.urandom(8).hex()}'
    name, where = self.on_process_0(
      lambda: files.write(directory / nonce, b'') or (nonce, str(directory))
    )
    end = time.monotonic() + seconds  # a network filesystem shows new files with a delay
    while not (directory / name).exists():
      if time.monotonic() > end:
        raise InputError(
          f'process {self.process_id} does not find {name} in {directory}, which process 0 wrote '
          f'to {where}: they do not share that directory. Give one --workdir on a filesystem that '
          'all processes can read.'
        )
      time.sleep(0.1)
    self.barrier(name)
    if self.process_id == 0:
      (directory / name).unlink()

  def check_same(self, facts: Mapping[str, Any]) -> None:
    """Raises InputError on a process where one of the facts, by name, differs from process 0."""
    own, first = json.loads(json.dumps(facts)), self.on_process_0(lambda: dict(facts))
    for name in sorted(own.keys() | first.keys()):
      here, there = (known.get(name, 'nothing') for known in (own, first))
      if here != there:
        raise InputError(
          f'process {self.process_id} finds for {name}: {here}; process 0: {there}. Give all '
          'processes the same files.'
        )

  def announce(self, name: str, text: str) -> None:
    """Makes the handler of `name` run on every process, this one included."""
    key = f'{_ANNOUNCEMENTS}{name}/{self.process_id}'
    self.client.key_value_set(key, text, allow_overwrite=True)

  def on_announcement(self, name: str, handler: Callable[[int, str], None]) -> None:
    """Calls `handler(process, text)` once, for the first announcement of this name."""
    self._handlers[name] = handler

  def set_status(self, **values: Any) -> None:
    """Adds values to the heartbeats of this process."""
    if self.is_multiprocess:
      self._status = {**self._status, **values}

  def fetch_heartbeats(self) -> dict[int, dict]:
    """The latest heartbeat of each process, from process 0."""
    found = self.client.key_value_dir_get(_HEARTBEATS)
    return {int(key.split('/')[-1]): json.loads(value) for key, value in found}

  def start(self) -> None:
    """Starts the thread that receives announcements and sends heartbeats."""
    self._listener = threading.Thread(target=self._listen, name='announcements', daemon=True)
    self._listener.start()

  def __enter__(self) -> 'Cluster':
    return self

  def __exit__(self, kind, error: BaseException | None, trace) -> None:
    """Ends all processes: together, or at once if this one fails alone.

    An exception left to Python would wait at exit for processes that wait for this one.
    """
    if not self.is_multiprocess:
      return
    if error is None or isinstance(error, Diverged | Interrupted):  # all processes get here
      if error is not None:
        cli.print_error(error)  # now, since another process may end this one in the barrier
      self.barrier('done')  # process 0 may still be writing
      self._finished.set()
      self._listener.join()
    elif isinstance(error, InputError):
      self.abort(cli.print_error(error), str(error))
    else:
      console.print_line(''.join(traceback.format_exception(error)), error=True)
      self.abort(1, f'{type(error).__name__}: {error}')

  def abort(self, status: int, text: str) -> NoReturn:
    """Ends this process with `status` at once, and the others when they get the announcement."""
    with contextlib.suppress(Exception):  # process 0 may have ended
      text = text[:1000] + (self._find_cause() if status == 1 else '')
      self.announce('end', json.dumps({'status': status, 'text': text}))
    self._exit(status)

  def _find_cause(self) -> str:
    """Waits for signs that another process caused the error: its announcement, or no heartbeat.

    Ends with the other process if it has announced its end; returns a sentence that names the
    processes without heartbeats.
    """
    before, end = self.fetch_heartbeats(), time.monotonic() + 3 * _TICK_SECONDS
    while time.monotonic() < end:
      for key, text in self.client.key_value_dir_get(f'{_ANNOUNCEMENTS}end/'):
        self._on_end(int(key.split('/')[-1]), text)
      time.sleep(0.1)
    silent = [
      str(i)
      for i, heartbeat in self.fetch_heartbeats().items()
      if heartbeat == before.get(i) and i != self.process_id
    ]
    if not silent:
      return ''
    text = (
      f'No heartbeat of process {", ".join(silent)} for {3 * _TICK_SECONDS:g} s: if it was '
      'killed, that may be the cause of this error.'
    )
    console.print_line(text, error=True)
    return f' {text}'

  def _listen(self) -> None:
    """The thread that receives announcements and sends heartbeats."""
    since: dict[int, tuple[dict, float]] = {}
    while not self._finished.wait(_TICK_SECONDS):
      try:
        found = self.client.key_value_dir_get(_ANNOUNCEMENTS)
        heartbeat = json.dumps({'time': time.time(), **self._status})
        key = f'{_HEARTBEATS}{self.process_id}'
        self.client.key_value_set(key, heartbeat, allow_overwrite=True)
        if self.process_id == 0:
          self._heartbeats = self.fetch_heartbeats()
          self._warn_of_silence(since)
      except Exception as fault:  # JAX ends this process if the service has ended
        text = 'no answer from the coordination service: %s'
        logging.log_every_n_seconds(logging.WARNING, text, 30, fault)
        continue
      for key, text in found:
        *_, name, process = key.split('/')
        if name in self._handlers:  # it may wait for other processes, while heartbeats go on
          arguments = (self._handlers.pop(name), int(process), text)
          threading.Thread(target=self._handle, args=arguments, name=name, daemon=True).start()

  def _handle(self, handler: Callable[[int, str], None], process: int, text: str) -> None:
    try:
      handler(process, text)
    except Exception as fault:
      if self._finished.is_set():  # the others have finished without the announcement
        return
      console.print_line(traceback.format_exc(), error=True)
      self.abort(1, f'{type(fault).__name__}: {fault}')

  def _warn_of_silence(self, since: dict[int, tuple[dict, float]]) -> None:
    """Names processes without a heartbeat for a quarter of `heartbeat_timeout`.

    JAX's own heartbeats, by which a process counts as dead, are sent twice in that time, so half
    of it may be enough.
    """
    limit = self._heartbeat_timeout
    for process, heartbeat in self._heartbeats.items():
      if since.get(process, (None, 0.0))[0] != heartbeat:
        since[process] = (heartbeat, time.monotonic())
      elif (silent := time.monotonic() - since[process][1]) > limit / 4:
        logging.warning(
          'no heartbeat of process %d for %.0f s; after %g to %d s it counts as dead.',
          process, silent, limit / 2, limit,
        )  # fmt: skip
        since[process] = (heartbeat, float('inf'))

  def _on_end(self, process: int, text: str) -> None:
    if process == self.process_id:
      return
    end = json.loads(text)
    console.print_line(
      f'process {process} has ended with status {end["status"]} ({end["text"]}); process '
      f'{self.process_id} ends too.',
      error=True,
    )
    self._exit(end['status'])

  def _exit(self, status: int) -> NoReturn:
    """Ends without waiting at exit; process 0, which serves the others, waits until they ended."""
    with contextlib.suppress(Exception):
      self.client.key_value_set(f'{_EXITED}{self.process_id}', '', allow_overwrite=True)
      end = time.monotonic() + 5
      while self.process_id == 0 and time.monotonic() < end:
        if len(self.client.key_value_dir_get(_EXITED)) == self.num_processes:
          break
        time.sleep(0.05)
    console.flush()
    os._exit(status)


SINGLE = Cluster()  # a process that runs alone; nothing changes it


def join(options: Options, facts: Mapping[str, Any]) -> Cluster:
  """Joins the other processes of this run, if there are any. Call it before JAX lists devices.

  Args:
    options: how this process joins.
    facts: what must be the same on all processes, by name, besides the code.

  Raises:
    InputError: the number of this process cannot be detected, some are missing, or facts differ.
  """
  membership = detection.detect(
    options.coordinator, options.num_processes, options.process_id, options.startup_timeout
  )
  if membership is None:
    return SINGLE
  if jax.distributed.is_initialized():
    raise InputError(
      'this process has joined others before. Start new processes for each run of several.'
    )
  handshake.wait_for_all(
    membership.coordinator,
    process_id=membership.process_id,
    num_processes=membership.num_processes,
    timeout=options.startup_timeout,
    facts={**facts, 'code': code_version()},
  )
  jax.config.update('jax_enable_preemption_service', False)  # `preemption` handles SIGTERM
  jax.distributed.initialize(
    membership.coordinator,
    membership.num_processes,
    membership.process_id,
    local_device_ids=membership.local_device_ids,
    cluster_detection_method='deactivate',  # `detection` has done it
    initialization_timeout=max(60, int(options.startup_timeout)),
    heartbeat_timeout_seconds=options.heartbeat_timeout,
    shutdown_timeout_seconds=options.heartbeat_timeout,
  )
  cluster = Cluster(
    jax_internals.coordination_client(),
    process_id=membership.process_id,
    num_processes=membership.num_processes,
    heartbeat_timeout=options.heartbeat_timeout,
  )
  with contextlib.ExitStack() as stack:
    stack.push(cluster)
    cluster.start()
    _print_membership(membership)
    cluster.barrier('joined')
    multihost_utils.sync_global_devices('mixer/joined')
    stack.pop_all()
  return cluster


def _print_membership(membership: detection.Membership) -> None:
  local = ', '.join(str(device) for device in jax.local_devices())
  cuda = os.environ.get('CUDA_VISIBLE_DEVICES')
  console.print_line(
    f'process {membership.process_id} of {membership.num_processes}, pid {os.getpid()}, '
    f'coordinator {membership.coordinator}: {jax.local_device_count()} local devices ({local}) of '
    f'{jax.device_count()}' + (f'; CUDA_VISIBLE_DEVICES={cuda}' if cuda is not None else '')
  )


def code_version() -> str:
  """A checksum of the program's sources."""
  root = pathlib.Path(__file__).parents[2]
  found = hashlib.sha256()
  for path in [*sorted(root.glob('*.py')), *sorted(root.glob('mixer/**/*.py'))]:
    found.update(f'{path.relative_to(root)}\0'.encode() + path.read_bytes())
  return found.hexdigest()[:16]
