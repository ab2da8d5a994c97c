"""Evaluation without a network: image i is one pixel of value i, by which its logits are found."""

import jax.numpy as jnp
import numpy as np


class Images:
  """A `mixer.input.Input` of such images with the given labels."""

  batch_size = 10

  def __init__(self, labels, num_classes, claimed=None):
    self._labels, self.num_classes = labels, num_classes
    self.multi_label = labels.ndim == 2
    self.num_examples = claimed or len(labels)

  def eval_batches(self, batch_size, shard, num_shards):
    assert (shard, num_shards) == (0, 1) and batch_size % 8 == 0
    for first in range(0, len(self._labels), batch_size):
      index = first + np.arange(batch_size)
      mask = index < len(self._labels)
      index = np.where(mask, index, 0)
      image = index.astype(np.uint8).reshape(-1, 1, 1, 1)
      yield {'image': image, 'label': self._labels[index], 'mask': mask}


def apply(logits, images):
  """The logits of images in [-1, 1]; `logits` (n, classes) are those of all."""
  return logits[jnp.round((images[:, 0, 0, 0] + 1.0) * 127.5).astype(jnp.int32)]
