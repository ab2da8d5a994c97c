"""One run of training, from its options to the files it leaves in its workdir."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import itertools
import json
import time

from clu import parameter_overview
from etils import epath
import jax

from mixer import console, evaluators, files, hardware, pretrained, runtime, settings
from mixer import input as inputs
from mixer.checkpoints import manager
from mixer.cluster import coordination, preemption
from mixer.errors import Diverged, InputError
from mixer.evaluators import details
from mixer.pretrained import warm_start
from mixer.run import build, memory, metrics_log, other_images, trackers, workdirs
from mixer.run.profile import Profile
from mixer.run.reporter import Reporter, Workload
from mixer.run.watchdog import Watchdog
from mixer.training import loop, optimizers, plan, sharding, train_step
from mixer.visualize import plots

_PARAMETERS_FILE = 'parameters.txt'


@dataclasses.dataclass(frozen=True)
class Options:
  """What a run is to do.

  Attributes:
    config: the keys of `build.TrainConfig`, nested plain dicts.
    workdir: where the run keeps all that it writes.
    require: 'cpu', 'gpu' or 'tpu'; any other backend is an error. None accepts all.
    require_evals: fail if evaluation data are missing, instead of skipping the evaluation.
    tensorboard: also write WORKDIR/tensorboard.
    track: also write to this tracker, a key of `trackers.TRACKERS`.
    verbose: also print the config and the table of parameters.
    profile_steps: 'FIRST:LAST', traced into WORKDIR/profile.
    stall_seconds: report a step that takes longer; 0 for never.
    finish: train no further, and write the model of a checkpoint: 'latest', 'best' or its step,
      with ':raw' or ':ema' as in `pretrained.open`.
    exit_early: a signal before the first step ends the process at once, as suits a program.
      Otherwise the run stops after its first step.
    cluster: how this process joins the others.
  """

  config: dict
  workdir: str
  require: str | None = None
  require_evals: bool = False
  tensorboard: bool = True
  track: str | None = None
  verbose: bool = False
  profile_steps: str | None = None
  stall_seconds: float = 600.0
  finish: str | None = None
  exit_early: bool = False
  cluster: coordination.Options = dataclasses.field(default_factory=coordination.Options)


def train(options: Options) -> None:
  """Trains to the end of the config, from where the workdir is.

  Raises:
    InputError: the options, config, data or workdir are wrong, or the disk is.
    Diverged: a loss or gradient is not finite.
    Interrupted: SIGTERM or Ctrl-C; the state is saved, and the same options resume.
  """
  facts = {**runtime.versions(), **settings.flatten({'config': options.config})}
  with (
    preemption.StopRequests(exit_early=options.exit_early) as stop,
    coordination.join(options.cluster, facts) as cluster,
  ):
    stop.attach(cluster)
    workdir = workdirs.prepare(options.workdir)
    with workdirs.locked(workdir):
      cluster.check_shared(workdir)
      _train(options, workdir, cluster, stop)


def _train(
  options: Options,
  workdir: epath.Path,
  cluster: coordination.Cluster,
  stop: preemption.StopRequests,
) -> None:
  begun = time.time()
  if options.track and cluster.process_id == 0:
    trackers.load(options.track)
  # Open and check: what can be wrong is looked at first, the cheapest first.
  config = build.check(options.config)
  data = inputs.build(**config.train_input)
  runtime.check_backend(options.require)

  # Build.
  program = build.build(config, data, jax.devices(), cluster)
  profile = Profile(workdir / 'profile', options.profile_steps)
  watchdog = Watchdog(workdir, stall_seconds=options.stall_seconds, cluster=cluster)
  evals = other_images.adapt_to_run(config.evals, config.train_input, data)
  tests, skipped = inputs.open_evals(evals, data, require=options.require_evals)
  if skipped:
    runtime.banner({'evaluations SKIPPED': inputs.describe_skipped(skipped)})
  inputs.check_batches(tests, jax.process_count(), data)
  cluster.check_same(inputs.identity(tests, data))
  every, early_stopping = _intervals(config, program, tests, skipped)
  ended = _ended(early_stopping, program, workdir, cluster)
  evaluate = _evaluate(config, program, _interruptible(tests, stop, watchdog), workdir, ended)

  # Resume, or start from fresh or pretrained parameters.
  saved = settings.call(
    'config.checkpoints', manager.Checkpoints, config.checkpoints,
    directory=workdir / 'checkpoints', cluster=cluster,
  )  # fmt: skip
  known = inputs.movable(tests, data)
  first = _claim(options.config, workdir, program, known, saved, cluster)
  cluster.on_process_0(lambda: _record_input(workdir, data, tests))
  reason = ended(first + 1, {})
  leave = functools.partial(_leave, options, config, program, tests, workdir, saved, cluster)
  finished = options.finish is None and (reason or first >= program.total_steps)
  if finished and cluster.on_process_0((workdir / 'model.npz').exists):
    console.print_line(
      f'{workdir} is finished: {first} of {program.total_steps} steps are done, see model.npz, '
      'model.json.' + (f' It has ended early: {reason}.' if reason else '')
    )
    return
  if options.finish is not None or reason:
    leave(reason)
    cluster.on_process_0(lambda: _draw(metrics_log.read_rows(workdir), workdir))
    return
  _claim_teacher(workdir, program, saved, cluster)
  needed = memory.check(memory.estimate(config, program), program)
  _make_room(workdir, saved, program, cluster)
  cluster.on_process_0(
    lambda: metrics_log.record_start(workdir, time=begun, step=first, cores=hardware.core_count())
  )
  params, origin = _start(config, program, workdir, first, cluster)
  batches = _batches(config, program, first)
  batch = next(batches)
  _print_banner(options, workdir, program, batch, tests, needed)
  state = saved.restore(first, program.like) if first else program.initial_state()
  if params is not None:
    state = train_step.start_from(state, params)

  # Train.
  step_fn, compile_seconds = _compile(program, batch, f'{origin}; step {first}', cluster)
  report = _reporter(options, program, workdir, first, cluster, watchdog, compile_seconds)

  def boundary(step: int) -> bool:
    saved.check()
    watchdog.boundary(step)
    profile.boundary(step)
    return stop.reached()

  with (  # the trackers' runs end after the last save, which may fail
    _naming_last_checkpoint(saved), report, saved, contextlib.closing(profile),
    watchdog.watching(),
  ):  # fmt: skip
    profile.boundary(first)
    watchdog.boundary(first)
    state = loop.fit(
      state, step_fn=step_fn, batches=itertools.chain([batch], batches),
      total_steps=program.total_steps, every=every, evaluate=evaluate, checkpoints=saved,
      report=report, boundary=boundary,
    )  # fmt: skip
  leave(ended(int(state.step) + 1, {}), state)


def _interruptible(
  tests: Mapping[str, Mapping], stop: preemption.StopRequests, watchdog: Watchdog
) -> dict[str, dict]:
  """The opened inputs of the evaluations, which end at the batch where the run is to stop."""
  return {
    name: {
      role: preemption.Interruptible(one, stop, on_batch=watchdog.boundary)
      for role, one in opened.items()
    }
    for name, opened in tests.items()
  }


def _evaluate(
  config: build.TrainConfig,
  program: build.Program,
  tests: Mapping,
  workdir: epath.Path,
  ended: Callable[[int, dict], str | None],
) -> Callable:
  """(state, step) -> (results of its parameters and their average, whether the run ends there).

  Where it ends, the evaluations for the last step are made too.
  """
  renamed: Callable[[str], str] = str  # for the parameters that are evaluated now
  evaluate = evaluators.build(
    config.evals, tests, apply=program.apply, features=program.features, loss=config.loss,
    mesh=program.mesh, records=workdir / 'evals', total_steps=program.total_steps,
    details=details.Place(
      workdir / 'evaluation' / 'training', False, plots.reliability,
      rename=lambda section: renamed(section),
    ),
  )  # fmt: skip

  def evaluate_both(state, step: int, rest: bool = False) -> dict[str, float]:
    nonlocal renamed
    results = {}
    for params, renamed in ((state.params, str), (state.ema, evaluators.averaged)):
      found = {} if params is None else evaluate(params, step, rest)
      results |= {renamed(name): value for name, value in found.items()}
    return results

  def evaluate_state(state, step: int) -> tuple[dict[str, float], bool]:
    results = evaluate_both(state, step)
    if not ended(step, results):
      return results, False
    return results | evaluate_both(state, step, rest=True), True

  return evaluate_state


def _intervals(
  config: build.TrainConfig, program: build.Program, tests: Mapping, skipped: Mapping[str, str]
) -> tuple[dict[str, int], plan.EarlyStopping | None]:
  """(`config.every`, `config.early_stopping`), as the evaluations that run allow."""
  stopping = settings.call(
    'config.early_stopping', plan.EarlyStopping, config.early_stopping
  ) if config.early_stopping else None  # fmt: skip
  evals = config.evals
  if config.ema:
    evals, tests, skipped = (
      {**of, **{evaluators.averaged(name): one for name, one in of.items()}}
      for of in (evals, tests, skipped)
    )
  every = settings.call(
    'config.every', plan.intervals, config.every,
    keep_best=config.checkpoints.get('keep_best'), early_stopping=stopping, evals=evals,
    comparable=evaluators.comparable(evals, tests), skipped=skipped,
  )  # fmt: skip
  if stopping:
    stopping.warn(every['evaluate'], program.total_steps)
  return every, stopping


def _ended(
  early_stopping: plan.EarlyStopping | None,
  program: build.Program,
  workdir: epath.Path,
  cluster: coordination.Cluster,
) -> Callable[[int, dict], str | None]:
  """(step, its results) -> why the run ends there, before its last step; None if it does not.

  Of the past it needs the rows in metrics.jsonl only, so a resumed run decides the same.
  """
  if early_stopping is None:
    return lambda step, results: None

  def decide(step: int, results: dict) -> str | None:
    rows = [row for row in metrics_log.read_rows(workdir) if row['step'] < step]
    rows = [*rows, {'step': step, **results}]
    return early_stopping.reason(row for row in rows if row['step'] < program.total_steps)

  return lambda step, results: cluster.on_process_0(lambda: decide(step, results))


def _claim(
  config: dict,
  workdir: epath.Path,
  program: build.Program,
  known: dict[str, str],
  saved: manager.Checkpoints,
  cluster: coordination.Cluster,
) -> int:
  """Records config, data and classes in the workdir, or checks those of the run there.

  Returns the step of the newest intact checkpoint, or 0.
  """
  model = workdir / 'model.npz'

  def claim() -> None:
    started = _has_begun(workdir, saved)
    workdirs.claim(
      workdir, config, started=started or model.exists(), finished=model.exists(), data=known
    )
    workdirs.claim_classes(workdir, program.data.class_names, started=started)

  def begin() -> None:
    logged = max((row['step'] for row in metrics_log.read_rows(workdir)), default=0)
    workdirs.begin(
      workdir, saved.directory, logged=logged, interval=config['every']['checkpoint'],
      finished=model.exists(),
    )  # fmt: skip

  cluster.on_process_0(claim)
  first = saved.latest_intact() or 0
  if not first:
    cluster.on_process_0(begin)
  return first


def _claim_teacher(
  workdir: epath.Path,
  program: build.Program,
  saved: manager.Checkpoints,
  cluster: coordination.Cluster,
) -> None:
  """Records the teacher in the workdir, or checks that it is the one of the run there."""
  if (teacher := program.teacher) is not None:
    cluster.on_process_0(
      lambda: workdirs.claim_teacher(workdir, teacher.identity, started=_has_begun(workdir, saved))
    )


def _has_begun(workdir: epath.Path, saved: manager.Checkpoints) -> bool:
  return bool(metrics_log.read_rows(workdir) or saved.steps())


def _exports_ema(program: build.Program) -> bool:
  return program.ema is not None and program.ema.export


def _saved_model(
  finish: str | None,
  config: build.TrainConfig,
  program: build.Program,
  workdir: epath.Path,
  saved: manager.Checkpoints,
) -> tuple[int, bool, dict]:
  """(step, whether averaged, parameters) of the checkpoint of --finish, else of config.export."""
  given = f'config.export={config.export}' if finish is None else f'--finish={finish}'
  which, parameters = pretrained.split_which(config.export if finish is None else finish, given)
  if which == 'best' and not saved.keep_best:
    raise InputError(f'{given} needs config.checkpoints.keep_best, such as val/top1.')
  step = saved.find(which)
  if step is None:
    steps = [step for step in saved.steps() if saved.find(str(step))]
    there = f'has no such checkpoint; it has those of the steps {steps}'
    raise InputError(f'{given}: {workdir} {there if steps else "has no checkpoint"}.')
  averaged = _exports_ema(program) if parameters is None else parameters == 'ema'
  return step, averaged, saved.restore_params(step, averaged=averaged)


def _record_input(workdir: epath.Path, data: inputs.Input, tests: Mapping[str, Mapping]) -> None:
  """Writes what the model takes, for programs that read the run before its end."""
  files.write(workdir / files.INPUT_FILE, json.dumps(_images(tests, data), indent=1).encode())


def _make_room(
  workdir: epath.Path,
  saved: manager.Checkpoints,
  program: build.Program,
  cluster: coordination.Cluster,
) -> None:
  """Removes unfinished saves, and checks that the disk has room for the checkpoints to come."""
  cluster.on_process_0(saved.remove_unfinished)
  copies = max(saved.copies - len(saved.steps()), 1)
  size = train_step.state_bytes(program.like)
  cluster.on_process_0(lambda: workdirs.check_space(workdir, copies * size))


def _start(
  config: build.TrainConfig,
  program: build.Program,
  workdir: epath.Path,
  first: int,
  cluster: coordination.Cluster,
) -> tuple[dict | None, str]:
  """(pretrained parameters or None, what the run starts from)."""
  if first:
    return None, f'the checkpoint of step {first}'
  if config.init is None or not config.init['path']:
    return None, 'fresh parameters'
  data = program.data
  params, source = settings.call(
    'config.init', warm_start.load, config.init,
    model=program.model, image_size=data.image_size, channels=data.channels,
    permutation=config.permutation, class_names=data.class_names, cluster=cluster,
  )  # fmt: skip
  if jax.process_index() == 0:
    files.write(workdir / 'init.json', json.dumps(source, indent=1).encode())
  return params, ', '.join(f'{name} {value}' for name, value in source.items())


def _batches(config: build.TrainConfig, program: build.Program, first: int) -> Iterator[dict]:
  """The batches after step `first`, on the devices."""
  local = program.data.train_batches(
    first, config.seed, jax.process_index(), jax.process_count()
  )  # fmt: skip
  return (sharding.put(batch, program.mesh) for batch in local)


def _print_banner(
  options: Options,
  workdir: epath.Path,
  program: build.Program,
  batch: dict,
  tests: Mapping[str, Mapping],
  needed: str,
) -> None:
  """Prints what the run works with, and writes the table of parameters to the workdir."""
  like, data, trained = program.like, program.data, program.groups.describe()
  overview = parameter_overview.get_parameter_overview(like.params, include_stats=False)
  if jax.process_index() == 0:
    files.write_text(workdir / _PARAMETERS_FILE, f'{overview}\n')
  total = overview.splitlines()[-1].removeprefix('Total: ')
  where = (
    f'each in {_PARAMETERS_FILE}; the config is in {files.CONFIG_FILE} (--verbose prints both)'
  )
  runtime.banner({
    'devices': runtime.device_line(),
    'versions': ', '.join(f'{name} {version}' for name, version in runtime.versions().items()),
    **({'config': json.dumps(options.config, indent=1)} if options.verbose else {}),
    'parameters': overview if options.verbose else f'{total}, {where}',
    'optimizer': optimizers.describe(options.config['optim'], program.total_steps),
    **({'trained': trained} if trained else {}),
    'data': plan.describe_data(data, program.total_steps),
    **({'teacher': json.dumps(program.teacher.identity)} if program.teacher else {}),
    'memory': f'{train_step.describe_shapes(like, batch, program.teacher_like)}; {needed}',
    'host memory': inputs.describe_memory(data, tests, jax.process_count()),
  })  # fmt: skip


def _compile(
  program: build.Program, batch: dict, start: str, cluster: coordination.Cluster
) -> tuple[Callable, float]:
  """(the compiled step, the seconds it took); prints both with `start`."""
  begin = time.perf_counter()
  compiled = train_step.compile_step(
    program.step_fn, program.like, batch, program.mesh, program.teacher_like
  )
  seconds = time.perf_counter() - begin
  cluster.barrier('compiled')
  memory_line = train_step.describe_memory(compiled)
  runtime.banner({
    'start': f'{start} of {program.total_steps}; compiled in {seconds:.1f} s; {memory_line}'
  })  # fmt: skip
  return program.with_teacher(compiled), seconds


def _reporter(
  options: Options,
  program: build.Program,
  workdir: epath.Path,
  first: int,
  cluster: coordination.Cluster,
  watchdog: Watchdog,
  compile_seconds: float,
) -> Reporter:
  data = program.data
  return Reporter(
    workdir,
    Workload(
      total_steps=program.total_steps,
      batch_size=data.batch_size,
      num_examples=data.num_examples,
      flops_per_image=program.train_flops_per_image,
    ),
    first_step=first,
    cluster=cluster,
    outputs=_outputs(options, workdir, first) if cluster.process_id == 0 else None,
    draw=lambda rows: _draw(rows, workdir),
    once={'compile_seconds': compile_seconds},
    counts=lambda: {} if data.bad_images is None else {'bad_images': data.bad_images},
    lags=watchdog.lags,
  )


def _outputs(options: Options, workdir: epath.Path, first: int) -> dict[str, trackers.Tracker]:
  """What the rows are written to beside metrics.jsonl."""
  opened = {}
  if options.tensorboard:
    opened['TensorBoard'] = trackers.tensorboard(workdir)
  if options.track:
    opened[options.track] = trackers.open_run(options.track, workdir, options.config, first)
  return {name: one for name, one in opened.items() if one is not None}


def _draw(rows: list[dict], workdir: epath.Path) -> None:
  if rows:
    plots.curves(rows, workdir / 'curves.png')


@contextlib.contextmanager
def _naming_last_checkpoint(saved: manager.Checkpoints) -> Iterator[None]:
  """Adds to Diverged which checkpoint is the last good one."""
  try:
    yield
  except Diverged as error:
    good = saved.steps()
    where = f'The last good checkpoint is of step {good[-1]}, in {saved.directory}.' if good else ''
    raise Diverged(f'{error}. {where or "No checkpoint had been saved yet."}') from error


def _leave(
  options: Options,
  config: build.TrainConfig,
  program: build.Program,
  tests: Mapping[str, Mapping],
  workdir: epath.Path,
  saved: manager.Checkpoints,
  cluster: coordination.Cluster,
  reason: str | None,
  state: train_step.TrainState | None = None,
) -> None:
  """Writes the model of the last `state`, or of the checkpoint of --finish or config.export."""
  if state is None or config.export == 'best':
    step, averaged, params = _saved_model(options.finish, config, program, workdir, saved)
  else:
    step, averaged = int(state.step), _exports_ema(program)
    params = sharding.gather(state.ema if averaged else state.params)
  _export(options.config, program, tests, workdir, cluster, step, averaged, params, reason)


def _export(
  config: dict,
  program: build.Program,
  tests: Mapping[str, Mapping],
  workdir: epath.Path,
  cluster: coordination.Cluster,
  step: int,
  averaged: bool,
  params: dict,
  reason: str | None,
) -> None:
  """Writes model.npz and model.json of the parameters of a step, on process 0.

  `reason` is why the run has ended early, if it has.
  """
  if cluster.process_id != 0:
    return
  data = program.data
  rows = [row for row in metrics_log.read_rows(workdir) if row['step'] <= step]
  pretrained.save_model(workdir, params, {
    'model': {**config['model'], 'num_classes': data.num_classes},
    **_images(tests, data),
    'permutation': config.get('permutation'),
    'loss': config['loss'],
    'class_names': data.class_names,
    'data': inputs.movable(tests, data),
    'step': step,
    **({} if program.ema is None else {'parameters': 'ema' if averaged else 'raw'}),
    **({'early_stopping': reason} if reason else {}),
    'metrics': rows[-1] if rows else {},
    'config': config,
    'versions': runtime.versions(),
  })  # fmt: skip
  if data.bad_images:
    console.print_line(
      f'{data.bad_images} bad images were replaced by others since the start; the warnings name '
      'them, and python -m mixer.input.check finds all.'
    )
  if reason:
    console.print_line(f'the run has ended early: {reason}.')
  if step < program.total_steps:
    console.print_line(f'the model is that of step {step} of {program.total_steps}.')
  console.print_line(f'done: {workdir}/model.npz, model.json, metrics.jsonl, curves.png')


def _images(tests: Mapping[str, Mapping], data: inputs.Input) -> dict:
  """The images that the model takes, with the preprocessing of the evaluation of its classes."""
  own = [opened['data'] for opened in tests.values() if 'support_set' not in opened]
  return {
    'image_size': data.image_size,
    'channels': data.channels,
    'preprocessing': (own or [data])[0].preprocessing,
  }
