"""Classifies images: python -m mixer.predict --checkpoint=MODEL.npz cat.jpg folder/ ...

MODEL.npz is whatever `mixer.pretrained.load` reads: a model of train.py, its workdir, finished or
not, or any other file of parameters. Images are also named by patterns in quotes and, with -, by
the lines of standard input. Standard output has the results alone, as a table or, with --json or
--csv, as lines of either; everything else goes to standard error. With --features=OUT.npy the
pre-logits are written instead. See docs/predict.md.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import csv
import itertools
import json
import os
import sys
import threading
from typing import IO, Any

from absl import flags
from etils import epath
import jax
import numpy as np
import tqdm

from mixer import cli, console, files, labels, models, pretrained, runtime, sizes
from mixer.errors import InputError
from mixer.input import folders, image_facts, single_images
from mixer.pretrained import warm_start
from mixer.pretrained.description import Description
from mixer.training import batch_ops, losses

Batches = Iterator[tuple[list[str], np.ndarray]]
Guesses = Sequence[tuple[int, str, str, float]]  # index, synset, name, probability

_COLUMNS = ('index', 'synset', 'name', 'probability')


def main(*paths: str) -> None:
  given = flags.FLAGS
  features = check_output(given.features)
  if given.json + given.csv + bool(features) > 1:
    raise InputError('give only one of --json, --csv and --features.')
  found = single_images.find(paths)
  first = list(itertools.islice(found, max(given.batch_size, image_facts.SAMPLE)))
  trained, description = open_model()
  if not features:
    check_head(trained, description)
  counts = Counts()
  decode = single_images.decoder(
    description.preprocessing,
    description.image_size,
    description.channels,
    on_change=counts.add,
  )
  for remark in single_images.remarks(first, description.preprocessing):
    note(remark)
  runtime.check_backend(given.require)

  batch_size = min(given.batch_size, len(first))
  images = itertools.chain(first, found)
  with progress_bar(paths) as bar:
    batches = read_batches(images, decode, batch_size, counts, bar, strict=given.strict)
    if features:
      write_features(features, trained, description, batches)
    else:
      print_classes(trained, description, batches)
  for change, count in counts.changes.items():
    note(f'{count} of {counts.images} images: {change}')
  if counts.skipped:
    raise InputError(f'{counts.skipped} of {counts.images} images could not be read, see above.')


class Counts:
  """Numbers of images, of those that could not be read, and of those that were changed, and how."""

  def __init__(self):
    self.images, self.skipped = 0, 0
    self.changes: dict[str, int] = collections.Counter()
    self._lock = threading.Lock()

  def add(self, change: str) -> None:
    """Counts a change, from any thread."""
    with self._lock:
      self.changes[change] += 1


def progress_bar(paths: Sequence[str]) -> tqdm.tqdm:
  """Counts images on standard error where that is a terminal.

  Its total appears when the images, unless they are a list on standard input, have been counted.
  """
  bar = tqdm.tqdm(unit='image', dynamic_ncols=True, disable=not sys.stderr.isatty())

  def count() -> None:
    with contextlib.suppress(InputError):  # which the reader of the images raises
      bar.total = sum(1 for _ in single_images.find(paths, warn=False))

  if not bar.disable and '-' not in paths:
    threading.Thread(target=count, daemon=True).start()
  return bar


def open_model() -> tuple[pretrained.Pretrained, Description]:
  """The model of the flags of `define_model_flags`; what is assumed of it is printed."""
  given = flags.FLAGS
  trained = pretrained.open(given.checkpoint, given.which)
  description = trained.describe(
    model=given.model,
    image_size=sizes.parse('image_size', given.image_size),
    loss=given.loss,
    label_map=given.labels,
  )
  for fact in description.assumed:
    note(f'assumed: {fact}')
  return trained, description


def read_batches(
  paths: Iterator[epath.Path],
  decode: single_images.Decode,
  batch_size: int,
  counts: Counts,
  bar: tqdm.tqdm,
  *,
  strict: bool,
) -> Batches:
  """(names of up to `batch_size` files, their images), padded to the same number of rows.

  A file that cannot be read is printed and counted, or raised if `strict`. While a batch is
  computed, the next one is read.
  """

  def read(path: epath.Path) -> np.ndarray | InputError:
    try:
      return decode(folders.read_file(str(path)))
    except OSError as fault:
      return InputError(f'{fault.strerror or fault}')
    except InputError as fault:
      return fault

  names: list[str] = []
  rows: list[np.ndarray] = []
  for path, image in map_ahead(read, paths, 2 * max(batch_size, 32)):
    counts.images += 1
    bar.update()
    if isinstance(image, InputError):
      if strict:
        raise InputError(f'{path}: {image}')
      note(f'skipped {path}: {image}')
      counts.skipped += 1
      continue
    names.append(str(path))
    rows.append(image)
    if len(rows) == batch_size:
      yield names, np.stack(rows)
      names, rows = [], []
  if rows:
    yield names, np.stack(rows + [np.zeros_like(rows[0])] * (batch_size - len(rows)))


def map_ahead(function: Callable, values: Iterator, ahead: int) -> Iterator[tuple[Any, Any]]:
  """(value, its result) of each; up to `ahead` results are computed in threads, and no more."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    pending: collections.deque = collections.deque()
    while True:
      for value in itertools.islice(values, ahead - len(pending)):
        pending.append((value, pool.submit(function, value)))
      if not pending:
        return
      value, future = pending.popleft()
      yield value, future.result()


def print_classes(
  trained: pretrained.Pretrained, description: Description, batches: Batches
) -> None:
  """`classify` in the format of the flags, with errors of the output."""
  given = flags.FLAGS
  show = show_json if given.json else show_csv if given.csv else show_table
  try:
    if given.csv:
      print('file', *_COLUMNS, sep=',')
    classify(trained, description, batches, top=given.top, show=show)
  except BrokenPipeError:
    raise
  except OSError as fault:
    raise InputError(f'the results cannot be printed: {fault.strerror}.') from fault


def classify(
  trained: pretrained.Pretrained,
  description: Description,
  batches: Batches,
  *,
  top: int,
  show: Callable[[str, Guesses], None],
) -> None:
  """Shows the `top` most probable classes of every image."""
  guess = classifier(trained, description, top)
  for names, pixels in batches:
    found = guess(pixels, len(names))
    with tqdm.tqdm.external_write_mode():  # a bar on the same terminal makes room
      for name, guesses in zip(names, found):
        show(name, guesses)
      sys.stdout.flush()


def classifier(
  trained: pretrained.Pretrained, description: Description, top: int
) -> Callable[[np.ndarray, int], list[Guesses]]:
  """A function from uint8 (n, height, width, channels) to the guesses for the first `count`."""
  model = models.build(**description.model)
  apply = models.apply_function(model, description.permutation, description.image_size)
  classes = description.classes or [('', '')] * model.num_classes
  top = min(top, len(classes))

  @jax.jit
  def predict(params, pixels):
    logits = apply(params, batch_ops.normalize(pixels))
    return jax.lax.top_k(losses.PROBABILITIES[description.loss](logits), top)

  params = jax.device_put(trained.params)

  def guess(pixels: np.ndarray, count: int) -> list[Guesses]:
    values, indices = (rows[:count] for rows in jax.device_get(predict(params, pixels)))
    check_finite(values, trained.source)
    return [
      [(int(i), *classes[i], float(p)) for i, p in zip(row, probabilities)]
      for row, probabilities in zip(indices, values)
    ]

  return guess


def write_features(
  path: epath.Path, trained: pretrained.Pretrained, description: Description, batches: Batches
) -> None:
  """Writes the pre-logits, float32 (images, channels), and the files' names line by line.

  Without a batch, older files stay.
  """
  first = next(batches, None)
  if first is None:
    return
  model = models.build(**description.model)
  apply = models.features_function(model, description.permutation, description.image_size)
  predict = jax.jit(lambda params, pixels: apply(params, batch_ops.normalize(pixels)))
  params = jax.device_put({k: v for k, v in trained.params.items() if k != 'head'})
  count = 0
  with files.replacing(path) as rows, files.replacing(path.with_suffix('.txt')) as order:
    write_header(rows, (0, model.hidden_dim))
    for names, pixels in itertools.chain([first], batches):
      values = np.asarray(predict(params, pixels), np.float32)[: len(names)]
      check_finite(values, trained.source)
      with files.explained(path):
        rows.write(values.tobytes())
        order.writelines(os.fsencode(name) + b'\n' for name in names)
      count += len(names)
    with files.explained(path):
      rows.seek(0)
      write_header(rows, (count, model.hidden_dim))
  note(f'{path}: {count} x {model.hidden_dim}; the files are named in {path.stem}.txt')


def write_header(file: IO[bytes], shape: tuple[int, int]) -> None:
  """The header of a float32 .npy file; NumPy leaves space in it for any number of rows."""
  facts = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, facts)


def show_table(name: str, rows: Guesses) -> None:
  """The file's name, then a line per class: probability, index, synset, name."""
  print(name)
  has_synsets = any(synset for _, synset, _, _ in rows)
  for index, synset, class_name, probability in rows:
    columns = [
      f'  {probability:8.6f}',
      f'{index:5}',
      *([f'{synset:9}'] if has_synsets else []),
      class_name,
    ]
    print('  '.join(columns).rstrip())


def show_json(name: str, rows: Guesses) -> None:
  print(json.dumps({'file': name, 'top': as_objects(rows)}))


def as_objects(rows: Guesses) -> list[dict]:
  """The guesses as they are in JSON."""
  return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]


def show_csv(name: str, rows: Guesses) -> None:
  csv.writer(sys.stdout, lineterminator='\n').writerows((name, *row) for row in rows)


def check_head(trained: pretrained.Pretrained, description: Description) -> None:
  """Raises InputError if the model cannot classify, or its training loss is not known."""
  advice = 'Fine-tune it, use it for few-shot evaluation, or write its pre-logits with --features.'
  num_classes = description.model['num_classes']
  if num_classes is None:
    raise InputError(f'{trained.source} has no head, so it cannot classify. {advice}')
  if warm_start.has_zero_head(trained.params):
    raise InputError(
      f'the head of {trained.source} is all zeros, so it gives every image the same. {advice}'
    )
  if description.loss is None:
    raise InputError(
      f'the training loss of {trained.source}, whose head has {num_classes} classes, is not known; '
      f'give --loss={" or --loss=".join(sorted(losses.PROBABILITIES))}.'
    )


def check_finite(values: np.ndarray, source: str) -> None:
  if not np.isfinite(values).all():
    raise InputError(f'{source} gives values that are not finite; its parameters are damaged.')


def check_output(path: str | None) -> epath.Path | None:
  """The file of --features; InputError if it cannot be written."""
  if path is None:
    return None
  output = epath.Path(path).expanduser()
  if '://' in path:
    raise InputError(f'--features={path}: give a file on this machine.')
  if output.suffix != '.npy':
    raise InputError(f'--features={path}: give a name that ends in .npy.')
  if not output.parent.is_dir():
    raise InputError(f'--features={path}: there is no folder {output.parent}.')
  for one in (output, output.with_suffix('.txt')):
    files.check_writable(one)
  return output


def note(text: str) -> None:
  with tqdm.tqdm.external_write_mode():
    console.print_line(text, error=True)


def define_model_flags() -> None:
  """The flags of `open_model`, and --top and --require."""
  flags.DEFINE_string('checkpoint', None, 'A file of parameters or a workdir.')
  flags.DEFINE_string('which', None, pretrained.WHICH_HELP)
  flags.DEFINE_string('model', None, 'Of a file without .json: its model, as in Mixer-B/16.')
  flags.DEFINE_list('image_size', None, 'Of a file without .json: SIDE or HEIGHT,WIDTH.')
  flags.DEFINE_enum('loss', None, sorted(losses.LOSSES), 'Of a file without .json: its training.')
  flags.DEFINE_string(
    'labels', None, f'Class names: {" or ".join(labels.BUNDLED)}, or a file with one per line.'
  )
  flags.DEFINE_integer('top', 5, 'Classes to show for each image.', lower_bound=1)
  flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Fail on any other backend.')
  flags.mark_flag_as_required('checkpoint')


def define_flags() -> None:
  define_model_flags()
  flags.DEFINE_bool('json', False, 'One JSON object per line instead of the table.')
  flags.DEFINE_bool('csv', False, 'A line for each class, with a header, instead of the table.')
  flags.DEFINE_string(
    'features', None, 'An .npy file for the pre-logits; the .txt beside it names the images.'
  )
  flags.DEFINE_bool('strict', False, 'Fail at the first image that cannot be read.')
  flags.DEFINE_integer('batch_size', 32, 'Images computed at once.', lower_bound=1)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
