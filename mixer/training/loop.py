"""The training loop. It imports no input, checkpoint or report: they are arguments."""

from collections.abc import Callable, Iterable

from mixer.errors import InputError, Interrupted
from mixer.training.plan import due
from mixer.training.train_step import TrainState


def fit(
  state: TrainState,
  *,
  step_fn: Callable[[TrainState, dict], tuple[TrainState, dict]],
  batches: Iterable[dict],
  total_steps: int,
  every: dict[str, int],
  evaluate: Callable[[TrainState, int], tuple[dict[str, float], bool]],
  checkpoints,
  report,
  boundary: Callable[[int], bool] = lambda step: False,
) -> TrainState:
  """Trains from `state.step` to `total_steps`, or until `evaluate` ends it; returns the last state.

  Args:
    batches: those of the steps to come, on the device.
    every: steps between 'log' lines, calls of `evaluate` and saves as a 'checkpoint'.
    evaluate: (state, step) -> (results by name, whether the run ends with this step).
    checkpoints: a `mixer.checkpoints.manager.Checkpoints`. A step is saved before it is evaluated.
    report: a `mixer.run.reporter.Reporter`; it raises Diverged one step late, but always before
      the state of that step is evaluated or saved.
    boundary: step -> whether to save now and stop; called when the step has been dispatched. It
      may raise a fault of another part of the run.

  Raises:
    Interrupted: `boundary` returned True, or `evaluate` raised it; the state is saved. An
      evaluation that was due is made at the next start.
    InputError: `evaluate` raised it. As for any other exception of `evaluate`, the state is saved,
      and the evaluation is made at the next start.
  """

  def save(step: int, state: TrainState, *, stopping: bool) -> None:
    report.write(stopping=stopping)
    with report.pause_timer():
      checkpoints.save(step, state)

  def finish(step: int, state: TrainState, now: dict[str, bool], stop: bool) -> bool:
    last, evaluating = False, now['evaluate'] and not stop
    # A fault of one of several processes leaves no time to save: they save before they evaluate.
    all_save = evaluating and checkpoints.is_multiprocess
    saving = stop or all_save or now['checkpoint']
    if now['evaluate']:
      report.defer_eval()
    if saving:
      save(step, state, stopping=stop)
    if all_save:
      checkpoints.wait()
    if evaluating:
      try:
        with report.pause_timer():
          results, last = evaluate(state, step)
          if saving:
            checkpoints.add_results(step, results)
      except Exception as fault:
        if not saving:
          save(step, state, stopping=True)
        if isinstance(fault, Interrupted):
          stop = True
        elif isinstance(fault, InputError):
          checkpoints.wait()
          raise InputError(
            f'{fault} The state of step {step} is saved; the same command repeats this evaluation '
            'and continues.'
          ) from fault
        else:
          raise
      else:
        report.add(results)
        if last and not saving:
          save(step, state, stopping=False)
    if stop:
      raise Interrupted(f'at step {step} of {total_steps}; its state is saved.')
    return last

  last = False
  if report.eval_deferred:
    step = int(state.step)
    checkpoint = due(step, every['checkpoint'], total_steps)
    last = finish(step, state, {'evaluate': True, 'checkpoint': checkpoint}, stop=False)
  steps = range(int(state.step) + 1, total_steps + 1)
  for step, batch in zip(() if last else steps, report.timed(batches)):
    state, metrics = step_fn(state, batch)
    now = {name: due(step, interval, total_steps) for name, interval in every.items()}
    report.step(step, metrics, keep=any(now.values()))
    if finish(step, state, now, stop=boundary(step)):
      break
  report.write()
  return state
