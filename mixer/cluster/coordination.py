"""Several processes as one run: how they join, agree on what one has decided, and end together.

All of it goes through JAX's coordination service, a key-value store that process 0 serves, and
never through the devices: a process that waits for a device still hears that another has failed.
"""

from collections.abc import Callable, Mapping
import contextlib
import functools
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
from jax._src import distributed  # its client has no public name
from jax.experimental import multihost_utils

from mixer import console, files
from mixer.cluster import detection as placing
from mixer.cluster import handshake
from mixer.errors import Diverged, InputError, Interrupted

_NOTICES = 'mixer/notices/'  # '<_NOTICES><name>/<process>': what all processes are to hear
_LEFT = 'mixer/left/'
_TICK_SECONDS = 1.0
_LONG_MS = 3_600_000  # for work of process 0 that the others wait for; if it fails, they hear of it
_numbers = itertools.count()
_handlers: dict[str, Callable[[int, str], None]] = {}
_finished = threading.Event()
sign: dict[str, Any] = {}  # what this process adds to its signs of life; others may look at it
heard: dict[int, dict] = {}  # on process 0, the latest sign of life of each process


def define_flags() -> None:
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0; on pods and SLURM found out.')
  flags.DEFINE_integer('num_processes', None, 'Of the whole run; 1 to run alone in any case.')
  flags.DEFINE_integer('process_id', None, 'Of this process, from 0 on.')
  flags.DEFINE_float(
    'startup_timeout', 300.0, 'Seconds to wait for the other processes.', lower_bound=1.0
  )
  flags.DEFINE_integer(
    'heartbeat_timeout', 60, 'Seconds until a silent process counts as dead.', lower_bound=2
  )


def join(facts: Mapping[str, Any]) -> None:
  """Joins the other processes of this run, if it has any. Call it before JAX looks for devices.

  Args:
    facts: what must be the same on all processes, by name, beside the code.

  Raises:
    InputError: it cannot be told which process this is, some do not come, or facts differ.
  """
  given = flags.FLAGS
  place = placing.find(
    given.coordinator, given.num_processes, given.process_id, given.startup_timeout
  )
  if place is None:
    return
  handshake.hold(
    place.coordinator,
    process_id=place.process_id,
    num_processes=place.num_processes,
    timeout=given.startup_timeout,
    facts={**facts, 'code': code_version()},
  )
  jax.config.update('jax_enable_preemption_service', False)  # SIGTERM is for mixer.preemption
  jax.distributed.initialize(
    place.coordinator,
    place.num_processes,
    place.process_id,
    local_device_ids=place.local_device_ids,
    cluster_detection_method='deactivate',  # `place` has what was found
    initialization_timeout=max(60, int(given.startup_timeout)),
    heartbeat_timeout_seconds=given.heartbeat_timeout,
    shutdown_timeout_seconds=given.heartbeat_timeout,
  )
  _handlers['end'] = _end
  _listener.start()
  local = ', '.join(str(device) for device in jax.local_devices())
  cuda = os.environ.get('CUDA_VISIBLE_DEVICES')
  console.print_line(
    f'process {place.process_id} of {place.num_processes}, pid {os.getpid()}, coordinator '
    f'{place.coordinator}: {jax.local_device_count()} local devices ({local}) of '
    f'{jax.device_count()}' + (f'; CUDA_VISIBLE_DEVICES={cuda}' if cuda is not None else '')
  )
  meet('joined')
  multihost_utils.sync_global_devices('mixer/joined')


@functools.cache
def code_version() -> str:
  """A checksum of the program's sources."""
  root = pathlib.Path(__file__).parents[2]
  found = hashlib.sha256()
  for path in [*sorted(root.glob('*.py')), *sorted(root.glob('mixer/**/*.py'))]:
    found.update(f'{path.relative_to(root)}\0'.encode() + path.read_bytes())
  return found.hexdigest()[:16]


def store():
  """The key-value store that all processes share."""
  return distributed.global_state.client


def _me() -> int:
  return distributed.global_state.process_id  # jax.process_index() may wait for other processes


def several() -> bool:
  return jax.distributed.is_initialized()


def agreed(decide: Callable[[], Any]) -> Any:
  """What `decide` returns on process 0, where alone it is called, on every process.

  For what hangs on files, which change while processes look at them one after the other. All
  processes make the same calls in the same order; the value goes through JSON.
  """
  if not several():
    return decide()
  key = f'mixer/agreed/{next(_numbers)}'
  if _me() == 0:
    store().key_value_set(key, json.dumps(decide()))
  return json.loads(store().blocking_key_value_get(key, _LONG_MS))


def meet(name: str) -> None:
  """Waits until all processes have come here.

  For a point before collectives that have not run yet: to connect, they wait for one another for
  half a minute only.
  """
  if several():
    store().wait_at_barrier(f'mixer/{name}', _LONG_MS)


def check_shared(directory: epath.Path, seconds: float = 60.0) -> None:
  """Raises InputError on a process that does not see what process 0 writes in `directory`."""
  if not several():
    return
  nonce = f'.shared-{os.urandom(8).hex()}'
  name, where = agreed(lambda: files.write(directory / nonce, b'') or (nonce, str(directory)))
  end = time.monotonic() + seconds  # a network filesystem shows new files after a while
  while not (directory / name).exists():
    if time.monotonic() > end:
      raise InputError(
        f'process {_me()} does not find {name} in {directory}, which process 0 has written in '
        f'{where}: they do not share that directory. Give one --workdir on a filesystem that all '
        'processes see.'
      )
    time.sleep(0.1)
  meet(name)
  if _me() == 0:
    (directory / name).unlink()


def check_same(facts: Mapping[str, Any]) -> None:
  """Raises InputError on a process where one of the facts, by name, is not as on process 0."""
  own = json.loads(json.dumps(facts))
  for name, value in agreed(lambda: dict(facts)).items():
    if own.get(name) != value:
      raise InputError(
        f'process {jax.process_index()} finds for {name}: {own.get(name)}; process 0: {value}. '
        'Give all processes the same files.'
      )


def announce(name: str, text: str) -> None:
  """Lets the handler of `name` run on every process, this one too."""
  store().key_value_set(f'{_NOTICES}{name}/{_me()}', text, allow_overwrite=True)


def on_notice(name: str, handler: Callable[[int, str], None]) -> None:
  """Has `handler` called once with (process, text) of the first notice of this name."""
  _handlers[name] = handler


def leave(status: int, text: str) -> int:
  """What a process does last; returns `status`, or, when it alone has failed, ends all.

  An exception that is left to Python would wait at exit for processes that wait for this one.
  """
  if not several():
    return status
  if status not in (0, Diverged.status, Interrupted.status):  # to those all come together
    end_all(status, text)
  meet('done')  # process 0 may still be writing
  _finished.set()
  _listener.join()
  return status


def end_all(status: int, text: str) -> NoReturn:
  """Ends this process with `status` at once, and all others when they hear of it."""
  with contextlib.suppress(Exception):  # process 0 may have gone
    text = text[:1000] + (_cause() if status == 1 else '')
    announce('end', json.dumps({'status': status, 'text': text}))
  _exit(status)


def _cause() -> str:
  """Waits whether an error comes of the end of another process: it tells, or it has fallen silent.

  Ends with it if it tells; returns the names of the silent ones in words.
  """
  before, end = signs(), time.monotonic() + 3 * _TICK_SECONDS
  while time.monotonic() < end:
    _hear_of_the_end()
    time.sleep(0.1)
  silent = [str(i) for i, sign in signs().items() if sign == before.get(i) and i != _me()]
  if not silent:
    return ''
  told = (
    f'No sign of life of process {", ".join(silent)} for {3 * _TICK_SECONDS:g} s: killed, it may '
    'be what this error comes from.'
  )
  console.print_line(told, error=True)
  return f' {told}'


def _listen() -> None:
  """The thread that hears of notices, and gives this process's signs of life."""
  since: dict[int, tuple[dict, float]] = {}
  while not _finished.wait(_TICK_SECONDS):
    try:
      found = store().key_value_dir_get(_NOTICES)
      beat = json.dumps({'time': time.time(), **sign})
      store().key_value_set(f'mixer/beats/{_me()}', beat, allow_overwrite=True)
      if _me() == 0:
        heard.update(signs())
        _warn_of_silence(since)
    except Exception as fault:  # where the service has gone, JAX ends this process
      text = 'no answer from the coordination service: %s'
      logging.log_every_n_seconds(logging.WARNING, text, 30, fault)
      continue
    for key, text in found:
      *_, name, process = key.split('/')
      if name in _handlers:  # it may wait for other processes, and the signs of life go on
        told = (_handlers.pop(name), int(process), text)
        threading.Thread(target=_handle, args=told, name=name, daemon=True).start()


def _handle(handler: Callable[[int, str], None], process: int, text: str) -> None:
  try:
    handler(process, text)
  except Exception as fault:
    if _finished.is_set():  # the others have come to the end of the run without having heard
      return
    console.print_line(traceback.format_exc(), error=True)
    end_all(1, f'{type(fault).__name__}: {fault}')


def signs() -> dict[int, dict]:
  """The latest sign of life of each process."""
  found = store().key_value_dir_get('mixer/beats/')
  return {int(key.split('/')[-1]): json.loads(value) for key, value in found}


def _warn_of_silence(since: dict[int, tuple[dict, float]]) -> None:
  """Names processes whose signs of life have stopped for a quarter of `--heartbeat_timeout`.

  JAX's own signs, by which one counts as dead, come twice in that time: so half of it may do.
  """
  limit = flags.FLAGS.heartbeat_timeout
  for process, sign in heard.items():
    if since.get(process, (None, 0.0))[0] != sign:
      since[process] = (sign, time.monotonic())
    elif (silent := time.monotonic() - since[process][1]) > limit / 4:
      logging.warning(
        'process %d has not been heard of for %.0f s; after %g to %d s it counts as dead.',
        process, silent, limit / 2, limit,
      )  # fmt: skip
      since[process] = (sign, float('inf'))


def _hear_of_the_end() -> None:
  for key, text in store().key_value_dir_get(f'{_NOTICES}end/'):
    process = int(key.split('/')[-1])
    if process != _me():
      _end(process, text)


def _end(process: int, text: str) -> None:
  if process == _me():
    return
  notice = json.loads(text)
  console.print_line(
    f'process {process} has ended with status {notice["status"]} ({notice["text"]}); so does '
    f'process {_me()}.',
    error=True,
  )
  _exit(notice['status'])


def _exit(status: int) -> NoReturn:
  """Ends without waiting at exit; process 0, which serves the others, when they have ended."""
  with contextlib.suppress(Exception):
    store().key_value_set(f'{_LEFT}{_me()}', '', allow_overwrite=True)
    end = time.monotonic() + 5
    while _me() == 0 and time.monotonic() < end:
      if len(store().key_value_dir_get(_LEFT)) == distributed.global_state.num_processes:
        break
      time.sleep(0.05)
  console.flush()
  os._exit(status)


_listener = threading.Thread(target=_listen, name='notices', daemon=True)
