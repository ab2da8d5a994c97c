"""Frozen features of a whole data set, every example once and in order; optionally cached."""

from collections.abc import Callable, Mapping
import hashlib
import io
import json
import zipfile

from absl import logging
from etils import epath
import jax
from jax.sharding import Mesh
import numpy as np

from mixer import console, files
from mixer.errors import InputError
from mixer.training import batch_ops, sharding

Features = tuple[np.ndarray, np.ndarray]  # float32 (n, C), labels int32 (n,)


def extractor(features: Callable, *, images_per_device: int, mesh: Mesh) -> Callable[..., Features]:
  """A function (params, data, *, source, batches=None) -> (features (n, C), labels (n,)).

  A device always computes `images_per_device` rows, the last ones padded: the summation order of a
  matmul depends on its shapes, so only then are features bit-identical on any number of devices.

  Args:
    features: (params, images) -> (n, C).
    images_per_device: rows of a batch on each device.
    mesh: the devices that share each batch.

  Raises (when called):
    InputError: a feature is not finite.
    RuntimeError: the number of examples is not the data set's.
  """

  def rows(params, batch):
    values = features(params, batch_ops.normalize(batch['image']))
    return values, batch['label'], batch['mask']

  rows = jax.jit(rows, out_shardings=sharding.replicated(mesh))

  def extract(params, data, *, source: Mapping, batches: int | None = None) -> Features:
    del source  # for `cached`
    shard = {'shard': jax.process_index(), 'num_shards': jax.process_count()}
    found, pending = [], []
    for i, batch in enumerate(data.eval_batches(images_per_device * mesh.size, **shard)):
      if i == batches:
        break
      with jax.set_mesh(mesh):  # for `layers.shard_batch`
        pending.append(rows(params, sharding.put(batch, mesh)))
      if len(pending) == 2:  # the host is at most one batch ahead of the device
        found.append(_unmasked(pending.pop(0)))
    found += [_unmasked(part) for part in pending]
    values, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    if batches is None and len(values) != data.num_examples:
      raise RuntimeError(f'{len(values)} features of a data set of {data.num_examples}.')
    if not np.isfinite(values).all():
      raise InputError('the features are not finite, so the parameters are damaged or diverged.')
    return values, labels

  return extract


def cached(extract: Callable[..., Features], directory: str) -> Callable[..., Features]:
  """`extract`, with its results stored in `directory`.

  The file name is a hash of the parameters, the `source` and facts of the data, and the backend.
  Whatever else the features depend on, such as the model's options, is checked by extracting the
  first batch again: it must be bit-identical. A file that is damaged or differs is replaced.

  Raises:
    InputError: the directory cannot be made, or there are several processes, which may not see
      the same files.
  """
  if jax.process_count() > 1:
    raise InputError('cache_dir works with one process only; leave it out.')
  folder = files.absolute(directory)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as fault:
    raise InputError(f'cannot make cache_dir={directory}: {fault}; give another.') from fault

  def extract_cached(params, data, *, source: Mapping) -> Features:
    path = folder / f'{_key(params, data, source)}.npz'
    kept = _read(path, data.num_examples)
    if kept is not None:
      values, labels = extract(params, data, source=source, batches=1)
      if np.array_equal(kept[0][: len(values)], values) and np.array_equal(
        kept[1][: len(labels)], labels
      ):
        console.print_line(f'features from {path}')
        return kept
      logging.warning('%s is of another model or of other images, and is replaced.', path)
    kept = extract(params, data, source=source)
    content = io.BytesIO()
    np.savez(content, features=kept[0], labels=kept[1])
    files.write(path, content.getvalue())
    return kept

  return extract_cached


def _unmasked(part) -> Features:
  values, labels, mask = jax.device_get(part)
  return values[mask], labels[mask]


def _key(params, data, source: Mapping) -> str:
  digest = hashlib.sha256()
  facts = {
    'input': source,
    'num_examples': data.num_examples,
    'class_names': data.class_names,
    'preprocessing': data.preprocessing,
    'backend': jax.default_backend(),
  }
  digest.update(json.dumps(facts, sort_keys=True).encode())
  body = {name: leaf for name, leaf in params.items() if name != 'head'}
  leaves, _ = jax.tree_util.tree_flatten_with_path(sharding.gather(body))
  for path, leaf in leaves:
    digest.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()[:32]


def _read(path: epath.Path, num_examples: int) -> Features | None:
  """The content of a file, checked by the CRC-32 of its parts; None if absent or damaged."""
  if not path.exists():
    return None
  try:
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
      values, labels = arrays['features'], arrays['labels']
    if len(values) == len(labels) == num_examples:
      return values, labels
    fault = f'{len(values)} features and {len(labels)} labels of {num_examples} images'
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    fault = str(error)
  logging.warning('%s is damaged (%s), and is replaced.', path, fault)
  return None
