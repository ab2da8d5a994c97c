"""Printed lines. A closed output does not end the run."""

import io
import os
import select
import sys


def print_line(text: str, *, error: bool = False) -> None:
  """Prints a line at once, to stderr for an `error`.

  The line is lost where the reader of a pipe has ended (`train.py | tee log` and Ctrl-C, which ends
  both), or the disk of a log is full.
  """
  stream = sys.stderr if error else sys.stdout
  try:
    print(text, file=stream, flush=True)
  except BrokenPipeError:
    _discard(stream)  # the reader does not return
  except (OSError, ValueError):  # ValueError: it is closed
    pass


def accept_all_text() -> None:
  """From now on, characters that stdout or stderr cannot encode are escaped, as in \\xe9."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


def is_unread() -> bool:
  """Whether stdout is a pipe whose reader has ended."""
  poll = select.poll()
  poll.register(sys.stdout, 0)
  return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def flush() -> None:
  """Flushes stdout and stderr where possible; otherwise Python changes the exit status to 120."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      _discard(stream)
    except (AttributeError, ValueError):  # there is none, or it is closed
      pass


def _discard(stream) -> None:
  """From now on, what is written to `stream` is discarded."""
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, stream.fileno())
  os.close(null)
