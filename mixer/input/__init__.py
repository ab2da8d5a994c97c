"""Inputs by name. An input has what `mixer.input.Input` lists; the rest is its own affair."""

from collections.abc import Iterator, Mapping
import importlib
from typing import Protocol

import numpy as np

from mixer import settings
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


# name -> (module, function); a module is imported when its source is asked for, since those of
# 'folder' and 'tfds' load TensorFlow.
SOURCES = {
  'digits': ('mixer.input.arrays', 'digits'),
  'folder': ('mixer.input.folder', 'make'),
  'synthetic': ('mixer.input.synthetic', 'Synthetic'),
  'tfds': ('mixer.input.tfds', 'make'),
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


def _short(value) -> str:
  text = str(value)
  return text if len(text) < 80 else text[:80] + '...'
