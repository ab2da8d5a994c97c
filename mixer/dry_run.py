"""A train step compiled for a TPU pod that is not there: what it needs, moves and might take.

libtpu holds the compiler of every TPU generation and describes any slice of them, so the very
program that a pod would run is compiled here; nothing is executed.
"""

from collections.abc import Callable, Sequence
import dataclasses
import importlib.util
import json
import os
import re
import time

import jax
from jax.sharding import Mesh

from mixer import files, hardware, hlo, runtime, sharding, training
from mixer.errors import InputError

# The name of a slice -> keywords of `get_topology_desc`. v4's two cores act as one device on a pod,
# which its description does not take for granted.
TOPOLOGIES = {
  'v3': {},
  'v4': {'chip_config_name': 'megacore'},
  'v5e': {},
  'v5p': {},
  'v6e': {},
}


def configure() -> None:
  """Keeps JAX off this machine's accelerators, and libtpu from asking where it is.

  Call it before any other use of JAX. libtpu wants a name for the machine it is on, which has no
  bearing on the topology that is compiled for, and would let one process at a time use the TPU.
  """
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  jax.config.update('jax_platforms', 'cpu')


def devices(topology: str) -> Sequence[jax.Device]:
  """The devices of a slice such as 'v5e:16x16' (chips per side), to compile for.

  Raises InputError if there is no such slice, or no libtpu.
  """
  from jax.experimental import topologies

  generation, _, sides = topology.partition(':')
  if generation not in TOPOLOGIES or not re.fullmatch(r'\d+(x\d+){1,2}', sides):
    raise InputError(
      f'--topology={topology!r}: write GENERATION:SIDES with one of {sorted(TOPOLOGIES)} and the '
      'chips of each side, such as v3:8x8, v5e:16x16 or v5p:4x4x4.'
    )
  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **TOPOLOGIES[generation]
    )
  except Exception as fault:  # jax has no class of its own for this
    if importlib.util.find_spec('libtpu') is None:
      raise InputError(
        f'--topology={topology} needs the compiler for TPUs: pip install -r requirements-tpu.txt '
        f'({fault}).'
      ) from fault
    raise InputError(f'--topology={topology}: {fault}') from fault
  return described.devices


def abstract_batch(data, mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a global training batch of `data`, split over the mesh; reads one row."""
  rows = next(data.train_batches(0, 0, 0, data.batch_size))
  where = sharding.batch(mesh)
  return {
    name: jax.ShapeDtypeStruct((data.batch_size, *x.shape[1:]), x.dtype, sharding=where)
    for name, x in rows.items()
  }


def compile_step(step: Callable, like, batch: dict, mesh) -> jax.stages.Compiled | str:
  """The compiled step, or the compiler's words on why it does not fit into the memory."""
  try:
    return training.compile_step(step, like, batch, mesh)
  except jax.errors.JaxRuntimeError as fault:
    if 'RESOURCE_EXHAUSTED' not in str(fault):
      raise
    return str(fault)


def run(
  step: Callable,
  like: training.TrainState,
  data,
  mesh: Mesh,
  *,
  flops_per_image: int,
  steps: int,
  output: str | None,
) -> None:
  """Compiles a train step for `mesh`, prints what is known of it, and writes it to `output`."""
  path = None if output is None else files.absolute(output)
  if path is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
  batch = abstract_batch(data, mesh)
  begin = time.perf_counter()
  compiled = compile_step(step, like, batch, mesh)
  seconds = time.perf_counter() - begin
  found = report(compiled, mesh, flops=flops_per_image * data.batch_size)
  runtime.banner({
    'per device, by shapes': training.describe_shapes(like, batch),
    'dry run': describe(found, steps=steps),
    'compiled in': f'{seconds:.0f} s',
  })  # fmt: skip
  if path is not None:
    row = {**dataclasses.asdict(found), 'seconds': found.seconds, 'steps': steps}
    files.write(path, json.dumps(row, indent=1).encode())


@dataclasses.dataclass(frozen=True)
class Report:
  """One train step on one kind of device. Bytes, FLOPs and seconds are per device and step."""

  devices: int
  cores: int
  device_kind: str
  processes: int
  fits: bool | None  # None where nobody says how much memory the device has
  memory: int | None  # bytes, all of the step's
  memory_limit: int | None  # bytes
  flops: float  # of the matmuls, analytic
  compiled_flops: float | None
  bytes_accessed: float | None  # by all instructions, in on-chip memory too; a loop's body once
  largest_loop: int  # how often the body of one runs; 1 for none
  collectives: dict[str, dict[str, int]]  # kind -> {'count', 'bytes' of the results, 'sent'}
  compute_seconds: float | None  # at the published matmul rate
  memory_seconds: float | None  # at the published bandwidth
  network_seconds: float | None  # at the published all-reduce rate
  refusal: str = ''

  @property
  def seconds(self) -> float | None:
    """The estimate of a step: the slowest of matmuls, memory and network, as if they overlapped.

    Matmuls at the published rate are a lower bound, but not the memory's part: the compiler's
    count has accesses to on-chip memory in it too, though of a loop (`config.model.scan`,
    `config.microbatches`) those of one turn.
    """
    if self.compute_seconds is None or self.memory_seconds is None:
      return None
    return max(self.compute_seconds, self.memory_seconds, self.network_seconds or 0.0)

  def core_days(self, steps: int) -> float | None:
    """Of so many such steps, in the paper's unit: TPU cores times days."""
    return None if self.seconds is None else steps * self.seconds * self.cores / 86_400


def report(compiled: jax.stages.Compiled | str, mesh, *, flops: float) -> Report:
  """What is known of a step that does `flops` (analytic, all devices) on `mesh`."""
  device = mesh.devices.flat[0]
  memory, peak = hardware.memory(device.device_kind), hardware.peak_flops(device.device_kind)
  own = flops / mesh.size
  refused = isinstance(compiled, str)
  text = '' if refused else compiled.as_text()
  cost = {} if refused else (compiled.cost_analysis() or {})
  needed = None if refused else training.compiled_bytes(compiled)
  limit = memory.bytes if memory else hardware.memory_limit(device)
  found = hlo.collectives(text)
  accessed = cost.get('bytes accessed')
  sent = sum(one.sent for one in found)
  return Report(
    devices=mesh.size,
    cores=sum(getattr(one, 'num_cores', None) or 1 for one in mesh.devices.flat),
    device_kind=device.device_kind,
    processes=len({d.process_index for d in mesh.devices.flat}),
    fits=False if refused else limit and needed <= limit,
    memory=needed,
    memory_limit=limit,
    flops=own,
    compiled_flops=cost.get('flops'),
    bytes_accessed=accessed,
    largest_loop=hlo.largest_loop(text),
    collectives=hlo.by_kind(found),
    compute_seconds=own / peak if peak else None,
    memory_seconds=accessed / memory.bandwidth if memory and accessed else None,
    network_seconds=sent / memory.all_reduce if memory and not refused else None,
    refusal=compiled if refused else '',
  )


def describe(report: Report, *, steps: int) -> str:
  """The report in words, for a run of `steps` steps."""
  lines = [f'{report.devices} x {report.device_kind} in {report.processes} processes']
  limit = f' of {report.memory_limit / 2**30:.0f} GiB' if report.memory_limit else ' GiB'
  if report.refusal:
    return '\n'.join([*lines, f'IT DOES NOT FIT: {report.refusal}', _CURES])
  fits = {True: 'it fits', False: f'IT DOES NOT FIT. {_CURES}', None: 'what there is, is not known'}
  lines.append(f'memory per device: {report.memory / 2**30:.2f}{limit}: {fits[report.fits]}')
  lines.append(
    f'per device and step: {report.flops / 1e12:.3f} TFLOP of matmuls '
    f'(the compiler counts {report.compiled_flops / 1e12:.3f}, a loop once), '
    f'{report.bytes_accessed / 2**30:.2f} GiB accessed'
  )
  for kind, total in report.collectives.items():
    lines.append(
      f'  {total["count"]} {kind}: results {total["bytes"] / 2**20:.2f} MiB, '
      f'sent {total["sent"] / 2**20:.2f} MiB'
    )
  if report.seconds is None:
    return '\n'.join([*lines, 'no rates are published for this device, so no time is estimated'])
  bound = 'at most' if report.largest_loop == 1 else 'at most, but of a loop one turn only'
  lines.append(
    f'at the published rates a step takes {1e3 * report.compute_seconds:.1f} ms of matmuls, '
    f'{1e3 * report.memory_seconds:.1f} of memory ({bound}), '
    f'{1e3 * report.network_seconds:.1f} of network: about {1e3 * report.seconds:.1f} ms'
  )
  lines.append(
    f'{steps} such steps: about {report.core_days(steps):.3g} core-days, '
    f'{steps * report.seconds / 3600:.3g} hours'
  )
  return '\n'.join(lines)


_CURES = (
  'More devices, or per device: config.mesh.fsdp (parameters and optimiser state are split), '
  'config.model.dtype=bfloat16, config.model.remat=True, config.microbatches.'
)
