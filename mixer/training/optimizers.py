"""Optimisers, the learning-rate schedule and weight decay, as one optax chain."""

from collections.abc import Callable, Mapping
import math
from typing import Annotated

from absl import logging
from flax import traverse_util
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from mixer import settings
from mixer.errors import InputError
from mixer.training import param_groups
from mixer.values import Count, Fraction, NotNegative, OneOf, Positive, Rate, Share, Steps

Schedule = Callable[[jax.Array], jax.Array]
_OF_DECAY = ('weight_decay', 'weight_decay_mode', 'learning_rate')
Dtype = Annotated[str, OneOf(('float32', 'bfloat16', 'float16'))]


def adam(
  b1: Rate = 0.9,
  b2: Rate = 0.999,
  eps: Fraction = 1e-8,
  moment_dtype: Dtype = 'float32',
  nesterov: bool = False,
) -> optax.GradientTransformation:
  """Adam's direction; the second moment is always float32. The paper's for pre-training.

  With the decay of `make`, this is AdamW, and NAdamW with `nesterov`.
  """
  return optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype, nesterov=nesterov)


def sgd(
  momentum: Rate = 0.9, accumulator_dtype: Dtype = 'float32', nesterov: bool = False
) -> optax.GradientTransformation:
  """Momentum, without Nesterov the paper's for fine-tuning."""
  return optax.trace(momentum, nesterov, accumulator_dtype=accumulator_dtype)


def radam(
  b1: Rate = 0.9, b2: Rate = 0.999, eps: Fraction = 1e-8, nesterov: bool = False
) -> optax.GradientTransformation:
  """Adam with a rectified second moment (Liu et al. 2020); plain momentum in its first steps."""
  return optax.scale_by_radam(b1, b2, eps, nesterov=nesterov)


def adan(
  b1: Rate = 0.98, b2: Rate = 0.92, b3: Rate = 0.99, eps: Fraction = 1e-8
) -> optax.GradientTransformation:
  """Adaptive Nesterov momentum (Xie et al. 2022), with optax's meaning of b1 to b3.

  Its state has four arrays per parameter. Unlike the paper's, its decay is that of `make`.
  """
  return optax.scale_by_adan(b1, b2, b3, eps, eps_root=1e-8)


def lion(
  b1: Rate = 0.9, b2: Rate = 0.99, moment_dtype: Dtype = 'float32'
) -> optax.GradientTransformation:
  """The sign of a momentum (Chen et al. 2023).

  It takes a learning rate 3 to 10 times smaller than Adam's, and a `weight_decay` of mode 'adamw'
  that much larger.
  """
  return optax.scale_by_lion(b1, b2, mu_dtype=moment_dtype)


def lamb(
  *,
  groups: param_groups.Groups,
  inner_decay: float,
  b1: Rate = 0.9,
  b2: Rate = 0.999,
  eps: Fraction = 1e-6,
) -> optax.GradientTransformation:
  """Adam's direction plus decay, scaled to the norm of each parameter (You et al. 2020).

  Blocks that `model.scan` stacks have a norm each.
  """
  return optax.chain(
    optax.scale_by_adam(b1, b2, eps),
    optax.add_decayed_weights(inner_decay, is_kernel) if inner_decay else optax.identity(),
    param_groups.per_block(optax.scale_by_trust_ratio(), groups.layout.stacked),
  )


def muon(
  *,
  groups: param_groups.Groups,
  beta: Rate = 0.95,
  nesterov: bool = True,
  ns_steps: Count = 5,
  consistent_rms: Positive | None = 0.2,
  b1: Rate = 0.9,
  b2: Rate = 0.999,
  eps: Fraction = 1e-8,
  moment_dtype: Dtype = 'float32',
) -> optax.GradientTransformation:
  """Orthogonalised momentum (Jordan et al. 2024) of the kernels between the stem and the head.

  Stem, head, LayerNorms and biases have Adam's direction with b1 and b2. `consistent_rms` scales a
  matrix to sqrt(max(inputs, outputs)) * consistent_rms, so that 0.2 suits Adam's learning rates
  and decays (Liu et al. 2025); None scales it to sqrt(max(1, outputs / inputs)), as Jordan does. A
  convolution is a matrix from all its inputs to its outputs; attention's query, key and value are
  matrices for all heads together.
  """
  axes = {path: contrib.MuonDimensionNumbers(*two) for path, two in groups.layout.matrices.items()}
  if axes.keys() <= groups.frozen:
    raise InputError(
      "config.optim.optimizer.name is 'muon', but no kernel between the stem and the head is "
      'trained; use adam or sgd.'
    )

  def dimension_numbers(params):
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: axes.get(path) for path in flat})

  tx = contrib.muon(
    1.0, ns_steps=ns_steps, beta=beta, eps=eps, mu_dtype=moment_dtype, nesterov=nesterov,
    adam_b1=b1, adam_b2=b2, muon_weight_dimension_numbers=dimension_numbers,
    consistent_rms=consistent_rms,
  )  # fmt: skip
  return optax.chain(tx, optax.scale(-1.0))  # a direction, as of the other optimizers


OPTIMIZERS = {
  'adam': adam,
  'sgd': sgd,
  'radam': radam,
  'adan': adan,
  'lion': lion,
  'lamb': lamb,
  'muon': muon,
}
# Arguments of optimizers, and of the chain, that are not in a config.
_COMPUTED, _COMPUTED_OF_CHAIN = ('groups', 'inner_decay'), ('total_steps', 'groups', 'layout')


def linear(progress: jax.Array) -> jax.Array:
  """1 at progress 0, 0 at progress 1."""
  return 1.0 - progress


def cosine(progress: jax.Array) -> jax.Array:
  """Half a period of the cosine, from 1 to 0."""
  return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


DECAYS = {'linear': linear, 'cosine': cosine}
STEP_DECAY = 'step'  # by a factor of 10 at each of the boundaries, as in BiT


def schedule_factor(
  *,
  total_steps: int,
  warmup_steps: Steps,
  decay: Annotated[str, OneOf((*DECAYS, STEP_DECAY))],
  linear_end: Share = 0.0,
  boundaries: tuple[float, ...] = (),
) -> Schedule:
  """The factor on the base learning rate for the update after `step` earlier ones.

  Rises linearly from 0 at step 0 to 1 at `warmup_steps`, and falls from 1 there to
  `linear_end` at `total_steps` (a fraction of the base rate, not a rate: big_vision's meaning).
  A run that ends within its warm-up only rises. With the decay 'step', it falls to a tenth at each
  of the `boundaries`, which are shares of `total_steps`, and `linear_end` has no meaning.
  """

  def factor(step):
    if decay == STEP_DECAY:
      passed = sum(jnp.where(step >= round(share * total_steps), 1, 0) for share in boundaries)
      rise = jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0
      return rise * 0.1**passed
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
  learning_rate: Positive,
  schedule: dict,
  total_steps: int,
  clip_norm: Positive | None,
  weight_decay: NotNegative,
  weight_decay_mode: Annotated[str, OneOf(('adamw', 'independent'))],
  groups: param_groups.Groups | None = None,
) -> tuple[optax.GradientTransformation, Schedule]:
  """(the chain clip -> direction -> decay -> step size, the learning rate as a function).

  The update is -m(t) * (learning_rate * direction + d * kernel) with m the schedule's factor,
  where d is `weight_decay` in the mode 'independent' (big_vision's convention) and
  `learning_rate * weight_decay` in the mode 'adamw' (the paper's tables). The factors of `groups`
  multiply the learning rate in this formula. LAMB decays within its direction, d / learning_rate
  beside Adam's.

  Args:
    optimizer: 'name' of one of OPTIMIZERS and its keyword arguments.
    learning_rate: the base rate, reached at the end of warm-up.
    schedule: keyword arguments of `schedule_factor`, without total_steps.
    total_steps: updates in the whole run.
    clip_norm: the gradient's global norm is scaled down to this first; None for no clipping.
    weight_decay, weight_decay_mode: see above; kernels only.
    groups: of the parameters, of which the chain gets those that are trained; None if the optimizer
      is elementwise and all are trained alike.
  """
  settings.check(_optimizer_faults(optimizer))
  groups = groups or param_groups.Groups()
  arguments = {key: value for key, value in optimizer.items() if key != 'name'}
  factor = settings.call(
    'config.optim.schedule', schedule_factor, schedule, total_steps=total_steps
  )
  decay = independent_decay(weight_decay, weight_decay_mode, learning_rate)
  function = OPTIMIZERS[optimizer['name']]
  (computed,) = settings.divide(
    [function], {'groups': groups, 'inner_decay': decay / learning_rate}
  )
  decayed = optax.identity()
  if decay and 'inner_decay' not in computed:
    decayed = optax.add_decayed_weights(decay, is_kernel)
  parts = [
    optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
    function(**arguments, **computed),
    optax.scale(learning_rate),
    decayed,
  ]
  if groups.factors:
    where = 3 if weight_decay_mode == 'independent' else 4  # before or after the decay
    parts.insert(where, param_groups.scale_by_factors(groups.factors))
  chain = optax.chain(*parts, optax.scale_by_schedule(lambda step: -factor(step)))
  return chain, lambda step: learning_rate * factor(step)


def faults(section: Mapping) -> list[str]:
  """What is wrong with the section `config.optim`, see `settings.faults`."""
  found = settings.faults('config.optim', [make, param_groups.make], section, _COMPUTED_OF_CHAIN)
  optimizer, schedule = section.get('optimizer'), section.get('schedule')
  if isinstance(optimizer, Mapping):
    found += _optimizer_faults(optimizer)
  if isinstance(schedule, Mapping):
    found += settings.faults('config.optim.schedule', [schedule_factor], schedule, ['total_steps'])
    found += _boundary_faults(schedule)
  return found or _decay_faults(**{name: section[name] for name in _OF_DECAY})


def with_defaults(section: Mapping) -> dict:
  """The section `config.optim` with the default values of the keys that it leaves out."""
  filled = settings.with_defaults([make, param_groups.make], section, _COMPUTED_OF_CHAIN)
  optimizer, schedule = section.get('optimizer'), section.get('schedule')
  if isinstance(optimizer, Mapping) and optimizer.get('name') in OPTIMIZERS:
    function = OPTIMIZERS[optimizer['name']]
    filled['optimizer'] = settings.with_defaults([function], optimizer, _COMPUTED)
  if isinstance(schedule, Mapping):
    filled['schedule'] = settings.with_defaults([schedule_factor], schedule)
  return filled


def _decay_faults(weight_decay: float, weight_decay_mode: str, learning_rate: float) -> list[str]:
  removed = independent_decay(weight_decay, weight_decay_mode, learning_rate)
  if removed < 1:
    return []
  return [
    f'config.optim.weight_decay is {weight_decay:g} in mode {weight_decay_mode!r}: a step at the '
    f'learning rate {learning_rate:g} removes {removed:g} of each kernel; use less than '
    f'{weight_decay / removed:g}.'
  ]


def _boundary_faults(schedule: Mapping) -> list[str]:
  boundaries, is_step = schedule.get('boundaries', ()), schedule.get('decay') == STEP_DECAY
  if not isinstance(boundaries, tuple | list) or not all(0 < share < 1 for share in boundaries):
    return [
      f'config.optim.schedule.boundaries is {boundaries!r}; give shares of the run between 0 and 1.'
    ]
  if is_step != bool(boundaries):
    return [
      f'config.optim.schedule has decay={schedule.get("decay")!r} and boundaries={boundaries}: '
      "boundaries go with decay='step', which needs them."
    ]
  if is_step and schedule.get('linear_end'):
    return ["config.optim.schedule.linear_end has no effect with decay='step'; set it to 0."]
  return []


def _optimizer_faults(section: Mapping) -> list[str]:
  name, arguments = section.get('name'), {k: v for k, v in section.items() if k != 'name'}
  if name not in OPTIMIZERS:
    return [f'config.optim.optimizer.name is {name!r}; use one of {sorted(OPTIMIZERS)}.']
  return settings.faults('config.optim.optimizer', [OPTIMIZERS[name]], arguments, _COMPUTED)


def independent_decay(weight_decay: float, mode: str, learning_rate: float) -> float:
  """The share of a kernel that one update at the peak learning rate removes."""
  factors = {'independent': 1.0, 'adamw': learning_rate}
  if mode not in factors:
    raise InputError(f'unknown weight_decay_mode {mode!r}; use one of {sorted(factors)}.')
  return weight_decay * factors[mode]


def describe(section: dict, total_steps: int) -> str:
  """A config's optimiser section in words, with the decay in both conventions."""
  rate, warmup = section['learning_rate'], section['schedule']['warmup_steps']
  within = '; within the trust ratio' if section['optimizer']['name'] == 'lamb' else ''
  return (
    f'{section["optimizer"]["name"]}, learning rate {rate:g} after {warmup} steps of warm-up, '
    f'then {section["schedule"]["decay"]} decay to step {total_steps}\n'
    + describe_decay(section['weight_decay'], section['weight_decay_mode'], rate)
    + within
  )


def warn_of_warmup(section: Mapping, total_steps: int) -> None:
  """Warns if the learning rate never reaches its value."""
  warmup = section['schedule']['warmup_steps']
  if warmup >= total_steps:
    logging.warning(
      'config.optim.schedule.warmup_steps=%d: the run ends within its warm-up, after %d steps, at '
      '%.3g of the learning rate. Use fewer warm-up steps, or train longer.',
      warmup, total_steps, total_steps / warmup,
    )  # fmt: skip


def describe_decay(weight_decay: float, mode: str, learning_rate: float) -> str:
  """One line with the decay in both conventions, whose numbers differ by the learning rate."""
  independent = independent_decay(weight_decay, mode, learning_rate)
  coupled = independent / learning_rate if learning_rate else math.nan
  return (
    f'weight decay on kernels: {independent:g} times the schedule (big_vision, "independent") '
    f'= {coupled:g} times the learning rate (AdamW, "adamw"); the config says '
    f'{weight_decay:g} in mode {mode!r}'
  )
