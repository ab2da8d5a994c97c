"""Runs the entry points: flags, error messages without a traceback, exit statuses."""

import atexit
from collections.abc import Callable
import inspect
import os
import signal
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging

from mixer import console
from mixer.errors import ExpectedError, InputError, Interrupted


def run(main: Callable[..., None], *, keep_unknown: bool = False) -> None:
  """Runs an entry point under absl and exits.

  The positional arguments of the command line are those of `main`; with `keep_unknown`, so are the
  flags that are not defined. An ExpectedError is printed without a traceback,
  and exits with its status. The process ends at once: TensorFlow's and JAX's threads can hold up
  the interpreter's own exit for seconds.
  """

  def guarded(argv) -> int:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # orbax logs 40 lines per save
    try:
      _check_arguments(main, argv[1:])
      main(*argv[1:])
    except ExpectedError as error:
      return _exit(print_error(error))
    except KeyboardInterrupt:
      return _exit(_print('error', 'stopped by Ctrl-C.', 130))
    return _exit(0)

  def parse(argv):
    try:
      return flags.FLAGS(argv, known_only=keep_unknown)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
      # From the config file as well: it is loaded, and overridden, while flags are parsed.
      sys.exit(_print('error', _flag_error(error), 2))

  try:
    app.run(guarded, flags_parser=parse)
  except SystemExit as end:
    _leave(end.code)
  except BaseException:
    traceback.print_exc()
    _leave(1)


def _leave(status: int | str | None) -> NoReturn:
  """Ends the process as `sys.exit(status)` does, without the interpreter's teardown."""
  if isinstance(status, str):
    status = _print('error', status, 1)
  atexit._run_exitfuncs()  # those that remove temporary directories, for instance
  console.flush()
  os._exit(status or 0)


def print_error(error: ExpectedError) -> int:
  """Prints the message of an expected end, once, and returns its exit status."""
  if not error.is_printed:
    kind = 'stopped' if isinstance(error, Interrupted) else 'error'
    _print(kind, str(error), error.status)
    error.is_printed = True
  return error.status


def _print(kind: str, text: str, status: int) -> int:
  console.print_line(f'{kind}: {text}', error=True)
  return status


def _exit(status: int) -> int:
  """`status`, when all work is done: a SIGTERM during the interpreter's exit must not change it."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  return status


def _flag_error(error: Exception) -> str:
  """The message of an error in a flag."""
  cause = error.args[0] if error.args else error
  if isinstance(error, AttributeError) and isinstance(cause, KeyError):  # from ml_collections
    return f'the config has no key {cause.args[0]}'
  first = error
  while first.__context__ is not None:
    first = first.__context__
  if 'whilst parsing config file' in str(error) and type(first) is ValueError:
    return str(first)  # a config file's own message on its argument, without the traceback
  if isinstance(error, flags.UnrecognizedFlagError | flags.IllegalFlagValueError):
    return f'{error} (--help lists the flags)'
  return str(cause if isinstance(error, KeyError) else error)


def _check_arguments(main: Callable[..., None], given: list[str]) -> None:
  wanted = inspect.signature(main)
  try:
    wanted.bind(*given)
  except TypeError as fault:
    names = ' '.join(name.upper() for name in wanted.parameters) or 'none'
    raise InputError(
      f'the positional arguments are {given}; wanted: {names}. --help lists the flags.'
    ) from fault
