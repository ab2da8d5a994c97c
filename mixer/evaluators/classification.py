"""Top-1, top-5 and loss over a whole data set, each example counted exactly once."""

from collections.abc import Callable, Mapping
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mixer.errors import InputError
from mixer.training import batch_ops, losses, sharding

_GUESSES = 5


def make(*, apply: Callable, data, loss: str, mesh: Mesh) -> Callable[[Mapping], dict[str, float]]:
  """A function params -> {'top1', 'top5', 'loss', 'n', 'images_per_sec'}.

  An image with several labels counts as correct if a guess is among them. Multi-label sets also
  have 'precision_at_1' (the same as top1) and 'precision_at_5' (the share of an
  image's five highest classes that are among its labels, averaged over the images).

  Args:
    apply: (params, images) -> logits.
    data: a `mixer.input.Input`.
    loss: a name in `losses.LOSSES`.
    mesh: the devices that share each batch.

  Raises (when called):
    RuntimeError: the number of examples counted is not the data set's.
  """

  def scores(logits, labels):
    right = _right(logits, labels)
    found = {
      'top1': right[:, 0],
      'top5': right.any(axis=-1),
      'loss': losses.LOSSES[loss](logits, labels),
    }
    if data.multi_label:
      found |= {'precision_at_1': right[:, 0], 'precision_at_5': right.mean(axis=-1)}
    return found, jnp.ones(len(labels), bool)

  count = _counter(scores, apply=apply, data=data, mesh=mesh)

  def evaluate(params) -> dict[str, float]:
    results = count(params)
    results.pop('n_without_labels')
    return results

  return evaluate


def make_real(*, apply: Callable, data, mesh: Mesh) -> Callable[[Mapping], dict[str, float]]:
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

  return _counter(scores, apply=apply, data=data, mesh=mesh)


def _right(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Whether each of the highest classes, in descending order, is a label: (n, up to 5)."""
  _, guesses = jax.lax.top_k(logits, min(_GUESSES, labels.shape[-1]))
  return jnp.take_along_axis(labels, guesses, axis=-1) > 0


def _counter(scores: Callable, *, apply: Callable, data, mesh: Mesh):
  """A function params -> the means of scores over all examples, with their number.

  Sums are taken over unmasked rows and divided once; a batch is padded to a multiple of the
  devices. `scores` is (logits, label vectors) -> ({name: (n,)}, (n,) whether a row counts).
  """
  replicated = sharding.replicated(mesh)
  batch_size = -(-data.batch_size // mesh.size) * mesh.size

  def sums(params, batch):
    labels = batch_ops.label_vectors(batch['label'], data.num_classes)
    found, counts = scores(apply(params, batch_ops.normalize(batch['image'])), labels)
    kept = batch['mask'] & counts
    return {
      **{
        name: jnp.sum(each & kept if each.dtype == bool else jnp.where(kept, each, 0.0))
        for name, each in found.items()
      },
      'n': jnp.sum(kept),
      'n_without_labels': jnp.sum(batch['mask'] & ~counts),
    }

  sums = jax.jit(sums, out_shardings=replicated)
  compiled: list[Callable] = []

  def evaluate(params) -> dict[str, float]:
    shard = {'shard': jax.process_index(), 'num_shards': jax.process_count()}
    totals: dict[str, float] = {}
    pending: list[dict] = []
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
        _add(totals, pending.pop(0))
    for part in pending:
      _add(totals, part)
    n, without = totals.pop('n'), totals.pop('n_without_labels')
    if n + without != data.num_examples:
      raise RuntimeError(f'evaluated {n + without} examples of a data set of {data.num_examples}.')
    if n == 0:
      raise InputError(f'none of the {without} images has a label.')
    return {
      **{name: total / n for name, total in totals.items()},
      'n': n,
      'n_without_labels': without,
      'images_per_sec': data.num_examples / (time.perf_counter() - begin),
    }

  return evaluate


def _add(totals: dict, part: dict) -> None:
  for name, value in jax.device_get(part).items():
    totals[name] = totals.get(name, 0) + value.item()
