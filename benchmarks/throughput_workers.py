"""The processes of benchmarks/throughput.py and compare.py: each runs one form of the models.

Each reads requests from stdin and writes results to stdout, as one line of JSON each. None loads
the framework of another.
"""

from collections.abc import Callable
import gc
import json
import math
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mixer.timm_names import ARCHITECTURES  # noqa: E402

RESULT = '@'  # starts the lines that hold a result
PRODUCT_SIDES = (1024, 2048, 4096, 8192, 16384)
LONGEST_PRODUCT = 0.25  # seconds; larger products are not tried
# With both frameworks on one GPU, each has this share of its memory.
SHARED_FRACTION = 0.45
_NO_MEMORY = "can't allocate memory"  # in PyTorch's error on a CPU, which has no class of its own


class DoesNotFit(Exception):
  """The device's memory does not suffice; the message says for what."""


def seconds_per_step(run: Callable[[int], None], seconds: float) -> tuple[float, float]:
  """(seconds, CPU seconds of the process) of a step.

  The means over about as many steps as take `seconds`, after a first one to warm up.

  Args:
    run: runs a number of steps and waits for the last.
  """
  run(1)
  once = _time(run, 1)
  steps = round(seconds / once[0])
  return _time(run, steps) if steps > 1 else once


def _time(run: Callable[[int], None], steps: int) -> tuple[float, float]:
  begin, cpu_begin = time.perf_counter(), time.process_time()
  run(steps)
  return (time.perf_counter() - begin) / steps, (time.process_time() - cpu_begin) / steps


class JaxWorker:
  """This code's models on the first device. Compiled programs are kept, arrays are not."""

  def __init__(self):
    import jax

    self._device = jax.devices()[0]
    self._programs, self._sides = {}, {}

  def device(self) -> dict:
    from mixer import runtime

    kind = self._device.device_kind
    return {'line': runtime.device_line(), 'platform': self._device.platform, 'kind': kind}

  def product(self, *, dtype: str, seconds: float) -> dict:
    """FLOP/s of the product of two square matrices, of the side that was fastest at first."""
    if dtype not in self._sides:
      rates = {}
      for side in PRODUCT_SIDES:
        rates[side] = self._product_rate(side, dtype, seconds=0.1)
        if (
          2 * side**3 / rates[side] > LONGEST_PRODUCT / 8
        ):  # the next one takes eight times as long
          break
      self._sides[dtype] = max(rates, key=rates.get)
    side = self._sides[dtype]
    return {'side': side, 'flops': self._product_rate(side, dtype, seconds)}

  def _product_rate(self, side: int, dtype: str, seconds: float) -> float:
    import jax

    keys = jax.random.split(jax.random.key(0))
    # Random values, of which repeated products stay in range: hardware is faster with zeros.
    x, w = (jax.random.normal(key, (side, side), dtype) for key in keys)
    w = w / math.sqrt(side)
    multiply = jax.jit(jax.numpy.matmul)

    def run(steps):
      nonlocal x
      for _ in range(steps):
        x = multiply(x, w)
      x.block_until_ready()

    return 2 * side**3 / seconds_per_step(run, seconds)[0]

  def model(self, *, seconds: float, **case) -> dict:
    """The time of a step, what its compilation took, and its peak memory.

    Args:
      seconds: of the measurement.
      **case: 'model', 'mode', 'dtype', 'batch_size', 'image_size', 'num_classes'.

    Raises:
      DoesNotFit: by the compiler's count, or at run time.
    """
    import jax

    key = tuple(sorted(case.items()))
    try:
      if key not in self._programs:
        self._programs[key] = self._make(**case)
      start, compile_seconds, compiled_bytes = self._programs[key]
      self._check_memory(compiled_bytes)
      taken, cpu_taken = seconds_per_step(start(), seconds)
    except jax.errors.JaxRuntimeError as fault:
      if 'RESOURCE_EXHAUSTED' not in str(fault):
        raise
      raise DoesNotFit(str(fault).partition('\n')[0]) from fault
    except MemoryError as fault:
      raise DoesNotFit('the memory of the host') from fault
    peak = (self._device.memory_stats() or {}).get('peak_bytes_in_use')
    return {
      'seconds': taken,
      'cpu_seconds': cpu_taken,
      'compile_seconds': compile_seconds,
      'memory': peak or compiled_bytes,
      'memory_source': 'allocator' if peak else 'compiler',
      'compiled_memory': compiled_bytes,
    }

  def _make(self, *, mode: str, **case) -> tuple:
    make = {'training': training_program, 'inference': inference_program}[mode]
    return make(self._device, **case)

  def _check_memory(self, needed: int | None) -> None:
    from mixer import hardware

    limit = hardware.memory_limit(self._device)
    if limit is None and self._device.platform == 'cpu':
      limit = hardware.host_memory()  # a process that exceeds it is killed
    if needed and limit and needed > limit:
      raise DoesNotFit(f'{needed / 2**30:.1f} GiB of {limit / 2**30:.1f}')


def training_program(device, model, dtype, batch_size, image_size, num_classes):
  """(start, seconds of compilation, bytes by the compiler) of train.py's step.

  `start()` puts a fresh state and a random batch on the device, and returns `run(steps)`. All
  settings but the model are those of the paper's pre-training on JFT-300M, without its labels.
  """
  import jax

  from configs import upstream
  from mixer import input as inputs
  from mixer.run import build
  from mixer.training import sharding, train_step

  config = upstream.get_config('Mixer-B/16', 'jft,synthetic').to_dict()
  config['model'] = {'name': model, 'dtype': dtype}
  config['train_input'] |= {
    'batch_size': batch_size,
    'image_size': image_size,
    'num_classes': num_classes,
    'multi_label': False,
  }
  data = inputs.build(**config['train_input'])
  program = build.build(build.TrainConfig(**config), data, [device])
  host_batch = next(data.train_batches(0, seed=0))
  where = sharding.batch(program.mesh)
  like = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for k, x in host_batch.items()}
  begin = time.perf_counter()
  compiled = train_step.compile_step(program.step_fn, program.like, like, program.mesh)
  compile_seconds = time.perf_counter() - begin

  def start():
    state, batch = program.initial_state(), sharding.put(host_batch, program.mesh)

    def run(steps):
      nonlocal state
      for _ in range(steps):
        state, metrics = compiled(state, batch)
      jax.block_until_ready((state, metrics))

    return run

  return start, compile_seconds, train_step.compiled_bytes(compiled)


def inference_program(device, model, dtype, batch_size, image_size, num_classes):
  """(start, seconds of compilation, bytes by the compiler) of uint8 images to logits."""
  from mixer import models
  from mixer.training import batch_ops

  model = models.build(model, num_classes, dtype=dtype)
  apply = models.apply_function(model)
  return classifier_program(
    model, lambda params, images: apply(params, batch_ops.normalize(images)), batch_size, image_size
  )


def classifier_program(model, apply, batch_size, image_size):
  """The same for any `apply`: (params of `model`, uint8 images) -> logits."""
  import jax
  import jax.numpy as jnp

  from mixer import models
  from mixer.training import train_step

  def classify(params, images, before):
    # Each step waits for the one before it, as the steps of training do.
    images, _ = jax.lax.optimization_barrier((images, before))
    return apply(params, images)

  init = jax.jit(lambda key: models.init(model, key, image_size))
  shape = (batch_size, image_size, image_size, 3)
  like = (
    models.shapes(model, image_size),
    jax.ShapeDtypeStruct(shape, jnp.uint8),
    jax.ShapeDtypeStruct((batch_size, model.num_classes), jnp.float32),
  )
  begin = time.perf_counter()
  compiled = jax.jit(classify).lower(*like).compile()
  compile_seconds = time.perf_counter() - begin

  def start():
    key = jax.random.key(0)
    params, images = init(key), jax.random.bits(key, shape, jnp.uint8)
    logits = jnp.zeros((batch_size, model.num_classes))

    def run(steps):
      nonlocal logits
      for _ in range(steps):
        logits = compiled(params, images, logits)
      logits.block_until_ready()

    return run

  return start, compile_seconds, train_step.compiled_bytes(compiled)


class PlainWorker(JaxWorker):
  """The same of the plain Flax form."""

  def _make(self, *, mode: str, **case) -> tuple:
    from benchmarks import plain

    make = {'training': plain.training_program, 'inference': plain.inference_program}[mode]
    return make(self._device, **case)

  def difference(self, *, model: str, dtype: str, image_size: int, num_classes: int) -> dict:
    from benchmarks import plain
    from mixer import models

    return plain.difference(models.build(model, num_classes, dtype=dtype), image_size)


class TimmWorker:
  """timm's models in PyTorch on the first GPU, or the CPU. They stay on the device.

  Images are channels-last uint8, normalised in the step; parameters are float32, and bfloat16 is
  that of autocast; float32 products may use TensorFloat-32, as JAX's do by default. The train step
  has the optimizer, the clipping and the loss of the paper's pre-training.
  """

  def __init__(self):
    import timm
    import torch

    self._timm, self._torch = timm, torch
    self._device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_float32_matmul_precision('high')
    if self._device == 'cuda':
      torch.cuda.set_per_process_memory_fraction(SHARED_FRACTION)
      torch.backends.cudnn.benchmark = True
    # An error at the limit, beyond which a model is run without being compiled.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    self._programs = {}

  def device(self) -> dict:
    name = 'cpu' if self._device == 'cpu' else self._torch.cuda.get_device_name()
    line = f'torch {self._torch.__version__}, timm {self._timm.__version__}: {name}'
    return {'line': line, 'platform': 'cpu' if name == 'cpu' else 'gpu'}

  def model(self, *, seconds: float, **case) -> dict:
    """As `JaxWorker.model`, with 'compiled' in `case`; only a compiled model has its seconds."""
    cuda = self._torch.cuda if self._device == 'cuda' else None
    key = tuple(case[name] for name in ('model', 'mode', 'dtype', 'compiled'))
    if self._programs.get(key, [None])[0] != case['batch_size']:
      self._programs.pop(key, None)  # frees what another batch size holds
      gc.collect()
    if cuda:
      cuda.reset_peak_memory_stats()
    try:
      if key not in self._programs:
        run = self._program(**case)
        begin = time.perf_counter()
        run(1)  # compiles
        self._programs[key] = case['batch_size'], run, time.perf_counter() - begin
      _, run, first = self._programs[key]
      taken, cpu_taken = seconds_per_step(run, seconds)
    except RuntimeError as fault:
      if not isinstance(fault, self._torch.OutOfMemoryError) and _NO_MEMORY not in str(fault):
        raise
      raise DoesNotFit(str(fault).partition('\n')[0]) from fault
    return {
      'seconds': taken,
      'cpu_seconds': cpu_taken,
      'compile_seconds': first if case['compiled'] else None,
      'memory': cuda.max_memory_allocated() if cuda else None,
      'memory_source': 'allocator' if cuda else None,
    }

  def _program(
    self, *, model, mode, dtype, batch_size, image_size, num_classes, compiled
  ) -> Callable[[int], None]:
    torch, device = self._torch, self._device
    size = {} if model.startswith('BiT') else {'img_size': image_size}
    net = self._timm.create_model(ARCHITECTURES[model], num_classes=num_classes, **size)
    net = net.to(device, memory_format=torch.channels_last).train(mode == 'training')
    forward = torch.compile(net, dynamic=False) if compiled else net
    shape = (batch_size, 3, image_size, image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes, (batch_size,), device=device)

    def logits():
      with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
        return forward(images.float() / 127.5 - 1).float()

    if mode == 'training':
      optimizer = torch.optim.AdamW(
        net.parameters(), lr=1e-3, weight_decay=0.1, fused=device == 'cuda'
      )
      functional = torch.nn.functional

      def step():
        optimizer.zero_grad()
        targets = functional.one_hot(labels, num_classes).float()
        loss = functional.binary_cross_entropy_with_logits(logits(), targets, reduction='sum')
        (loss / batch_size).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    else:

      def step():
        with torch.inference_mode():
          logits()

    def run(steps):
      for _ in range(steps):
        step()
      if device == 'cuda':
        torch.cuda.synchronize()

    return run


WORKERS = {'jax': JaxWorker, 'plain': PlainWorker, 'timm': TimmWorker}


def main(kind: str) -> None:
  """Answers a request {'what': a method of the worker, its arguments} on each line of stdin."""
  from mixer import allocator
  from mixer.errors import InputError

  if kind != 'timm':
    allocator.keep_freed_memory()  # as in every program of this package
  worker = WORKERS[kind]()
  for line in sys.stdin:
    request = json.loads(line)
    try:
      answer = getattr(worker, request.pop('what'))(**request)
    except DoesNotFit as fault:
      answer = {'does_not_fit': str(fault)}
    except InputError as fault:
      answer = {'error': str(fault)}
    print(RESULT + json.dumps(answer), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
