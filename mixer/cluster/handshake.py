"""The processes of a run find each other before JAX does, so that a fault is told in words.

JAX's own runtime waits for all processes and then aborts without saying who is missing. Process 0
listens on the coordinator's port, the others send it one line of JSON each: who they are, and the
facts that must agree. When all have come, or the time is up, everyone gets the same verdict, and
the port is free for JAX.
"""

from collections.abc import Mapping
import contextlib
import errno
import json
import os
import socket
import time

from mixer.errors import InputError

_RETRY_SECONDS = 0.2
_SEND_SECONDS = 5.0


def hold(
  address: str, *, process_id: int, num_processes: int, timeout: float, facts: Mapping
) -> None:
  """Returns when all processes have come and agree.

  Args:
    address: HOST:PORT of process 0.
    process_id: this process, of `num_processes`.
    timeout: seconds to wait for the others.
    facts: what must be the same on all processes, by name.

  Raises:
    InputError: some do not come, two have the same number, or the facts differ; on all processes.
  """
  deadline = time.monotonic() + timeout
  hello = {
    'id': process_id,
    'where': f'{socket.gethostname()}, pid {os.getpid()}',
    'facts': json.loads(json.dumps({'num_processes': num_processes, **facts})),
  }
  host, port = split(address)
  if process_id == 0:
    fault = _ask(port, hello, num_processes, deadline, timeout)
  else:
    fault = _answer(host, port, hello, deadline, timeout)
  if fault:
    raise InputError(fault)


def split(address: str) -> tuple[str, int]:
  """(host, port) of HOST:PORT."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit():
    raise InputError(f'--coordinator={address}: write HOST:PORT of process 0, as in 10.0.0.1:8476.')
  return host.strip('[]'), int(port)


def _ask(port: int, own: dict, num_processes: int, deadline: float, timeout: float) -> str:
  """Process 0: collects the others, tells all of them the verdict and returns it ('' is good)."""
  came: list[tuple[dict, socket.socket]] = []
  with _listen(port) as server:
    while len(came) < num_processes - 1 and (left := deadline - time.monotonic()) > 0:
      server.settimeout(left)
      try:
        connection, _ = server.accept()
      except TimeoutError:
        break
      except OSError as fault:
        if fault.errno not in (errno.EMFILE, errno.ENFILE):
          continue  # of the one who came
        raise InputError(
          f'process 0 cannot hear more than {len(came)} of {num_processes - 1} other processes: '
          f'{fault.strerror}. Each takes one open file; raise "ulimit -n".'
        ) from fault
      hello = _read_line(connection, seconds=2)
      if hello.keys() == own.keys():
        came.append((hello, connection))
      else:
        connection.close()  # somebody else: a port scan, a health check
      came = [one for one in came if _waits(one[1])]
    came = [one for one in came if _waits(one[1])]
    fault = _judge([own, *(hello for hello, _ in came)], num_processes, timeout)
    for _, connection in came:
      with connection, contextlib.suppress(OSError):  # it may have ended meanwhile
        connection.sendall(json.dumps({'fault': fault}).encode() + b'\n')
  return fault


def _waits(connection: socket.socket) -> bool:
  """Whether the process at the other end is still there; it says nothing more until the verdict."""
  connection.setblocking(False)
  try:
    ended = not connection.recv(1, socket.MSG_PEEK)
  except BlockingIOError:  # it is there, and silent
    ended = False
  except OSError:
    ended = True
  if ended:
    connection.close()
  else:
    connection.settimeout(_SEND_SECONDS)
  return not ended


def _judge(came: list[dict], num_processes: int, timeout: float) -> str:
  """What is wrong with the processes that came; '' if nothing is."""
  where: dict[int, str] = {}
  faults = []
  for hello in came:
    if hello['id'] in where:
      faults.append(
        f'two processes say that they are process {hello["id"]}: {where[hello["id"]]} and '
        f'{hello["where"]}. Give each its own --process_id.'
      )
    where[hello['id']] = hello['where']
  missing = sorted(set(range(num_processes)) - where.keys())
  if missing and not faults:
    faults.append(
      f'process{"es" if len(missing) > 1 else ""} {", ".join(map(str, missing))} of '
      f'{num_processes} did not come within {timeout:g} s (see --startup_timeout). Here are '
      + ', '.join(f'process {i} ({where[i]})' for i in sorted(where))
      + '. Start the missing ones, or use --num_processes=1 to run alone.'
    )
  own, *others = came
  differing = [line for other in others for line in _differences(own['facts'], other)]
  if differing:
    faults.append(
      '\n'.join(['the processes of this run do not agree:', *differing])
      + '\nStart all of them with the same command, code and environment.'
    )
  return '\n'.join(faults)


def _answer(host: str, port: int, hello: dict, deadline: float, timeout: float) -> str:
  """Any other process: says that it is there, and returns the verdict of process 0."""
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(json.dumps(hello).encode() + b'\n')
        # Process 0 may have begun to wait later than this one.
        verdict = _read_line(connection, seconds=timeout + 5)
    except OSError:
      verdict = {}
    if 'fault' in verdict:
      return verdict['fault']
    time.sleep(_RETRY_SECONDS)
  return (
    f'process {hello["id"]} found no process 0 at {host}:{port} within {timeout:g} s (see '
    '--startup_timeout). Is it started, is that its address, is the port open, and is no run at '
    'work there already?'
  )


def _listen(port: int) -> socket.socket:
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=1024)
  except OSError as fault:
    raise InputError(
      f'process 0 cannot listen on port {port}: {fault.strerror}. Give --coordinator a free port '
      'of this machine, the same on all processes.'
    ) from fault


def _read_line(connection: socket.socket, *, seconds: float) -> dict:
  """One line of JSON; {} if it does not come or is none."""
  connection.settimeout(seconds)
  try:
    with connection.makefile('rb') as file:
      found = json.loads(file.readline(1 << 22))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _differences(own: Mapping, other: dict) -> list[str]:
  """A line for each fact of the other process that is not as on process 0."""
  absent = '(absent)'
  facts = other['facts']
  return [
    f'  process {other["id"]}: {key} is {facts.get(key, absent)!r}, on process 0 '
    f'{own.get(key, absent)!r}'
    for key in sorted(own.keys() | facts.keys())
    if own.get(key, absent) != facts.get(key, absent)
  ]
