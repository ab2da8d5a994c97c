"""Trains a model: python train.py --config=configs/digits.py --workdir=/tmp/digits"""

import itertools
import json
import time

from absl import flags
from clu import parameter_overview
import jax
from ml_collections import config_flags

from mixer import checkpoints as checkpointing
from mixer import (
  dry_run,
  evaluators,
  files,
  models,
  pretrained,
  reporting,
  runtime,
  settings,
  sharding,
  training,
  visualize,
  warmstart,
)
from mixer import input as inputs
from mixer import optim as optimizers
from mixer import workdir as workdirs
from mixer.errors import Diverged, InputError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'FILE[:ARGUMENT]', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run keeps all that it writes.')
_REQUIRE = flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Stop on any other backend.')
_DETERMINISTIC = flags.DEFINE_bool('deterministic', False, runtime.DETERMINISM_SCOPE)
_TENSORBOARD = flags.DEFINE_bool('tensorboard', True, 'Also write WORKDIR/tensorboard.')
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Compile the train step, say what it needs and might take, and stop.'
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'With --dry_run: a TPU slice to compile for, such as v5e:16x16.'
)
_DRY_RUN_OUTPUT = flags.DEFINE_string('dry_run_output', None, 'JSON file of what --dry_run finds.')
flags.mark_flags_as_required(['config'])


def main() -> None:
  runtime.configure(deterministic=_DETERMINISTIC.value)
  if _DRY_RUN.value:
    if _TOPOLOGY.value:
      dry_run.configure()
  elif not _WORKDIR.value:
    raise InputError('--workdir=DIR is missing: where the run is to keep all that it writes.')
  start(settings.config(_CONFIG), _WORKDIR.value)


def start(config: dict, workdir: str) -> None:
  """`train` with the sections of `config` as its arguments."""
  settings.call('config', train, config, config=config, workdir=workdir)


def train(
  *,
  config: dict,
  workdir: str,
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
) -> None:
  """Trains from where `workdir` is to the end; from `seed` on, the arguments are `config`'s."""
  # What can be wrong is looked at first, the cheapest first.
  dry = _DRY_RUN.value
  directory = None if dry else workdirs.prepare(workdir)
  data = inputs.build(**train_input)
  tests = {} if dry else inputs.open_evals(evals, data)
  if not dry:
    runtime.check_backend(_REQUIRE.value)
  there = dry_run.devices(_TOPOLOGY.value) if _TOPOLOGY.value else jax.devices()
  devices = settings.call('config.mesh', sharding.make_mesh, mesh, devices=there)
  training.check_batch_size(data.batch_size, microbatches, devices)
  steps = training.count_steps(total_steps, total_epochs, data)
  intervals = settings.call(
    'config.every',
    training.intervals,
    every,
    keep_best=checkpoints.get('keep_best'),
    evals=evals,
  )

  net = models.build(**model, num_classes=data.num_classes)
  apply = models.apply_function(net)
  tx, learning_rate = settings.call('config.optim', optimizers.make, optim, total_steps=steps)
  evaluate = None if dry else evaluators.build(evals, tests, apply=apply, loss=loss, mesh=devices)
  init_key, step_key = jax.random.split(jax.random.key(seed))
  initial, like = training.init_state(
    lambda key: models.init(net, key, data.image_size, data.channels), tx, init_key, devices
  )
  step_fn = training.make_step(
    apply=apply, tx=tx, learning_rate=learning_rate, loss=loss, num_classes=data.num_classes,
    mixup=mixup, microbatches=microbatches, key=step_key, mesh=devices,
  )  # fmt: skip

  if dry:
    dry_run.run(
      step_fn, like, data, devices,
      flops_per_image=models.train_flops(net, data.image_size, data.channels),
      steps=steps, output=_DRY_RUN_OUTPUT.value,
    )  # fmt: skip
    return

  saved = settings.call(
    'config.checkpoints',
    checkpointing.Checkpoints,
    checkpoints,
    directory=directory / 'checkpoints',
  )
  started = bool(reporting.read_rows(directory) or saved.steps())
  workdirs.claim(directory, config, started=started)
  first = saved.latest_intact() or 0
  if first >= steps and (directory / 'model.npz').exists():
    print(f'{directory} is finished: {first} of {steps} steps are done, see model.npz, model.json.')
    return
  to_come = max(saved.copies - len(saved.steps()), 1)
  workdirs.check_space(directory, to_come * training.state_bytes(like))
  origin = f'the checkpoint of step {first}' if first else 'fresh parameters'
  state = saved.restore(first, like) if first else initial()
  if init is not None and init['path'] and not first:
    params, source = settings.call(
      'config.init', warmstart.load, init,
      model=net, image_size=data.image_size, channels=data.channels,
    )  # fmt: skip
    origin = ', '.join(f'{name} {value}' for name, value in source.items())
    files.write(directory / 'init.json', json.dumps(source, indent=1).encode())
    state = state.replace(params=sharding.place(params, like.params))

  local = data.train_batches(first, seed, jax.process_index(), jax.process_count())
  batches = (sharding.put(batch, devices) for batch in local)
  batch = next(batches)
  begin = time.perf_counter()
  step_fn = training.compile_step(step_fn, like, batch, devices)
  runtime.banner({
    'devices': runtime.device_line(),
    'versions': ', '.join(f'{name} {version}' for name, version in runtime.versions().items()),
    'config': json.dumps(config, indent=1),
    'parameters': parameter_overview.get_parameter_overview(like.params, include_stats=False),
    'optimizer': optimizers.describe(optim, steps),
    'data': training.describe_data(data, steps),
    'memory': training.describe_memory(like, batch, step_fn),
    'start': f'{origin}; step {first} of {steps}; compiled in {time.perf_counter() - begin:.1f} s',
  })  # fmt: skip

  report = reporting.Reporter(
    directory,
    first_step=first,
    total_steps=steps,
    batch_size=data.batch_size,
    num_examples=data.num_examples,
    flops_per_image=models.train_flops(net, data.image_size, data.channels),
    tensorboard=_TENSORBOARD.value,
    draw=lambda rows: visualize.curves(rows, directory / 'curves.png'),
  )
  try:
    state = training.fit(
      state,
      step_fn=step_fn,
      batches=itertools.chain([batch], batches),
      total_steps=steps,
      every=intervals,
      evaluate=evaluate,
      save=saved.save,
      report=report,
    )
  except Diverged as error:
    good = saved.manager.latest_step()
    where = f'The last good checkpoint is of step {good}, in {saved.directory}.'
    where = where if good else 'No checkpoint had been saved yet.'
    raise Diverged(f'{error}. {where}') from error
  finally:
    saved.close()
    report.close()

  pretrained.save_model(directory, sharding.gather(state.params), {
    'model': {**model, 'num_classes': data.num_classes},
    'image_size': data.image_size,
    'channels': data.channels,
    'preprocessing': next(iter(tests.values()), data).preprocessing,
    'loss': loss,
    'class_names': data.class_names,
    'metrics': reporting.read_rows(directory)[-1],
    'config': config,
    'versions': runtime.versions(),
  })  # fmt: skip
  print(f'done: {directory}/model.npz, model.json, metrics.jsonl, curves.png')


if __name__ == '__main__':
  settings.run(main)
