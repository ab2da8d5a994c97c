"""Parameters on disk: `.npz` files in the layout of the released ones, and nested dicts."""

from collections.abc import Mapping
import io
import json
import re
import zipfile
import zlib

from etils import epath
import jax
import ml_dtypes
import numpy as np

from mixer import files
from mixer.errors import InputError

_BLOCK = re.compile(r'MixerBlock_(\d+)')
_STACKED = 'MixerBlocks'


def load(path: epath.PathLike) -> dict:
  """The nested dict of float32 arrays in an `.npz` file with '/'-joined names.

  Raises:
    InputError: no such file, or a file that is not an npz of arrays.
  """
  path = epath.Path(path)
  if not path.exists() or path.is_dir():
    raise InputError(f'no file {path}; give the path of an .npz with parameters.')
  content = path.read_bytes()
  if not content.startswith(b'PK'):
    raise InputError(
      f'{path} is not an .npz file: its {len(content)} bytes begin with {content[:60]!r}. '
      'It may be a partial download or an error page; fetch it again.'
    )
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
      flat = {name: _readable(arrays[name]) for name in arrays.files}
  except (
    zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError, OSError
  ) as fault:  # fmt: skip
    # numpy's own text on Python objects would suggest to run whatever code they bring.
    reason = 'it holds Python objects' if 'pickle' in str(fault) else fault
    raise InputError(
      f'{path} ({len(content)} bytes) is a damaged or foreign .npz: {reason}. Fetch it again.'
    ) from fault
  return nest(flat)


def save(path: epath.PathLike, params: Mapping) -> None:
  """Writes `params` as an `.npz` in the released layout; an older file stays until it is whole."""
  path = epath.Path(path)
  flat = {name: np.asarray(leaf) for name, leaf in flatten(unstack_blocks(params)).items()}
  buffer = io.BytesIO()
  np.savez(buffer, **flat)
  files.write(path, buffer.getvalue())


def save_model(directory: epath.Path, params: Mapping, description: Mapping) -> None:
  """Writes a trained model: `model.json`, which says how to use it, then `model.npz`."""
  if jax.process_index() == 0:
    files.write(directory / 'model.json', json.dumps(description, indent=1).encode())
    save(directory / 'model.npz', params)


def _readable(array: np.ndarray) -> np.ndarray:
  """float32 of a stored array; bfloat16 comes out of numpy's format as 2-byte void."""
  if not isinstance(array, np.ndarray):  # a zip's member that is not an .npy file
    raise ValueError(f'it holds {array[:20]!r} where an array is due')
  if array.dtype == np.dtype('V2'):
    array = array.view(ml_dtypes.bfloat16)
  return array.astype(np.float32)


def flatten(tree: Mapping) -> dict[str, np.ndarray]:
  """{'a': {'b': x}} -> {'a/b': x}, in sorted order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {'/'.join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def nest(flat: Mapping[str, np.ndarray]) -> dict:
  """{'a/b': x} -> {'a': {'b': x}}."""
  tree: dict = {}
  for name, leaf in flat.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def check(params: Mapping, expected: Mapping, source: str) -> None:
  """Raises one InputError that lists every name and shape in which the two trees differ.

  `expected` has anything with a shape as leaves, such as the result of `jax.eval_shape`.
  """
  have = {name: tuple(leaf.shape) for name, leaf in flatten(params).items()}
  want = {name: tuple(leaf.shape) for name, leaf in flatten(expected).items()}
  faults = [f'  missing   {n} {want[n]}' for n in sorted(want.keys() - have.keys())]
  faults += [f'  surplus   {n} {have[n]}' for n in sorted(have.keys() - want.keys())]
  faults += [
    f'  mismatch  {n} has {have[n]}, the model needs {want[n]}'
    for n in sorted(want.keys() & have.keys())
    if have[n] != want[n]
  ]
  if faults:
    raise InputError(
      f'{source} does not fit the model in {len(faults)} of {len(want)} parameters:\n'
      + '\n'.join(faults)
      + '\nChoose the model, image size and class count that the file was made with.'
    )


def stack_blocks(params: Mapping) -> dict:
  """The released layout -> one 'MixerBlocks' subtree with a leading axis over the blocks."""
  blocks = {int(m[1]): name for name in params if (m := _BLOCK.fullmatch(name))}
  stacked = jax.tree.map(
    lambda *leaves: jax.numpy.stack(leaves), *(params[blocks[i]] for i in sorted(blocks))
  )
  return {**{k: v for k, v in params.items() if k not in blocks.values()}, _STACKED: stacked}


def unstack_blocks(params: Mapping) -> dict:
  """The inverse of `stack_blocks`; a tree in the released layout comes back unchanged."""
  if _STACKED not in params:
    return dict(params)
  stacked = params[_STACKED]
  count = len(jax.tree.leaves(stacked)[0])
  blocks = {f'MixerBlock_{i}': jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)}
  return {**{k: v for k, v in params.items() if k != _STACKED}, **blocks}
