"""Files of named arrays, recognised by their first bytes; no code in them is ever run."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
import io
import json
import math
import pickle
import re
from typing import NamedTuple
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from mixer.errors import InputError

Flat = dict[str, np.ndarray]

_LEGACY_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # its magic number, pickled
_RUNS_CODE = 'reading it would run whatever code it brings'
# What a file is that begins so -> what to do about it.
_WRONG = (
  (rb'\Z', 'is empty', 'Fetch it again'),
  (
    rb'\s*(\xef\xbb\xbf)?\s*<[!?a-zA-Z]',
    'is an HTML or XML page, not parameters; it begins with {begin!r}',
    'The server answered with a message instead of the file; read it, and fetch the file again',
  ),
  (
    rb'\s*\{',
    'is JSON, not parameters; it begins with {begin!r}',
    'The server may have answered with an error; read it, and fetch the file again',
  ),
  (
    rb'version https://git-lfs',
    'is a pointer of git-lfs, not the file it points to',
    'Fetch the file itself with `git lfs pull`',
  ),
  (
    rb'\x93NUMPY',
    'is a single array (.npy), not a set of named ones',
    'Give the .npz with all parameters',
  ),
  (
    re.escape(_LEGACY_TORCH),
    f'is a .pth of before PyTorch 1.6, which is one pickle: {_RUNS_CODE}',
    'Where you trust it, load it in PyTorch and write its state dict again with torch.save or '
    'safetensors.torch.save_file',
  ),
  (
    rb'\x80[\x02-\x05]',
    f'is a Python pickle: {_RUNS_CODE}',
    'Where you trust it, load it where it was made and write the arrays with numpy.savez',
  ),
  (
    rb'\x1f\x8b|BZh|\xfd7zXZ|.{257}ustar',
    'is a compressed archive',
    'Unpack it, and give the file with the parameters',
  ),
  (
    rb'[\x81-\x8f\xde][\x00-\xff]{0,2}[\xa1-\xbf\xd9]',
    'is a Flax msgpack file',
    'Turn it into an .npz with these two lines of Python:\n'
    '  import flax, numpy, pathlib\n'
    '  numpy.savez({target!r}, **flax.traverse_util.flatten_dict('
    'flax.serialization.msgpack_restore(pathlib.Path({path!r}).read_bytes()), sep="/"))\n'
    'and give that file',
  ),
  (rb'\x89HDF', 'is an HDF5 file, as Keras writes', 'Give an .npz, .safetensors or .pth file'),
)


class Content(NamedTuple):
  """What is in a file.

  Attributes:
    kind: '.npz', '.safetensors' or '.pth'.
    arrays: as they are stored; bfloat16 becomes `ml_dtypes.bfloat16` in whatever form it is stored.
    doubled: names that the file has more than once; `arrays` has the last of each.
    others: what is no array, each 'name (type)'. Nested dicts, as in .pth, give names with '/'.
  """

  kind: str
  arrays: Flat
  doubled: tuple[str, ...] = ()
  others: tuple[str, ...] = ()


def parse(content: bytes, path: str) -> Content:
  """The arrays in the content of a file; `path` is for messages.

  Raises:
    InputError: it is no file of arrays, damaged, or contains something else than arrays.
  """
  kind, reader = _kind(path, content)
  try:
    found = Content(kind, *reader(content))
  except InputError as fault:
    raise InputError(f'{path} ({len(content)} bytes, {kind}) {fault}') from fault
  # Bytes that are wrong in the middle can make zipfile and pickle raise nearly anything.
  except Exception as fault:
    raise InputError(
      f'{path} ({len(content)} bytes, {kind}) is damaged or partial: {fault}. Fetch it again.'
    ) from fault
  if not found.arrays:
    raise InputError(f'{path} ({len(content)} bytes, {kind}) has no array in it.')
  return found


def _doubled(names: Iterable[str]) -> tuple[str, ...]:
  return tuple(name for name, count in Counter(names).items() if count > 1)


def _kind(path: str, content: bytes):
  if content.startswith(b'PK'):
    try:
      names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as fault:
      raise InputError(
        f'{path} ({len(content)} bytes) is a truncated or damaged zip archive, as .npz and .pth '
        f'files are: {fault}. Fetch it again.'
      ) from fault
    if any(name.endswith('data.pkl') for name in names):
      return '.pth', _read_torch
    return '.npz', _read_npz
  if content[8:9] == b'{' and int.from_bytes(content[:8], 'little') < 1 << 28:
    return '.safetensors', _read_safetensors
  for begin, what, advice in _WRONG:
    if re.match(begin, content, re.DOTALL):
      what = what.format(begin=content[:60])
      advice = advice.format(path=path, target=f'{path}.npz')
      raise InputError(f'{path} ({len(content)} bytes) {what}. {advice}.')
  raise InputError(
    f'{path} ({len(content)} bytes) is not a file of parameters; it begins with {content[:60]!r}. '
    'Give an .npz, .safetensors or .pth file, or the workdir of a run.'
  )


def _read_npz(content: bytes) -> tuple[Flat, tuple[str, ...]]:
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    names = archive.namelist()
  foreign = [name for name in names if not name.endswith('.npy')]
  if foreign:
    raise InputError(f'holds {foreign[0]!r}, which is no array. Give a file of parameters alone.')
  with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
    found = {name: _npz_array(arrays, name) for name in arrays.files}
  return found, _doubled(name.removesuffix('.npy') for name in names)


def _npz_array(arrays, name: str) -> np.ndarray:
  try:
    array = arrays[name]
  except ValueError as fault:
    # numpy's own text on Python objects would suggest to run whatever code they bring.
    if 'pickle' not in str(fault):
      raise
    raise InputError(
      f'holds Python objects under {name!r}: {_RUNS_CODE}. Write arrays of numbers alone.'
    ) from fault
  if not isinstance(array, np.ndarray):  # a member that is no .npy inside
    raise ValueError(f'{name} is {array[:20]!r} where an array is due')
  # numpy's format has no bfloat16, and stores it as two-byte void.
  return _numeric(name, array.view(ml_dtypes.bfloat16) if array.dtype == 'V2' else array)


def _numeric(name: str, array: np.ndarray) -> np.ndarray:
  # The extension types of ml_dtypes are of kind 'V', as structured arrays are.
  if array.dtype.kind not in 'fiub' and array.dtype != ml_dtypes.bfloat16:
    raise InputError(f'holds {array.dtype} under {name!r}. Write arrays of numbers alone.')
  return array


_SAFETENSORS_DTYPES = {
  'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
  'I64': np.int64, 'I32': np.int32,
}  # fmt: skip


def _read_safetensors(content: bytes) -> tuple[Flat, tuple[str, ...]]:
  """Its numpy API knows no bfloat16, so the views are made here."""
  # The library keeps one of the entries with the same name, or calls the file damaged.
  header = content[8 : 8 + int.from_bytes(content[:8], 'little')]
  doubled = _doubled(name for name, _ in json.loads(header, object_pairs_hook=list))
  try:
    tensors = safetensors.deserialize(content)
  except safetensors.SafetensorError as fault:
    if doubled:
      raise InputError(f'has several arrays named {", ".join(doubled[:4])}.') from fault
    raise
  found = {}
  for name, tensor in tensors:
    if tensor['dtype'] not in _SAFETENSORS_DTYPES:
      raise InputError(
        f'holds {tensor["dtype"]} under {name!r}. Known are {", ".join(_SAFETENSORS_DTYPES)}.'
      )
    dtype = _SAFETENSORS_DTYPES[tensor['dtype']]
    found[name] = np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])
  return found, doubled


# --- PyTorch -------------------------------------------------------------------------------

_STORAGES = {
  'FloatStorage': np.dtype(np.float32), 'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16), 'DoubleStorage': np.dtype(np.float64),
  'LongStorage': np.dtype(np.int64), 'IntStorage': np.dtype(np.int32),
  'ShortStorage': np.dtype(np.int16), 'CharStorage': np.dtype(np.int8),
  'ByteStorage': np.dtype(np.uint8), 'BoolStorage': np.dtype(np.bool_),
}  # fmt: skip


def _read_torch(content: bytes) -> tuple[Flat, tuple[str, ...], tuple[str, ...]]:
  """The tensors of a pickle of names and of where each tensor lies in the zip."""
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    names = archive.namelist()
    (index,) = {name for name in names if name.endswith('data.pkl')}
    root = index.removesuffix('data.pkl')
    if f'{root}byteorder' in names and archive.read(f'{root}byteorder') != b'little':
      raise InputError('is of a big-endian machine. Save it again on a little-endian one.')
    unpickler = _TensorUnpickler(archive, root)
    found = unpickler.load()
  tensors: Flat = {}
  others: dict[str, object] = {}
  _collect(found if isinstance(found, Mapping) else {'': found}, '', tensors, others)
  asked = [other.origin for other in others.values() if isinstance(other, _Placeholder)]
  if not tensors and asked:
    raise InputError(
      f'asks for {asked[0]}, and {_RUNS_CODE}. Where you trust it, load it in PyTorch and save '
      'model.state_dict() alone.'
    )
  if not tensors and others:
    raise InputError(
      f'holds {", ".join(list(others)[:4])} that are no tensors. Save model.state_dict() alone.'
    )
  described = (
    f'{name} ({getattr(other, "origin", type(other).__name__)})' for name, other in others.items()
  )
  return tensors, (*_doubled(names), *unpickler.doubled), tuple(described)


def _collect(found: Mapping, prefix: str, tensors: Flat, others: dict[str, object]) -> None:
  """Sorts what is in nested dicts, by names joined by '/'."""
  for key, value in found.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping):
      _collect(value, f'{name}/', tensors, others)
    elif isinstance(value, np.ndarray):
      tensors[name] = value
    else:
      others[name] = value


class _Placeholder:
  """Stands for an object that is not built: it takes whatever a pickle does to it, and is inert."""

  origin = ''  # what the file asks for

  def __new__(cls, *_, **__):
    return object.__new__(cls)

  def __init__(self, *_, **__):
    pass

  def __call__(self, *_, **__):
    return self

  def __setstate__(self, _):
    pass

  def __setitem__(self, *_):
    pass

  def append(self, _):
    pass

  def extend(self, _):
    pass


class _TensorUnpickler(pickle.Unpickler):
  """Builds dicts of arrays and nothing else: each global is looked up in a table here."""

  def __init__(self, archive: zipfile.ZipFile, root: str):
    super().__init__(io.BytesIO(archive.read(f'{root}data.pkl')))
    self._archive, self._root = archive, root
    self.doubled: list[str] = []

  def find_class(self, module: str, name: str):
    # A new one for each look-up: a pickle can set attributes on what it gets.
    known = {
      ('collections', 'OrderedDict'): lambda: type('Once', (_OnceDict,), {'doubled': self.doubled}),
      ('torch._utils', '_rebuild_tensor_v2'): lambda: lambda *args: _rebuild_tensor(*args),
      ('torch._utils', '_rebuild_parameter'): lambda: lambda tensor, *_: tensor,
      ('torch._tensor', '_rebuild_from_type_v2'): lambda: lambda make, _, args, __: make(*args),
      **{('torch', s): lambda dtype=dtype: lambda: dtype for s, dtype in _STORAGES.items()},
    }
    if (module, name) in known:
      return known[module, name]()
    return type('Placeholder', (_Placeholder,), {'origin': f'{module}.{name}'})

  def persistent_load(self, pid):
    kind, storage, key, _, count = pid
    if kind != 'storage':
      raise ValueError(f'{kind!r} where a storage is due')
    dtype = storage()
    if isinstance(dtype, _Placeholder):  # of a type that no parameter has
      return dtype
    return np.frombuffer(self._archive.read(f'{self._root}data/{key}'), dtype, count)


class _OnceDict(OrderedDict):
  """Notes the keys that are set twice, in `doubled`."""

  doubled: list[str]

  def __setitem__(self, key, value):
    if key in self:
      self.doubled.append(str(key))
    super().__setitem__(key, value)


def _rebuild_tensor(storage, offset, shape, strides, *_) -> np.ndarray | _Placeholder:
  """The (strided) view of a storage, copied; the numbers are checked, for numpy does not."""
  if isinstance(storage, _Placeholder):
    return storage
  numbers = (offset, *shape, *strides)
  if len(shape) != len(strides) or any(not isinstance(n, int) or n < 0 for n in numbers):
    raise ValueError(f'a tensor of shape {shape}, strides {strides}, offset {offset}')
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if 0 in shape:
    return np.zeros(shape, storage.dtype)
  if last >= storage.size or math.prod(shape) > storage.size:
    raise ValueError(f'a tensor of shape {shape} up to {last} in a storage of {storage.size}')
  steps = [stride * storage.itemsize for stride in strides]
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()
