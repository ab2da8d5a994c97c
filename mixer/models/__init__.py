"""Models by name, and what one can ask of any of them."""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.errors import InputError
from mixer.models import bit_resnet, layers, mlp_mixer, permutations, scanning

# family -> (module, the sizes a name may pick)
FAMILIES = {
  'Mixer': (mlp_mixer.MlpMixer, mlp_mixer.SIZES),
  'BiT': (bit_resnet.BitResNet, bit_resnet.SIZES),
}
_FLOPS = {
  mlp_mixer.MlpMixer: mlp_mixer.matmul_flops,
  bit_resnet.BitResNet: bit_resnet.matmul_flops,
}
DTYPES = ('float32', 'bfloat16')


def build(name: str, num_classes: int | None, **options) -> nn.Module:
  """A linen module: `apply({'params': p}, images)` gives logits (n, num_classes), float32.

  Args:
    name: '<family>-<size>/<patch>' such as 'Mixer-B/16' or 'Mixer-L/8' (Table 1 of the paper;
      any patch size goes with any size), '<family>-<size>' of a family without patches, as in
      'BiT-R50x1', or a family alone, 'Mixer' or 'BiT', with every dimension among the options.
    num_classes: width of the head; None returns the pooled pre-logits (n, hidden_dim).
    **options: fields of the family's module, which win over the size's.

  Raises:
    InputError: an unknown name, option or dtype, or a dimension that is missing.
  """
  parsed = re.fullmatch(r'([A-Za-z]+)(?:-(\w+)(?:/([1-9]\d*))?)?', name)
  family, size, patch = parsed.groups() if parsed else (None, None, None)
  module, sizes = FAMILIES.get(family, (None, {}))
  if module is None or (
    size is not None and (size not in sizes or _has_patches(module) != (patch is not None))
  ):
    known = ', '.join(
      f'{f}-{s}/<patch>' if _has_patches(m) else f'{f}-{s}'
      for f, (m, table) in FAMILIES.items()
      for s in table
    )
    raise InputError(f'unknown model {name!r}; write one of {known}, as in Mixer-B/16.')
  preset = {**sizes[size], **({'patch_size': int(patch)} if patch else {})} if size else {}
  fields = {f.name: f for f in dataclasses.fields(module) if f.name not in ('name', 'parent')}
  for option in options:
    if option not in fields:
      close = difflib.get_close_matches(option, fields, n=1)
      hint = f' Did you mean {close[0]!r}?' if close else ''
      raise InputError(f'{family} has no option {option!r}; it has {sorted(fields)}.{hint}')
  values = {**preset, **options, 'num_classes': num_classes}
  missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
  if missing:
    raise InputError(f'model {name!r} names no size, so it needs {missing} too.')
  if values.get('dtype', 'float32') not in DTYPES:
    raise InputError(f'unknown dtype {values["dtype"]!r}; use one of {DTYPES}.')
  if _has_patches(module):
    layers.pair(values['patch_size'])
  for name in ('stochastic_depth', 'dropout'):
    if not 0 <= values.get(name, 0.0) < 1:
      raise InputError(f'{name} is {values[name]}; it is a rate, at least 0 and below 1.')
  for name in ('num_blocks', 'hidden_dim', 'tokens_mlp_dim', 'channels_mlp_dim'):
    if values.get(name, 1) < 1:
      raise InputError(f'{name} is {values[name]}; it is at least 1.')
  if module is bit_resnet.BitResNet:
    bit_resnet.check(values['stage_sizes'], values['width'], values.get('groups', 32))
  return module(**values)


def in_released_layout(model: nn.Module) -> nn.Module:
  """The model for parameters in the released layout: blocks that are scanned no longer are."""
  return model.clone(scan=False) if getattr(model, 'scan', False) else model


def to_model_layout(model: nn.Module, params: dict) -> dict:
  """Parameters in the released layout, as `model` takes them: stacked where it scans."""
  return scanning.stack_blocks(params) if getattr(model, 'scan', False) else params


def apply_function(
  model: nn.Module, permutation: Mapping | None = None, image_size: layers.Size | None = None
) -> Callable[..., jax.Array]:
  """(params, images, example_keys=None) -> what the model returns.

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
  none: Flax ignores what a model lacks.
  """
  return apply_function(model.clone(num_classes=None), permutation, image_size)


def init(model: nn.Module, key: jax.Array, image_size: layers.Size, channels: int = 3) -> dict:
  """Fresh float32 parameters, a nested dict; the same numbers whether or not blocks are scanned."""
  if _has_patches(model):
    layers.patch_grid(image_size, model.patch_size)
  images = jnp.zeros((1, *layers.pair(image_size), channels))
  return to_model_layout(model, in_released_layout(model).init(key, images)['params'])


def shapes(model: nn.Module, image_size: layers.Size, channels: int = 3) -> dict:
  """The parameters of `init` as ShapeDtypeStructs, without computing anything."""
  return jax.eval_shape(lambda: init(model, jax.random.key(0), image_size, channels))


def intermediates(model: nn.Module, params: dict, images: jax.Array) -> dict[str, jax.Array]:
  """What the network computes on the way: its `layer_names`, 'pre_logits' and 'output'.

  Of a Mixer, whose `params` may be in the released layout or stacked: 'stem' (n, rows, columns,
  C) and each 'MixerBlock_i' (n, tokens, C). Of a BiT: 'root_block' and each 'block<i>' (n, height,
  width, channels). The pre-logits are (n, C), and 'output' is what the model itself returns.
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
  found = state['intermediates']
  return {
    **{name: found[name]['__call__'][0] for name in layer_names},
    'pre_logits': found['pre_logits'][0],
    'output': output,
  }


def train_flops(model: nn.Module, image_size: layers.Size, channels: int = 3) -> int:
  """FLOPs of one image's share of a training step, from the matmuls alone.

  The backward pass costs two forward passes, less the gradient with respect to the image,
  which the stem need not compute.
  """
  parts = _FLOPS[type(model)](model, image_size, channels)
  return 3 * sum(parts.values()) - parts['stem']


def _has_patches(model) -> bool:
  """Whether a model, or a family's module, divides the image into patches."""
  return 'patch_size' in model.__dataclass_fields__
