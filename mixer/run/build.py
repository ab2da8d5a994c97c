"""From a training config to what a run works with: mesh, model, optimiser and train step."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import inspect
from typing import Annotated, Any

from absl import logging
import jax
from jax.sharding import Mesh
import numpy as np
import optax

from mixer import evaluators, models, settings
from mixer import input as inputs
from mixer.checkpoints import manager
from mixer.cluster.coordination import SINGLE, Cluster
from mixer.errors import InputError
from mixer.models import permutations
from mixer.pretrained import distillation, warm_start
from mixer.training import ema, losses, optimizers, param_groups, plan, sharding, train_step
from mixer.training.augmentation import MIXUP_MODES, Augmentation, RandomErasing
from mixer.values import Count, NotNegative, OneOf, Rate, Seed, Share


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The keys of a training config; each section is the keyword arguments of one function."""

  seed: Seed
  train_input: Mapping  # of `mixer.input.build`
  evals: Mapping  # of `mixer.evaluators.build`, by name
  model: Mapping  # of `mixer.models.build`
  loss: Annotated[str, OneOf(losses.LOSSES)]
  mixup: NotNegative
  optim: Mapping  # of `optimizers.make` and `param_groups.make`
  total_epochs: NotNegative | None
  total_steps: Count | None
  microbatches: Count
  mesh: Mapping  # of `sharding.make_mesh`
  every: Mapping  # of `plan.intervals`
  checkpoints: Mapping  # of `mixer.checkpoints.manager.Checkpoints`
  init: Mapping | None = None  # of `mixer.pretrained.warm_start.load`
  permutation: Mapping | None = None  # of `mixer.models.permutations.wrap`
  ema: Mapping | None = None  # of `mixer.training.ema.Ema`
  early_stopping: Mapping | None = None  # of `plan.EarlyStopping`
  export: Annotated[str, OneOf(('latest', 'best'))] = 'latest'  # the step of model.npz
  cutmix: NotNegative = 0.0  # this and the next five: of `augmentation.Augmentation`
  mixup_prob: Share = 1.0
  mixup_switch_prob: Share = 0.5
  mixup_mode: Annotated[str, OneOf(MIXUP_MODES)] = 'batch'
  random_erasing: Mapping | None = None  # of `augmentation.RandomErasing`
  label_smoothing: Rate = 0.0
  class_weights: Annotated[str, OneOf(('balanced',))] | Sequence[NotNegative] | None = None
  distill: Mapping | None = None  # of `mixer.pretrained.distillation.load`
  shard_update: bool = False  # over `mesh.fsdp`, see `sharding.SplitUpdate`


def check(config: Mapping) -> TrainConfig:
  """The config of a training run, of which all keys are checked; opens no data.

  Raises:
    InputError: a key is missing or unknown or has a wrong value; names all of them.
  """
  settings.check(settings.faults('config', [TrainConfig], config) + _section_faults(config))
  settings.check(_contradictions(config))
  for text in _without_effect(config):
    logging.warning('%s', text)
  return TrainConfig(**config)


def check_evaluation(config: Mapping) -> None:
  """Raises InputError as `check`; keys that only training needs may be missing, others be there."""
  keys = inspect.signature(TrainConfig).parameters
  known = {key: value for key, value in config.items() if key in keys}
  absent = keys - known.keys() - {'evals', 'model', 'loss', 'mesh', 'checkpoints'}
  settings.check(settings.faults('config', [TrainConfig], known, absent) + _section_faults(known))
  for text in inputs.evals_without_effect(config['evals']):
    logging.warning('%s', text)


# section -> (the function with its arguments, those of them that are not in the config)
_PLAIN = {
  'mesh': (sharding.make_mesh, ['devices']),
  'every': (
    plan.intervals,
    ['keep_best', 'early_stopping', 'evals', 'comparable', 'skipped'],
  ),
  'checkpoints': (manager.Checkpoints, ['directory', 'read_only', 'cluster']),
  'init': (
    warm_start.load,
    ['model', 'image_size', 'channels', 'permutation', 'class_names', 'cluster'],
  ),
  'permutation': (permutations.wrap, ['function', 'image_size']),
  'ema': (ema.Ema, []),
  'early_stopping': (plan.EarlyStopping, []),
  'random_erasing': (RandomErasing, []),
  'distill': (distillation.load, ['data', 'loss', 'dtype', 'cluster']),
}


def _section_faults(config: Mapping) -> list[str]:
  """What is wrong within the sections of a config."""
  others = {
    'train_input': lambda section: inputs.faults('config.train_input', section),
    'evals': lambda sections: inputs.evals_faults(sections) + evaluators.faults(sections),
    'model': models.faults,
    'optim': optimizers.faults,
  }
  found = []
  for name, section in config.items():
    if not isinstance(section, Mapping):
      continue
    if name in _PLAIN:
      function, computed = _PLAIN[name]
      found += settings.faults(f'config.{name}', [function], section, computed)
    elif name in others:
      found += others[name](section)
  return found


def with_defaults(config: Mapping) -> dict:
  """The config in which each key that may be left out has a value, its default one.

  A section that is None stays so, and one that is not valid stays as it is.
  """
  others = {
    'train_input': inputs.with_defaults,
    'evals': lambda sections: {
      name: inputs.eval_with_defaults(evaluators.with_defaults(section))
      for name, section in sections.items()
    },
    'model': models.with_defaults,
    'optim': optimizers.with_defaults,
  }
  filled = settings.with_defaults([TrainConfig], config)
  for name, section in filled.items():
    if isinstance(section, Mapping) and name in _PLAIN:
      function, computed = _PLAIN[name]
      filled[name] = settings.with_defaults([function], section, computed)
    elif isinstance(section, Mapping) and name in others:
      filled[name] = others[name](section)
  return filled


def _contradictions(config: Mapping) -> list[str]:
  """The settings that others make impossible; a sentence for each."""
  found = []
  if config.get('export') == 'best' and not config['checkpoints'].get('keep_best'):
    found.append("config.export='best' needs config.checkpoints.keep_best, such as val/top1.")
  if config.get('ema'):
    found += [
      f'config.evals.{evaluators.averaged(name)} has the name under which config.ema reports the '
      f'results of config.evals.{name}: rename it.'
      for name in config['evals']
      if evaluators.averaged(name) in config['evals']
    ]
  return found


def _without_effect(config: Mapping) -> list[str]:
  """The settings that change nothing under the values of others; a sentence for each."""
  found = inputs.without_effect('config.train_input', config['train_input'])
  found += inputs.evals_without_effect(config['evals'])
  found += models.without_effect(config['model'])
  if config.get('shard_update') and config['mesh'].get('fsdp', 1) == 1:
    found.append(
      'config.shard_update has no effect with config.mesh.fsdp=1: set it to the number of devices '
      'that share one state.'
    )
  init, batch_size = config.get('init') or {}, config['train_input'].get('batch_size')
  if not init.get('path'):
    found += [
      f'config.init.{key}={init[key]!r} has no effect without config.init.path: the run starts '
      'from fresh parameters.'
      for key, unset in (('head', 'auto'), ('from_size', None), ('resample', False))
      if init.get(key, unset) not in (unset, (), [])
    ]
  if config['optim'].get('freeze') and not init.get('path'):
    found.append(
      'config.optim.freeze without config.init.path: the frozen parameters keep random values.'
    )
  if init.get('path') and init.get('from_size') and config['model']['name'].startswith('BiT'):
    found.append('config.init.from_size has no effect on a ResNet, whose weights fit any size.')
  if init.get('path') and init.get('resample') and not config['model']['name'].startswith('Mixer'):
    found.append('config.init.resample has no effect: only a Mixer has token-mixing MLPs.')
  return found + _recipe_without_effect(config, batch_size)


def _recipe_without_effect(config: Mapping, batch_size: int | None) -> list[str]:
  """The same of the augmentation of a batch, and of distillation."""
  mixes = [name for name in ('mixup', 'cutmix') if config.get(name)]
  distill, erasing = config.get('distill') or {}, config.get('random_erasing') or {}
  found = [
    f'config.{name}={config[name]} has no effect with a batch of 1, which is its own partner.'
    for name in mixes
    if batch_size == 1
  ]
  needs = {'mixup_prob': 1, 'mixup_mode': 1, 'mixup_switch_prob': 2}
  found += [
    f'config.{name}={config[name]} has no effect without ' + ' and '.join(
      key for key in ('mixup', 'cutmix') if key not in mixes
    ) + '.'
    for name, count in needs.items()
    if name in config and len(mixes) < count
  ]  # fmt: skip
  if erasing.get('probability') == 0:
    found.append('config.random_erasing has no effect with a probability of 0.')
  if distill.get('weight') == 0:
    found.append('config.distill has no effect on what is learned with a weight of 0.')
  if distill.get('targets') == 'hard' and 'temperature' in distill:
    found.append('config.distill.temperature has no effect on hard targets.')
  return found


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
    augmentation: what the step does to a batch.
    step_key: of the step's random draws.
    step_fn: (state, batch, teacher=None) -> (state, metrics), not compiled.
    ema: the average of the parameters that the state has, if any.
    groups: how each parameter is trained.
    open_teacher: reads the teacher of `config.distill`, when it is called first.
    split_update: of `config.shard_update`.
  """

  data: inputs.Input
  mesh: Mesh
  total_steps: int
  model: Any
  apply: Callable[..., jax.Array]
  features: Callable[..., jax.Array]
  initial_state: Callable[[], train_step.TrainState]
  like: train_step.TrainState
  augmentation: Augmentation
  step_key: jax.Array
  step_fn: Callable
  ema: ema.Ema | None
  groups: param_groups.Groups
  open_teacher: Callable[[], distillation.Teacher] | None = None
  split_update: sharding.SplitUpdate | None = None

  @property
  def teacher(self) -> distillation.Teacher | None:
    """Read by the first use, since only training needs it; the processes read it together."""
    return self.open_teacher and self.open_teacher()

  @property
  def train_flops_per_image(self) -> int:
    size, channels = self.data.image_size, self.data.channels
    own = models.train_flops(self.model, size, channels, self.groups.frozen_names)
    return own + (self.teacher.flops_per_image if self.teacher else 0)

  @property
  def teacher_like(self) -> dict | None:
    """The teacher's parameters as ShapeDtypeStructs with shardings."""
    return sharding.spread(self.teacher.params, self.mesh) if self.teacher else None

  def with_teacher(self, compiled: Callable) -> Callable:
    """The compiled step as (state, batch) -> (state, metrics); places the teacher's parameters."""
    if self.teacher is None:
      return compiled
    params = sharding.place(self.teacher.params, self.teacher_like)
    return lambda state, batch: compiled(state, batch, params)


def build(
  config: TrainConfig,
  data: inputs.Input,
  devices: Sequence[jax.Device],
  cluster: Cluster = SINGLE,
) -> Program:
  """The program of a config for its training input on some devices; computes nothing.

  Raises:
    InputError: a section is wrong, or batch, mesh and model do not fit each other. `teacher` and
      the step raise it too, of the teacher.
  """
  mesh = settings.call('config.mesh', sharding.make_mesh, config.mesh, devices=devices)
  plan.check_batch_size(data.batch_size, config.microbatches, mesh)
  total_steps = plan.count_steps(config.total_steps, config.total_epochs, data)
  optimizers.warn_of_warmup(config.optim, total_steps)

  model = models.build(**config.model, num_classes=data.num_classes)
  apply, features = (
    function(model, config.permutation, data.image_size)
    for function in (models.apply_function, models.features_function)
  )
  groups, tx, learning_rate = _optimizer(config, model, data, total_steps)
  init_key, step_key = jax.random.split(jax.random.key(config.seed))
  split_update = None
  if config.shard_update and mesh.shape['fsdp'] > 1:
    split_update = sharding.SplitUpdate(mesh, models.rounding(model))
  average = settings.call('config.ema', ema.Ema, config.ema) if config.ema else None
  initial_state, like = train_step.init_state(
    lambda key: models.init(model, key, data.image_size, data.channels), tx, init_key, mesh,
    groups.frozen, averaged=average is not None,
  )  # fmt: skip
  augment = Augmentation(
    num_classes=data.num_classes, mixup=config.mixup, cutmix=config.cutmix,
    mixup_prob=config.mixup_prob, mixup_switch_prob=config.mixup_switch_prob,
    mixup_mode=config.mixup_mode, label_smoothing=config.label_smoothing, augment=data.augment,
    random_erasing=None if config.random_erasing is None else settings.call(
      'config.random_erasing', RandomErasing, config.random_erasing
    ),
  )  # fmt: skip
  open_teacher = None if config.distill is None else functools.cache(lambda: settings.call(
    'config.distill', distillation.load, config.distill,
    data=data, loss=config.loss, dtype=config.model.get('dtype', 'float32'), cluster=cluster,
  ))  # fmt: skip
  step_fn = train_step.make_step(
    apply=apply, tx=tx, learning_rate=learning_rate,
    objective=losses.Objective(
      loss=config.loss, class_weights=_class_weights(config.class_weights, data),
      distillation=open_teacher and (lambda: open_teacher().distillation),
    ),
    augmentation=augment, microbatches=config.microbatches, key=step_key, mesh=mesh,
    frozen=groups.frozen, split_update=split_update,
  )  # fmt: skip
  if average:
    step_fn = average.follow(step_fn, total_steps)
  return Program(
    data, mesh, total_steps, model, apply, features, initial_state, like, augment, step_key,
    step_fn, average, groups, open_teacher, split_update,
  )  # fmt: skip


def _optimizer(
  config: TrainConfig, model, data: inputs.Input, total_steps: int
) -> tuple[param_groups.Groups, optax.GradientTransformation, optimizers.Schedule]:
  """(how each parameter is trained, the optimizer, the learning rate) of `config.optim`."""
  settings.check(optimizers.faults(config.optim))
  chain, grouping = settings.divide([optimizers.make, param_groups.make], config.optim)
  layout = models.layout(model, models.shapes(model, data.image_size, data.channels))
  groups = param_groups.make(layout=layout, **grouping)
  return groups, *optimizers.make(**chain, total_steps=total_steps, groups=groups)


def _class_weights(given: str | Sequence[float] | None, data: inputs.Input) -> np.ndarray | None:
  """`config.class_weights` as float32 (classes,); 'balanced' as in scikit-learn.

  That is n / (classes * count) for n labels in all, so the mean weight of a label is 1.
  """
  if given is None:
    return None
  if given != 'balanced':
    if len(given) != data.num_classes or not any(given):
      raise InputError(
        f'config.class_weights has {len(given)} numbers, of which {sum(map(bool, given))} are not '
        f'0; give one for each of the {data.num_classes} classes, in their order.'
      )
    return np.float32(given)
  counts = data.class_counts()
  if counts is None:
    raise InputError(
      "config.class_weights='balanced' needs the labels of all images, which this source has in "
      'its records: give the list of weights, one for each class.'
    )
  absent = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
  if absent:
    raise InputError(
      f"config.class_weights='balanced': {len(absent)} classes have no training images, such as "
      f'{absent[:3]}: add images, or give the list of weights.'
    )
  return np.float32(counts.sum() / (len(counts) * counts))
