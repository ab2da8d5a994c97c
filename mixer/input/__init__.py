"""Inputs by name. An input has what `mixer.input.Input` lists; the rest is its own affair."""

from collections.abc import Iterator, Mapping
import importlib
from typing import Protocol

from absl import logging
import numpy as np

from mixer import hardware, settings
from mixer.errors import InputError


class Input(Protocol):
  """Images with labels, read in an order that is a pure function of (seed, epoch, position)."""

  num_examples: int
  num_classes: int
  class_names: tuple[str, ...]
  image_size: tuple[int, int]  # height, width
  channels: int
  batch_size: int  # global
  for_evaluation: bool  # whether images come without randomness
  preprocessing: dict  # what evaluation does to an image, for model.json

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
    """Every example once; 'mask' is True for examples and False for padding."""

  def host_bytes(self, num_shards: int) -> dict[str, int]:
    """What each part takes of a process's memory, about: {part: bytes}."""


# name -> (module, function); a module is imported when its source is asked for, since those of
# image files load TensorFlow.
SOURCES = {
  'arrays': ('mixer.input.arrays', 'make'),
  'digits': ('mixer.input.arrays', 'digits'),
  'folder': ('mixer.input.folder', 'make'),
  'shards': ('mixer.input.shards', 'make'),
  'tfds': ('mixer.input.tfds', 'make'),
  'vtab': ('mixer.input.vtab', 'make'),
}


def build(*, source: str, **arguments) -> Input:
  """The input `source`, built with its own keyword arguments."""
  if source not in SOURCES:
    raise InputError(f'unknown input source {source!r}; use one of {sorted(SOURCES)}.')
  if arguments.get('batch_size', 1) < 1:
    raise InputError(f'input source {source!r}: batch_size is {arguments["batch_size"]}.')
  module, function = SOURCES[source]
  try:
    found = getattr(importlib.import_module(module), function)
  except ImportError as fault:
    raise InputError(
      f'the input source {source!r} needs a package that is not installed: {fault}. '
      'Install requirements.txt.'
    ) from fault
  return settings.call(f'input source {source!r}', found, arguments)


def open_evals(sections: Mapping[str, Mapping], trained: Input | None = None) -> dict:
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
  reserved = [name for name in sections if name == 'train' or '/' in name]
  if reserved:
    raise InputError(
      f'config.evals: the names {reserved} would mix with the training metrics; use others, '
      'without "/".'
    )
  opened = {name: build(**section['input']) for name, section in sections.items()}
  for name, data in opened.items():
    if not data.for_evaluation:
      raise InputError(
        f'config.evals.{name}.input: an evaluation needs a crop without randomness; '
        'use crop="resize_small".'
      )
    for fact in ('num_classes', 'class_names', 'image_size', 'channels'):
      have, want = getattr(data, fact), getattr(trained, fact, None)
      if trained is not None and have != want:
        raise InputError(
          f'config.evals.{name}.input and config.train_input differ in {fact}: '
          f'{_short(have)} and {_short(want)}.'
        )
  return opened


def describe_memory(data: Input, tests: Mapping[str, Input], num_shards: int) -> str:
  """What the inputs of a run take of this process's memory; warns if the host has less.

  Args:
    data: the training input; its batches are made ahead all the time.
    tests: those of the evaluations, of which one runs at a time.
    num_shards: processes of the run.
  """
  training = data.host_bytes(num_shards)
  evaluations = [test.host_bytes(num_shards) for test in tests.values()]
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
  told = ', '.join(f'{size / 2**20:.1f} MiB {part}' for part, size in parts.items() if size)
  return (
    f'input: about {total / 2**20:.1f} MiB of {limit / 2**20:.0f}, beside the libraries: {told}'
  )


def _short(value) -> str:
  text = str(value)
  return text if len(text) < 80 else text[:80] + '...'
