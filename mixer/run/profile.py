"""A profiler trace of some steps, for TensorBoard or Perfetto."""

from absl import logging
from etils import epath
import jax

from mixer import console
from mixer.errors import InputError


class Profile:
  """Process 0 traces the steps `FIRST:LAST` into a directory; without steps, nothing."""

  def __init__(self, directory: epath.Path, steps: str | None):
    first, _, last = (steps or '0:0').partition(':')
    are_numbers = first.isdigit() and last.isdigit()
    if steps is not None and not (are_numbers and 1 <= int(first) <= int(last)):
      raise InputError(f'--profile_steps={steps}: write FIRST:LAST, as in 10:15; steps begin at 1.')
    self._directory, self._first, self._last = directory, int(first), int(last)
    self._wanted, self._running = steps is not None and jax.process_index() == 0, False

  def boundary(self, step: int) -> None:
    """Starts when the step before the first, and stops when the one after the last, is dispatched.

    A step has certainly run when the boundary of its successor is reached.
    """
    if self._wanted and not self._running and self._first - 1 <= step < self._last:
      jax.profiler.start_trace(str(self._directory))
      self._running = True
    elif self._running and step > self._last:
      self.close()

  def close(self) -> None:
    """Writes the trace, or warns that none of its steps was run."""
    if self._running:
      jax.profiler.stop_trace()
      console.print_line(f'profile: {self._directory}')
    elif self._wanted:
      logging.warning('no profile: none of the steps %d to %d was run.', self._first, self._last)
    self._running = self._wanted = False
