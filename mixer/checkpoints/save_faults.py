"""Why a save failed, at once and in words.

Orbax raises the fault of a save only at the next one, and with several processes only when they
have waited for each other in vain; at once it is in orbax's log alone. So that is listened to.
"""

import errno
import logging as std_logging
import shutil
import sys

from absl import logging
from etils import epath

from mixer.errors import InputError

seen: list[BaseException] = []  # of the saves under way, in the order they came
_OF_THE_DISK = (
  errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE,
  errno.ENOTCONN,
)  # fmt: skip
_OF_A_SAVE = ('_SignalingThread.run()', 'background save thread', 'Save Finalize thread')


def explained(fault: BaseException, *, step: int, directory: epath.Path, kept: int | None):
  """The fault that made the save of `step` fail, as InputError if the disk is to blame.

  `kept` is the newest step with a complete checkpoint in `directory`.
  """
  fault = seen[0] if seen else fault
  if getattr(fault, 'errno', None) not in _OF_THE_DISK and 'os_error_code' not in str(fault):
    return fault
  intact = 'No other was saved yet' if kept is None else f'The checkpoint of step {kept} is intact'
  return InputError(
    f'the checkpoint of step {step} could not be written to {directory}: {fault}. {intact}. '
    f'{_free(directory)}See to its room, quotas and rights, then start the same command again.'
  )


def _free(directory: epath.Path) -> str:
  try:
    return f'{shutil.disk_usage(directory).free / 1e6:,.1f} MB are free there. '
  except OSError:  # an object store, or the directory has gone
    return ''


def _heed(record: std_logging.LogRecord) -> bool:
  """Whether a line of the log is to be shown: not the traceback that `seen` gets instead.

  Nor that a step was saved without an evaluation, as most are.
  """
  if 'tracked_metric' in str(record.msg) and '/orbax/' in record.pathname:
    return False
  of_a_save = record.exc_info and any(text in str(record.msg) for text in _OF_A_SAVE)
  if of_a_save and '/orbax/' in record.pathname:
    seen.append(record.exc_info[1])
    return False
  return True


def _show(fault) -> None:
  """What shows an exception that goes nowhere, less those in the wake of a failed save.

  The writes that it had begun go on, and each reports to an event loop that has gone, some before
  the fault itself is told.
  """
  if str(fault.exc_value) != 'Event loop is closed':
    _show_as_before(fault)


logging.get_absl_logger().addFilter(_heed)
_show_as_before, sys.unraisablehook = sys.unraisablehook, _show
