"""Runs an entry point: flags, errors in words, exit statuses."""

from collections.abc import Callable
import inspect
import sys
import traceback

from absl import app, flags, logging
import jax

from mixer import console
from mixer.errors import Diverged, InputError, Interrupted


def run(
  main: Callable[..., None],
  *,
  keep_unknown: bool = False,
  leave: Callable[[int, str], int] = lambda status, text: status,
) -> None:
  """Runs an entry point under absl; what the user can mend is told in words, with status 2.

  What stands on the command line beside the flags are the positional arguments of `main`; with
  `keep_unknown`, so are the flags that nobody defined. `leave` is given the exit status and its
  reason, and may end all processes of a run.
  """

  def guarded(argv):
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # orbax tells 40 lines a save
    try:
      _check_arguments(main, argv[1:])
      main(*argv[1:])
    except (InputError, Diverged, Interrupted) as error:
      sys.exit(leave(_fail(error, error.status), str(error)))
    except (Exception, KeyboardInterrupt) as error:
      if isinstance(error, KeyboardInterrupt) and not jax.distributed.is_initialized():
        sys.exit(_fail('stopped by Ctrl-C.', 130))
      if jax.distributed.is_initialized():
        console.print_line(traceback.format_exc(), error=True)
        leave(1, f'{type(error).__name__}: {error}')
      raise
    leave(0, 'done')

  def parse(argv):
    try:
      return flags.FLAGS(argv, known_only=keep_unknown)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
      # From the config file as well: it is loaded, and overridden, while flags are parsed.
      sys.exit(_fail(_told(error), 2))

  app.run(guarded, flags_parser=parse)


def _told(error: Exception) -> str:
  """What is wrong with a flag, in words."""
  cause = error.args[0] if error.args else error
  if isinstance(error, AttributeError) and isinstance(cause, KeyError):  # from ml_collections
    return f'the config has no key {cause.args[0]}'
  first = error
  while first.__context__ is not None:
    first = first.__context__
  if 'whilst parsing config file' in str(error) and type(first) is ValueError:
    return str(first)  # a config file's own words on its argument, without the traceback
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
      f'the arguments beside the flags are {given}; wanted: {names}. --help lists the flags.'
    ) from fault


def _fail(error: Exception | str, status: int) -> int:
  kind = 'stopped' if isinstance(error, Interrupted) else 'error'
  console.print_line(f'{kind}: {error}', error=True)
  return status
