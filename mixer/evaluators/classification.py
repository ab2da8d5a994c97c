"""Top-1, top-5 and loss over a whole data set, each example counted exactly once."""

from collections.abc import Callable, Mapping
import time

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from mixer.errors import InputError
from mixer.evaluators.details import GUESSES, Details
from mixer.training import batch_ops, losses, sharding

_RANKED = 2**28  # scores that are kept at most for the mean average precision, as float32


def make(
  *,
  apply: Callable,
  data,
  loss: str,
  mesh: Mesh,
  details: bool = False,
  collect: Callable[..., Details | None] | None = None,
) -> Callable[[Mapping], dict[str, float]]:
  """A function params -> {'top1', 'top5', 'loss', 'n', 'images_per_sec'}.

  There is no 'top5' of five classes or fewer. An image with several labels counts as correct if a
  guess is among them. Multi-label sets also have

  - 'precision_at_1' (the same as top1) and 'precision_at_5' (the share of an image's five highest
    classes that are among its labels, averaged over the images; not of five classes or fewer),
  - 'mean_average_precision': over the classes that have an image, see `average_precision`,
  - 'n_without_labels': images without a label, which no other result counts.

  Args:
    apply: (params, images) -> logits.
    data: a `mixer.input.Input`.
    loss: a name in `losses.LOSSES`.
    mesh: the devices that share each batch.
    details: in training, write the files of `details` at each evaluation. evaluate.py always does.
    collect: (details, data, loss, calibrated=) -> what makes those files, or None.

  Raises (when called):
    InputError: no image has a label.
    RuntimeError: the number of examples counted is not the data set's.
  """
  ranked = _is_ranked(data)
  if data.multi_label and not ranked:
    logging.warning(
      'no mean average precision of %d images and %d classes: too many scores for the memory.',
      data.num_examples, data.num_classes,
    )  # fmt: skip

  def scores(logits, labels):
    right = _right(logits, labels)
    found = {
      'top1': right[:, 0],
      'top5': right.any(axis=-1),
      'loss': losses.LOSSES[loss](logits, labels),
    }
    if data.multi_label:
      found |= {'precision_at_1': right[:, 0], 'precision_at_5': right.mean(axis=-1)}
    if data.num_classes <= GUESSES:
      found = {name: each for name, each in found.items() if not name.endswith('5')}
    return found, labels.any(axis=-1) if data.multi_label else jnp.ones(len(labels), bool)

  # A softmax over several labels gives each a part of 1, and so none its probability.
  calibrated = loss == 'sigmoid' or not data.multi_label
  kept = collect and collect(details, data, loss, calibrated=calibrated)
  count = _counter(scores, apply=apply, data=data, mesh=mesh, ranked=ranked, details=kept)

  def evaluate(params) -> dict[str, float]:
    results = count(params)
    if not data.multi_label:
      results.pop('n_without_labels')
    return results

  return evaluate


def comparable(data=None) -> tuple[str, ...]:
  """The results of `make` that tell a better step, see `plan.gain`; with None those of any data."""
  if data is None:
    return ('top1', 'top5', 'loss')
  found = ['top1', 'top5', 'loss'] if data.num_classes > GUESSES else ['top1', 'loss']
  return (*found, 'mean_average_precision') if _is_ranked(data) else tuple(found)


def _is_ranked(data) -> bool:
  return data.multi_label and data.num_examples * data.num_classes <= _RANKED


def average_precision(scores: np.ndarray, hits: np.ndarray) -> float:
  """The average precision of a class: the precision at each score, weighted by the gain in recall.

  It has no interpolation, and images of equal score count together, as in scikit-learn.

  Args:
    scores: of the images (n,).
    hits: whether each has the class (n,); at least one has.
  """
  order = np.argsort(-scores, kind='stable')
  scores, hits = scores[order], np.cumsum(hits[order], dtype=np.int64)
  last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of the images of a score
  precision, found = hits[last] / (last + 1), np.diff(hits[last], prepend=0)
  return float(np.sum(found * precision) / hits[-1])


def make_real(
  *,
  apply: Callable,
  data,
  loss: str,
  mesh: Mesh,
  details: bool = False,
  collect: Callable[..., Details | None] | None = None,
) -> Callable[[Mapping], dict[str, float]]:
  """A function params -> {'top1', 'n', 'n_without_labels', 'images_per_sec'}: ImageNet-ReaL's rule.

  An image is correct if its highest class is among its labels. Images without a label do not
  count, so 'n', the divisor, is 46,837 of ImageNet's 50,000.

  Args, Raises: as `make`.
  """
  if not data.multi_label:
    raise InputError(
      'kind="real" needs images with a list of labels each, as in imagenet2012_real with '
      'label_key="real_label"; for one label each, use kind="classification".'
    )

  def scores(logits, labels):
    return {'top1': _right(logits, labels)[:, 0]}, labels.any(axis=-1)

  kept = collect and collect(details, data, loss, calibrated=True)
  return _counter(scores, apply=apply, data=data, mesh=mesh, details=kept)


def _right(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Whether each of the highest classes, in descending order, is a label: (n, up to 5)."""
  _, guesses = jax.lax.top_k(logits, min(GUESSES, labels.shape[-1]))
  return jnp.take_along_axis(labels, guesses, axis=-1) > 0


def _counter(
  scores: Callable,
  *,
  apply: Callable,
  data,
  mesh: Mesh,
  ranked: bool = False,
  details: Details | None = None,
):
  """A function params -> the means of scores over all examples, with their number.

  Sums are taken over unmasked rows and divided once; a batch is padded to a multiple of the
  devices. `scores` is (logits, label vectors) -> ({name: (n,)}, (n,) whether a row counts). With
  `ranked`, 'mean_average_precision' of these rows is computed too, on the host. `details` get all
  rows that are no padding.
  """
  replicated = sharding.replicated(mesh)
  batch_size = -(-data.batch_size // mesh.size) * mesh.size

  def sums(params, batch):
    labels = batch_ops.label_vectors(batch['label'], data.num_classes)
    logits = apply(params, batch_ops.normalize(batch['image']))
    found, counts = scores(logits, labels)
    kept = batch['mask'] & counts
    rows = (logits.astype(jnp.float32), labels > 0, kept) if ranked else ()
    found_rows = details.rows(logits, batch['label'], labels, batch['mask']) if details else {}
    return (
      rows,
      found_rows,
      {
        **{
          name: jnp.sum(each & kept if each.dtype == bool else jnp.where(kept, each, 0.0))
          for name, each in found.items()
        },
        'n': jnp.sum(kept),
        'n_without_labels': jnp.sum(batch['mask'] & ~counts),
      },
    )

  sums = jax.jit(sums, out_shardings=replicated)
  compiled: list[Callable] = []

  def evaluate(params) -> dict[str, float]:
    shard = {'shard': jax.process_index(), 'num_shards': jax.process_count()}
    totals: dict[str, float] = {}
    pending: list[tuple] = []
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    if details:
      details.begin()
    begin = time.perf_counter()
    for batch in data.eval_batches(batch_size, **shard):
      batch = sharding.put(batch, mesh)
      if not compiled:
        with jax.set_mesh(mesh):  # for `layers.shard_batch`
          lowered = sums.lower(params, batch)
          compiled.append(sums if jax.config.jax_disable_jit else lowered.compile())
        begin = time.perf_counter()  # images_per_sec excludes compilation
      pending.append(compiled[0](params, batch))
      if len(pending) == 2:  # the host is at most one batch ahead of the device
        _add(totals, rows, details, *pending.pop(0))
    for part in pending:
      _add(totals, rows, details, *part)
    n, without = totals.pop('n'), totals.pop('n_without_labels')
    if n + without != data.num_examples:
      raise RuntimeError(f'evaluated {n + without} examples of a data set of {data.num_examples}.')
    if n == 0:
      raise InputError(f'none of the {without} images has a label.')
    results = {
      **{name: total / n for name, total in totals.items()},
      **_mean_average_precision(rows),
      'n': n,
      'n_without_labels': without,
      'images_per_sec': data.num_examples / (time.perf_counter() - begin),
    }
    if details:
      details.write(results.get('loss'))
    return results

  return evaluate


def _add(totals: dict, rows: list, details, batch_rows: tuple, found_rows: dict, sums: dict):
  batch_rows, found_rows, sums = jax.device_get((batch_rows, found_rows, sums))
  if details:
    details.add(found_rows)
  if batch_rows:
    logits, labels, kept = batch_rows
    rows.append((logits[kept], labels[kept]))
  for name, value in sums.items():
    totals[name] = totals.get(name, 0) + value.item()


def _mean_average_precision(rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
  """{'mean_average_precision': over the classes that have an image}; {} without rows."""
  if not rows:
    return {}
  logits, labels = map(np.concatenate, zip(*rows, strict=True))
  each = [average_precision(logits[:, k], labels[:, k]) for k in np.flatnonzero(labels.any(axis=0))]
  return {'mean_average_precision': float(np.mean(each))}
