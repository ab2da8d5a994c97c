"""A teacher for distillation: any model that can be read, used as it is in inference."""

from collections.abc import Sequence
import dataclasses
from typing import Annotated, Any

from absl import logging

from mixer import labels, models, pretrained
from mixer.cluster.coordination import SINGLE, Cluster
from mixer.errors import InputError
from mixer.pretrained import warm_start
from mixer.pretrained.description import Description
from mixer.training import losses
from mixer.values import OneOf, Positive, Share

_CONVERSION = ('value_range', 'exif_orientation', 'bits_per_channel')  # how pixels become numbers
_NAMED = 3  # classes in a message


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A teacher with its part in the loss.

  Attributes:
    params: whole float32 arrays in the released layout.
    identity: see `pretrained.Pretrained`.
    distillation: with the teacher's `apply`, which has its own input permutation.
    model: its linen module.
    flops_per_image: of its forward pass.
  """

  params: dict
  identity: dict
  distillation: losses.Distillation
  model: Any
  flops_per_image: int


def load(
  *,
  path: str,
  which: str | int | None = None,
  targets: Annotated[str, OneOf(losses.TARGETS)] = 'soft',
  temperature: Positive = 1.0,
  weight: Share = 0.5,
  data,
  loss: str,
  dtype: str,
  cluster: Cluster = SINGLE,
) -> Teacher:
  """The teacher of `config.distill`, which has the arguments up to `weight`.

  Args:
    path, which: as for `pretrained.open`.
    targets, temperature, weight: see `losses.Distillation`.
    data: the training input, an `input.Input`.
    loss: of the student.
    dtype: that the teacher computes in.
    cluster: the processes that open the same path together.

  Raises:
    InputError: no such file, or a model that cannot teach these classes on these images.
  """
  found = pretrained.open(path, which, cluster=cluster)
  if 'head' not in found.params or warm_start.has_zero_head(found.params):
    raise InputError(f'{found.source} has no trained head, so it cannot teach classes.')
  known = found.describe()
  _check_images(found.source, known, data)
  _check_classes(found.source, found.description, known, data.class_names)
  if targets == 'soft' and known.loss not in (None, loss):
    raise InputError(
      f"{found.source} was trained with the {known.loss} loss and config.loss is '{loss}', whose "
      "probabilities mean other things: use --config.distill.targets=hard, or the teacher's loss."
    )
  model = models.build(**{**known.model, 'dtype': dtype})
  return Teacher(
    params=found.params,
    identity=found.identity,
    distillation=losses.Distillation(
      apply=models.apply_function(model, known.permutation, data.image_size),
      targets=targets, temperature=temperature, weight=weight, multi_label=data.multi_label,
    ),
    model=model,
    flops_per_image=models.inference_flops(model, data.image_size, data.channels),
  )  # fmt: skip


def _check_images(source: str, known: Description, data) -> None:
  """Raises InputError unless the teacher takes the student's images as they are."""
  if known.channels != data.channels:
    raise InputError(
      f'{source} takes images of {known.channels} channels, and config.train_input has '
      f'{data.channels}: both see the same images. Use a teacher of such images.'
    )
  any_size = known.model['name'].startswith('BiT') and not known.permutation
  if not any_size and known.image_size != tuple(data.image_size):
    raise InputError(
      f'{source} takes images of {known.image_size}, and config.train_input has '
      f'{tuple(data.image_size)}: both see the same images. Use images of that size, fine-tune the '
      'teacher at the size of the student (configs/finetune.py), or use a BiT, which takes any.'
    )
  theirs, ours = (
    {name: of[name] for name in _CONVERSION if name in of}
    for of in (known.preprocessing, data.preprocessing)
  )
  if {**theirs, 'value_range': list(theirs['value_range'])} != ours:
    raise InputError(
      f'{source} was trained on pixels with {theirs}, and config.train_input has {ours}: both see '
      'the same images. Give the training input the same keys.'
    )


def _check_classes(
  source: str, recorded: Description, known: Description, class_names: Sequence[str]
) -> None:
  """Raises InputError if the teacher has other classes, as far as they are recorded."""
  count = known.model['num_classes']
  if count != len(class_names):
    raise InputError(
      f'{source} has {count} classes, and config.train_input {len(class_names)}: a teacher needs '
      'those of the student. Fine-tune it on these first (configs/finetune.py).'
    )
  numbered = tuple(class_names) == tuple(map(str, range(count)))
  if known.classes is None or numbered:
    return
  ours = labels.describe(class_names, count, 'config.train_input')
  pairs = [
    (theirs[0] or theirs[1], name)
    for theirs, one, name in zip(known.classes, ours, class_names, strict=True)
    if not ((theirs[0] and theirs[0] == one[0]) or theirs[1] == one[1])
  ]
  if not pairs:
    return
  text = (
    f'{source} has other classes than config.train_input, or another order: {len(pairs)} of '
    f'{count} differ, such as {pairs[:_NAMED]} (teacher, student)'
  )
  if recorded.class_names is None and recorded.classes is None:
    logging.warning('%s. THE CLASSES OF THE TEACHER ARE GUESSED FROM THEIR NUMBER.', text)
    return
  raise InputError(f'{text}. A teacher needs the classes of the student, in the same order.')
