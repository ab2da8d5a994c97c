"""From a training config to what a run works with: mesh, model, optimiser and train step."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from mixer import input as inputs
from mixer import models, settings
from mixer.training import optimizers, plan, sharding, train_step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The keys of a training config; each section is the keyword arguments of one function."""

  seed: int
  train_input: Mapping  # of `mixer.input.build`
  evals: Mapping  # of `mixer.evaluators.build`, by name
  model: Mapping  # of `mixer.models.build`
  loss: str
  mixup: float
  optim: Mapping  # of `optimizers.make`
  total_epochs: float
  total_steps: int | None
  microbatches: int
  mesh: Mapping  # of `sharding.make_mesh`
  every: Mapping  # of `plan.intervals`
  checkpoints: Mapping  # of `mixer.checkpoints.manager.Checkpoints`
  init: Mapping | None = None  # of `mixer.pretrained.warm_start.load`
  permutation: Mapping | None = None  # of `mixer.models.permutations.wrap`


@dataclasses.dataclass(frozen=True)
class Program:
  """What a training run computes.

  Attributes:
    data: the training input.
    mesh: the devices.
    total_steps: updates in the whole run.
    model: a linen module.
    apply, features: (params, images, example_keys=None) -> logits or pre-logits, with the input
      permutation of the config.
    initial_state: makes the state of step 0.
    like: the state as ShapeDtypeStructs with shardings.
    step_fn: (state, batch) -> (state, metrics), not compiled.
  """

  data: inputs.Input
  mesh: Mesh
  total_steps: int
  model: Any
  apply: Callable[..., jax.Array]
  features: Callable[..., jax.Array]
  initial_state: Callable[[], train_step.TrainState]
  like: train_step.TrainState
  step_fn: Callable

  @property
  def train_flops_per_image(self) -> int:
    return models.train_flops(self.model, self.data.image_size, self.data.channels)


def build(config: TrainConfig, data: inputs.Input, devices: Sequence[jax.Device]) -> Program:
  """The program of a config for its training input on some devices; computes nothing.

  Raises:
    InputError: a section is wrong, or batch, mesh and model do not fit each other.
  """
  mesh = settings.call('config.mesh', sharding.make_mesh, config.mesh, devices=devices)
  plan.check_batch_size(data.batch_size, config.microbatches, mesh)
  total_steps = plan.count_steps(config.total_steps, config.total_epochs, data)

  model = models.build(**config.model, num_classes=data.num_classes)
  apply, features = (
    function(model, config.permutation, data.image_size)
    for function in (models.apply_function, models.features_function)
  )
  tx, learning_rate = settings.call(
    'config.optim', optimizers.make, config.optim, total_steps=total_steps
  )
  init_key, step_key = jax.random.split(jax.random.key(config.seed))
  initial_state, like = train_step.init_state(
    lambda key: models.init(model, key, data.image_size, data.channels), tx, init_key, mesh
  )
  step_fn = train_step.make_step(
    apply=apply, tx=tx, learning_rate=learning_rate, loss=config.loss,
    num_classes=data.num_classes, mixup=config.mixup, microbatches=config.microbatches,
    key=step_key, mesh=mesh, augment=data.augment,
  )  # fmt: skip
  return Program(
    data, mesh, total_steps, model, apply, features, initial_state, like, step_fn
  )  # fmt: skip
