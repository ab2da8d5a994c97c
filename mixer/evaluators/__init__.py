"""Evaluators by name. An evaluator is a callable: params -> {result: float}."""

from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from mixer import input as inputs
from mixer import settings
from mixer.errors import InputError
from mixer.evaluators import classification

EVALUATORS = {'classification': classification.make}


def open_inputs(sections: Mapping[str, Mapping], trained: inputs.Input | None = None) -> dict:
  """The input of every section of `config.evals`, opened before any long work starts.

  Args:
    sections: `config.evals`.
    trained: the training input; an evaluation needs the same classes and image shape.

  Raises:
    InputError: an input is not there, or does not fit `trained`.
  """
  without = [name for name, section in sections.items() if 'input' not in section]
  if without:
    raise InputError(f'config.evals: {without} have no "input".')
  opened = {name: inputs.build(**section['input']) for name, section in sections.items()}
  for name, data in opened.items():
    for fact in ('num_classes', 'class_names', 'image_size', 'channels'):
      have, want = getattr(data, fact), getattr(trained, fact, None)
      if trained is not None and have != want:
        raise InputError(
          f'config.evals.{name}.input and config.train_input differ in {fact}: '
          f'{_short(have)} and {_short(want)}.'
        )
  return opened


def _short(value) -> str:
  text = str(value)
  return text if len(text) < 80 else text[:80] + '...'


def build(
  sections: Mapping[str, Mapping], opened: Mapping, *, apply: Callable, loss: str, mesh: Mesh
) -> Callable[[Mapping], dict[str, float]]:
  """One evaluator of all the sections: params -> {'<section>/<result>': float}.

  Args:
    sections: `config.evals`: by name, 'kind' (one of EVALUATORS), 'input' and the kind's own
      keyword arguments.
    opened: the result of `open_inputs` for them.
    apply: (params, images) -> logits.
    loss: the training loss, a name in `losses.LOSSES`.
    mesh: the devices that share the work.
  """
  parts = {}
  for name, section in sections.items():
    own = {key: value for key, value in section.items() if key not in ('kind', 'input')}
    if section.get('kind') not in EVALUATORS:
      raise InputError(
        f'config.evals.{name}.kind is {section.get("kind")!r}; use one of {sorted(EVALUATORS)}.'
      )
    parts[name] = settings.call(
      f'config.evals.{name}', EVALUATORS[section['kind']], own,
      apply=apply, data=opened[name], loss=loss, mesh=mesh,
    )  # fmt: skip

  def evaluate(params) -> dict[str, float]:
    return {f'{name}/{k}': v for name, part in parts.items() for k, v in part(params).items()}

  return evaluate
