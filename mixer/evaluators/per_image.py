"""A file with a line for each image that evaluations classify: evaluate.py --per_image=FILE."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import json

from etils import epath
import numpy as np

from mixer import files
from mixer.errors import InputError

GUESSES = 5
ENDINGS = ('.csv', '.jsonl')

Classes = Sequence[tuple[int, str]]  # number and name
# (section, number of the image, where it is, labels, guesses in descending order, probabilities)
Write = Callable[[str, int, str, Classes, Classes, np.ndarray], None]


def check(path: epath.Path) -> None:
  """Raises InputError unless the file can be written."""
  if path.suffix not in ENDINGS:
    raise InputError(f'--per_image={path}: give a name that ends in {" or ".join(ENDINGS)}.')
  files.check_writable(path)


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[Write]:
  """Yields the function that writes a line; the file gets its name at the end of the block."""
  with files.writing(path) as append:
    if path.suffix == '.csv':
      append(files.csv_text([_header()]))
      yield lambda *image: append(files.csv_text([_csv_row(*image)]))
    else:
      yield lambda *image: append(_json_line(*image))


def _header() -> list[str]:
  guesses = [f'{part}_{i + 1}' for i in range(GUESSES) for part in ('class', 'name', 'probability')]
  return ['evaluation', 'index', 'path', 'label', 'label_name', *guesses]


def _csv_row(section, number, path, labels: Classes, guesses: Classes, probabilities) -> list:
  """Several labels are separated by a space, and their names by ' | '."""
  numbers, names = (map(str, part) for part in (zip(*labels) if labels else ((), ())))
  row = [section, number, path, ' '.join(numbers), ' | '.join(names)]
  for (guess, name), probability in zip(guesses, probabilities, strict=True):
    row += [guess, name, probability]
  return row + [''] * (3 * (GUESSES - len(guesses)))


def _json_line(section, number, path, labels: Classes, guesses: Classes, probabilities) -> str:
  top = [
    {'class': guess, 'name': name, 'probability': float(probability)}
    for (guess, name), probability in zip(guesses, probabilities, strict=True)
  ]
  line = {
    'evaluation': section, 'index': int(number), 'path': path,
    'labels': [label for label, _ in labels], 'label_names': [name for _, name in labels],
    'top': top,
  }  # fmt: skip
  return json.dumps(line) + '\n'
