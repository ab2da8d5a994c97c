"""Exceptions that the entry points tell from a bug."""


class InputError(ValueError):
  """What was given is wrong; the message says what came, what was wanted and what to do.

  The entry points print the message alone, without a traceback, and exit with status 2.
  """


class MissingData(InputError):
  """A data set is not on disk, and nothing else is wrong: an evaluation of it can be left out."""


class Diverged(RuntimeError):
  """A loss or a gradient was not finite; the message names the step."""
