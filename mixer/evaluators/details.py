"""What an evaluation finds about each class and image, as files; docs/evaluation.md lists them.

The device reduces each batch to a few numbers per image, and the host adds these up, so that memory
does not grow with images times classes.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import io
import json

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from mixer import console, files, labels
from mixer.evaluators import per_image
from mixer.evaluators.per_image import GUESSES
from mixer.training import losses

_BINS = 15  # of equal width, as in Guo et al. 2017
_MISTAKES, _TILE, _COLUMNS = 50, 64, 10  # thumbnails of _TILE pixels in rows of _COLUMNS


@dataclasses.dataclass(frozen=True)
class Place:
  """Where evaluations write details.

  Attributes:
    directory: parent of the sections' directories; None for no files of sections.
    always: of every section; otherwise of those with `details=True`.
    draw: writes the reliability diagram: (content of calibration.json, path).
    write_image: writes a line for each image; None for no such file.
    rename: (section) -> its name now, asked each time the files are written.
  """

  directory: epath.Path | None
  always: bool
  draw: Callable[[Mapping, epath.Path], None]
  write_image: per_image.Write | None = None
  rename: Callable[[str], str] = str


def collect(
  name: str, place: Place, asked: bool, data, loss: str, *, calibrated: bool
) -> 'Details | None':
  """The `Details` of the section `name`, or None if they are not wanted.

  Args:
    name, place: see `Place`.
    asked: whether the section has `details=True`.
    data: a `mixer.input.Input`.
    loss: of the training, which says what a probability is.
    calibrated: whether the highest probability is meant to be that of a correct guess.
  """
  return Details(name, place, data, loss, calibrated) if asked or place.always else None


class Details:
  """Counts of an evaluation: `begin`, `add` for each batch in order, `write`."""

  def __init__(self, name: str, place: Place, data, loss: str, calibrated: bool):
    """See `collect`."""
    self._name, self._place, self._data = name, place, data
    self._loss, self._calibrated = loss, calibrated
    described = labels.describe(data.class_names, data.num_classes, f'config.evals.{name}.input')
    self._names = [f'{synset} {text}'.strip() for synset, text in described]
    self.begin()

  def begin(self) -> None:
    """Forgets all batches."""
    self._next, self._finite = 0, True
    # Of each class: images with it, correct ones, guesses of it, correct ones.
    self._classes = np.zeros((4, self._data.num_classes), np.int64)
    self._pairs: collections.Counter[int] = collections.Counter()  # label * classes + guess
    self._bins = np.zeros((3, _BINS))  # images, sum of probabilities, correct ones
    self._mistakes: list[tuple] = []

  def rows(
    self, logits: jax.Array, given: jax.Array, vectors: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """What `add` needs of a batch, computed on the device.

    Args:
      logits: (n, classes).
      given: class numbers (n,) or zeros and ones (n, classes).
      vectors: the labels as zeros and ones (n, classes).
      mask: (n,), whether a row is an example.
    """
    _, guesses = jax.lax.top_k(logits, min(GUESSES, logits.shape[-1]))
    # Not of guesses[:, :1]: with a slice of its result, top_k on a CPU takes 100 times as long.
    correct = jnp.take_along_axis(vectors, guesses, axis=-1)[:, 0] > 0
    each = losses.PROBABILITIES[self._loss](logits.astype(jnp.float32))
    return {
      'mask': mask,
      'guesses': guesses,  # in descending order
      'probabilities': jnp.take_along_axis(each, guesses, axis=-1),
      'label_probability': jnp.max(jnp.where(vectors > 0, each, 0.0), axis=-1),
      'correct': correct,
      'labels': given if given.ndim == 1 else jnp.packbits(given > 0, axis=-1),
    }

  def add(self, rows: Mapping[str, np.ndarray]) -> None:
    """Adds the `rows` of the next batch, of all processes; only process 0 keeps them."""
    if jax.process_index() != 0:
      return
    numbers = self._next + np.flatnonzero(rows['mask'])
    self._next += len(rows['mask'])
    rows = {key: value[rows['mask']] for key, value in rows.items()}
    where, classes = self._labels(rows['labels'])
    guess, correct, sure = rows['guesses'][:, 0], rows['correct'], rows['probabilities'][:, 0]
    counts = np.bincount(where, minlength=len(numbers))
    if self._place.write_image is not None:
      of_each = np.split(classes, np.cumsum(counts)[:-1]) if len(counts) else []
      for i, number in enumerate(numbers):
        self._place.write_image(
          self._name, number, self._data.describe(number), self._named(of_each[i]),
          self._named(rows['guesses'][i]), rows['probabilities'][i],
        )  # fmt: skip
    labelled = counts > 0
    self._finite = self._finite and bool(np.isfinite(sure).all())
    if not self._finite:
      return
    found = (classes, classes[correct[where]], guess[labelled], guess[correct])
    self._classes += [np.bincount(each, minlength=self._data.num_classes) for each in found]
    if not self._data.multi_label:
      keys = classes.astype(np.int64) * self._data.num_classes + guess
      self._pairs.update(keys.tolist())
    self._add_to_bins(sure[labelled], correct[labelled])
    wrong = np.flatnonzero(labelled & ~correct)
    for i in wrong[np.argsort(-sure[wrong], kind='stable')][:_MISTAKES]:
      mistake = (-sure[i], numbers[i], guess[i], rows['label_probability'][i], classes[where == i])
      self._mistakes.append(mistake)
    self._mistakes = sorted(self._mistakes, key=lambda mistake: mistake[:2])[:_MISTAKES]

  def write(self, loss: float | None) -> None:
    """Writes the files, on process 0; `loss` is the mean over the images, if it is known."""
    if jax.process_index() != 0 or self._place.directory is None:
      return
    name = self._place.rename(self._name)
    directory = self._place.directory / name
    if not self._finite:
      logging.warning('no %s: some results are not finite.', directory)
      return
    calibration = self._calibration(loss) if self._calibrated else None
    thumbnails = self._thumbnails()
    content = {
      'per_class.csv': files.csv_text(self._per_class()),
      'confusion.csv': None if self._data.multi_label else files.csv_text(self._confusion()),
      'mistakes.json': _json(self._described_mistakes(bool(thumbnails))),
      'mistakes.jpg': thumbnails,
      'calibration.json': calibration and _json(calibration),
    }
    for file, value in content.items():
      if value is None:  # of an earlier evaluation
        (directory / file).unlink(missing_ok=True)
      elif isinstance(value, str):
        files.write_text(directory / file, value)
      else:
        files.write(directory / file, value)
    ece = f'ECE {calibration["ece"]:.4g}; ' if calibration else ''
    console.print_line(f'{name}: {ece}per class, confusions and mistakes in {directory}')
    if calibration:
      try:
        self._place.draw(calibration, directory / 'calibration.png')
      except Exception as fault:  # of the disk, or matplotlib's
        logging.warning('calibration.png was not drawn: %s', fault)

  def _labels(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, class) of each label of a batch, row by row."""
    if self._data.multi_label:
      return np.nonzero(np.unpackbits(given, axis=1, count=self._data.num_classes))
    return np.arange(len(given)), given

  def _named(self, classes: Sequence[int]) -> list[tuple[int, str]]:
    return [(int(number), self._names[number]) for number in classes]

  def _add_to_bins(self, sure: np.ndarray, correct: np.ndarray) -> None:
    edges = np.linspace(0, 1, _BINS + 1)[1:-1]
    index = np.searchsorted(edges, sure)  # bin i is (i / _BINS, (i + 1) / _BINS]
    self._bins += [
      np.bincount(index, weights, minlength=_BINS) for weights in (None, sure, correct)
    ]

  def _per_class(self) -> list[tuple]:
    header = ('class', 'name', 'n', 'correct', 'accuracy', 'guessed', 'precision')
    table = zip(self._names, *self._classes.tolist(), strict=True)
    return [header] + [
      (i, name, n, correct, _ratio(correct, n), guessed, _ratio(right, guessed))
      for i, (name, n, correct, guessed, right) in enumerate(table)
    ]

  def _confusion(self) -> list[tuple]:
    pairs = [(divmod(key, self._data.num_classes), n) for key, n in sorted(self._pairs.items())]
    names = self._names
    return [('label', 'label_name', 'guess', 'guess_name', 'n')] + [
      (label, names[label], guess, names[guess], n) for (label, guess), n in pairs
    ]

  def _described_mistakes(self, drawn: bool) -> dict:
    found = []
    for sure, number, guess, label_probability, classes in self._mistakes:
      found.append(
        {
          'index': int(number),
          'path': self._data.describe(number),
          'labels': classes.tolist(),
          'label_names': [self._names[i] for i in classes],
          'guess': int(guess),
          'guess_name': self._names[guess],
          'probability': float(-sure),
          'label_probability': float(label_probability),
        }
      )
    sprite = 'mistakes.jpg' if drawn else None
    return {'sprite': sprite, 'tile': _TILE, 'columns': _COLUMNS, 'mistakes': found}

  def _thumbnails(self) -> bytes | None:
    """One JPEG with the images of the mistakes; None without images."""
    images = [self._data.image(number) for _, number, *_ in self._mistakes]
    if not images or images[0] is None:
      return None
    rows = -(-len(images) // _COLUMNS)
    sprite = Image.new('RGB', (_COLUMNS * _TILE, rows * _TILE))
    for i, pixels in enumerate(images):
      row, column = divmod(i, _COLUMNS)
      sprite.paste(_tile(pixels), (column * _TILE, row * _TILE))
    buffer = io.BytesIO()
    sprite.save(buffer, 'JPEG', quality=90, subsampling=0)
    return buffer.getvalue()

  def _calibration(self, loss: float | None) -> dict:
    """Expected calibration error and its bins, in the sense of Guo et al. 2017."""
    count, sure, correct = self._bins
    n = count.sum()
    likelihood = self._loss == 'softmax' and not self._data.multi_label
    return {
      'probabilities': self._loss,
      'n': int(n),
      'accuracy': correct.sum() / n,
      'confidence': sure.sum() / n,
      'ece': np.abs(correct - sure).sum() / n,
      'nll': loss if likelihood else None,
      'bins': [
        {
          'low': i / _BINS,
          'high': (i + 1) / _BINS,
          'n': int(count[i]),
          'accuracy': _ratio(correct[i], count[i]),
          'confidence': _ratio(sure[i], count[i]),
        }
        for i in range(_BINS)
      ],
    }


def _ratio(part: float, whole: float) -> float | None:
  return part / whole if whole else None


def _json(value: dict) -> str:
  return json.dumps(value, indent=1)


def _tile(pixels: np.ndarray) -> Image.Image:
  """An image of any size and number of channels as a thumbnail; small ones keep their pixels."""
  image = Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0])
  small = max(image.size) < _TILE
  how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
  return ImageOps.pad(image.convert('RGB'), (_TILE, _TILE), how)
