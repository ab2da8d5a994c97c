"""The train state and the train step."""

from collections.abc import Callable, Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from mixer import hardware
from mixer.training import batch_ops, losses, optimizers, param_groups, sharding
from mixer.training.augmentation import Augmentation


class TrainState(flax.struct.PyTreeNode):
  """What a run carries from one step to the next; `step` is also the state of the input."""

  step: jax.Array  # int32, updates made so far
  params: Any
  opt_state: Any
  ema = None  # no field: checkpoints of runs without an average have none


class AveragedState(TrainState):
  """The state of a run that also averages its parameters, see `mixer.training.ema`."""

  ema: Any


def init_state(
  init_params: Callable[[jax.Array], dict],
  tx: optax.GradientTransformation,
  key: jax.Array,
  mesh: Mesh,
  frozen: Collection[param_groups.Path] = (),
  *,
  averaged: bool = False,
) -> tuple[Callable[[], TrainState], TrainState]:
  """(a function that makes the initial state, its ShapeDtypeStructs with their shardings).

  The state is initialised sharded: no device ever holds more than its own shards. With `averaged`
  it is an `AveragedState`. The optimizer has no state for the `frozen` parameters.
  """

  def init(key):
    params = init_params(key)
    trained, _ = param_groups.divide(params, frozen)
    values = {'step': jnp.zeros((), jnp.int32), 'params': params, 'opt_state': tx.init(trained)}
    return AveragedState(**values, ema=_copy(params)) if averaged else TrainState(**values)

  like = sharding.spread(jax.eval_shape(init, key), mesh)
  shardings = jax.tree.map(lambda x: x.sharding, like)
  return lambda: jax.jit(init, out_shardings=shardings)(key), like


def start_from(state: TrainState, params: dict) -> TrainState:
  """The initial state with other parameters: whole host arrays."""
  params = sharding.place(params, state.params)
  state = state.replace(params=params)
  return state if state.ema is None else state.replace(ema=_copy(params))


def _copy(params):
  return jax.tree.map(jnp.copy, params)  # a donated state must not hold a buffer twice


def make_step(
  *,
  apply: Callable[..., jax.Array],
  tx: optax.GradientTransformation,
  learning_rate: optimizers.Schedule,
  objective: losses.Objective,
  augmentation: Augmentation,
  microbatches: int,
  key: jax.Array,
  mesh: Mesh,
  frozen: Collection[param_groups.Path] = (),
  split_update: sharding.SplitUpdate | None = None,
) -> Callable[..., tuple[TrainState, dict]]:
  """A pure function (state, batch, teacher=None) -> (state, metrics) to be jitted over `mesh`.

  The batch has 'image' (n, height, width, channels) uint8 and 'label' (n,) or (n, classes); the
  teacher's parameters are those of `losses.Distillation`. An example's random draws depend on
  `key`, the step and its row in the batch alone, so any number of microbatches or devices gives the
  same gradient, up to the order of float32 additions.

  Args:
    apply: (params, images, example_keys) -> logits.
    microbatches: parts of the batch that are processed one after the other, to save memory.
    frozen: parameters that stay as they are. No gradient is computed for them, so the norms of
      gradient and update are those of the others.
    split_update: gathers the parameters once and sums gradients by parts; None leaves it to XLA
      where they are gathered.
  """
  augment = augmentation.on(mesh)
  microbatched = sharding.batch(mesh, microbatched=True)

  def loss_and_metrics(trained, kept, part, drawn, teacher):
    params = param_groups.merge(trained, kept)
    images, labels, targets = augment.finish(part, drawn)
    logits = apply(params, images, part['key'])
    hits = jnp.take_along_axis(labels, jnp.argmax(logits, axis=-1)[:, None], axis=-1)
    value, parts = objective(logits, targets, images, teacher)
    return value, {'accuracy': jnp.mean(hits > 0), **parts}

  def gradient(trained, kept, batch, *shared):
    like = trained
    if split_update:
      trained, kept = split_update.gather(trained), split_update.gather(kept)

    def value_and_grad(*inputs):
      found, grads = jax.value_and_grad(loss_and_metrics, has_aux=True)(*inputs)
      return found, split_update.scatter(grads, like) if split_update else grads

    if microbatches == 1:
      return value_and_grad(trained, kept, batch, *shared)

    def add(total, part):
      return jax.tree.map(jnp.add, total, value_and_grad(trained, kept, part, *shared)), None

    parts = jax.lax.with_sharding_constraint(batch_ops.split(batch, microbatches), microbatched)
    shapes = jax.eval_shape(value_and_grad, trained, kept, batch, *shared)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / microbatches, total)

  def step(state, batch, teacher=None):
    batch, drawn = augment.begin(batch, jax.random.fold_in(key, state.step))
    trained, kept = param_groups.divide(state.params, frozen)
    (value, more), grads = gradient(trained, kept, batch, drawn, teacher)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    params = param_groups.merge(optax.apply_updates(trained, updates), kept)
    metrics = {
      'loss': value,
      **more,
      'grad_norm': optax.tree.norm(grads),
      'update_norm': optax.tree.norm(updates),
      'param_norm': optax.tree.norm(params),
      'learning_rate': jnp.asarray(learning_rate(state.step), jnp.float32),
    }
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return step


def compile_step(step, like: TrainState, batch: dict, mesh: Mesh, teacher: Any = None) -> Callable:
  """The step, compiled for states, batches and teachers of these shapes; it donates the state.

  Without a `teacher`, the step takes none. Under JAX_DISABLE_JIT, a function that runs it operation
  by operation.
  """
  if jax.config.jax_disable_jit:

    def run(*arguments) -> tuple[TrainState, dict]:
      with jax.set_mesh(mesh):
        return step(*arguments)

    return run
  state, *constant = (
    jax.tree.map(lambda x: x.sharding, tree) for tree in (like, teacher) if tree is not None
  )
  jitted = jax.jit(
    step,
    in_shardings=(state, sharding.batch(mesh), *constant),
    out_shardings=(state, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  with jax.set_mesh(mesh):  # for `layers.shard_batch`
    return jitted.lower(like, batch, *([] if teacher is None else [teacher])).compile()


def state_bytes(like: TrainState) -> int:
  """Bytes of the whole state."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))


def compiled_bytes(compiled: jax.stages.Compiled | Callable) -> int | None:
  """Bytes of one device for a compiled step, its arguments, results and temporaries.

  None if the compiler does not report them, or the step is not compiled.
  """
  memory = compiled.memory_analysis() if isinstance(compiled, jax.stages.Compiled) else None
  if memory is None:
    return None
  return (
    memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
  )  # fmt: skip


def describe_shapes(like: TrainState, batch: dict, teacher: Any = None) -> str:
  """The memory that one device needs between two steps, from shapes and shardings."""
  parts = {
    'parameters': like.params,
    'optimizer state': like.opt_state,
    **({} if like.ema is None else {'averaged parameters': like.ema}),
    'images and labels': batch,
    **({} if teacher is None else {'the teacher': teacher}),
  }
  sizes = [f'{sharding.bytes_per_device(part) / 2**20:.1f} of {n}' for n, part in parts.items()]
  return f'per device: {", ".join(sizes).replace(" of", " MiB of", 1)}'


def describe_memory(compiled: jax.stages.Compiled | Callable) -> str:
  """The memory that one device needs during a step, as the compiler reports it."""
  total, limit = compiled_bytes(compiled), hardware.memory_limit()
  needed = 'unknown' if total is None else f'{total / 2**20:.1f} MiB'
  of_limit = f' of {limit / 2**20:.0f}' if limit else ''
  return f'memory per device of the compiled step: {needed}{of_limit}'
