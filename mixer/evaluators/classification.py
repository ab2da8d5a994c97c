"""Top-1, top-5 and loss over a whole data set, each example counted exactly once."""

from collections.abc import Callable, Mapping
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mixer import batch_ops, losses, sharding


def make(*, apply: Callable, data, loss: str, mesh: Mesh) -> Callable[[Mapping], dict[str, float]]:
  """A function params -> {'top1', 'top5', 'loss', 'n', 'images_per_sec'}.

  Sums are taken over unmasked rows and divided once; a batch is padded to a multiple of the
  devices. An image with several labels counts as right where a guess is among them.

  Args:
    apply: (params, images) -> logits.
    data: a `mixer.input.Input`.
    loss: a name in `losses.LOSSES`.
    mesh: the devices that share each batch.

  Raises (when called):
    RuntimeError: the number of examples counted is not the data set's.
  """
  replicated = sharding.replicated(mesh)
  batch_size = -(-data.batch_size // mesh.size) * mesh.size

  def sums(params, batch):
    labels = batch_ops.label_vectors(batch['label'], data.num_classes)
    logits = apply(params, batch_ops.normalize(batch['image']))
    _, guesses = jax.lax.top_k(logits, min(5, data.num_classes))
    right = jnp.take_along_axis(labels, guesses, axis=-1) > 0
    mask = batch['mask']
    return {
      'top1': jnp.sum(right[:, 0] & mask),
      'top5': jnp.sum(right.any(axis=-1) & mask),
      'loss': jnp.sum(jnp.where(mask, losses.LOSSES[loss](logits, labels), 0.0)),
      'n': jnp.sum(mask),
    }

  sums = jax.jit(sums, out_shardings=replicated)
  compiled: list[jax.stages.Compiled] = []

  def evaluate(params) -> dict[str, float]:
    shard = {'shard': jax.process_index(), 'num_shards': jax.process_count()}
    totals = dict.fromkeys(('top1', 'top5', 'loss', 'n'), 0)
    pending: list[dict] = []
    begin = time.perf_counter()
    for batch in data.eval_batches(batch_size, **shard):
      batch = sharding.put(batch, mesh)
      if not compiled:
        with jax.set_mesh(mesh):  # for `layers.split_examples`
          compiled.append(sums.lower(params, batch).compile())
        begin = time.perf_counter()  # images_per_sec leaves the compilation out
      pending.append(compiled[0](params, batch))
      if len(pending) == 2:  # the host stays one batch ahead of the device, and no more
        _add(totals, pending.pop(0))
    for part in pending:
      _add(totals, part)
    n = totals.pop('n')
    if n != data.num_examples:
      raise RuntimeError(f'evaluated {n} examples of a data set of {data.num_examples}.')
    seconds = time.perf_counter() - begin
    return {**{k: v / n for k, v in totals.items()}, 'n': n, 'images_per_sec': n / seconds}

  return evaluate


def _add(totals: dict, part: dict) -> None:
  for name, value in jax.device_get(part).items():
    totals[name] += value.item()
