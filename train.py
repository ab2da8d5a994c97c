"""Trains a model: python train.py --config=configs/digits.py --workdir=/tmp/digits"""

import contextlib
import itertools
import json
import time

from absl import flags
from clu import parameter_overview
from etils import epath
import jax
from ml_collections import config_flags

from mixer import cli, console, evaluators, files, models, pretrained, runtime, settings
from mixer import input as inputs
from mixer.checkpoints import manager
from mixer.cluster import coordination, preemption
from mixer.cost import dry_run
from mixer.errors import Diverged, InputError
from mixer.models import permutations
from mixer.pretrained import warm_start
from mixer.run import metrics_log, watchdog, workdirs
from mixer.training import loop, optimizers, plan, sharding, train_step
from mixer.visualize import plots

_CONFIG = config_flags.DEFINE_config_file('config', None, 'FILE[:ARGUMENT]', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run keeps all that it writes.')
_REQUIRE = flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Stop on any other backend.')
_REQUIRE_EVALS = flags.DEFINE_bool(
  'require_evals', False, 'Stop if the data of an evaluation are not on disk, which leave it out.'
)
_DETERMINISTIC = flags.DEFINE_bool('deterministic', False, runtime.DETERMINISM_SCOPE)
_TENSORBOARD = flags.DEFINE_bool('tensorboard', True, 'Also write WORKDIR/tensorboard.')
_CACHE = flags.DEFINE_string('compilation_cache', None, 'Directory for compiled programs.')
_PROFILE = flags.DEFINE_string('profile_steps', None, 'FIRST:LAST, traced into WORKDIR/profile.')
_STALL = flags.DEFINE_float(
  'stall_seconds',
  600.0,
  'Tell of a step that takes longer, with the stacks of all threads; 0: no.',
  lower_bound=0.0,
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Compile the train step, say what it needs and might take, and stop.'
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'With --dry_run: a TPU slice to compile for, such as v5e:16x16.'
)
_DRY_RUN_OUTPUT = flags.DEFINE_string('dry_run_output', None, 'JSON file of what --dry_run finds.')
coordination.define_flags()
flags.mark_flags_as_required(['config'])


def main() -> None:
  check_flags()
  if _TOPOLOGY.value:
    dry_run.configure()
  runtime.configure(deterministic=_DETERMINISTIC.value, compilation_cache=_CACHE.value)
  config = settings.config(_CONFIG)
  if _DRY_RUN.value:
    settings.call('config', train, config, config=config, directory=None)
    return
  coordination.join({**runtime.versions(), **settings.flatten({'config': config})})
  preemption.listen()
  start(config, _WORKDIR.value)


def check_flags() -> None:
  """Raises InputError for flags that do not go together."""
  if (_TOPOLOGY.value or _DRY_RUN_OUTPUT.value) and not _DRY_RUN.value:
    raise InputError('--topology and --dry_run_output go with --dry_run.')
  if not (_WORKDIR.value or _DRY_RUN.value):
    raise InputError('--workdir=DIR is missing: where the run is to keep all that it writes.')


def start(config: dict, workdir: str) -> None:
  """`train` with the sections of `config` as its arguments, alone in `workdir`."""
  directory = workdirs.prepare(workdir)
  with workdirs.locked(directory):
    coordination.check_shared(directory)
    settings.call('config', train, config, config=config, directory=directory)


def train(
  *,
  config: dict,
  directory: epath.Path | None,
  seed: int,
  train_input: dict,
  evals: dict,
  model: dict,
  loss: str,
  mixup: float,
  optim: dict,
  total_epochs: float,
  total_steps: int | None,
  microbatches: int,
  mesh: dict,
  every: dict,
  checkpoints: dict,
  init: dict | None = None,
  permutation: dict | None = None,
) -> None:
  """Trains from where `directory` is to the end; from `seed` on, the arguments are `config`'s."""
  # What can be wrong is looked at first, the cheapest first.
  data = (dry_run.data if _DRY_RUN.value else inputs.build)(**train_input)
  if not _DRY_RUN.value:
    runtime.check_backend(_REQUIRE.value)
  there = dry_run.devices(_TOPOLOGY.value) if _TOPOLOGY.value else jax.devices()
  devices = settings.call('config.mesh', sharding.make_mesh, mesh, devices=there)
  plan.check_batch_size(data.batch_size, microbatches, devices)
  steps = plan.count_steps(total_steps, total_epochs, data)

  net = models.build(**model, num_classes=data.num_classes)
  apply, features = (
    permutations.before(function(net), permutation, data.image_size)
    for function in (models.apply_function, models.features_function)
  )
  tx, learning_rate = settings.call('config.optim', optimizers.make, optim, total_steps=steps)
  init_key, step_key = jax.random.split(jax.random.key(seed))
  initial, like = train_step.init_state(
    lambda key: models.init(net, key, data.image_size, data.channels), tx, init_key, devices
  )
  step_fn = train_step.make_step(
    apply=apply, tx=tx, learning_rate=learning_rate, loss=loss, num_classes=data.num_classes,
    mixup=mixup, microbatches=microbatches, key=step_key, mesh=devices, augment=data.augment,
  )  # fmt: skip

  if _DRY_RUN.value:
    dry_run.run(
      step_fn, like, data, devices,
      flops_per_image=models.train_flops(net, data.image_size, data.channels),
      steps=steps, name=model['name'], topology=_TOPOLOGY.value, output=_DRY_RUN_OUTPUT.value,
    )  # fmt: skip
    return

  profile = watchdog.Profile(directory / 'profile', _PROFILE.value)
  pace = watchdog.Pace(directory, stall_seconds=_STALL.value)
  tests, skipped = inputs.open_evals(evals, data, require=_REQUIRE_EVALS.value)
  if skipped:
    runtime.banner({'evaluations LEFT OUT': inputs.describe_skipped(skipped)})
  interruptible = {
    name: {role: preemption.Interruptible(one, passed=pace.boundary) for role, one in of.items()}
    for name, of in tests.items()
  }
  evaluate = evaluators.build(
    evals, interruptible, apply=apply, features=features, loss=loss,
    mesh=devices, records=directory / 'evals', total_steps=steps,
  )  # fmt: skip
  coordination.check_same(inputs.identity(tests, data))
  intervals = settings.call(
    'config.every', plan.intervals, every,
    keep_best=checkpoints.get('keep_best'), evals=evals,
    higher_is_better=evaluators.higher_is_better(evals), skipped=skipped,
  )  # fmt: skip
  saved = settings.call(
    'config.checkpoints',
    manager.Checkpoints,
    checkpoints,
    directory=directory / 'checkpoints',
  )
  started = coordination.agreed(lambda: bool(metrics_log.read_rows(directory) or saved.steps()))
  coordination.agreed(lambda: workdirs.claim(directory, config, started=started))
  coordination.agreed(lambda: workdirs.claim_classes(directory, data.class_names, started=started))
  first = saved.latest_intact() or 0
  if first >= steps and coordination.agreed((directory / 'model.npz').exists):
    console.print_line(
      f'{directory} is finished: {first} of {steps} steps are done, see model.npz, model.json.'
    )
    return
  coordination.agreed(saved.remove_unfinished)
  to_come = max(saved.copies - len(saved.steps()), 1)
  coordination.agreed(
    lambda: workdirs.check_space(directory, to_come * train_step.state_bytes(like))
  )
  origin = f'the checkpoint of step {first}' if first else 'fresh parameters'
  params = None
  if init is not None and init['path'] and not first:
    permutations.check_same(files.absolute(init['path']), permutation, data.image_size)
    params, source = settings.call(
      'config.init', warm_start.load, init,
      model=net, image_size=data.image_size, channels=data.channels,
    )  # fmt: skip
    origin = ', '.join(f'{name} {value}' for name, value in source.items())
    if jax.process_index() == 0:
      files.write(directory / 'init.json', json.dumps(source, indent=1).encode())

  local = data.train_batches(first, seed, jax.process_index(), jax.process_count())
  batches = (sharding.put(batch, devices) for batch in local)
  batch = next(batches)
  runtime.banner({
    'devices': runtime.device_line(),
    'versions': ', '.join(f'{name} {version}' for name, version in runtime.versions().items()),
    'config': json.dumps(config, indent=1),
    'parameters': parameter_overview.get_parameter_overview(like.params, include_stats=False),
    'optimizer': optimizers.describe(optim, steps),
    'data': plan.describe_data(data, steps),
    'memory': train_step.describe_shapes(like, batch),
    'host memory': inputs.describe_memory(data, tests, jax.process_count()),
  })  # fmt: skip
  state = saved.restore(first, like) if first else initial()
  if params is not None:
    state = state.replace(params=sharding.place(params, like.params))
  begin = time.perf_counter()
  step_fn = train_step.compile_step(step_fn, like, batch, devices)
  compile_seconds = time.perf_counter() - begin
  coordination.meet('compiled')
  runtime.banner({
    'start': f'{origin}; step {first} of {steps}; compiled in {compile_seconds:.1f} s; '
             f'{train_step.describe_memory(step_fn)}',
  })  # fmt: skip

  report = metrics_log.Reporter(
    directory,
    first_step=first,
    total_steps=steps,
    batch_size=data.batch_size,
    num_examples=data.num_examples,
    flops_per_image=models.train_flops(net, data.image_size, data.channels),
    tensorboard=_TENSORBOARD.value,
    counts=lambda: {} if data.bad_images is None else {'bad_images': data.bad_images},
    draw=lambda rows: plots.curves(rows, directory / 'curves.png'),
    once={'compile_seconds': compile_seconds},
    lags=pace.lags,
  )

  def boundary(step: int) -> bool:
    saved.check()
    pace.boundary(step)
    profile.boundary(step)
    return preemption.reached()

  try:
    with saved, contextlib.closing(report), contextlib.closing(profile), pace.watching():
      profile.boundary(first)
      pace.boundary(first)
      state = loop.fit(
        state,
        step_fn=step_fn,
        batches=itertools.chain([batch], batches),
        total_steps=steps,
        every=intervals,
        evaluate=evaluate,
        save=saved.save,
        report=report,
        boundary=boundary,
      )
  except Diverged as error:
    good = saved.steps()
    where = f'The last good checkpoint is of step {good[-1]}, in {saved.directory}.' if good else ''
    raise Diverged(f'{error}. {where or "No checkpoint had been saved yet."}') from error

  params = sharding.gather(state.params)
  if jax.process_index() != 0:
    return
  pretrained.save_model(directory, params, {
    'model': {**model, 'num_classes': data.num_classes},
    'image_size': data.image_size,
    'channels': data.channels,
    'permutation': permutation,
    'preprocessing': classified_as(tests, data),
    'loss': loss,
    'class_names': data.class_names,
    'metrics': metrics_log.read_rows(directory)[-1],
    'config': config,
    'versions': runtime.versions(),
  })  # fmt: skip
  if data.bad_images:
    console.print_line(
      f'{data.bad_images} bad images were replaced by others since the start; the warnings name '
      'them, and python -m mixer.input.check finds all.'
    )
  console.print_line(f'done: {directory}/model.npz, model.json, metrics.jsonl, curves.png')


def classified_as(tests: dict, data) -> dict:
  """The preprocessing under which the model's own classes are evaluated."""
  own = [inputs['data'] for inputs in tests.values() if 'support_set' not in inputs]
  return (own or [data])[0].preprocessing


if __name__ == '__main__':
  cli.run(main, leave=coordination.leave)
