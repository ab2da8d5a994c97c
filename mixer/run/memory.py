"""The memory that a train step needs, estimated from shapes: known before it is compiled."""

from collections.abc import Callable, Collection
import dataclasses
import math

from absl import logging
import jax
import jax.numpy as jnp

from mixer import hardware, models
from mixer.errors import InputError
from mixer.run import build
from mixer.training import losses, param_groups, sharding

# XLA fuses elementwise operations, whose results it then computes twice instead of keeping them.
# It keeps 0.55 to 0.75 of what JAX would of a Mixer, measured on a CPU; a scan keeps all. With
# these values, estimates are within 1.5 times the compiler's figure.
_KEPT, _KEPT_OF_RESNET = 0.6, 0.9
_ACCURACY = 1.5
_MOST_PARTS = 65_536
_MARGIN = 0.8  # of the memory is filled by what is proposed


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of one device.

  Attributes:
    state: bytes of parameters, their average, gradients and optimizer state, of a teacher's
      parameters, and of the copy of the parameters that a step gathers.
    image: bytes of an image of the batch, with its label.
    activations: bytes that an image of a microbatch needs in the model, and in a teacher.
    batch: images of the batch.
    microbatches: its parts.
  """

  state: int
  image: float
  activations: float
  batch: int
  microbatches: int

  @property
  def total(self) -> float:
    return self.of(self.batch, self.microbatches)

  def of(self, batch: int, microbatches: int) -> float:
    """Bytes with another batch."""
    return self.state + batch * (self.image + self.activations / microbatches)


def estimate(config: build.TrainConfig, program: build.Program) -> Estimate:
  """The memory of a step, without the compiler; see `train_step.compiled_bytes`."""
  data, batch = program.data, program.data.batch_size // program.mesh.size
  rows = batch // config.microbatches
  label = data.num_classes if data.multi_label else 4
  params, like = program.like.params, program.like
  trained, _ = param_groups.divide(params, program.groups.frozen)
  gathered = program.split_update and program.split_update.shapes(params)
  held = (params, trained, like.opt_state, like.ema, program.teacher_like, gathered)
  return Estimate(
    state=sum(map(sharding.bytes_per_device, held)),
    image=math.prod(data.image_size) * data.channels + label,
    activations=(_activations(config, program, rows) + _of_teacher(config, program, rows)) / rows,
    batch=batch,
    microbatches=config.microbatches,
  )


def _activations(config: build.TrainConfig, program: build.Program, rows: int) -> float:
  """Bytes that the backward pass needs of the forward pass."""
  model, frozen = program.model, program.groups.frozen
  scans, remats = (getattr(model, name, False) for name in ('scan', 'remat'))
  if jax.default_backend() == 'cpu':  # computes in float32; `remat` has an effect in a loop only
    model, remats = model.clone(dtype='float32'), remats and scans
  plain = _without_remat(model)

  def kept_by(model, frozen=()) -> int:
    apply = models.apply_function(model, config.permutation, program.data.image_size)
    params = program.like.params

    def kept(rows: int) -> int:
      return sum(_residuals(config, program, rows, apply, params, frozen))

    if frozen:  # only some parameters are kept
      return kept(2 * rows) - kept(rows)
    return max(kept(rows) - sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)), 0)

  kept = kept_by(plain)
  one_block = kept / len(model.layer_names)
  if remats:
    kept = kept_by(model, frozen) + one_block
  elif frozen:
    kept = kept_by(plain, frozen)
  is_resnet = isinstance(model, models.FAMILIES['BiT'].module)
  share = 1.0 if scans or remats else _KEPT_OF_RESNET if is_resnet else _KEPT
  return max(kept * share, one_block)


def _of_teacher(config: build.TrainConfig, program: build.Program, rows: int) -> int:
  """Bytes of the forward pass of the teacher: a layer's input and output, of the largest layer."""
  if (teacher := program.teacher) is None:
    return 0
  on_cpu = jax.default_backend() == 'cpu'
  apply = models.apply_function(teacher.model.clone(dtype='float32') if on_cpu else teacher.model)
  one, two = (_residuals(config, program, n, apply, program.teacher_like) for n in (rows, 2 * rows))
  return 2 * max(size for size, double in zip(one, two, strict=True) if double > size)


def _without_remat(model):
  return model.clone(remat=False) if getattr(model, 'remat', False) else model


def _residuals(
  config: build.TrainConfig,
  program: build.Program,
  rows: int,
  apply: Callable,
  params: dict,
  frozen: Collection[param_groups.Path] = (),
) -> list[int]:
  """The bytes of each array that JAX keeps of the forward pass of a model, parameters too."""
  data = program.data

  def backward(params, images, labels, keys):
    trained, others = param_groups.divide(params, frozen)

    def loss(trained):
      logits = apply(param_groups.merge(trained, others), images, keys)
      return jnp.mean(losses.LOSSES[config.loss](logits, labels))

    return jax.vjp(loss, trained)[1]

  images = jax.ShapeDtypeStruct((rows, *data.image_size, data.channels), jnp.float32)
  labels = jax.ShapeDtypeStruct((rows, data.num_classes), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  found = jax.tree.leaves(jax.eval_shape(backward, params, images, labels, keys))
  return [x.size * x.dtype.itemsize for x in found if jnp.issubdtype(x.dtype, jnp.number)]


def check(needed: Estimate, program: build.Program) -> str:
  """The estimate beside what there is; warns if the step may not fit, with values that fit.

  Raises:
    InputError: it certainly does not fit.
  """
  on_cpu = jax.default_backend() == 'cpu'
  sharing = jax.local_device_count() if on_cpu else 1  # devices with one memory
  limit = hardware.host_memory() if on_cpu else hardware.memory_limit()
  where = 'this machine' if on_cpu else f'a {jax.local_devices()[0].device_kind}'
  text = f'a step needs about {_gib(needed.total * sharing)} GiB'
  if limit is None:
    return f'{text} per device'
  text = f'{text}, and {where} has {_gib(limit)}'
  if needed.total * sharing > limit:
    advice = _what_fits(needed, program.mesh.size, _MARGIN * limit / sharing)
    # Compilers for accelerators compute more of the activations twice where memory is scarce.
    activations = (needed.total - needed.state) / _ACCURACY if on_cpu else 0
    if (needed.state + activations) * sharing > limit + (hardware.host_swap() if on_cpu else 0):
      raise InputError(f'{text}. {advice}')
    logging.warning('THE MEMORY MAY BE TOO SMALL: %s. %s', text, advice)
  return text


def _what_fits(needed: Estimate, devices: int, room: float) -> str:
  """The options with which the step needs at most `room` bytes of a device."""
  batch, parts = needed.batch, needed.microbatches
  counts = (n for n in range(parts + 1, min(batch, _MOST_PARTS) + 1) if batch % n == 0)
  count = next((n for n in counts if needed.of(batch, n) <= room), None)
  sizes = [parts << k for k in range(batch.bit_length()) if parts << k < batch]
  size = max((n for n in sizes if needed.of(n, parts) <= room), default=None)
  found = []
  if count:
    found.append(f'--config.microbatches={count} (the same updates, each in {count} parts)')
  if size:
    found.append(f'--config.train_input.batch_size={size * devices} (other, smaller updates)')
  advice = ' or '.join(found) or 'a smaller model, or more devices with --config.mesh.fsdp'
  return f'Use {advice}; docs/training.md, "Memory", has more.'


def _gib(size: float) -> str:
  return f'{size / 2**30:.1f}'
