"""Expected exceptions: the entry points print their message, without a traceback."""


class ExpectedError(Exception):
  """Ends a program with the exit status `status`; `is_printed` once its message is."""

  status: int
  is_printed = False


class InputError(ExpectedError, ValueError):
  """Invalid input or a disk error; the message says what is wrong, what is expected, what to do."""

  status = 2


class DiskError(InputError, OSError):
  """A file cannot be written; the message names it and says what to do."""


class MissingData(InputError):
  """A data set is not on disk, and nothing else is wrong: its evaluation can be skipped."""


class Diverged(ExpectedError, RuntimeError):
  """A loss or gradient is not finite; the message names the step."""

  status = 3


class Interrupted(ExpectedError, RuntimeError):
  """The run stopped cleanly on a signal; the message says what was saved."""

  status = 75  # EX_TEMPFAIL, "try again later"
