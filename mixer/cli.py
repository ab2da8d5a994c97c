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

from mixer import allocator, config_file, console
from mixer.errors import ExpectedError, InputError, Interrupted


def run(main: Callable[..., None], *, keep_unknown: bool = False) -> None:
  """Runs an entry point under absl and exits.

  The positional arguments of the command line are those of `main`; with `keep_unknown`, so are the
  flags that are not defined. An ExpectedError is printed without a traceback,
  and exits with its status. The process ends at once: TensorFlow's and JAX's threads can hold up
  the interpreter's own exit for seconds.
  """
  _use_utf8()
  allocator.keep_freed_memory()
  console.accept_all_text()

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
    except BrokenPipeError:  # as in `python -m mixer.predict ... | head`, which has what it wants
      if not console.is_unread():
        raise
    except (AssertionError, RuntimeError) as error:
      if not _is_of_backend(error):
        raise
      return _exit(_print('error', _backend_error(error), InputError.status))
    return _exit(0)

  def parse(argv):
    try:
      return flags.FLAGS(config_file.rewrite(argv), known_only=keep_unknown)
    except (flags.Error, OSError) as error:
      is_unknown = isinstance(error, flags.UnrecognizedFlagError | flags.IllegalFlagValueError)
      hint = ' (--help lists the flags)' if is_unknown else ''
      sys.exit(_print('error', f'{error}{hint}', InputError.status))
    except SystemExit:  # after --help, for which absl's status is 1
      sys.exit(0)

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


def _use_utf8() -> None:
  """Starts this program again, in Python's UTF-8 mode, if the locale has another encoding.

  TensorFlow and orbax take the names of files as UTF-8, whatever the locale.
  """
  if sys.getfilesystemencoding() != 'utf-8' and os.environ.get('PYTHONUTF8') != '1':
    os.environ['PYTHONUTF8'] = '1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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


def _is_of_backend(error: Exception) -> bool:
  """Whether JAX raised the error while it looked for devices."""
  frames = traceback.extract_tb(error.__traceback__)
  return any(frame.filename.endswith('xla_bridge.py') for frame in frames)


def _backend_error(error: Exception) -> str:
  platforms = os.environ.get('JAX_PLATFORMS')
  asked = f'JAX_PLATFORMS={platforms}' if platforms else 'JAX_PLATFORMS is not set'
  return (
    f'JAX finds no devices, and {asked}: {str(error) or "its plugin is not installed"}. Use '
    'JAX_PLATFORMS=cpu, or unset it for the best that there is; for a GPU or TPU, install '
    'jax[cuda13] or jax[tpu] (README, "Install").'
  )


def _check_arguments(main: Callable[..., None], given: list[str]) -> None:
  wanted = inspect.signature(main)
  try:
    wanted.bind(*given)
  except TypeError as fault:
    names = ' '.join(name.upper() for name in wanted.parameters) or 'none'
    raise InputError(
      f'the positional arguments are {given}; wanted: {names}. --help lists the flags.'
    ) from fault
