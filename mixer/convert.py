"""Writes weights for other programs: python -m mixer.convert IN OUT

IN is whatever `mixer.pretrained.open` reads. The end of OUT says what is written:
  .npz          the released layout, as vision_transformer and big_vision read it; --layout=tf is
                that of BiT's own files, --layout=big_vision that of its newer ViTs
  .safetensors  the state dict of timm's model
  .stablehlo    the whole model, images (n, height, width, channels) in [-1, 1] -> logits, for any
                n, on CPU, CUDA and TPU; jax.export.deserialize(...).call runs it without this code
  .onnx         the same for ONNX Runtime and others; needs pip install '.[onnx]'
  /             a folder as timm puts it on a model hub: weights, config.json and a model card; an
                existing folder needs no / if it is empty
What was written is read back, and its outputs are compared with those of IN. What is recorded about
the model of IN is written beside an .npz or .safetensors OUT, with the ending .json.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import importlib
import io
import json
import logging
import os
import tempfile

from absl import flags
from etils import epath
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from mixer import cli, console, files, models, pretrained, sizes
from mixer.errors import InputError
from mixer.pretrained import hub_folder, layouts
from mixer.pretrained.description import Description, beside, facts, read

PLATFORMS = ('cpu', 'cuda', 'tpu')
# The form of GELU is no part of a timm file: our Mixer and ViT, and the released ones, have tanh's.
GELU_NOTE = (
  'timm computes GELU by erf and this model by tanh, up to 4.7e-4 apart at each of them; with '
  "create_model(..., act_layer=timm.layers.GELUTanh) timm's outputs equal these"
)
# In units of the largest output, or of 1. ONNX Runtime rounds otherwise than XLA: the logits of a
# BiT-R50x1 with random weights are 2.6e-5 from those in float64, and XLA's in float32 are 0.8e-5.
_MAX_GAP, _MAX_GAP_ONNX = 1e-5, 1e-4


def convert(
  source: epath.PathLike,
  target: epath.PathLike,
  image_size: tuple[int, int] | None = None,
  which: str | None = None,
  layout: str | None = None,
) -> str:
  """Writes `target` from `source` and returns lines on how their outputs compare.

  `image_size` is needed where nothing is recorded and the patches make no square; `which` is the
  checkpoint of a workdir, see `mixer.pretrained.open`; `layout`, a key of `layouts.WRITTEN`, is for
  an .npz in another one than the released.

  Raises:
    InputError: `source` is no model that `target` can contain, `target` has an unknown suffix or
      is `source`, or the outputs of what was written differ (by more than 1e-5, .onnx 1e-4).
  """
  source, ending, target = pretrained.local(source), _ending(target), _writable(target)
  inputs = (source, source.parent) if ending == _FOLDER else (source,)
  if os.path.realpath(target) in map(os.path.realpath, inputs):
    raise InputError(f'{target} is the input too; give the output another name.')
  found = pretrained.open(source, which)
  if permutation := found.description.permutation:
    raise InputError(
      f'{source} was trained with the input permutation {permutation}, which {target} cannot '
      'contain, and the parameters need it. Use mixer.predict or evaluate.py.'
    )
  description = found.describe(image_size=image_size)
  record = None if ending in _WHOLE else _record(target, found.description.file, description)
  model = models.build(**{**description.model, 'dtype': 'float32'})
  shape = (3, *description.image_size, description.channels)
  images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
  wanted = _forward(model, found.params, images)

  write, run_back = WRITERS[ending]
  if layout is None:
    write(target, model, found.params, _recorded(description, found.description))
  elif ending == '.npz':
    pretrained.save(target, layouts.written(layout, pretrained.flatten(found.params)))
  else:
    raise InputError(f'--layout={layout} is for an .npz; {target} has a layout of its own.')
  if record:
    files.write(record, json.dumps(facts(description), indent=1).encode())
  actual = run_back(target, model, images)

  gap = float(np.abs(actual - wanted).max())
  scale = max(1.0, float(np.abs(wanted).max()))
  outputs = 'pre-logits' if model.num_classes is None else 'logits'
  bound = scale * (_MAX_GAP_ONNX if ending == '.onnx' else _MAX_GAP)
  if not gap <= bound:
    raise InputError(
      f'{target} was written, but its {outputs} differ from those of {source} by {gap:.3g} where '
      f'at most {bound:.3g} is rounding. Do not use it.'
    )
  line = (
    f'{found.source} -> {target}: {outputs} of {len(images)} random images differ by {gap:.3g} at '
    f'most (largest value {np.abs(wanted).max():.3g})'
  )
  is_timm = ending == _FOLDER or {source.suffix, ending} & {'.safetensors', '.pth'}
  # A folder has the form of GELU for a ViT, of which it is an argument.
  without_gelu = ('BiT', 'ViT') if ending == _FOLDER else ('BiT',)
  has_note = not isinstance(model, tuple(models.FAMILIES[name].module for name in without_gelu))
  return f'{line}\n{GELU_NOTE}' if is_timm and has_note else line


def _recorded(description: Description, known: Description) -> Description:
  """The description with the classes and the loss as far as they are `known`, not assumed."""
  classes = description.classes if known.classes or known.class_names else None
  return dataclasses.replace(description, classes=classes, loss=known.loss)


def _record(
  target: epath.Path, source: epath.Path | None, description: Description
) -> epath.Path | None:
  """The file to describe the model of `target` in; None if nothing is recorded, or only in part.

  Args:
    target: the output.
    source: the record of the input; it is not written again.
    description: of the model.

  Raises:
    InputError: another file has this name.
  """
  record = beside(target)
  if source in (None, record) or description.loss is None:
    return None
  if record.exists() and read(target).preprocessing is None:
    raise InputError(f'{record} would describe {target}, and is another file: move it away.')
  return record


def _ending(path: epath.PathLike) -> str:
  """The key of WRITERS for an output: '/' for a folder."""
  ending = os.path.splitext(str(path))[1]
  if str(path).endswith('/') or (ending not in WRITERS and os.path.isdir(os.path.expanduser(path))):
    return _FOLDER
  return ending


def _writable(path: epath.PathLike) -> epath.Path:
  """The path of an output; raises InputError if it has another ending or cannot be written."""
  ending = _ending(path)
  if ending not in WRITERS:
    raise InputError(f'cannot write {path}: give a name that ends in one of {list(WRITERS)}.')
  try:
    target = epath.Path(path).expanduser()
    if not target.parent.is_dir():
      raise InputError(f'cannot write {target}: there is no directory {target.parent}.')
    if ending == _FOLDER:
      hub_folder.check(target)
    elif target.is_dir():
      raise InputError(f'cannot write {target}: it is a directory; give the name of a file.')
    if '://' not in str(target):
      tempfile.TemporaryFile(dir=target if target.is_dir() else target.parent).close()
  except InputError:
    raise
  # A filesystem that is not there raises what it likes: KeyError, or an error of TensorFlow.
  except Exception as fault:
    raise InputError(f'cannot write {path}: {pretrained.reason(fault)}.') from fault
  return target


def _forward(model, params: dict, images: np.ndarray) -> np.ndarray:
  return np.asarray(jax.jit(models.apply_function(model))(params, images))


def _write_npz(path, model, params, description) -> None:
  pretrained.save(path, params)


def _write_safetensors(path, model, params, description) -> None:
  files.write(path, hub_folder.weights(params))


def _write_stablehlo(path, model, params, description) -> None:
  """The parameters become constants of the program, so the file is all that is needed."""
  apply = models.apply_function(model)
  (batch,) = jax.export.symbolic_shape('batch')
  shape = (batch, *description.image_size, description.channels)
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  program = jax.jit(lambda images: apply(params, images))
  exported = jax.export.export(program, platforms=PLATFORMS)(images)
  files.write(path, bytes(exported.serialize()))


def _write_onnx(path, model, params, description) -> None:
  """The input is `images` with the free axis `batch`; the output has the name `logits`."""
  apply = models.apply_function(model)
  logging.disable(logging.WARNING)
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # jax2onnx prints what it does
      jax2onnx, _ = _onnx_module('jax2onnx'), _onnx_module('onnxruntime')
      program = jax2onnx.to_onnx(
        lambda images: apply(params, images),
        [('batch', *description.image_size, description.channels)],
        input_names=['images'],
        output_names=['logits'],
      )
  finally:
    logging.disable(logging.NOTSET)
  content = program.SerializeToString()
  if len(content) >= 2**31:
    raise InputError(f'cannot write {path}: an .onnx of 2 GiB or more needs several files.')
  files.write(path, content)


def _onnx_module(name: str):
  try:
    return importlib.import_module(name)
  except ImportError as fault:
    raise InputError(f"an .onnx needs {name}: pip install '.[onnx]' ({fault}).") from fault


def _run_parameters(path, model, images) -> np.ndarray:
  heads = None if path.is_dir() else getattr(model, 'num_heads', None)
  return _forward(model, pretrained.open(path, num_heads=heads).params, images)


def _run_stablehlo(path, model, images) -> np.ndarray:
  """In two batches of different sizes, for the batch is free."""
  call = jax.export.deserialize(bytearray(path.read_bytes())).call
  return np.concatenate([np.asarray(call(part)) for part in (images[:1], images[1:])])


def _run_onnx(path, model, images) -> np.ndarray:
  """By ONNX Runtime on the CPU, in two batches of different sizes."""
  session = _onnx_module('onnxruntime').InferenceSession(
    path.read_bytes(), providers=['CPUExecutionProvider']
  )
  return np.concatenate(
    [session.run(['logits'], {'images': part})[0] for part in (images[:1], images[1:])]
  )


_FOLDER = '/'
_WHOLE = ('.stablehlo', '.onnx', _FOLDER)  # no record beside them
# ending -> (write it, outputs of what was written)
WRITERS: dict[str, tuple[Callable, Callable]] = {
  '.npz': (_write_npz, _run_parameters),
  '.safetensors': (_write_safetensors, _run_parameters),
  '.stablehlo': (_write_stablehlo, _run_stablehlo),
  '.onnx': (_write_onnx, _run_onnx),
  _FOLDER: (hub_folder.write, _run_parameters),
}


def main(source: str, target: str) -> None:
  image_size = sizes.parse('image_size', flags.FLAGS.image_size)
  console.print_line(convert(source, target, image_size, flags.FLAGS.which, flags.FLAGS.layout))


if __name__ == '__main__':
  flags.DEFINE_list(
    'image_size', None, 'SIDE or HEIGHT,WIDTH in pixels; by default as recorded, or a square.'
  )
  flags.DEFINE_string('which', None, pretrained.WHICH_HELP)
  flags.DEFINE_enum(
    'layout', None, ['tf', 'big_vision'],
    "Of an .npz OUT: tf for a BiT in its own files' names, big_vision for a ViT in its newer ones.",
  )  # fmt: skip
  cli.run(main)
