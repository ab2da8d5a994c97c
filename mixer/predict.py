"""Names what is in images: python -m mixer.predict --checkpoint=MODEL.npz cat.jpg folder/ ...

MODEL.npz is of train.py (or its workdir is given), or any file in the released layout. Standard
output has the results alone, as a table or with --json as lines of JSON; everything else goes to
standard error. With --features=OUT.npy the pre-logits are written instead. See docs/predict.md.
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
import io
import json
import sys

from absl import flags
from etils import epath
import jax
import numpy as np

from mixer import cli, files, labels, models, runtime
from mixer.errors import InputError
from mixer.input import single_images
from mixer.models import permutations
from mixer.pretrained import model_files, warm_start
from mixer.training import batch_ops, losses

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'An .npz file or a workdir.', required=True)
_MODEL = flags.DEFINE_string('model', None, 'Of a foreign .npz: its model, as in Mixer-B/16.')
_IMAGE_SIZE = flags.DEFINE_list('image_size', None, 'Of a foreign .npz: SIDE or HEIGHT,WIDTH.')
_LOSS = flags.DEFINE_enum(
  'loss', None, sorted(losses.LOSSES), 'Of a foreign .npz: what it was trained with.'
)
_LABELS = flags.DEFINE_string(
  'labels', None, f'Class names: {" or ".join(labels.BUNDLED)}, or a file with one a line.'
)
_TOP = flags.DEFINE_integer('top', 5, 'Classes to name for each image.', lower_bound=1)
_JSON = flags.DEFINE_bool('json', False, 'One JSON object a line instead of the table.')
_FEATURES = flags.DEFINE_string(
  'features', None, 'An .npy to write pre-logits to; the files are named in the .txt beside it.'
)
_STRICT = flags.DEFINE_bool('strict', False, 'Stop at the first image that cannot be read.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Images computed at once.', lower_bound=1)
_REQUIRE = flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Stop on any other backend.')

PROBABILITIES = {
  'sigmoid': jax.nn.sigmoid,  # each class on its own: they need not add up to one
  'softmax': jax.nn.softmax,
}


def main(*paths: str) -> None:
  features = check_output(_FEATURES.value)
  found = single_images.find(paths)
  trained = model_files.read(
    _CHECKPOINT.value,
    model=_MODEL.value,
    image_size=parse_size(_IMAGE_SIZE.value),
    loss=_LOSS.value,
    label_map=_LABELS.value,
  )
  for fact in trained.assumed:
    note(f'assumed: {fact}')
  if not features:
    check_head(trained)
  decode = single_images.decoder(trained.preprocessing, trained.image_size, trained.channels)
  runtime.check_backend(_REQUIRE.value)

  skipped: list[str] = []
  batches = read_batches(found, decode, min(_BATCH_SIZE.value, len(found)), skipped)
  if features:
    write_features(features, trained, batches)
  else:
    classify(trained, batches)
  if skipped:
    raise InputError(f'{len(skipped)} of {len(found)} images could not be read, see above.')


def read_batches(
  paths: Sequence[epath.Path], decode: single_images.Decode, batch_size: int, skipped: list[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
  """(names of up to `batch_size` files, their images) with as many rows always, by padding.

  A file that cannot be read is told of and added to `skipped`, or with --strict raised.
  """

  def read(path: epath.Path) -> np.ndarray | InputError:
    try:
      return decode(path.read_bytes())
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
          if _STRICT.value:
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
  trained: model_files.TrainedModel, batches: Iterator[tuple[list[str], np.ndarray]]
) -> None:
  """Prints the --top likeliest classes of every image."""
  apply = permuted(models.build(**trained.model), trained)
  classes = trained.classes or [('', '')] * trained.model['num_classes']
  top = min(_TOP.value, len(classes))
  show = show_json if _JSON.value else show_table

  @jax.jit
  def predict(params, pixels):
    logits = apply(params, batch_ops.normalize(pixels))
    return jax.lax.top_k(PROBABILITIES[trained.loss](logits), top)

  params = jax.device_put(trained.params)
  for names, pixels in batches:
    values, indices = jax.device_get(predict(params, pixels))
    check_finite(values[: len(names)], trained.source)
    for name, probabilities, guesses in zip(names, values, indices):
      show(name, [(int(i), *classes[i], float(p)) for i, p in zip(guesses, probabilities)])
    sys.stdout.flush()


def write_features(
  path: epath.Path,
  trained: model_files.TrainedModel,
  batches: Iterator[tuple[list[str], np.ndarray]],
) -> None:
  """Writes the pre-logits, float32 (images, channels), and the files' names line by line."""
  net = models.build(**{**trained.model, 'num_classes': None})
  apply = permuted(net, trained)
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
    return  # an older file stays; `main` tells that nothing could be read
  buffer = io.BytesIO()
  np.save(buffer, np.concatenate(rows))
  files.write(path, buffer.getvalue())
  files.write(path.with_suffix('.txt'), ''.join(f'{name}\n' for name in order).encode())
  note(f'{path}: {len(order)} x {net.hidden_dim}; the files are named in {path.stem}.txt')


def permuted(net, trained: model_files.TrainedModel):
  """(params, images) -> what `net` returns of them, permuted as in its training."""
  apply = models.apply_function(net)
  return permutations.before(apply, trained.permutation, trained.image_size)


def show_table(name: str, rows: Sequence[tuple[int, str, str, float]]) -> None:
  """The file's name, and below it a line a class: probability, index, synset, name."""
  print(name)
  has_synsets = any(synset for _, synset, _, _ in rows)
  for index, synset, word, probability in rows:
    columns = [
      f'  {probability:8.6f}',
      f'{index:5}',
      *([f'{synset:9}'] if has_synsets else []),
      word,
    ]
    print('  '.join(columns).rstrip())


def show_json(name: str, rows: Sequence[tuple[int, str, str, float]]) -> None:
  keys = ('index', 'synset', 'name', 'probability')
  print(json.dumps({'file': name, 'top': [dict(zip(keys, row, strict=True)) for row in rows]}))


def check_head(trained: model_files.TrainedModel) -> None:
  """Raises InputError if the model cannot tell classes apart, or nobody said how it was trained."""
  cure = 'Fine-tune it, use it for few-shot evaluation, or write its pre-logits with --features.'
  if trained.model['num_classes'] is None:
    raise InputError(f'{trained.source} has no head, so it cannot classify. {cure}')
  if warm_start.has_zero_head(trained.params):
    raise InputError(
      f'the head of {trained.source} is all zeros, so it gives every image the same. {cure}'
    )
  if trained.loss is None:
    raise InputError(
      f'{trained.source} does not say what its head of {trained.model["num_classes"]} classes was '
      f'trained with; give --loss={" or --loss=".join(sorted(PROBABILITIES))}.'
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
  return output


def parse_size(sides: Sequence[str] | None) -> tuple[int, int] | None:
  """(height, width) of --image_size."""
  if sides is None:
    return None
  if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) for side in sides):
    raise InputError(
      f'--image_size={",".join(sides)}: give SIDE or HEIGHT,WIDTH in pixels, as in 224.'
    )
  return int(sides[0]), int(sides[-1])


def note(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  cli.run(main)
