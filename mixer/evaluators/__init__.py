"""Evaluators by name. An evaluator is a callable params -> {result: float}."""

from collections.abc import Callable, Mapping
import functools
import json
from typing import NamedTuple

from etils import epath
import jax
from jax.sharding import Mesh

from mixer import console, files, settings, values
from mixer.errors import InputError
from mixer.evaluators import classification, fewshot
from mixer.evaluators import details as class_details
from mixer.training import plan

_COMMON_KEYS = ('kind', 'input', 'train_input', 'every')  # of every section


class Kind(NamedTuple):
  """A kind of evaluation."""

  make: Callable  # makes an evaluator from the values `given` and the rest of its section
  given: tuple[str, ...]  # names of values that `build` has
  comparable: Callable[
    ..., tuple[str, ...]
  ]  # (section, its data or None) -> results of `plan.gain`


EVALUATORS = {
  'classification': Kind(
    classification.make,
    ('apply', 'data', 'loss', 'mesh', 'collect'),
    lambda section, data: classification.comparable(data),
  ),
  'real': Kind(
    classification.make_real,
    ('apply', 'data', 'loss', 'mesh', 'collect'),
    lambda section, data: ('top1',),
  ),
  'fewshot': Kind(
    fewshot.make,
    ('features', 'data', 'support_set', 'mesh', 'sources', 'record'),
    lambda section, data: tuple(f'{k}shot' for k in section.get('shots', ())),
  ),
}


def build(
  sections: Mapping[str, Mapping],
  opened: Mapping[str, Mapping],
  *,
  apply: Callable,
  features: Callable,
  loss: str,
  mesh: Mesh,
  records: epath.Path | None,
  total_steps: int = 0,
  details: class_details.Place | None = None,
) -> Callable[..., dict[str, float]]:
  """One evaluator for all sections: (params, step=None) -> {'<section>/<result>': float}.

  With a step, it skips the sections whose own `every` is not due; with `rest=True`, the others.

  Args:
    sections: `config.evals`: by name, 'kind' (one of EVALUATORS), 'input', for some kinds
      'train_input', optionally 'every' (steps; 0 for the last one only), and the kind's own
      keyword arguments.
    opened: the inputs of the sections to run, from `mixer.input.open_evals`.
    apply: (params, images) -> logits.
    features: (params, images) -> pre-logits.
    loss: the training loss, a name in `losses.LOSSES`.
    mesh: the devices that share the work.
    records: facts of an evaluation besides its results are written to
      '<records>.<section>.json'; with None, they are not.
    total_steps: the last step.
    details: where those of classified images are written; None for nowhere.
  """
  parts = {}
  for name, inputs in opened.items():
    section = sections[name]
    kind = _kind(name, section)
    network = {'apply': apply, 'features': features, 'loss': loss, 'mesh': mesh}
    sources = {'data': section['input'], 'support_set': section.get('train_input')}
    path = records and records.with_name(f'{records.name}.{name}.json')
    record = functools.partial(_record, path, name)
    collect = details and functools.partial(class_details.collect, name, details)
    have = {**network, **inputs, 'sources': sources, 'record': record, 'collect': collect}
    wanted = {'data', 'support_set'} & set(kind.given)
    if wanted != set(inputs):
      raise InputError(
        f'config.evals.{name}: kind={section["kind"]!r} takes '
        f'an input and {"a" if "support_set" in wanted else "no"} train_input.'
      )
    own = {key: value for key, value in section.items() if key not in _COMMON_KEYS}
    given = {key: have[key] for key in kind.given}
    parts[name] = settings.call(f'config.evals.{name}', kind.make, own, **given)

  def evaluate(params, step: int | None = None, rest: bool = False) -> dict[str, float]:
    results = {}
    for name, part in parts.items():
      every = sections[name].get('every', 1)
      if (step is None or plan.due(step, every, total_steps)) != rest:
        results |= {f'{name}/{key}': value for key, value in part(params).items()}
    return results

  return evaluate


def classifying(sections: Mapping[str, Mapping], opened: Mapping[str, Mapping]) -> list[str]:
  """The opened sections that classify images, of which there may be `details`."""
  return [name for name in opened if 'collect' in _kind(name, sections[name]).given]


def averaged(name: str) -> str:
  """The name of a section or its result with averaged parameters: 'val_ema', 'val_ema/top1'."""
  section, *result = name.split('/', 1)
  return '/'.join([f'{section}_ema', *result])


def faults(sections: Mapping[str, Mapping]) -> list[str]:
  """What is wrong with the sections of `config.evals`, without their inputs."""
  found = []
  for name, section in sections.items():
    if not isinstance(section, Mapping):
      continue  # `input.evals_faults` says so
    path, kind = f'config.evals.{name}', section.get('kind')
    if kind not in EVALUATORS:
      found.append(f'{path}.kind is {kind!r}; use one of {sorted(EVALUATORS)}.')
      continue
    own = {key: value for key, value in section.items() if key not in _COMMON_KEYS}
    found += settings.faults(path, [EVALUATORS[kind].make], own, EVALUATORS[kind].given)
    found += filter(None, [values.fault(f'{path}.every', values.Steps, section.get('every', 1))])
  return found


def with_defaults(section: Mapping) -> dict:
  """A section of `config.evals`, with the default values of its own keys."""
  kind = EVALUATORS.get(section.get('kind'))
  if kind is None:
    return dict(section)
  return {'every': 1} | settings.with_defaults([kind.make], section, kind.given)


def comparable(
  sections: Mapping[str, Mapping], opened: Mapping[str, Mapping] | None = None
) -> list[str]:
  """The results, as '<section>/<result>', that tell which step is better, see `plan.gain`.

  Those that depend on the data, which `open_evals` opened, are left out if these do not have them.
  """
  opened = opened or {}
  return [
    f'{name}/{result}'
    for name, section in sections.items()
    for result in _kind(name, section).comparable(section, opened.get(name, {}).get('data'))
  ]


def _kind(name: str, section: Mapping) -> Kind:
  if section.get('kind') not in EVALUATORS:
    raise InputError(
      f'config.evals.{name}.kind is {section.get("kind")!r}; use one of {sorted(EVALUATORS)}.'
    )
  return EVALUATORS[section['kind']]


def _record(path: epath.Path | None, name: str, facts: dict, line: str) -> None:
  if jax.process_index() == 0:
    if path:
      files.write(path, json.dumps(facts).encode())
      line += f'; all in {path}'
    console.print_line(f'{name}: {line}')
