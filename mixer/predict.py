"""Classifies images: python -m mixer.predict --checkpoint=MODEL.npz cat.jpg folder/ ...

MODEL.npz is whatever `mixer.pretrained.load` reads: a model of train.py, its workdir, finished or
not, or any other file of parameters. Standard output has the results alone, as a table or with
--json as lines of JSON; everything else goes to standard error. With --features=OUT.npy the
pre-logits are written instead. See docs/predict.md.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import io
import json
import os
import sys

from absl import flags
from etils import epath
import jax
import numpy as np

from mixer import cli, console, files, labels, models, pretrained, runtime, sizes
from mixer.errors import InputError
from mixer.input import folders, single_images
from mixer.pretrained import warm_start
from mixer.pretrained.description import Description
from mixer.training import batch_ops, losses

Batches = Iterator[tuple[list[str], np.ndarray]]


def main(*paths: str) -> None:
  given = flags.FLAGS
  features = check_output(given.features)
  found = single_images.find(paths)
  trained = pretrained.open(given.checkpoint, given.which)
  description = trained.describe(
    model=given.model,
    image_size=sizes.parse('image_size', given.image_size),
    loss=given.loss,
    label_map=given.labels,
  )
  for fact in description.assumed:
    note(f'assumed: {fact}')
  if not features:
    check_head(trained, description)
  changes: list[str] = []
  decode = single_images.decoder(
    description.preprocessing,
    description.image_size,
    description.channels,
    on_change=changes.append,
  )
  for remark in single_images.remarks(found, description.preprocessing):
    note(remark)
  runtime.check_backend(given.require)

  skipped: list[str] = []
  batch_size = min(given.batch_size, len(found))
  batches = read_batches(found, decode, batch_size, skipped, strict=given.strict)
  if features:
    write_features(features, trained, description, batches)
  else:
    show = show_json if given.json else show_table
    try:
      classify(trained, description, batches, top=given.top, show=show)
    except BrokenPipeError:
      raise
    except OSError as fault:
      raise InputError(f'the results cannot be printed: {fault.strerror}.') from fault
  for change, count in collections.Counter(changes).items():
    note(f'{count} of {len(found)} images: {change}')
  if skipped:
    raise InputError(f'{len(skipped)} of {len(found)} images could not be read, see above.')


def read_batches(
  paths: Sequence[epath.Path],
  decode: single_images.Decode,
  batch_size: int,
  skipped: list[str],
  *,
  strict: bool,
) -> Batches:
  """(names of up to `batch_size` files, their images), padded to the same number of rows.

  A file that cannot be read is printed and added to `skipped`, or raised if `strict`.
  """

  def read(path: epath.Path) -> np.ndarray | InputError:
    try:
      return decode(folders.read_file(str(path)))
    except OSError as fault:
      return InputError(f'{fault.strerror or fault}')
    except InputError as fault:
      return fault

  with concurrent.futures.ThreadPoolExecutor() as pool:
    names: list[str] = []
    rows: list[np.ndarray] = []
    for first in range(0, len(paths), batch_size):
      part = paths[first : first + batch_size]
      for path, image in zip(part, pool.map(read, part), strict=True):
        if isinstance(image, InputError):
          if strict:
            raise InputError(f'{path}: {image}')
          note(f'skipped {path}: {image}')
          skipped.append(str(path))
          continue
        names.append(str(path))
        rows.append(image)
        if len(rows) == batch_size:
          yield names, np.stack(rows)
          names, rows = [], []
  if rows:
    yield names, np.stack(rows + [np.zeros_like(rows[0])] * (batch_size - len(rows)))


def classify(
  trained: pretrained.Pretrained,
  description: Description,
  batches: Batches,
  *,
  top: int,
  show: Callable[[str, Sequence[tuple[int, str, str, float]]], None],
) -> None:
  """Shows the `top` most probable classes of every image."""
  model = models.build(**description.model)
  apply = models.apply_function(model, description.permutation, description.image_size)
  classes = description.classes or [('', '')] * model.num_classes
  top = min(top, len(classes))

  @jax.jit
  def predict(params, pixels):
    logits = apply(params, batch_ops.normalize(pixels))
    return jax.lax.top_k(losses.PROBABILITIES[description.loss](logits), top)

  params = jax.device_put(trained.params)
  for names, pixels in batches:
    values, indices = jax.device_get(predict(params, pixels))
    check_finite(values[: len(names)], trained.source)
    for name, probabilities, guesses in zip(names, values, indices):
      show(name, [(int(i), *classes[i], float(p)) for i, p in zip(guesses, probabilities)])
    sys.stdout.flush()


def write_features(
  path: epath.Path, trained: pretrained.Pretrained, description: Description, batches: Batches
) -> None:
  """Writes the pre-logits, float32 (images, channels), and the files' names line by line."""
  model = models.build(**description.model)
  apply = models.features_function(model, description.permutation, description.image_size)
  predict = jax.jit(lambda params, pixels: apply(params, batch_ops.normalize(pixels)))
  params = jax.device_put({k: v for k, v in trained.params.items() if k != 'head'})
  order: list[str] = []
  rows: list[np.ndarray] = []
  for names, pixels in batches:
    values = np.asarray(predict(params, pixels), np.float32)[: len(names)]
    check_finite(values, trained.source)
    order += names
    rows.append(values)
  if not order:
    return  # an older file stays; `main` raises that nothing could be read
  buffer = io.BytesIO()
  np.save(buffer, np.concatenate(rows))
  files.write(path, buffer.getvalue())
  files.write(path.with_suffix('.txt'), b''.join(os.fsencode(name) + b'\n' for name in order))
  note(f'{path}: {len(order)} x {model.hidden_dim}; the files are named in {path.stem}.txt')


def show_table(name: str, rows: Sequence[tuple[int, str, str, float]]) -> None:
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


def show_json(name: str, rows: Sequence[tuple[int, str, str, float]]) -> None:
  keys = ('index', 'synset', 'name', 'probability')
  print(json.dumps({'file': name, 'top': [dict(zip(keys, row, strict=True)) for row in rows]}))


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
  if output.suffix != '.npy':
    raise InputError(f'--features={path}: give a name that ends in .npy.')
  if not output.parent.is_dir():
    raise InputError(f'--features={path}: there is no folder {output.parent}.')
  for one in (output, output.with_suffix('.txt')):
    files.check_writable(one)
  return output


def note(text: str) -> None:
  console.print_line(text, error=True)


def define_flags() -> None:
  flags.DEFINE_string('checkpoint', None, 'A file of parameters or a workdir.')
  flags.DEFINE_string('which', None, pretrained.WHICH_HELP)
  flags.DEFINE_string('model', None, 'Of a file without .json: its model, as in Mixer-B/16.')
  flags.DEFINE_list('image_size', None, 'Of a file without .json: SIDE or HEIGHT,WIDTH.')
  flags.DEFINE_enum('loss', None, sorted(losses.LOSSES), 'Of a file without .json: its training.')
  flags.DEFINE_string(
    'labels', None, f'Class names: {" or ".join(labels.BUNDLED)}, or a file with one per line.'
  )
  flags.DEFINE_integer('top', 5, 'Classes to print for each image.', lower_bound=1)
  flags.DEFINE_bool('json', False, 'One JSON object per line instead of the table.')
  flags.DEFINE_string(
    'features', None, 'An .npy file for the pre-logits; the .txt beside it names the images.'
  )
  flags.DEFINE_bool('strict', False, 'Fail at the first image that cannot be read.')
  flags.DEFINE_integer('batch_size', 32, 'Images computed at once.', lower_bound=1)
  flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Fail on any other backend.')
  flags.mark_flag_as_required('checkpoint')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
