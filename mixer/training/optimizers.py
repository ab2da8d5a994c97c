"""Optimisers, the learning-rate schedule and weight decay, as one optax chain."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
import optax

from mixer import settings
from mixer.errors import InputError

Schedule = Callable[[jax.Array], jax.Array]


def adam(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, moment_dtype: str = 'float32'
) -> optax.GradientTransformation:
  """Adam's direction; the second moment is always float32. The paper's for pre-training."""
  return optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype)


def sgd(momentum: float = 0.9, accumulator_dtype: str = 'float32') -> optax.GradientTransformation:
  """Momentum without Nesterov. The paper's for fine-tuning."""
  return optax.trace(momentum, accumulator_dtype=accumulator_dtype)


OPTIMIZERS = {'adam': adam, 'sgd': sgd}


def linear(progress: jax.Array) -> jax.Array:
  """1 at progress 0, 0 at progress 1."""
  return 1.0 - progress


def cosine(progress: jax.Array) -> jax.Array:
  """Half a period of the cosine, from 1 to 0."""
  return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


DECAYS = {'linear': linear, 'cosine': cosine}


def schedule_factor(
  *, total_steps: int, warmup_steps: int, decay: str, linear_end: float = 0.0
) -> Schedule:
  """The factor on the base learning rate for the update after `step` earlier ones.

  Rises linearly from 0 at step 0 to 1 at `warmup_steps`, and falls from 1 there to
  `linear_end` at `total_steps` (a fraction of the base rate, not a rate: big_vision's meaning).
  A run that ends within its warm-up only rises.
  """
  if decay not in DECAYS:
    raise InputError(f'unknown decay {decay!r}; use one of {sorted(DECAYS)}.')
  if warmup_steps < 0:
    raise InputError(f'warmup_steps is {warmup_steps}; use 0 for none.')

  def factor(step):
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    fall = DECAYS[decay](jnp.clip(progress, 0.0, 1.0))
    rise = jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0
    return rise * (linear_end + (1.0 - linear_end) * fall)

  return factor


def is_kernel(params) -> dict:
  """True for the leaves named 'kernel' (stem, Dense and head), the only ones that decay."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def make(
  *,
  optimizer: dict,
  learning_rate: float,
  schedule: dict,
  total_steps: int,
  clip_norm: float | None,
  weight_decay: float,
  weight_decay_mode: str,
) -> tuple[optax.GradientTransformation, Schedule]:
  """(the chain clip -> direction -> decay -> step size, the learning rate as a function).

  The update is -m(t) * (learning_rate * direction + d * kernel) with m the schedule's factor,
  where d is `weight_decay` in the mode 'independent' (big_vision's convention) and
  `learning_rate * weight_decay` in the mode 'adamw' (the paper's tables).

  Args:
    optimizer: 'name' of one of OPTIMIZERS and its keyword arguments.
    learning_rate: the base rate, reached at the end of warm-up.
    schedule: keyword arguments of `schedule_factor`, without total_steps.
    total_steps: updates in the whole run.
    clip_norm: the gradient's global norm is scaled down to this first; None for no clipping.
    weight_decay, weight_decay_mode: see above; kernels only.
  """
  name, arguments = optimizer.get('name'), {k: v for k, v in optimizer.items() if k != 'name'}
  if name not in OPTIMIZERS:
    raise InputError(f'unknown optimizer {name!r}; use one of {sorted(OPTIMIZERS)}.')
  direction = settings.call('config.optim.optimizer', OPTIMIZERS[name], arguments)
  factor = settings.call(
    'config.optim.schedule', schedule_factor, schedule, total_steps=total_steps
  )
  independent = independent_decay(weight_decay, weight_decay_mode, learning_rate)
  chain = optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
    direction,
    optax.scale(learning_rate),
    optax.add_decayed_weights(independent, is_kernel) if independent else optax.identity(),
    optax.scale_by_schedule(lambda step: -factor(step)),
  )
  return chain, lambda step: learning_rate * factor(step)


def independent_decay(weight_decay: float, mode: str, learning_rate: float) -> float:
  """The share of a kernel that one update at the peak learning rate removes."""
  factors = {'independent': 1.0, 'adamw': learning_rate}
  if mode not in factors:
    raise InputError(f'unknown weight_decay_mode {mode!r}; use one of {sorted(factors)}.')
  return weight_decay * factors[mode]


def describe(section: dict, total_steps: int) -> str:
  """A config's optimiser section in words, with the decay in both conventions."""
  rate, warmup = section['learning_rate'], section['schedule']['warmup_steps']
  lines = [
    f'{section["optimizer"]["name"]}, learning rate {rate:g} after {warmup} steps of warm-up, '
    f'then {section["schedule"]["decay"]} decay to step {total_steps}',
    describe_decay(section['weight_decay'], section['weight_decay_mode'], rate),
  ]
  if warmup >= total_steps:
    lines.append(
      f'WARNING: the run ends within its warm-up, at {total_steps / warmup:.3g} of that rate'
    )
  return '\n'.join(lines)


def describe_decay(weight_decay: float, mode: str, learning_rate: float) -> str:
  """One line with the decay in both conventions, whose numbers differ by the learning rate."""
  independent = independent_decay(weight_decay, mode, learning_rate)
  coupled = independent / learning_rate if learning_rate else math.nan
  return (
    f'weight decay on kernels: {independent:g} times the schedule (big_vision, "independent") '
    f'= {coupled:g} times the learning rate (AdamW, "adamw"); the config says '
    f'{weight_decay:g} in mode {mode!r}'
  )
