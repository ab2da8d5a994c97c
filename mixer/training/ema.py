"""The exponential moving average (EMA) of the parameters: Polyak averaging, appendix A.2."""

from collections.abc import Callable
import dataclasses
from typing import Annotated

from absl import logging
import jax
import jax.numpy as jnp

from mixer.errors import InputError
from mixer.training.train_step import AveragedState
from mixer.values import Range, Steps

_LARGE_WEIGHT = 0.1


@dataclasses.dataclass(frozen=True)
class Ema:
  """The section `config.ema`.

  Attributes:
    decay: each update makes the average `decay * average + (1 - decay) * parameters`, so it is
      over about the last 1 / (1 - decay) steps.
    start: up to this step the average is equal to the parameters.
    warmup: the decay of the t-th update after `start` is at most (1 + t) / (10 + t), so that the
      first parameters soon have little weight.
    export: whether model.npz has the average; otherwise it has the parameters themselves.
  """

  decay: Annotated[float, Range(above=0, below=1)]
  start: Steps = 0
  warmup: bool = False
  export: bool = True

  def follow(self, step: Callable, total_steps: int) -> Callable:
    """A train step that also averages: its states are `AveragedState`s.

    Args:
      step: a train step, see `train_step.make_step`.
      total_steps: the last step.

    Raises:
      InputError: nothing is averaged up to the last step.
    """
    if self.start >= total_steps:
      raise InputError(
        f'config.ema.start={self.start} is not before the last step, {total_steps}: nothing would '
        'be averaged. Use a lower one.'
      )
    first_weight = self.decay ** (total_steps - self.start)
    if first_weight > _LARGE_WEIGHT and not self.warmup:
      logging.warning(
        'config.ema.decay=%g is high for %d steps: the parameters of step %d make %.0f %% of the '
        'average at the end. Lower it, or set config.ema.warmup.',
        self.decay, total_steps - self.start, self.start, 100 * first_weight,
      )  # fmt: skip

    def averaging_step(state: AveragedState, *inputs) -> tuple[AveragedState, dict]:
      state, metrics = step(state, *inputs)
      return state.replace(ema=self.update(state.ema, state.params, state.step)), metrics

    return averaging_step

  def update(self, average, params, step):
    """The average after the parameters of a step.

    Of the two ways to write it, this one has no error that grows: in `decay * average +
    (1 - decay) * params`, float32 weights do not add up to 1, and each update repeats that. Here
    an update is lost only if it is below the last bit of the average, so the average ends up to
    2**-24 / (1 - decay) of itself away from parameters that have stopped.
    """
    rate = 1 - self.decay
    if self.warmup:
      rate = jnp.maximum(rate, 9 / (10 + jnp.maximum(step - self.start, 0)))

    def follow(average, new):
      moved = average + rate * (new - average)
      return jnp.where(step <= self.start, new, moved) if self.start else moved

    return jax.tree.map(follow, average, params)
