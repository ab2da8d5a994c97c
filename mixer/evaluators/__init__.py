"""Evaluators by name. An evaluator is a callable: params -> {result: float}."""

from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from mixer import settings
from mixer.errors import InputError
from mixer.evaluators import classification

EVALUATORS = {'classification': classification.make}


def build(
  sections: Mapping[str, Mapping], opened: Mapping, *, apply: Callable, loss: str, mesh: Mesh
) -> Callable[[Mapping], dict[str, float]]:
  """One evaluator of all the sections: params -> {'<section>/<result>': float}.

  Args:
    sections: `config.evals`: by name, 'kind' (one of EVALUATORS), 'input' and the kind's own
      keyword arguments.
    opened: their inputs, from `mixer.input.open_evals`.
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
