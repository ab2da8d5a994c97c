"""Lines for whoever watches a run. That nobody can take them any more is no fault of the run."""

import atexit
import os
import sys


def print_line(text: str, *, error: bool = False) -> None:
  """Prints a line at once, to stderr for an `error`.

  It is lost where the other end of a pipe has gone (`train.py | tee log`, and Ctrl-C ends both), or
  the disk of a log is full.
  """
  stream = sys.stderr if error else sys.stdout
  try:
    print(text, file=stream, flush=True)
  except BrokenPipeError:
    _drop(stream)  # nobody will come back
  except (OSError, ValueError):  # ValueError: it is closed
    pass


@atexit.register
def flush() -> None:
  """Writes out what can be; else Python would change the exit status to 120."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      _drop(stream)
    except (AttributeError, ValueError):  # there is none, or it is closed
      pass


def _drop(stream) -> None:
  """From now on, what is written to `stream` goes nowhere."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)
