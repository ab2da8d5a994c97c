"""Losses of whole label vectors: summed over classes, one float32 value per image."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer.errors import InputError


def sigmoid_cross_entropy(
  logits: jax.Array, labels: jax.Array, class_weights: np.ndarray | None = None
) -> jax.Array:
  """Binary cross-entropy summed over classes: two (n, classes) -> (n,). Upstream's loss.

  `class_weights` (classes,) multiply the terms of the labels, as PyTorch's `pos_weight`.
  """
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
  weighted = _weighted(labels, class_weights)
  return -jnp.sum(
    weighted * jax.nn.log_sigmoid(logits) + (1.0 - labels) * jax.nn.log_sigmoid(-logits), axis=-1
  )


def softmax_cross_entropy(
  logits: jax.Array, labels: jax.Array, class_weights: np.ndarray | None = None
) -> jax.Array:
  """Cross-entropy against a distribution over classes: two (n, classes) -> (n,).

  `class_weights` (classes,) multiply the terms of the labels, as PyTorch's `weight`.
  """
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
  return -jnp.sum(_weighted(labels, class_weights) * jax.nn.log_softmax(logits), axis=-1)


def _weighted(labels: jax.Array, class_weights: np.ndarray | None) -> jax.Array:
  return labels if class_weights is None else labels * jnp.asarray(class_weights)[None]


LOSSES = {'sigmoid': sigmoid_cross_entropy, 'softmax': softmax_cross_entropy}
# Logits -> the probabilities that a loss trains; those of sigmoid do not add up to one.
PROBABILITIES = {'sigmoid': jax.nn.sigmoid, 'softmax': jax.nn.softmax}
TARGETS = ('soft', 'hard')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
  """What a student loses against the outputs of a teacher, for the same images.

  'soft' (Hinton et al. 2015): T^2 times the divergence KL(teacher || student) of the probabilities
  at temperature T, which are softmax(logits / T) or, with the sigmoid loss, those of each class by
  itself, whose divergences are summed. T^2 keeps the gradient's size about the same for any T.
  'hard' (DeiT): the loss with the teacher's highest class as the label; of images with several
  labels, with the classes whose logit is above 0.

  Attributes:
    apply: (parameters of the teacher, images) -> its logits.
    targets: 'soft' or 'hard'.
    temperature: T, of soft targets.
    weight: w in (1 - w) * loss + w * distillation.
    multi_label: whether an image may have several labels.
  """

  apply: Callable[[Any, jax.Array], jax.Array]
  targets: str
  temperature: float
  weight: float
  multi_label: bool = False

  def loss(self, name: str, logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """Two logits (n, classes) -> (n,), with the loss of that name."""
    function = LOSSES[name]
    teacher = teacher.astype(jnp.float32)
    if self.targets == 'soft':
      logits, teacher = (x.astype(jnp.float32) / self.temperature for x in (logits, teacher))
      wanted = PROBABILITIES[name](teacher)
      return self.temperature**2 * (function(logits, wanted) - function(teacher, wanted))
    if self.multi_label:
      return function(logits, teacher > 0)
    return function(logits, jax.nn.one_hot(jnp.argmax(teacher, axis=-1), teacher.shape[-1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What a step minimises: the mean over the batch.

  Attributes:
    loss: a name in `LOSSES`.
    class_weights: float32 (classes,), see there; they do not weigh the distillation.
    distillation: returns it, when a step is traced; None for none.
  """

  loss: str
  class_weights: np.ndarray | None = None
  distillation: Callable[[], Distillation] | None = None

  def __post_init__(self):
    if self.loss not in LOSSES:
      raise InputError(f'unknown loss {self.loss!r}; use one of {sorted(LOSSES)}.')

  def __call__(
    self, logits: jax.Array, targets: jax.Array, images: jax.Array, teacher: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(the mean, its parts by name).

    Args:
      logits, targets: (n, classes).
      images: those that gave the logits, for the teacher.
      teacher: its parameters; None without distillation.
    """
    value = jnp.mean(LOSSES[self.loss](logits, targets, self.class_weights))
    if self.distillation is None:
      return value, {}
    own = self.distillation()
    distilled = jnp.mean(own.loss(self.loss, logits, own.apply(teacher, images)))
    return (1.0 - own.weight) * value + own.weight * distilled, {'distill_loss': distilled}
