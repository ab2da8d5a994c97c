"""Parameters on disk: read from any known file, written in the layout of the released ones.

python -m mixer.pretrained FILE tells what a file is.
"""

from collections.abc import Mapping, Sequence
import hashlib
import io
import json
import re

from absl import logging
from etils import epath
import jax
import numpy as np

from mixer import files
from mixer.checkpoints import integrity
from mixer.errors import InputError
from mixer.models import mlp_mixer, scanning
from mixer.pretrained import formats, layouts, released


def load(path: epath.PathLike) -> dict:
  """The parameters of a file or a run: a nested dict of float32 arrays in the released layout.

  Args:
    path: an .npz, .safetensors or PyTorch .pth file in any of `layouts.LAYOUTS`, whatever its
      name ends in, or the workdir of a run, whose newest intact checkpoint is taken.

  Raises:
    InputError: no such file, or one that is something else.
  """
  path = epath.Path(path).expanduser()
  flat, _, _ = _load_workdir(path) if path.is_dir() else _load_file(path)
  return nest({name: np.array(array, np.float32, order='C') for name, array in flat.items()})


def identify(path: epath.PathLike) -> dict:
  """{'source', 'bytes', 'sha256'} of a file; of a workdir also 'step', all of that checkpoint.

  A checkpoint is many files: its sha256 is that of its manifest, which has a checksum of each.
  """
  path = epath.Path(path).expanduser()
  if not path.is_dir():
    if not path.exists():
      raise InputError(f'no file {path}; give the path of a file of parameters or of a workdir.')
    return {'source': str(path), **_digest(path)}
  _, step = _open_workdir(path)
  root = path / 'checkpoints' / str(step)
  manifest = json.loads((root / integrity.FILE).read_text())
  return {
    'source': str(path),
    'step': step,
    'bytes': sum(size for size, _ in manifest.values()),
    'sha256': _digest(root / integrity.FILE)['sha256'],
  }


def describe(path: epath.PathLike) -> str:
  """What a file of parameters or a workdir is, as lines of 'what: value'."""
  path = epath.Path(path).expanduser()
  identity = identify(path)
  flat, kind, layout = _load_workdir(path) if path.is_dir() else _load_file(path)
  found = layouts.dimensions(flat)
  sizes = {k: found[k] for k in ('num_blocks', 'hidden_dim', 'tokens_mlp_dim', 'channels_mlp_dim')}
  patch = 'x'.join(map(str, dict.fromkeys(found['patch_size'])))
  names = [f'Mixer-{size}/{patch}' for size, table in mlp_mixer.SIZES.items() if table == sizes]
  pixels = found['image_size']
  head = 'none' if found['num_classes'] is None else f'{found["num_classes"]} classes'
  if 'head/kernel' in flat and not np.any(flat['head/kernel']):
    head += ', ALL ZEROS: it was never trained, and classifies nothing'
  dtypes = ', '.join(sorted({str(array.dtype) for array in flat.values()}))
  lines = {
    'file': identity['source'] + (f', step {identity["step"]}' if 'step' in identity else ''),
    'kind': kind,
    'layout': layout,
    'model': (names or ['Mixer of another size'])[0],
    'sizes': ', '.join(f'{name} {value}' for name, value in sizes.items()),
    'patches': f'{found["patch_size"][0]} x {found["patch_size"][1]} pixels, '
    f'{found["channels"]} channels, {found["tokens"]} tokens'
    + (f', as of images of {pixels[0]} x {pixels[1]}' if pixels else ', which make no square'),
    'head': head,
    'parameters': f'{sum(a.size for a in flat.values()):,} in {len(flat)} arrays of {dtypes}',
    'bytes': f'{identity["bytes"]:,}',
    'sha256': identity['sha256'],
    'known as': released.tell(path.name, path.parent.name, identity['bytes'], found),
  }
  return '\n'.join(f'{what:<11} {value}' for what, value in lines.items())


def save(path: epath.PathLike, params: Mapping) -> None:
  """Writes `params` as an `.npz` in the released layout; an older file stays until it is whole."""
  path = epath.Path(path)
  flat = {
    n: np.asarray(leaf, order='C') for n, leaf in flatten(scanning.unstack_blocks(params)).items()
  }
  buffer = io.BytesIO()
  np.savez(buffer, **flat)
  files.write(path, buffer.getvalue())


def save_model(directory: epath.Path, params: Mapping, description: Mapping) -> None:
  """Writes a trained model: `model.json`, which says how to use it, then `model.npz`."""
  if jax.process_index() == 0:
    files.write(directory / 'model.json', json.dumps(description, indent=1).encode())
    save(directory / 'model.npz', params)


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


def check(params: Mapping, expected: Mapping, source: str, allow: Sequence[str] = ()) -> None:
  """Raises one InputError that lists every name and shape in which the two trees differ.

  Args:
    params: the tree that was found.
    expected: has anything with a shape as leaves, such as the result of `jax.eval_shape`.
    source: where `params` come from, for the message.
    allow: regular expressions; a parameter whose whole name one of them matches may be missing,
      surplus or of another shape, as in ('head/.*',).
  """
  have = {name: tuple(leaf.shape) for name, leaf in flatten(params).items()}
  want = {name: tuple(leaf.shape) for name, leaf in flatten(expected).items()}
  faults = [('missing ', n, f'{want[n]}') for n in sorted(want.keys() - have.keys())]
  faults += [('surplus ', n, f'{have[n]}') for n in sorted(have.keys() - want.keys())]
  faults += [
    ('mismatch', n, f'has {have[n]}, the model needs {want[n]}')
    for n in sorted(want.keys() & have.keys())
    if have[n] != want[n]
  ]
  allowed = [_pattern(text) for text in allow]
  faults = [fault for fault in faults if not any(p.fullmatch(fault[1]) for p in allowed)]
  if faults:
    raise InputError(
      f'{source} does not fit the model in {len(faults)} of {len(want)} parameters:\n'
      + '\n'.join(f'  {kind}  {name} {shapes}' for kind, name, shapes in faults)
      + '\nChoose the model, image size and class count that the file was made with.'
    )


def _pattern(text: str) -> re.Pattern:
  try:
    return re.compile(text)
  except re.error as fault:
    raise InputError(
      f'allow: {text!r} is no regular expression: {fault}; write one as in "head/.*".'
    ) from fault


def _load_file(path: epath.Path) -> tuple[dict[str, np.ndarray], str, str]:
  """(arrays as stored under the released names, kind of file, layout in it)."""
  kind, stored = formats.read(path)
  try:
    flat, layout, dropped = layouts.to_released(stored)
  except InputError as fault:
    raise InputError(f'{path}: {fault}') from fault
  if dropped:
    logging.warning(
      '%s: %d arrays beside the parameters are left out: %s%s',
      path, len(dropped), ', '.join(dropped[:4]), ', ...' if len(dropped) > 4 else '',
    )  # fmt: skip
  return flat, kind, layout


def _load_workdir(path: epath.Path) -> tuple[dict[str, np.ndarray], str, str]:
  saved, step = _open_workdir(path)
  params = saved.restore_params(step)
  layout = 'scanned' if scanning.STACKED in params else 'released'
  flat = {name: np.asarray(leaf) for name, leaf in flatten(scanning.unstack_blocks(params)).items()}
  return flat, 'workdir of a run', layout


def _open_workdir(path: epath.Path):
  """(its checkpoints, the step of the newest intact one)."""
  from mixer.checkpoints import manager  # loads orbax, which takes seconds

  saved = manager.Checkpoints(path.resolve() / 'checkpoints', read_only=True)
  step = saved.latest_intact()
  if step is None:
    models = sorted(file.name for file in path.glob('*.npz'))
    hint = f', or one of its files, {", ".join(models)}' if models else ' or a file'
    raise InputError(
      f'{path} is a directory without an intact checkpoint; give a workdir of train.py{hint}.'
    )
  return saved, step


def _digest(path: epath.Path) -> dict:
  digest, size = hashlib.sha256(), 0
  with path.open('rb') as file:
    while chunk := file.read(1 << 22):
      digest.update(chunk)
      size += len(chunk)
  return {'bytes': size, 'sha256': digest.hexdigest()}
