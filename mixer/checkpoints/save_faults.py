"""Faults of a background save: which are the disk's, and no tracebacks of the saving threads."""

from collections.abc import Iterator, Sequence
import contextlib
import errno
import gc
import logging
import shutil
import sys
import traceback

from etils import epath

from mixer.errors import InputError

_DISK_ERRORS = (
  errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE,
  errno.ENOTCONN,
)  # fmt: skip


def disk_error(
  fault: Exception, directory: epath.Path, step: int, saved: Sequence[int]
) -> InputError | None:
  """An error for the user if the save of `step` failed because of the disk, or None.

  `saved` are the steps with a complete checkpoint in `directory`.
  """
  # TensorStore raises a ValueError that has the errno in its text only.
  if getattr(fault, 'errno', None) not in _DISK_ERRORS and 'os_error_code' not in str(fault):
    return None
  newest = max((other for other in saved if other != step), default=None)
  intact = 'No other was saved yet.'
  if newest is not None:
    intact = f'The checkpoint of step {newest} is intact.'
  return InputError(
    f'the checkpoint of step {step} could not be written to {directory}: {fault}. {intact} '
    f'{_free_space(directory)}Check free space, quotas and permissions, then start the same '
    'command again.'
  )


def _free_space(directory: epath.Path) -> str:
  try:
    return f'{shutil.disk_usage(directory).free / 1e6:,.1f} MB are free there. '
  except OSError:  # an object store, or the directory is gone
    return ''


@contextlib.contextmanager
def hidden_tracebacks() -> Iterator[None]:
  """Hides what a failed save prints besides the exception that it raises in the caller.

  Orbax logs the exception in each thread that it passes through. The writes that the failed one
  leaves pending then report to an event loop that is closed: Python prints each of these reports as
  an unraisable exception, and asyncio logs the exceptions of tasks that were never awaited. Orbax
  has no option against either, so while a save may fail, their loggers have a filter and Python's
  hook for unraisable exceptions is replaced.
  """
  loggers = [logging.getLogger('absl'), logging.getLogger('asyncio')]
  previous = sys.unraisablehook

  def is_shown(record: logging.LogRecord) -> bool:
    frames = traceback.walk_tb(record.exc_info[2]) if record.exc_info else ()
    return not any('/orbax/checkpoint/' in frame.f_code.co_filename for frame, _ in frames)

  def hook(unraisable) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      previous(unraisable)

  for logger in loggers:
    logger.addFilter(is_shown)
  sys.unraisablehook = hook
  try:
    yield
  finally:
    gc.collect()  # asyncio logs a task when it is freed
    if sys.unraisablehook is hook:
      sys.unraisablehook = previous
    for logger in loggers:
      logger.removeFilter(is_shown)
