"""A handshake of all processes before JAX connects them, so that faults have clear messages.

JAX's own runtime waits for all processes and aborts without naming the missing ones. Here process
0 listens on the coordinator's port and every other process sends it one line of JSON: its number
and the facts that must agree. When all have connected, or after a timeout, every process gets the
same result, and the port is free for JAX.
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


def wait_for_all(
  address: str, *, process_id: int, num_processes: int, timeout: float, facts: Mapping
) -> None:
  """Returns when all processes have connected and their facts agree.

  Args:
    address: HOST:PORT of process 0.
    process_id: this process, of `num_processes`.
    timeout: seconds to wait for the others.
    facts: what must be the same on all processes, by name.

  Raises:
    InputError: a process is missing, two have the same number, or facts differ; on all processes.
  """
  deadline = time.monotonic() + timeout
  hello = {
    'id': process_id,
    'where': f'{socket.gethostname()}, pid {os.getpid()}',
    'facts': json.loads(json.dumps({'num_processes': num_processes, **facts})),
  }
  host, port = parse_address(address)
  if process_id == 0:
    fault = _serve(port, hello, num_processes, deadline, timeout)
  else:
    fault = _connect(host, port, hello, deadline, timeout)
  if fault:
    raise InputError(fault)


def parse_address(address: str) -> tuple[str, int]:
  """(host, port) of HOST:PORT."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit():
    raise InputError(f'--coordinator={address}: write HOST:PORT of process 0, as in 10.0.0.1:8476.')
  return host.strip('[]'), int(port)


def _serve(port: int, own: dict, num_processes: int, deadline: float, timeout: float) -> str:
  """Process 0: accepts the others, sends all of them the fault and returns it ('' for none)."""
  peers: list[tuple[dict, socket.socket]] = []
  with _listen(port) as server:
    while len(peers) < num_processes - 1 and (left := deadline - time.monotonic()) > 0:
      server.settimeout(left)
      try:
        connection, _ = server.accept()
      except TimeoutError:
        break
      except OSError as fault:
        if fault.errno not in (errno.EMFILE, errno.ENFILE):
          continue  # of this connection only
        raise InputError(
          f'process 0 cannot accept more than {len(peers)} of {num_processes - 1} connections: '
          f'{fault.strerror}. Each takes one open file; raise "ulimit -n".'
        ) from fault
      hello = _read_line(connection, seconds=2)
      if hello.keys() == own.keys():
        peers.append((hello, connection))
      else:
        connection.close()  # not one of ours: a port scan or a health check
      peers = [peer for peer in peers if _is_connected(peer[1])]
    peers = [peer for peer in peers if _is_connected(peer[1])]
    fault = _check([own, *(hello for hello, _ in peers)], num_processes, timeout)
    for _, connection in peers:
      with connection, contextlib.suppress(OSError):  # it may have ended meanwhile
        connection.sendall(json.dumps({'fault': fault}).encode() + b'\n')
  return fault


def _is_connected(connection: socket.socket) -> bool:
  """Whether the other end is still open; it sends nothing more before the result."""
  connection.setblocking(False)
  try:
    closed = not connection.recv(1, socket.MSG_PEEK)
  except BlockingIOError:  # open, and nothing to read
    closed = False
  except OSError:
    closed = True
  if closed:
    connection.close()
  else:
    connection.settimeout(_SEND_SECONDS)
  return not closed


def _check(hellos: list[dict], num_processes: int, timeout: float) -> str:
  """What is wrong with the processes that connected, process 0 first; '' for nothing."""
  where: dict[int, str] = {}
  faults = []
  for hello in hellos:
    if hello['id'] in where:
      faults.append(
        f'two processes have the number {hello["id"]}: {where[hello["id"]]} and '
        f'{hello["where"]}. Give each its own --process_id.'
      )
    where[hello['id']] = hello['where']
  missing = sorted(set(range(num_processes)) - where.keys())
  if missing and not faults:
    faults.append(
      f'process{"es" if len(missing) > 1 else ""} {", ".join(map(str, missing))} of '
      f'{num_processes} did not connect within {timeout:g} s (see --startup_timeout). Connected: '
      + ', '.join(f'process {i} ({where[i]})' for i in sorted(where))
      + '. Start the missing ones, or use --num_processes=1 to run alone.'
    )
  own, *others = hellos
  differing = [line for other in others for line in _differences(own['facts'], other)]
  if differing:
    faults.append(
      '\n'.join(['the processes of this run do not agree:', *differing])
      + '\nStart all of them with the same command, code and environment.'
    )
  return '\n'.join(faults)


def _connect(host: str, port: int, hello: dict, deadline: float, timeout: float) -> str:
  """Any other process: sends its hello, and returns the result of process 0."""
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(json.dumps(hello).encode() + b'\n')
        # Process 0 may have started to wait later than this one.
        result = _read_line(connection, seconds=timeout + 5)
    except OSError:
      result = {}
    if 'fault' in result:
      return result['fault']
    time.sleep(_RETRY_SECONDS)
  return (
    f'process {hello["id"]} found no process 0 at {host}:{port} within {timeout:g} s (see '
    '--startup_timeout). Check that it is started, that this is its address, that the port is '
    'open, and that no other run uses it.'
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
  """One line of JSON; {} on a timeout or if it is no object."""
  connection.settimeout(seconds)
  try:
    with connection.makefile('rb') as file:
      found = json.loads(file.readline(1 << 22))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _differences(own: Mapping, other: dict) -> list[str]:
  """A line for each fact of the other process that differs from process 0's."""
  absent = '(absent)'
  facts = other['facts']
  return [
    f'  process {other["id"]}: {key} is {facts.get(key, absent)!r}, on process 0 '
    f'{own.get(key, absent)!r}'
    for key in sorted(own.keys() | facts.keys())
    if own.get(key, absent) != facts.get(key, absent)
  ]
