"""Config sections as keyword arguments: unread and missing keys are errors."""

from collections.abc import Callable, Collection, Mapping, Sequence
import difflib
import inspect
from typing import Any

from absl import flags

from mixer.errors import InputError


def call(section: str, function: Callable, values: Mapping[str, Any], **computed):
  """function(**values, **computed); one InputError lists the keys that are missing or not read."""
  parameters = inspect.signature(function).parameters.values()
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    divide(section, [function], values, computed)
  return function(**values, **computed)


def divide(
  section: str,
  functions: Sequence[Callable],
  values: Mapping[str, Any],
  computed: Collection[str] = (),
) -> list[dict[str, Any]]:
  """The keyword arguments that each of the functions takes from `values`.

  Positional-only arguments and those in `computed` are left to the caller.

  Raises:
    InputError: a key that none of the functions takes, or an argument that is missing; names all.
  """
  taken = [
    {
      p.name: p
      for p in inspect.signature(function).parameters.values()
      if p.kind is not p.POSITIONAL_ONLY and p.name not in computed
    }
    for function in functions
  ]
  accepted = {name: p for own in taken for name, p in own.items()}
  faults = []
  for key in values:
    if key not in accepted:
      close = difflib.get_close_matches(key, accepted, n=1)
      faults.append(f'nothing reads {key!r}' + (f' (did you mean {close[0]!r}?)' if close else ''))
  faults += [
    f'{name!r} is missing'
    for name, p in accepted.items()
    if p.default is p.empty and name not in values
  ]
  if faults:
    raise InputError(f'{section}: {"; ".join(faults)}. It takes {sorted(accepted)}.')
  return [{key: values[key] for key in own if key in values} for own in taken]


def flatten(tree: Mapping, prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}, as on the command line."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def config(flag: flags.FlagHolder) -> dict:
  """The config of a `config_flags` flag as a plain dict.

  Raises InputError if its file is missing, or raises ValueError for its argument.
  """
  try:
    return flag.value.to_dict()
  except (OSError, ValueError) as fault:
    raise InputError(str(fault)) from fault
