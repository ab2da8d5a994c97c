"""What a report shows of the evaluations of a run in detail: classes, confusions, mistakes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import dataclasses
import io
import json

from etils import epath
import numpy as np
from PIL import Image

from mixer.report.galleries import Picture
from mixer.report.run_files import Run
from mixer.report.sections import Number, Table
from mixer.visualize.unit_pictures import encode

_CELLS = 30  # classes of a matrix with numbers; of more, it is an image
_PIXELS = 2000  # classes of that image, at most
_PAIRS, _MISTAKES = 20, 24  # shown
_BLUE = (31, 111, 196)


@dataclasses.dataclass(frozen=True)
class Matrix:
  names: Sequence[str]
  counts: Sequence[Sequence[int]]  # of the label's row, of the guess's column
  shares: Sequence[Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Details:
  """One evaluation of one run; a part is None if its file is absent.

  Attributes:
    label: of the run and the evaluation.
    source: the directory of the files.
    notes: about the parts, and why a file cannot be shown.
    bins: of the reliability diagram.
    matrix: how many images of each class are taken for which, of few classes.
    matrix_image: the same as a picture, of many.
    pairs: the most frequent confusions.
    classes: a row for each class, the lowest accuracy first.
    mistakes: the images of which the model is most surely wrong.
  """

  label: str
  source: str
  notes: Sequence[str]
  bins: Sequence[Mapping] | None = None
  matrix: Matrix | None = None
  matrix_image: Picture | None = None
  pairs: Table | None = None
  classes: Table | None = None
  mistakes: Sequence[Picture] | None = None


def read(runs: Sequence[Run]) -> Iterator[Details]:
  """The newest files of each evaluation of each run."""
  for run in runs:
    found: dict[str, list[epath.Path]] = {}
    for pattern in ('evaluation/*/*', 'model.evaluation/*/*'):
      for path in run.path.glob(pattern):
        if any((path / name).exists() for name in _PARTS):
          found.setdefault(path.name, []).append(path)
    for name, paths in sorted(found.items()):
      yield _read(f'{run.label}: {name}', run.path, max(paths, key=_age))


def _age(path: epath.Path) -> float:
  return max((path / name).stat().mtime for name in _PARTS if (path / name).exists())


def _read(label: str, workdir: epath.Path, path: epath.Path) -> Details:
  parts, notes = {}, []
  for name, parse in _PARTS.items():
    if (path / name).exists():
      try:
        found, note = parse(path / name)
        parts |= found
        notes += [note] if note else []
      except (OSError, ValueError, KeyError, TypeError, IndexError) as fault:
        notes.append(f'{name} cannot be shown: {fault!r}.')
  return Details(label, str(path.relative_to(workdir)), notes, **parts)


def _classes(path: epath.Path) -> tuple[dict, str]:
  rows = _csv(path)
  rows.sort(key=lambda row: (float(row['accuracy'] or 'inf'), -int(row['n'])))
  cells = [
    [row['name'], *(Number(row[key] or '-') for key in ('n', 'correct')), _percent(row['accuracy']),
     Number(row['guessed']), _percent(row['precision'])]
    for row in rows
  ]  # fmt: skip
  head = ('class', 'images', 'correct', 'accuracy %', 'guessed', 'precision %')
  return {'classes': Table(head, cells)}, ''


def _confusion(path: epath.Path) -> tuple[dict, str]:
  rows = [{**row, 'n': int(row['n'])} for row in _csv(path)]
  names, of = {}, {}
  for row in rows:
    label, guess = int(row['label']), int(row['guess'])
    names |= {label: row['label_name'], guess: row['guess_name']}
    of[label] = of.get(label, 0) + row['n']
  wrong = sorted((r for r in rows if r['label'] != r['guess']), key=lambda r: -r['n'])[:_PAIRS]
  pairs = [
    [r['label_name'], r['guess_name'], Number(r['n']), _percent(r['n'] / of[int(r['label'])])]
    for r in wrong
  ]
  head = ('class', 'taken for', 'images', '% of the class')
  found = {'pairs': Table(head, pairs)} if pairs else {}
  places = {number: place for place, number in enumerate(sorted(names))}
  if len(names) > _PIXELS:
    return found, f'A confusion matrix of {len(names)} classes is too large to show.'
  counts = np.zeros((len(names), len(names)), np.int64)
  for row in rows:
    counts[places[int(row['label'])], places[int(row['guess'])]] += row['n']
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  if len(names) <= _CELLS:
    shown = [names[number] for number in places]
    return {**found, 'matrix': Matrix(shown, counts.tolist(), shares.tolist())}, ''
  return {**found, 'matrix_image': _image(shares)}, ''


def _image(shares: np.ndarray) -> Picture:
  """A pixel or more for each pair of classes, the bluer the larger its share."""
  colours = np.empty((*shares.shape, 4), np.uint8)
  colours[..., :3] = _BLUE
  colours[..., 3] = np.rint(255 * np.sqrt(shares))
  scale = -(-480 // len(shares))
  caption = 'Rows are classes, columns are guesses, in the order of their numbers.'
  return Picture(
    caption, encode(Image.fromarray(colours.repeat(scale, axis=0).repeat(scale, axis=1)))
  )


def _calibration(path: epath.Path) -> tuple[dict, str]:
  found = json.loads(path.read_text())
  note = (
    f'Of {found["n"]:,} images the model is right about {100 * found["accuracy"]:.2f} %, and the '
    f'probability of its highest class is {100 * found["confidence"]:.2f} % on average. The '
    f'expected calibration error (ECE, {len(found["bins"])} bins) is {100 * found["ece"]:.2f} %'
  )
  nll = found.get('nll')
  return {'bins': found['bins']}, f'{note}.' if nll is None else f'{note}; NLL {nll:.4f}.'


def _mistakes(path: epath.Path) -> tuple[dict, str]:
  found = json.loads(path.read_text())
  tile, columns = found['tile'], found['columns']
  sprite = None
  if found['sprite']:
    sprite = Image.open(io.BytesIO((path.parent / found['sprite']).read_bytes()))

  def picture(i, mistake):
    left, top = i % columns * tile, i // columns * tile
    image = sprite and sprite.crop((left, top, left + tile, top + tile))
    labels = ', '.join(mistake['label_names'])
    return Picture(
      f'true: {labels}; {mistake["path"] or "image {}".format(mistake["index"])}',
      encode(image) if image else b'',
      guesses=[
        (mistake['guess_name'], mistake['probability'], False),
        (labels, mistake['label_probability'], True),
      ],
    )

  return {'mistakes': [picture(i, m) for i, m in enumerate(found['mistakes'][:_MISTAKES])]}, ''


_PARTS: Mapping[str, Callable[[epath.Path], tuple[dict, str]]] = {
  'calibration.json': _calibration,
  'confusion.csv': _confusion,
  'per_class.csv': _classes,
  'mistakes.json': _mistakes,
}


def _csv(path: epath.Path) -> list[dict[str, str]]:
  return list(csv.DictReader(io.StringIO(path.read_text(), newline='')))


def _percent(share: str | float) -> Number:
  return Number('-' if share == '' else f'{100 * float(share):.1f}')
