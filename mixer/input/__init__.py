"""Inputs by name. `Input` is the interface that training and evaluation use."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
import hashlib
import pkgutil
from typing import Protocol

from absl import logging
import numpy as np

from mixer import hardware, settings
from mixer.errors import InputError, MissingData


class Input(Protocol):
  """Images with labels, read in an order that is a pure function of (seed, epoch, position).

  Where the data have a path, `fingerprint` is a digest of the images' names or labels, which does
  not change when the data move.
  """

  num_examples: int
  num_classes: int
  class_names: tuple[str, ...]
  multi_label: bool  # whether an image may have several labels, or none
  image_size: tuple[int, int]  # height, width
  channels: int
  batch_size: int  # global
  for_evaluation: bool  # whether the crop has no randomness
  preprocessing: dict  # how evaluation preprocesses an image, for model.json
  augment: Callable | None  # for `train_step.make_step`: augmentation on the device
  bad_images: int | None  # replaced since the start; None if the first one is an error

  def train_batches(
    self, first_batch: int, seed: int, shard: int, num_shards: int
  ) -> Iterator[dict[str, np.ndarray]]:
    """Process `shard`'s rows of the batches from number `first_batch` on, without end.

    'image' is uint8 (rows, height, width, channels); 'label' is int32 (rows,) or, where images
    have several labels, uint8 (rows, num_classes).
    """

  def eval_batches(
    self, batch_size: int, shard: int, num_shards: int
  ) -> Iterator[dict[str, np.ndarray]]:
    """Every example once; 'mask' is True for examples and False for padding.

    The rows of all processes, one process after the other, are the examples in ascending order.
    """

  def describe(self, index: int) -> str:
    """Where example `index` is: a file, or a file or set and the number there; '' in memory."""

  def image(self, index: int) -> np.ndarray | None:
    """Example `index` as evaluations take it, uint8 (height, width, channels); None if it has none.

    Raises InputError if it cannot be read.
    """

  def class_counts(self) -> np.ndarray | None:
    """The number of images with each class; None where only reading all images would tell."""

  def host_bytes(self, num_shards: int) -> dict[str, int]:
    """Estimated memory of a process: {part: bytes}."""


_ARRAYS, _IMAGES = 'mixer.input.sources.arrays:Arrays', 'mixer.input.pipeline:Images'
# name -> (what opens the data, what makes an `Input` of them). Each has its own keyword arguments.
# They are imported when the source is built, since those of image files load TensorFlow.
SOURCES = {
  'arrays': ('mixer.input.sources.arrays:load', _ARRAYS),
  'digits': ('mixer.input.sources.arrays:digits', _ARRAYS),
  'folder': ('mixer.input.sources.folder:ImageFolder', _IMAGES),
  'idx': ('mixer.input.sources.idx:load', _ARRAYS),
  'shards': ('mixer.input.sources.shards:Shards', _IMAGES),
  'synthetic': ('mixer.input.sources.synthetic:Synthetic',),
  'table': ('mixer.input.sources.table:ImageTable', _IMAGES),
  'tfds': ('mixer.input.sources.tfds:open_split', _IMAGES),
  'vtab': ('mixer.input.sources.vtab:open_split', _IMAGES),
}


def build(*, source: str, **arguments) -> Input:
  """The input `source`, from its own keyword arguments and those of the pipeline that it uses.

  Raises:
    InputError: an argument is unknown, missing or wrong, or a package is not installed.
    MissingData: the data are not on disk.
  """
  functions = _functions(source)
  section = f'input source {source!r}'
  settings.check(settings.faults(section, functions, arguments, prefix=f'{section}: '))
  *opens, make = functions
  *own, shared = settings.divide(functions, arguments)
  return make(*(partial(opening, **given) for opening, given in zip(opens, own)), **shared)


def faults(name: str, section: Mapping) -> list[str]:
  """What is wrong with the arguments of a source, the section `name`; opens nothing."""
  if 'source' not in section:
    return [f"{name}: 'source' is missing; use one of {sorted(SOURCES)}."]
  arguments = {key: value for key, value in section.items() if key != 'source'}
  try:
    return settings.faults(name, _functions(section['source']), arguments)
  except InputError as fault:
    return [f'{name}: {fault}']


def without_effect(name: str, section: Mapping) -> list[str]:
  """What in the section `name` changes nothing, because of other keys there."""
  found = []
  if not section.get('randaugment_layers'):
    for key, unset in (('randaugment_magnitude', 0), ('randaugment_on', 'host')):
      if section.get(key, unset) != unset:
        found.append(f'{name}.{key}={section[key]} has no effect with randaugment_layers=0.')
  if section.get('subset_seed') and section.get('subset_fraction', 1) == 1:
    found.append(
      f'{name}.subset_seed={section["subset_seed"]} has no effect with subset_fraction=1.'
    )
  return found


def evals_without_effect(sections: Mapping[str, Mapping]) -> list[str]:
  """What in the inputs of `config.evals` changes nothing."""
  return [
    f'config.evals.{name}.{part}.{key} has no effect: evaluations take images as they are.'
    for name, section in sections.items()
    for part in ('input', 'train_input')
    for key in ('shift_pixels', 'flip')
    if section.get(part, {}).get(key)
  ]


def evals_faults(sections: Mapping[str, Mapping]) -> list[str]:
  """The `faults` of all inputs of the sections of `config.evals`."""
  found = []
  for name, section in sections.items():
    path = f'config.evals.{name}'
    if not isinstance(section, Mapping):
      found.append(f'{path} is {section!r}; use a section.')
      continue
    for key in ('input', 'train_input'):
      if key in section and not isinstance(section[key], Mapping):
        found.append(f'{path}.{key} is {section[key]!r}; use a section.')
      elif key in section:
        found += faults(f'{path}.{key}', _with_batch_size(name, section, key))
  return found


def _functions(source: str) -> list[Callable]:
  """What opens the data of a source and makes an `Input` of them."""
  if source not in SOURCES:
    raise InputError(f'unknown input source {source!r}; use one of {sorted(SOURCES)}.')
  try:
    return [pkgutil.resolve_name(name) for name in SOURCES[source]]
  except ImportError as fault:
    raise InputError(
      f'the input source {source!r} needs a package that is not installed: {fault}. Install '
      'requirements.txt.'
    ) from fault


def open_evals(
  sections: Mapping[str, Mapping], trained: Input | None = None, *, require: bool = False
) -> tuple[dict[str, dict[str, Input]], dict[str, str]]:
  """The inputs of every section of `config.evals`, opened before any long work starts.

  Returns ({section: {'data': its input} and, of one with a `train_input`, 'support_set'},
  {section that is skipped: why}). A section is skipped only if its data are not on disk.

  Args:
    sections: `config.evals`.
    trained: the training input; an evaluation needs the same image shape, and the same classes
      unless it learns its own from a `train_input`.
    require: raise MissingData instead of skipping a section.

  Raises:
    InputError: an input is invalid, or does not fit `trained` or its `train_input`.
  """
  without = [name for name, section in sections.items() if 'input' not in section]
  if without:
    raise InputError(f'config.evals: {without} have no "input".')
  reserved = [name for name in sections if name == 'train' or '/' in name]
  if reserved:
    raise InputError(
      f'config.evals: the names {reserved} would mix with the training metrics; use others, '
      'without "/".'
    )
  opened, skipped = {}, {}
  for name, section in sections.items():
    try:
      opened[name] = _open(name, section)
    except MissingData as fault:
      if require:
        raise MissingData(f'config.evals.{name}, and --require_evals is set: {fault}') from fault
      skipped[name] = str(fault)
  for name, inputs in opened.items():
    own = f'config.evals.{name}.input'
    if 'support_set' in inputs:
      _compare(own, inputs['data'], f'config.evals.{name}.train_input', inputs['support_set'],
               (*_CLASSES, *_SHAPE, 'preprocessing'))  # fmt: skip
    if trained is not None:
      facts = _SHAPE if 'support_set' in inputs else (*_CLASSES, *_SHAPE)
      _compare(own, inputs['data'], 'config.train_input', trained, facts)
      if 'support_set' not in inputs:
        _compare_pixels(own, inputs['data'], trained)
  return opened, skipped


def identity(tests: Mapping[str, Mapping[str, Input]], trained: Input | None = None) -> dict:
  """What must be the same on all processes of a run: {config key: description of its data}."""
  return {key: _identity(one) for key, one in _by_key(tests, trained).items()}


def movable(tests: Mapping[str, Mapping[str, Input]], trained: Input | None = None) -> dict:
  """The `identity` of those inputs that have a `fingerprint`, so that it is enough to know them."""
  inputs = _by_key(tests, trained)
  return {key: _identity(one) for key, one in inputs.items() if getattr(one, 'fingerprint', '')}


def with_defaults(section: Mapping) -> dict:
  """The arguments of a source, with the default values of those that are not given."""
  if section.get('source') not in SOURCES:
    return dict(section)
  functions = [pkgutil.resolve_name(name) for name in SOURCES[section['source']]]
  return settings.with_defaults(functions, section)


def eval_with_defaults(section: Mapping) -> dict:
  """A section of `config.evals`, whose inputs have the default values too."""
  return {
    key: with_defaults(value) if isinstance(value, Mapping) else value
    for key, value in section.items()
  }


def _by_key(tests: Mapping[str, Mapping[str, Input]], trained: Input | None) -> dict[str, Input]:
  """The inputs of a run by their config keys."""
  keys = {'data': 'input', 'support_set': 'train_input'}
  inputs = {
    f'config.evals.{name}.{keys[role]}': one
    for name, of in tests.items()
    for role, one in of.items()
  }
  return inputs if trained is None else inputs | {'config.train_input': trained}


def _identity(one: Input) -> str:
  names = hashlib.sha256(repr(tuple(one.class_names)).encode()).hexdigest()[:16]
  own = getattr(one, 'fingerprint', '')
  return (
    f'{one.num_examples} images of {one.num_classes} classes, whose names have the sha256 {names}'
    + (f', and the images {own}' if own else '')
  )


def describe_skipped(skipped: Mapping[str, str]) -> str:
  """The sections that `open_evals` skipped, with each reason once."""
  names: dict[str, list[str]] = {}
  for name, reason in skipped.items():
    names.setdefault(reason, []).append(name)
  return '\n'.join(f'{", ".join(of)}: {reason}' for reason, of in names.items())


_CLASSES, _SHAPE = ('num_classes', 'class_names'), ('image_size', 'channels')


def _open(name: str, section: Mapping) -> dict[str, Input]:
  """'data' of the section's `input`, and 'support_set' of its `train_input` where it has one."""
  inputs = {}
  for key, role in (('input', 'data'), ('train_input', 'support_set')):
    if key not in section:
      continue
    inputs[role] = build(**_with_batch_size(name, section, key))
    if not inputs[role].for_evaluation:
      raise InputError(
        f'config.evals.{name}.{key}: an evaluation needs a crop without randomness; '
        'use crop="resize_small".'
      )
    if inputs[role].bad_images is not None:
      raise InputError(
        f'config.evals.{name}.{key}: an evaluation counts every image and skips none; leave out '
        'on_bad_image.'
      )
  return inputs


def _with_batch_size(name: str, section: Mapping, key: str) -> dict:
  """The arguments of an input of an evaluation; `images_per_device` is the batch size of all."""
  arguments = dict(section[key])
  if 'images_per_device' in section:
    if 'batch_size' in arguments:
      raise InputError(f'config.evals.{name} has images_per_device, so {key} takes no batch_size.')
    arguments['batch_size'] = section['images_per_device']
  return arguments


def _compare(name: str, data: Input, other_name: str, other: Input, facts) -> None:
  for fact in facts:
    have, want = getattr(data, fact), getattr(other, fact)
    if have != want:
      raise InputError(
        f'{name} and {other_name} differ in {fact}: {_short(have)} and {_short(want)}.'
      )


def _compare_pixels(name: str, data: Input, trained: Input) -> None:
  for key in ('exif_orientation', 'bits_per_channel'):
    have, want = data.preprocessing.get(key), trained.preprocessing.get(key)
    if have != want:
      raise InputError(
        f'{name} and config.train_input differ in {key}: {have or "not set"} and '
        f'{want or "not set"}. Give both the same.'
      )


def describe_preprocessing(preprocessing: Mapping) -> str:
  """The `preprocessing` of an input in words."""
  name = preprocessing['name']
  if name == 'none':
    return 'the pixels as they are, values in [-1, 1]'
  resize, crop = (
    ' x '.join(map(str, side)) if side[0] != side[1] else str(side[0])
    for side in (preprocessing['resize'] or preprocessing['crop'], preprocessing['crop'])
  )
  way = 'shorter side to' if name == 'resize_small' else 'resized, without keeping the shape, to'
  names = ('exif_orientation', 'bits_per_channel')
  more = ''.join(f', {name} {preprocessing[name]}' for name in names if name in preprocessing)
  return f'{way} {resize}, centre crop of {crop}{more}, values in [-1, 1]'


def describe_memory(data: Input, tests: Mapping[str, Mapping], num_shards: int) -> str:
  """The estimated memory of the inputs in this process; warns if the host has less.

  Args:
    data: the training input, whose batches are always prefetched.
    tests: what `open_evals` opened, of which one input is read at a time.
    num_shards: processes of the run.
  """
  training = data.host_bytes(num_shards)
  evaluations = [one.host_bytes(num_shards) for of in tests.values() for one in of.values()]
  kept = sum(of.get('index', 0) + of.get('arrays', 0) for of in evaluations)
  passing = [of.get('read-ahead', 0) + of['batches'] for of in evaluations]  # no order: unshuffled
  parts = {**training, 'evaluations': kept + max(passing, default=0)}
  total, limit = sum(parts.values()), hardware.host_memory()
  if total > limit:
    logging.warning(
      'THE INPUT NEEDS ABOUT %.1f GiB, AND THIS HOST HAS %.1f. Use a smaller batch, or more hosts.',
      total / 2**30,
      limit / 2**30,
    )
  listed = ', '.join(f'{size / 2**20:.1f} MiB {part}' for part, size in parts.items() if size)
  return f'input: about {total / 2**20:.1f} MiB of {limit / 2**20:.0f}, without libraries: {listed}'


def check_batches(
  tests: Mapping[str, Mapping[str, Input]], num_shards: int, trained: Input | None = None
) -> None:
  """Raises InputError if the batches of an input do not fit into the memory of this host."""
  limit = hardware.host_memory()
  for key, one in _by_key(tests, trained).items():
    size = one.host_bytes(num_shards)['batches']
    if size > limit:
      raise InputError(
        f'{key}.batch_size={one.batch_size}: the batches take {size / 2**30:,.1f} GiB in each '
        f'process, and this host has {limit / 2**30:,.1f}. Use a smaller batch, or more hosts.'
      )


def _short(value) -> str:
  text = str(value)
  return text if len(text) < 80 else text[:80] + '...'
