"""Expected exceptions: the entry points print their message, without a traceback."""


class InputError(ValueError):
  """Invalid input or a disk error; the message says what is wrong, what is expected, what to do."""

  status = 2  # exit status of the entry points


class MissingData(InputError):
  """A data set is not on disk, and nothing else is wrong: its evaluation can be skipped."""


class Diverged(RuntimeError):
  """A loss or gradient is not finite; the message names the step."""

  status = 3


class Interrupted(RuntimeError):
  """The run stopped cleanly on a signal; the message says what was saved."""

  status = 75  # EX_TEMPFAIL, "try again later"
