"""Pictures in a report: the weights of a run, and its predictions of some images."""

import base64
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

import jax
import numpy as np
from PIL import Image

from mixer import input as inputs
from mixer import labels, models, pretrained
from mixer.errors import InputError, MissingData
from mixer.report.run_files import Run
from mixer.training import batch_ops, losses
from mixer.visualize import unit_pictures

_SMALL = 64  # pixels; smaller images are shown with visible pixels


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image, and (class, probability, whether it is true) of what a model predicts for it."""

  caption: str
  png: bytes
  small: bool = False
  guesses: Sequence[tuple[str, float, bool]] = ()

  @property
  def base64(self) -> str:
    return base64.b64encode(self.png).decode()


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Pictures of one run; `note` describes them or says why there are none."""

  label: str
  note: str
  pictures: Sequence[Picture] = ()


def of_run(run: Run, samples: int) -> tuple[Gallery, Gallery]:
  """(pictures of the weights, sample predictions), of one read of the parameters."""
  trained = functools.cache(lambda: pretrained.open(run.path))
  return weight_pictures(run.label, trained), predictions(run, trained, samples)


def weight_pictures(label: str, trained: Callable[[], pretrained.Pretrained]) -> Gallery:
  """Token-mixing units of the first blocks and the stem."""
  note, found = '', {}
  for blocks in (None, ()):  # without pictures of the first blocks, the stem alone
    try:
      found = unit_pictures.pictures(trained(), blocks)
      break
    except InputError as fault:
      note = note or f'Not drawn: {fault}'
  pictures = [
    Picture(
      'stem, all units' if name == 'stem' else f'{name.replace("_", " ")}, token mixing',
      mosaic.png(),
    )
    for name, mosaic in found.items()
  ]
  return Gallery(label, note, pictures)


def predictions(run: Run, trained: Callable[[], pretrained.Pretrained], count: int) -> Gallery:
  """The most probable classes of the first images of a classification set that is on disk."""
  kinds = {k: v for k, v in run.config['evals'].items() if v.get('kind') == 'classification'}
  if not kinds:
    return Gallery(run.label, 'Not made: the config has no classification among its evals.')
  try:
    name, data = _first_available(kinds)
    batch, probabilities = _predict(run, trained(), data, count)
  except InputError as fault:
    return Gallery(run.label, f'Not made: {fault}')
  names = [text for _, text in labels.describe(data.class_names, data.num_classes, name)]
  rows = zip(batch['image'], batch['label'], probabilities)
  pictures = [_sample(*row, names) for row in rows]
  note = f'The first {len(pictures)} images of {name} ({data.num_examples:,} in all).'
  return Gallery(run.label, note, pictures)


def _first_available(sections: Mapping[str, Mapping]) -> tuple[str, inputs.Input]:
  """(name, opened input) of the first of the sections whose data are on disk."""
  missing = []
  for name, section in sections.items():
    try:
      return name, inputs.build(**section['input'])
    except MissingData as fault:
      missing.append(fault)
  raise missing[0]


def _predict(
  run: Run, trained: pretrained.Pretrained, data: inputs.Input, count: int
) -> tuple[dict, np.ndarray]:
  """(a batch of `count` examples or fewer, the probabilities of their classes)."""
  batch = next(iter(data.eval_batches(count, 0, 1)))
  batch = {key: value[batch['mask']] for key, value in batch.items()}
  model = models.build(**run.config['model'], num_classes=data.num_classes)
  model = models.in_released_layout(model)
  expected = models.shapes(model, data.image_size, data.channels)
  pretrained.check(trained.params, expected, trained.source)
  apply = models.apply_function(model, run.config.get('permutation'), data.image_size)
  logits = jax.jit(apply)(trained.params, batch_ops.normalize(batch['image']))
  return batch, np.asarray(losses.PROBABILITIES[run.config['loss']](logits))


def _sample(
  image: np.ndarray, label: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> Picture:
  """An image (height, width, channels) with its true classes and the three most probable."""
  true = set(np.flatnonzero(label) if np.ndim(label) else [label])
  best = np.argsort(-probabilities, kind='stable')[:3]
  return Picture(
    caption='true: ' + (', '.join(names[i] for i in sorted(true)) or 'no label'),
    png=unit_pictures.encode(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)),
    small=max(image.shape[:2]) <= _SMALL,
    guesses=[(names[i], float(probabilities[i]), i in true) for i in best],
  )
