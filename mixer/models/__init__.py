"""Models by name, and functions that work on any of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import difflib
import functools
import re
from typing import NamedTuple

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer import values
from mixer.errors import InputError
from mixer.models import bit_resnet, layers, mlp_mixer, permutations, scanning, vit
from mixer.training import param_groups


class Family(NamedTuple):
  """A family of models: `sizes` maps the size in a name to options of `module`."""

  module: type[nn.Module]
  sizes: Mapping[str, dict]
  matmul_flops: Callable[..., dict[str, int]]


FAMILIES = {
  'Mixer': Family(mlp_mixer.MlpMixer, mlp_mixer.SIZES, mlp_mixer.matmul_flops),
  'ViT': Family(vit.VisionTransformer, vit.SIZES, vit.matmul_flops),
  'BiT': Family(bit_resnet.BitResNet, bit_resnet.SIZES, bit_resnet.matmul_flops),
}


def build(name: str, num_classes: int | None, **options) -> nn.Module:
  """A linen module: `apply({'params': p}, images)` gives logits (n, num_classes), float32.

  Args:
    name: '<family>-<size>/<patch>' with any patch size, such as 'Mixer-B/16' (Table 1 of the
      paper) or 'ViT-L/32', '<family>-<size>' for a family without patches, as in 'BiT-R50x1', or
      a family alone, 'Mixer', 'ViT' or 'BiT', with all dimensions among the options.
    num_classes: width of the head; None returns the pooled pre-logits (n, hidden_dim).
    **options: fields of the family's module; they override those of the size.

  Raises:
    InputError: an unknown name or option, a missing dimension, or a value out of range.
  """
  family, preset = _parse(name)
  module = FAMILIES[family].module
  fields = _fields(module)
  for option in options:
    if option not in fields:
      close = difflib.get_close_matches(option, fields, n=1)
      hint = f' Did you mean {close[0]!r}?' if close else ''
      raise InputError(f'{family} has no option {option!r}; it has {sorted(fields)}.{hint}')
  arguments = {**preset, **options, 'num_classes': num_classes}
  missing = [
    n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in arguments
  ]
  if missing:
    raise InputError(f'model {name!r} names no size, so it needs {missing} too.')
  return module(**{name: _hashable(value) for name, value in arguments.items()})


def _hashable(value):
  """Lists, such as those of a JSON file, become tuples."""
  return tuple(map(_hashable, value)) if isinstance(value, list) else value


def faults(section: Mapping) -> list[str]:
  """What is wrong with the section `config.model`; a sentence for each fault."""
  if 'name' not in section:
    return ["config.model: 'name' is missing, such as 'Mixer-B/16'."]
  try:
    family, _ = _parse(section['name'])
    fields = _fields(FAMILIES[family].module)
    own = {key: value for key, value in section.items() if key in fields}
    found = [values.fault(f'config.model.{key}', fields[key].type, own[key]) for key in own]
    found = [fault for fault in found if fault]
    if not found:
      build(**section, num_classes=None)
  except InputError as fault:
    return [f'config.model: {fault}']
  return found


def with_defaults(section: Mapping) -> dict:
  """`config.model` with all options of its family, as its name and the defaults give them."""
  try:
    family, preset = _parse(section.get('name'))
  except InputError:
    return dict(section)
  fields = _fields(FAMILIES[family].module)
  defaults = {n: f.default for n, f in fields.items() if f.default is not dataclasses.MISSING}
  return {**defaults, **preset, **section}


def without_effect(section: Mapping) -> list[str]:
  """What in `config.model` changes nothing, because of other options there; a sentence for each."""
  _, preset = _parse(section['name'])
  named = {key: value for key, value in preset.items() if section.get(key, value) != value}
  found = []
  if named:
    used = ', '.join(f'{key}={section[key]}' for key in named)
    meant = ', '.join(f'{key}={value}' for key, value in named.items())
    found.append(
      f'config.model.name={section["name"]} stands for {meant}, but the config has {used}, which '
      'come first. For the named model, leave out those keys, as in '
      f'--config.model="{{\'name\': {section["name"]!r}}}".'
    )
  blocks = {**preset, **section}.get('num_blocks')
  depth = section.get('stochastic_depth')
  if depth and blocks == 1:
    found.append(f'config.model.stochastic_depth={depth} has no effect on one block.')
  if section.get('rescale_drop_path') and not depth:
    found.append('config.model.rescale_drop_path has no effect without stochastic_depth.')
  if section.get('grouping', 'concat') != 'concat' and section.get('channel_groups', 1) == 1:
    found.append(f'config.model.grouping={section["grouping"]} has no effect with one group.')
  return found


def in_released_layout(model: nn.Module) -> nn.Module:
  """The same model for parameters in the released layout: without `scan`."""
  return model.clone(scan=False) if getattr(model, 'scan', False) else model


def to_model_layout(model: nn.Module, params: dict) -> dict:
  """Parameters in the released layout -> the layout of `model`: stacked if it scans."""
  return scanning.stack_blocks(params) if getattr(model, 'scan', False) else params


def apply_function(
  model: nn.Module, permutation: Mapping | None = None, image_size: layers.Size | None = None
) -> Callable[..., jax.Array]:
  """(params, images, example_keys=None) -> logits, or pre-logits of a model without a head.

  Args:
    model: of this package.
    permutation: `config.permutation`, which moves the pixels of the images first.
    image_size: of the images; needed with a permutation only.
  """

  def apply(params, images, example_keys=None):
    return model.apply({'params': params}, images, example_keys)

  return permutations.before(apply, permutation, image_size)


def features_function(
  model: nn.Module, permutation: Mapping | None = None, image_size: layers.Size | None = None
) -> Callable[..., jax.Array]:
  """(params, images, example_keys=None) -> pooled pre-logits (n, hidden_dim), float32.

  The arguments are those of `apply_function`. The parameters may have a head of any width, or
  none: Flax ignores parameters without a module.
  """
  return apply_function(model.clone(num_classes=None), permutation, image_size)


def rounding(model: nn.Module) -> Callable[[Mapping], Mapping]:
  """A function that rounds parameters as the model does before it uses them.

  So the model's results stay the same, bit for bit. These are the kernels of the layers that
  compute in `model.dtype`; a ResNet standardises them before it rounds.
  """

  def rounded(path: Sequence, leaf: jax.Array) -> jax.Array:
    is_rounded = path[-1].key == 'kernel' and path[0].key != 'head'
    return leaf.astype(model.dtype) if is_rounded else leaf

  if isinstance(model, bit_resnet.BitResNet):
    return lambda params: params
  return lambda params: jax.tree_util.tree_map_with_path(rounded, params)


def init(model: nn.Module, key: jax.Array, image_size: layers.Size, channels: int = 3) -> dict:
  """Fresh float32 parameters, a nested dict. The values do not depend on `model.scan`."""
  images = jnp.zeros((1, *layers.pair(image_size), channels))
  return to_model_layout(model, in_released_layout(model).init(key, images)['params'])


def shapes(model: nn.Module, image_size: layers.Size, channels: int = 3) -> dict:
  """The parameters of `init` as ShapeDtypeStructs, without computing them."""
  return jax.tree.map(lambda x: x, _traced_shapes(model, layers.pair(image_size), channels))


@functools.lru_cache(maxsize=64)
def _traced_shapes(model: nn.Module, image_size: tuple[int, int], channels: int) -> dict:
  """Tracing a large model takes seconds, so the shapes of each model are kept."""
  return jax.eval_shape(lambda: init(model, jax.random.key(0), image_size, channels))


def layout(model: nn.Module, params: Mapping) -> param_groups.Layout:
  """What optimizers know of the parameters (arrays or shapes) of a model."""
  flat = traverse_util.flatten_dict(params)
  stacked = {path: scanning.released_names(path, leaf.shape[0]) for path, leaf in flat.items()}
  names = {path: stacked[path] or ['/'.join(path)] for path in flat}
  ends = (model.trunk[0], 'head')
  hidden = {
    path: leaf
    for path, leaf in flat.items()
    if path[-1] == 'kernel' and not any(param_groups.matches(end, names[path][0]) for end in ends)
  }
  return param_groups.Layout(
    sizes={path: leaf.size for path, leaf in flat.items()},
    names=names,
    trunk=model.trunk,
    matrices={
      path: _matrix_axes(path, leaf.ndim, first=1 if stacked[path] else 0)
      for path, leaf in hidden.items()
    },
  )


def _matrix_axes(path: Sequence[str], ndim: int, first: int) -> tuple[Sequence[int], Sequence[int]]:
  """(input axes, output axes) of a kernel, whose axes before `first` count blocks."""
  if 'untied_token_mixing' in path:
    first += 1  # a matrix for each channel
  axes = tuple(range(first, ndim))
  inputs = 1 if path[-2] in ('query', 'key', 'value') else len(axes) - 1
  return axes[:inputs], axes[inputs:]


def intermediates(model: nn.Module, params: dict, images: jax.Array) -> dict[str, jax.Array]:
  """The outputs of the model's `layer_names`, its 'pre_logits' and its 'output'.

  Mixer: 'stem' (n, rows, columns, C) and each 'MixerBlock_i' (n, tokens, C). ViT: 'embedding' and
  each 'encoderblock_i' with the same shapes, where a class token is the first token. BiT:
  'root_block' and each 'block<i>' (n, height, width, channels). 'pre_logits' is (n, hidden_dim)
  and 'output' is the model's own result. `params` may be in the released layout or stacked.
  """
  layer_names = model.layer_names
  output, state = (
    in_released_layout(model)
    .clone(remat=False)
    .apply(
      {'params': scanning.unstack_blocks(params)},
      images,
      capture_intermediates=lambda module, _: module.name in layer_names,
      mutable=['intermediates'],
    )
  )
  found = traverse_util.flatten_dict(state['intermediates'])
  outputs = {path[-2]: values[0] for path, values in found.items() if path[-1] == '__call__'}
  return {
    **{name: outputs[name] for name in layer_names},
    'pre_logits': found['features',][0],
    'output': output,
  }


def train_flops(
  model: nn.Module,
  image_size: layers.Size,
  channels: int = 3,
  frozen_names: Collection[str] = (),
) -> int:
  """FLOPs of a training step per image, from the matmuls alone.

  The backward pass costs two forward passes, minus the gradient with respect to the image, which
  the stem does not compute. With frozen parameters (named as in the released layout), it has the
  operations that JAX traces, a few percent of which are not matmuls.
  """
  if frozen_names:
    traced = _traced_flops(model, image_size, channels, frozen_names)
    if traced is not None:
      return traced
  parts = _matmul_flops(model, image_size, channels)
  return 3 * sum(parts.values()) - parts['stem']


def inference_flops(model: nn.Module, image_size: layers.Size, channels: int = 3) -> int:
  """FLOPs of the forward pass per image, from the matmuls alone."""
  return sum(_matmul_flops(model, image_size, channels).values())


def _matmul_flops(model: nn.Module, image_size: layers.Size, channels: int) -> dict[str, int]:
  family = next(family for family in FAMILIES.values() if isinstance(model, family.module))
  return family.matmul_flops(model, image_size, channels)


def _traced_flops(
  model: nn.Module, image_size: layers.Size, channels: int, frozen_names: Collection[str]
) -> int | None:
  off = {name: False for name in ('scan', 'remat', 'fused_attention') if hasattr(model, name)}
  plain = model.clone(**off)
  frozen = frozenset(tuple(name.split('/')) for name in frozen_names)
  trained, kept = param_groups.divide(shapes(plain, image_size, channels), frozen)
  images = jax.ShapeDtypeStruct((1, *layers.pair(image_size), channels), jnp.float32)

  def total(trained, kept, images):
    return jnp.sum(plain.apply({'params': param_groups.merge(trained, kept)}, images))

  try:  # plugins of accelerators do not count
    where = jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    where = None
  with jax.default_device(where):
    lowered = jax.jit(jax.value_and_grad(total)).lower(trained, kept, images)
  cost = lowered.cost_analysis()
  return round(cost['flops']) if cost else None


def _fields(module: type[nn.Module]) -> dict[str, dataclasses.Field]:
  """The options of a family's module."""
  return {f.name: f for f in dataclasses.fields(module) if f.name not in ('name', 'parent')}


def _parse(name: str) -> tuple[str, dict]:
  """(the family, the options that its size stands for) of a model's name."""
  parsed = re.fullmatch(r'([A-Za-z]+)(?:-(\w+)(?:/([1-9]\d*))?)?', str(name))
  family, size, patch = parsed.groups() if parsed else (None, None, None)
  if family in FAMILIES:
    module, sizes, _ = FAMILIES[family]
    if size is None:
      return family, {}
    if size in sizes and _has_patches(module) == (patch is not None):
      return family, {**sizes[size], **({'patch_size': int(patch)} if patch else {})}
  known = ', '.join(
    f'{family}-{size}/<patch>' if _has_patches(module) else f'{family}-{size}'
    for family, (module, sizes, _) in FAMILIES.items()
    for size in sizes
  )
  raise InputError(f'unknown model {name!r}; write one of {known}, as in Mixer-B/16.')


def _has_patches(module: type[nn.Module]) -> bool:
  """Whether a family's module divides the image into patches."""
  return 'patch_size' in module.__dataclass_fields__
