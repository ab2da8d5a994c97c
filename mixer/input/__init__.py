"""Inputs by name. An input has what `mixer.input.Input` lists; the rest is its own affair."""

from collections.abc import Iterator
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


# name -> (module, function); a module is imported when its source is asked for, since that of
# 'tfds' loads TensorFlow.
SOURCES = {
  'digits': ('mixer.input.arrays', 'digits'),
  'tfds': ('mixer.input.tfds', 'Tfds'),
}


def build(*, source: str, **arguments) -> Input:
  """The input `source`, built with its own keyword arguments."""
  if source not in SOURCES:
    raise InputError(f'unknown input source {source!r}; use one of {sorted(SOURCES)}.')
  module, function = SOURCES[source]
  try:
    found = getattr(importlib.import_module(module), function)
  except ImportError as fault:
    raise InputError(
      f'the input source {source!r} needs a package that is not installed: {fault}. '
      'Install requirements.txt.'
    ) from fault
  return settings.call(f'input source {source!r}', found, arguments)
