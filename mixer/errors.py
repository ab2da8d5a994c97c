"""Exceptions that the entry points tell from a bug."""


class InputError(ValueError):
  """What was given is wrong; the message says what came, what was wanted and what to do.

  The entry points print the message alone, without a traceback, and exit with `status`; so with
  the others below.
  """

  status = 2


class MissingData(InputError):
  """A data set is not on disk, and nothing else is wrong: an evaluation of it can be left out."""


class Diverged(RuntimeError):
  """A loss or a gradient was not finite; the message names the step."""

  status = 3


class Interrupted(RuntimeError):
  """The run was told to stop, and has; the message says what it has kept."""

  status = 75  # EX_TEMPFAIL, "try again later"
