"""Config sections as keyword arguments: unread and missing keys and wrong values are errors."""

from collections.abc import Callable, Collection, Mapping, Sequence
import difflib
import inspect
from typing import Any

from mixer import values as allowed
from mixer.errors import InputError


def call(section: str, function: Callable, values: Mapping[str, Any], **computed):
  """function(**values, **computed); one InputError has the `faults` of the section."""
  check(faults(section, [function], values, computed))
  return function(**values, **computed)


def faults(
  section: str,
  functions: Sequence[Callable],
  values: Mapping[str, Any],
  computed: Collection[str] = (),
  prefix: str | None = None,
) -> list[str]:
  """What is wrong with a section, whose keys are arguments of the functions; a sentence for each.

  These are keys that no function takes, arguments that are missing, and values that do not agree
  with the annotations of the functions (`mixer.values`). A function that takes **options has other
  keys too. Positional-only arguments and those in `computed` are left to the caller.

  Args:
    section: its name in messages, such as 'config.optim'.
    functions: those that share the section.
    values: the section.
    computed: arguments that are not in it.
    prefix: of a key in messages; None for the section and a dot.
  """
  accepted = {name: p for function in functions for name, p in _own(function, computed).items()}
  kinds = [p.kind for f in functions for p in inspect.signature(f).parameters.values()]
  names = []
  for key in () if inspect.Parameter.VAR_KEYWORD in kinds else values:
    if key not in accepted:
      names.append(f'nothing reads {key!r}' + did_you_mean(key, accepted))
  names += [
    f'{name!r} is missing'
    for name, p in accepted.items()
    if p.default is p.empty and name not in values
  ]
  found = [f'{section}: {"; ".join(names)}. It takes {sorted(accepted)}.'] if names else []
  prefix = f'{section}.' if prefix is None else prefix
  wrong = [
    allowed.fault(f'{prefix}{name}', p.annotation, values[name])
    for name, p in accepted.items()
    if name in values
  ]
  return found + [text for text in wrong if text]


def check(found: Sequence[str]) -> None:
  """Raises InputError with all of these `faults`, if there are any."""
  if found:
    raise InputError('\n'.join(found))


def with_defaults(
  functions: Sequence[Callable], values: Mapping[str, Any], computed: Collection[str] = ()
) -> dict[str, Any]:
  """A section, with the default values of the arguments that it leaves out; see `faults`."""
  own = [p for function in functions for p in _own(function, computed).values()]
  return {p.name: p.default for p in own if p.default is not p.empty} | dict(values)


def divide(functions: Sequence[Callable], values: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The keyword arguments that each of the functions takes from `values`."""
  return [{key: values[key] for key in _own(f) if key in values} for f in functions]


def did_you_mean(name: str, known: Collection[str]) -> str:
  """' (did you mean ...?)' with the known name that is most like `name`, or ''."""
  close = difflib.get_close_matches(name, known, n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


def _own(function: Callable, computed: Collection[str] = ()) -> dict[str, inspect.Parameter]:
  """The parameters of a function that a section may give."""
  return {
    p.name: p
    for p in inspect.signature(function).parameters.values()
    if p.kind not in (p.POSITIONAL_ONLY, p.VAR_KEYWORD) and p.name not in computed
  }


def flatten(tree: Mapping, prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}, as on the command line."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[f'{prefix}{key}'] = value
  return flat
