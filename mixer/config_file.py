"""The config of a program: --config=FILE[:ARGUMENT], and --config.KEY=VALUE for each change of it.

A shipped config may be given by its name: finetune:ARGUMENT is configs/finetune.py:ARGUMENT.

A value is None, True, False, a number, a tuple or text. A key that the file does not set is added
to its section, if that exists; whether anything reads it is checked where the config is used. A new
`optim.optimizer.name` drops the config's arguments of the other optimizer.
"""

import ast
from collections.abc import Sequence
import difflib
import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict

from mixer import shipped
from mixer.errors import InputError

# Those that a config may leave out.
OPTIONAL_KEYS = (
  'init', 'permutation', 'ema', 'early_stopping', 'export', 'cutmix', 'mixup_prob',
  'mixup_switch_prob', 'mixup_mode', 'random_erasing', 'label_smoothing', 'class_weights',
  'distill', 'shard_update',
)  # fmt: skip
_OPTIMIZER = 'optim.optimizer'  # the section whose keys belong to its name
_SIZES = ('image_size', 'resize', 'patch_size', 'tiles', 'from_size')  # of `mixer.sizes`


def define_flags() -> None:
  """Defines --config and --config.KEY, and lists them under the --help of the program."""
  program = {'module_name': sys.argv[0]}
  flags.DEFINE_string('config', None, 'FILE[:ARGUMENT] or NAME[:ARGUMENT]', **program)
  flags.DEFINE_multi_string(
    'config.KEY', [], 'VALUE: changes a key, as in --config.optim.clip_norm=None.', **program
  )


def rewrite(argv: Sequence[str]) -> list[str]:
  """The command line in which --config.KEY=VALUE has become a flag that is defined.

  --config.KEY VALUE means the same; without a value, --config.KEY is True and --noconfig.KEY False.
  """
  if 'config.KEY' not in flags.FLAGS:
    return list(argv)
  given, rewritten = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False), []
  while given:
    part = given.pop(0)
    found = re.fullmatch(r'--?(no)?config\.([^=]+)(=.*)?', part, re.DOTALL)
    if part == '--':
      return [*rewritten, part, *given]
    if found is None:
      rewritten.append(part)
      continue
    is_off, key, value = found.groups()
    if value is None and not is_off and given and not re.match(r'-[^\d.]', given[0]):
      value = f'={given.pop(0)}'
    rewritten.append(f'--config.KEY={key}{value or ("=False" if is_off else "=True")}')
  return rewritten


def load() -> dict:
  """The config of the command line as plain dicts; raises as `read` does."""
  return read(flags.FLAGS['config'].value, flags.FLAGS['config.KEY'].value)


def read(given: str | None, changes: Sequence[str] = ()) -> dict:
  """The config FILE[:ARGUMENT] as plain dicts, with changes such as 'optim.learning_rate=0.01'.

  Raises:
    InputError: no file is given; it does not exist or cannot be executed; or a change is of a key
      that cannot be, or has no effect.
  """
  if not given:
    raise InputError('--config=FILE is missing, as in --config=configs/digits.py.')
  config = _config(given)
  if config.get('total_steps') is not None and config.get('total_epochs'):
    raise InputError(
      f'{given} sets total_steps={config.total_steps} and total_epochs={config.total_epochs}, '
      'which both give the length of a run; set one of them to None.'
    )
  pairs = [change.partition('=')[::2] for change in changes]
  _check_order([key for key, _ in pairs])
  for number, (key, text) in enumerate(pairs):
    if key == f'{_OPTIMIZER}.name':
      _drop_arguments(config, text, [earlier for earlier, _ in pairs[:number]])
    _change(config, key, text)
  _check_length(config, dict(pairs))
  return config.to_dict()


def _config(given: str) -> ConfigDict:
  """What get_config of FILE[:ARGUMENT] returns."""
  path, argument = _divide(given)
  arguments = [] if argument is None else [argument]
  get_config = getattr(_executed(path), 'get_config', None)
  if not callable(get_config):
    raise InputError(f'--config={given}: {path} has no function get_config.')
  wanted = inspect.signature(get_config)
  try:
    wanted.bind(*arguments)
  except TypeError as fault:
    takes = 'takes no argument' if arguments else f'needs an argument: --config={path}:ARGUMENT'
    raise InputError(f'--config={given}: get_config{wanted} of {path} {takes}.') from fault
  try:
    config = get_config(*arguments)
  except ValueError as fault:  # of the argument
    raise InputError(str(fault)) from fault
  except Exception as fault:
    raise InputError(_describe(fault)) from fault
  if not isinstance(config, ConfigDict):
    raise InputError(
      f'--config={given}: get_config returned a {type(config).__name__}; return an '
      'ml_collections.ConfigDict.'
    )
  return config


def name(given: str) -> str:
  """The name of the file in FILE[:ARGUMENT], without its ending."""
  return pathlib.PurePath(_divide(given)[0]).stem


def _divide(given: str) -> tuple[str, str | None]:
  """(FILE, ARGUMENT or None) of FILE[:ARGUMENT]."""
  found = re.fullmatch(r'(.*?\.py)(?::(.*))?', given, re.DOTALL)
  if found:
    return found.groups()
  name, separator, argument = given.partition(':')
  if name in shipped.config_names() and not os.path.exists(given):
    return f'configs/{name}.py', argument if separator else None
  return given, None


def _executed(path: str) -> ModuleType:
  path = shipped.find(path)
  if not pathlib.Path(path).is_file():
    beside = sorted(map(str, pathlib.Path(path).parent.glob('*.py')))
    close = difflib.get_close_matches(path.partition(':')[0], shipped.config_names(), n=1)
    close = difflib.get_close_matches(path, beside, n=1) or close
    hint = f' Did you mean {close[0]}?' if close else ''
    raise InputError(f'--config={path}: there is no such file.{hint}')
  loader = importlib.machinery.SourceFileLoader('config_file', path)
  module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
  sys.modules[loader.name] = module  # as `import` does: dataclasses look up their module
  try:
    loader.exec_module(module)
  except Exception as fault:
    raise InputError(_describe(fault)) from fault
  return module


def _describe(fault: Exception) -> str:
  """The file, line and message of an exception in a config file."""
  if isinstance(fault, SyntaxError):
    line = (fault.text or '').strip()
    return f'{fault.filename}, line {fault.lineno}: {type(fault).__name__}: {fault.msg}: {line}'
  last = traceback.extract_tb(fault.__traceback__)[-1]
  return f'{last.filename}, line {last.lineno}: {type(fault).__name__}: {fault}'


def _check_order(keys: Sequence[str]) -> None:
  for number, key in enumerate(keys):
    replaced = [earlier for earlier in keys[:number] if earlier.startswith(f'{key}.')]
    if replaced:
      raise InputError(
        f'--config.{key} replaces the whole section, and with it --config.{replaced[0]}; give it '
        'first.'
      )


def _drop_arguments(config: ConfigDict, name: str, given: Sequence[str]) -> None:
  """Leaves another optimizer its own defaults: the config's arguments are those of its own one.

  The keys in `given`, of the command line, stay.
  """
  section = config.get('optim', {}).get('optimizer')
  if isinstance(section, ConfigDict) and section.get('name') != name:
    with section.unlocked():
      for key in [*section]:
        if key != 'name' and f'{_OPTIMIZER}.{key}' not in given:
          del section[key]


def _change(config: ConfigDict, key: str, text: str) -> None:
  *sections, name = key.split('.')
  holder, path = config, 'config'
  for number, section in enumerate([*sections, name]):
    if number == 0 and section not in config and section not in OPTIONAL_KEYS:
      close = difflib.get_close_matches(section, [*config, *OPTIONAL_KEYS], n=1)
      hint = f' (did you mean {close[0]!r}?)' if close else ''
      raise InputError(
        f'--config.{key}: the config has no {section!r}{hint}; it has {[*config]}, and may have '
        f'{[name for name in OPTIONAL_KEYS if name not in config]}.'
      )
    if number == len(sections):
      break
    path = f'{path}.{section}'
    if holder.get(section) is None:
      _set(holder, section, ConfigDict())
    holder = holder[section]
    if not isinstance(holder, ConfigDict):
      raise InputError(f'--config.{key}: {path} is {holder!r}, which has no keys.')
  old = holder.get(name)
  kind = holder.get_type(name) if name in holder else type(None)
  _set(holder, name, _value(name, text, old, kind))


def _set(holder: ConfigDict, name: str, value) -> None:
  with holder.unlocked(), holder.ignore_type():
    holder[name] = value


def _value(name: str, text: str, old, kind: type):
  """The value that `text` means for a key with the value `old` of type `kind`."""
  if text == 'None':
    return None
  if kind is str:
    return text
  if kind is bool and text.lower() in ('t', '1', 'f', '0'):
    return text.lower() in ('t', '1')
  try:
    value = ast.literal_eval(text.strip().capitalize() if text in ('true', 'false') else text)
  except (SyntaxError, ValueError):
    return text
  if isinstance(value, dict):
    return ConfigDict(value)
  value = tuple(value) if isinstance(value, list) else value
  is_int = isinstance(value, int) and not isinstance(value, bool)
  if kind is float and isinstance(value, int):  # of True, ConfigDict would make 1.0
    return float(value) if is_int and abs(value) < 2**53 else text
  if isinstance(old, tuple) and isinstance(value, int | float | str):
    return (value, value) if name in _SIZES and is_int else (value,)
  return value


def _check_length(config: ConfigDict, changes: dict[str, str]) -> None:
  """Raises InputError if total_epochs is given and total_steps, which comes first, is set too."""
  steps, epochs = (config.get(name) for name in ('total_steps', 'total_epochs'))
  if 'total_epochs' not in changes or not epochs or steps is None:
    return
  both = '--config.total_steps' if 'total_steps' in changes else "the config's total_steps"
  raise InputError(
    f'--config.total_epochs={epochs} has no effect, because {both} is {steps}: both give the '
    'length of a run. Add --config.total_steps=None, or leave out --config.total_epochs.'
  )
