"""The length of a run, the intervals of its logs and saves, and how its batch is divided."""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import math

from absl import logging
from jax.sharding import Mesh

from mixer import values
from mixer.errors import InputError

_MANY_EPOCHS = 2_000  # VTAB-1k's longest run has 1,600


def count_steps(total_steps: int | None, total_epochs: float | None, data) -> int:
  """`total_steps`, or if that is None the number nearest to `total_epochs` over the data."""
  if total_steps is None and total_epochs is None:
    raise InputError('config.total_steps and config.total_epochs are None; give one of them.')
  steps = total_steps
  if steps is None:
    steps = round(total_epochs * data.num_examples / data.batch_size)
  if not values.accepts(values.Count, steps):
    bound = 'at least 1 is needed' if steps < 1 else 'at most 2**31 - 1 can be counted'
    raise InputError(
      f'total_steps={total_steps}, total_epochs={total_epochs}: that is {steps:.6g} steps of '
      f'{data.batch_size} over {data.num_examples} examples; {bound}.'
    )
  return steps


def intervals(
  *,
  log: values.Steps,
  evaluate: values.Steps,
  checkpoint: values.Steps,
  keep_best: str | None,
  evals: Mapping[str, Mapping],
  comparable: Sequence[str],
  skipped: Collection[str],
  early_stopping: 'EarlyStopping | None' = None,
) -> dict[str, int]:
  """The checked section `config.every`: steps between two of each; 0 means at the end only.

  Args:
    log, evaluate, checkpoint: steps between rows, evaluations and checkpoints.
    keep_best: the result that selects the best checkpoint.
    evals: `config.evals`, whose sections may have their own 'every'.
    comparable: the results that may be `keep_best`, as '<section>/<result>', see `gain`.
    skipped: the sections that are not run.
    early_stopping: that of the run, whose result has the same conditions.
  """
  if keep_best is not None and (not checkpoint or not evaluate or evaluate % checkpoint):
    raise InputError(
      f'config.checkpoints.keep_best={keep_best!r} needs a checkpoint at each evaluation: '
      f'config.every.evaluate={evaluate} is not a multiple of config.every.checkpoint={checkpoint}.'
    )
  own = {name: section['every'] for name, section in evals.items() if 'every' in section}
  for name, steps in own.items():
    if steps < 0 or (steps % evaluate if evaluate else steps):
      raise InputError(
        f'config.evals.{name}.every={steps} is not a multiple of config.every.evaluate={evaluate}.'
      )
  usable = [result for result in comparable if result.split('/')[0] not in (*own, *skipped)]
  keys = {
    'config.checkpoints.keep_best': keep_best,
    'config.early_stopping.result': early_stopping and early_stopping.result,
  }
  for key, result in keys.items():
    if result is not None:
      _check_result(key, result, usable, skipped)
  if early_stopping and not evaluate:
    raise InputError(
      'config.early_stopping needs evaluations before the end, and config.every.evaluate is 0: '
      'give the steps between two.'
    )
  return {'log': log, 'evaluate': evaluate, 'checkpoint': checkpoint}


def _check_result(key: str, result: str, usable: Collection[str], skipped: Iterable[str]) -> None:
  """Raises InputError unless each evaluation of the run has this result, which can be compared."""
  if result.split('/')[0] in skipped:
    raise InputError(
      f'{key}={result!r}, but the data of that evaluation are missing. Prepare them (the message '
      'above says how), or choose another result.'
    )
  if result not in usable:
    raise InputError(f'{key}={result!r}; use one of {usable}.')


def _is_loss(result: str) -> bool:
  return result.rpartition('/')[2] == 'loss'


def gain(result: str, value: float) -> float:
  """A value of '<section>/<result>', negated for a loss: the higher one is better, and nan last."""
  if math.isnan(value):
    return -math.inf
  return -value if _is_loss(result) else value


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
  """The section `config.early_stopping`: the run ends when a result no longer improves.

  Attributes:
    result: of an evaluation, such as 'val/top1', or 'val/loss', of which lower is better.
    patience: evaluations in a row without improvement after which the run ends.
    min_delta: only a result that is better than the best so far by more than this improves it.
  """

  result: str
  patience: values.Count
  min_delta: values.NotNegative = 0.0

  def reason(self, rows: Iterable[Mapping]) -> str | None:
    """Why the run ends after these rows of metrics.jsonl; None if it does not."""
    best, best_step, without = -math.inf, 0, 0
    for row in rows:
      if self.result in row:
        found = gain(self.result, row[self.result])
        improves = found > best + self.min_delta
        without = 0 if improves else without + 1
        best, best_step = (found, row['step']) if improves else (best, best_step)
    if without < self.patience:
      return None
    value, word = (-best, 'lower') if _is_loss(self.result) else (best, 'higher')
    return (
      f'{self.result} was {value:.6g} at step {best_step}, and in {without} evaluation(s) since '
      f'then it was not {word} by more than {self.min_delta:g}'
    )

  def warn(self, interval: int, total_steps: int) -> None:
    """Warns if it cannot end a run that is evaluated every `interval` steps."""
    if self.patience >= (before := (total_steps - 1) // interval):
      logging.warning(
        'config.early_stopping.patience=%d has no effect: there are %d evaluations before the last '
        'step, and the first one is the best at the earliest.', self.patience, before,
      )  # fmt: skip


def due(step: int, every: int, total_steps: int) -> bool:
  """True on multiples of `every` and at the end; 0 means at the end only."""
  return step == total_steps or (every > 0 and step % every == 0)


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh) -> None:
  """Raises InputError unless every device gets the same number of rows of every microbatch."""
  if microbatches < 1:
    raise InputError(f'microbatches is {microbatches}; use 1 for the whole batch at once.')
  unit = microbatches * mesh.size
  if batch_size % unit:
    below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
    raise InputError(
      f'a batch of {batch_size} does not divide into {microbatches} microbatches on {mesh.size} '
      f'devices; use a multiple of {unit}, such as {below or above} or {above}.'
    )


def describe_data(data, steps: int) -> str:
  """The size of the data, and the epochs that `steps` steps make; warns if they are too many."""
  epochs = steps * data.batch_size / data.num_examples
  if epochs > _MANY_EPOCHS:
    logging.warning(
      '%d STEPS OF %d ARE %s EPOCHS OF THE %d TRAINING IMAGES. --config.total_steps=%d makes about '
      '100 epochs; with a smaller batch, they have more steps.',
      steps, data.batch_size, f'{epochs:,.0f}', data.num_examples,
      max(round(100 * data.num_examples / data.batch_size), 1),
    )  # fmt: skip
  return (
    f'{data.num_examples} images of {data.num_classes} classes; '
    f'{steps} steps of {data.batch_size} are {epochs:.2f} epochs'
  )
