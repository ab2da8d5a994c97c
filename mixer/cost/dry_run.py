"""Compiles a train step for devices that need not be attached: its memory, traffic and least time.

libtpu has the compiler of every TPU generation and describes any slice of them, so the program
that a pod would run is compiled on any machine; nothing is executed.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.util
import json
import math
import os
import re
import time
from typing import NamedTuple

from etils import epath
import jax

from mixer import files, hardware, paper, runtime
from mixer import input as inputs
from mixer.cost import hlo, hlo_traffic
from mixer.errors import InputError
from mixer.run import build
from mixer.training import sharding, train_step


class Generation(NamedTuple):
  """The slices of one generation of TPUs."""

  sides: int
  chips: int  # of the largest
  options: dict = {}  # noqa: RUF012  # of `get_topology_desc`


GENERATIONS = {
  'v3': Generation(2, 1024),
  # Its two cores act as one device on a pod, which the description does not take for granted.
  'v4': Generation(3, 4096, {'chip_config_name': 'megacore'}),
  'v5e': Generation(2, 256),
  'v5p': Generation(3, 6144),
  'v6e': Generation(2, 256),
}


@dataclasses.dataclass(frozen=True)
class Options:
  """What to compile.

  Attributes:
    config: the keys of `build.TrainConfig`, nested plain dicts.
    topology: a TPU slice such as 'v5e:16x16'; None for the devices of this machine.
    output: a JSON file; None for none.
  """

  config: dict
  topology: str | None = None
  output: str | None = None


def run(options: Options) -> None:
  """Compiles the train step of a config, prints what is known of it, and writes it as JSON.

  With a topology, call it before any other use of JAX in the process.

  Raises:
    InputError: the config or topology is wrong, or the output cannot be written.
  """
  path = None if options.output is None else _prepare_output(options.output)
  if options.topology:
    configure()
  config = build.check(options.config)
  data = _open_data(config.train_input)
  program = build.build(
    config, data, topology_devices(options.topology) if options.topology else jax.devices()
  )
  batch = abstract_batch(data, program.mesh)
  teacher = program.teacher_like
  runtime.banner(
    {'per device, by shapes': train_step.describe_shapes(program.like, batch, teacher)}
  )
  begin = time.perf_counter()
  compiled = compile_step(program.step_fn, program.like, batch, program.mesh, teacher)
  seconds = time.perf_counter() - begin
  found = report(compiled, program.mesh, flops=program.train_flops_per_image * data.batch_size)
  runtime.banner({
    'dry run': describe(found, steps=program.total_steps),
    'in the paper': describe_paper(config.model['name']),
    'compiled in': f'{seconds:.0f} s',
  })  # fmt: skip
  if path is not None:
    row = {
      'model': config.model['name'],
      'topology': options.topology,
      'mesh': dict(program.mesh.shape),
      'steps': program.total_steps,
      **dataclasses.asdict(found),
      'seconds': found.times(),
      'core_days': found.core_days(program.total_steps),
    }
    files.write(path, json.dumps(row, indent=1).encode())


def _prepare_output(output: str) -> epath.Path:
  path = files.absolute(output)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as fault:
    raise InputError(f'--dry_run_output={path} cannot be written: {fault}.') from fault
  files.check_writable(path)
  return path


def configure() -> None:
  """Keeps JAX off this machine's accelerators, and libtpu from looking for a TPU.

  libtpu requires a name for the machine it runs on, which does not affect the topology that is
  compiled for, and would otherwise let only one process at a time use it.
  """
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  jax.config.update('jax_platforms', 'cpu')


def topology_devices(topology: str) -> Sequence[jax.Device]:
  """The devices of a slice such as 'v5e:16x16' (chips per side), to compile for.

  Raises InputError if there is no such slice, or no libtpu.
  """
  from jax.experimental import topologies

  name, _, sides = topology.partition(':')
  if name not in GENERATIONS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', sides):
    raise InputError(
      f'--topology={topology!r}: write GENERATION:SIDES with one of {sorted(GENERATIONS)} and the '
      'chips of each side, such as v3:8x8, v5e:16x16 or v5p:4x4x4.'
    )
  generation, chips = GENERATIONS[name], [int(side) for side in sides.split('x')]
  if len(chips) != generation.sides or math.prod(chips) > generation.chips:
    raise InputError(
      f'--topology={topology!r}: slices of {name} have {generation.sides} sides and up to '
      f'{generation.chips} chips.'
    )
  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **generation.options
    )
  except Exception as fault:  # jax has no specific class for this
    if importlib.util.find_spec('libtpu') is None:
      raise InputError(
        f'--topology={topology} needs the compiler for TPUs: pip install -r requirements-tpu.txt '
        f'({fault}).'
      ) from fault
    raise InputError(f'--topology={topology}: {fault}') from fault
  return described.devices


def _open_data(section: Mapping) -> inputs.Input:
  """The training input, of which only the shapes matter; its error names the way without data."""
  try:
    return inputs.build(**section)
  except InputError as fault:
    raise InputError(
      f'{fault}\nWith a config of pre-training, a dry run needs no data: put ",synthetic" after '
      'its name, as in --config=configs/mixer_b16.py:imagenet21k,synthetic.'
    ) from fault


def abstract_batch(data, mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a global training batch of `data`, split over the mesh; reads one row."""
  rows = next(data.train_batches(0, 0, 0, data.batch_size))
  where = sharding.batch(mesh)
  return {
    name: jax.ShapeDtypeStruct((data.batch_size, *x.shape[1:]), x.dtype, sharding=where)
    for name, x in rows.items()
  }


def compile_step(
  step: Callable, like, batch: dict, mesh, teacher=None
) -> jax.stages.Compiled | str:
  """The compiled step, or the compiler's words on why it does not fit into the memory."""
  try:
    return train_step.compile_step(step, like, batch, mesh, teacher)
  except jax.errors.JaxRuntimeError as fault:
    if 'RESOURCE_EXHAUSTED' not in str(fault):
      raise
    return str(fault)


@dataclasses.dataclass(frozen=True)
class Report:
  """One train step on one kind of device. Bytes, FLOPs and seconds are per device and step."""

  devices: int
  cores: int
  device_kind: str
  processes: int
  fits: bool | None  # None if the memory needed or that of the device is unknown
  memory: int | None  # bytes that the step needs; None if the compiler does not report it
  memory_limit: int | None  # bytes; on a TPU the compiler reserves a part of them
  flops: float  # of the matmuls, analytic
  compiled_flops: float | None  # by the compiler, which counts the body of a loop once
  bytes_accessed: int | None  # in the device's main memory
  collectives: dict[str, dict[str, int]]  # kind -> {'count', 'bytes' of the results, 'sent'}
  temporaries: int | None = None  # bytes, of `memory`
  sent_in_groups: int = 0  # bytes of those that collectives of a part of the devices send
  refusal: str = ''

  @property
  def sent(self) -> int:
    return sum(kind['sent'] for kind in self.collectives.values())

  def times(self) -> dict[str, float]:
    """Seconds of a step at the published rates, as far as there are any; {} if it does not fit.

    A step takes the longest of matmuls, memory and network, as if they overlapped: a lower bound,
    since no program quite reaches the rates, nor has a small slice all the links of a pod. A
    collective of a part of the devices runs around a ring, and so along one dimension of the torus.
    With `config.mesh.fsdp` the memory's part may be too long: `hlo_traffic` takes the loops of
    collective matmuls to read their operands whole.
    """
    memory, peak = hardware.memory(self.device_kind), hardware.peak_flops(self.device_kind)
    if peak is None or self.bytes_accessed is None:
      return {}
    # The compiler's count includes what is computed twice (`config.model.remat`).
    parts = {'matmuls': max(self.flops, self.compiled_flops or 0.0) / peak}
    if memory is not None:
      parts['memory'] = self.bytes_accessed / memory.bandwidth
      ring = memory.all_reduce / memory.dimensions
      whole = self.sent - self.sent_in_groups
      parts['network'] = whole / memory.all_reduce + self.sent_in_groups / ring
    return {**parts, 'step': max(parts.values())}

  def core_days(self, steps: int) -> float | None:
    """Of so many such steps: cores (on a TPU, of its chips) times days; None for no estimate."""
    times = self.times()
    return steps * times['step'] * self.cores / 86_400 if times else None


def report(compiled: jax.stages.Compiled | str, mesh, *, flops: float) -> Report:
  """What is known of a step that does `flops` (analytic, all devices) on `mesh`."""
  device = mesh.devices.flat[0]
  memory = hardware.memory(device.device_kind)
  refused = isinstance(compiled, str)
  text = '' if refused else compiled.as_text()
  cost = {} if refused else (compiled.cost_analysis() or {})
  needed = None if refused else train_step.compiled_bytes(compiled)
  collectives = hlo.collectives(text) if text else []
  limit = memory.bytes if memory else hardware.memory_limit(device)
  return Report(
    devices=mesh.size,
    cores=sum(getattr(one, 'num_cores', None) or 1 for one in mesh.devices.flat),
    device_kind=device.device_kind,
    processes=len({d.process_index for d in mesh.devices.flat}),
    fits=False if refused else None if None in (limit, needed) else needed <= limit,
    memory=needed,
    temporaries=None if needed is None else compiled.memory_analysis().temp_size_in_bytes,
    memory_limit=limit,
    flops=flops / mesh.size,
    compiled_flops=cost.get('flops'),
    bytes_accessed=hlo_traffic.bytes_accessed(text) if text else None,
    collectives=hlo.by_kind(collectives),
    sent_in_groups=sum(round(one.sent) for one in collectives if one.group < mesh.size),
    refusal=compiled if refused else '',
  )


def describe(report: Report, *, steps: int) -> str:
  """The report in words, for a run of `steps` steps."""
  lines = [f'{report.devices} x {report.device_kind} in {report.processes} processes']
  if report.refusal:
    return '\n'.join([*lines, f'DOES NOT FIT: {report.refusal}', _CURES])
  fits = {
    True: 'it fits',
    False: f'MORE THAN THE DEVICE HAS, although the compiler accepted the step. {_CURES}',
    None: 'whether it fits is unknown',
  }
  limit = f' of {report.memory_limit / 2**30:.0f}' if report.memory_limit else ''
  temporaries = '' if report.temporaries is None else f'{_gib(report.temporaries)} of temporaries, '
  lines.append(
    f'memory per device: {_gib(report.memory)}{limit} GiB: {temporaries}{fits[report.fits]}'
  )
  counted = 'nothing' if report.compiled_flops is None else f'{report.compiled_flops / 1e12:.3f}'
  lines.append(
    f'per device and step: {report.flops / 1e12:.3f} TFLOP of matmuls '
    f'(the compiler counts {counted}, a loop once), '
    f'{_gib(report.bytes_accessed)} GiB accessed'
  )
  for kind, total in report.collectives.items():
    lines.append(
      f'  {total["count"]} {kind}: results {total["bytes"] / 2**20:.2f} MiB, '
      f'sent {total["sent"] / 2**20:.2f} MiB'
    )
  times = report.times()
  if not times:
    return '\n'.join([*lines, 'no time is estimated: the rates of this device are not known'])
  parts = ', '.join(f'{what} {1e3 * seconds:.1f}' for what, seconds in times.items())
  lines.append(f'ms at the published rates, and so at least: {parts}')
  lines.append(
    f'{steps} such steps: at least {report.core_days(steps):.3g} core-days of {report.device_kind} '
    f'({report.cores} cores), {steps * times["step"] / 3600:.3g} hours'
  )
  return '\n'.join(lines)


def _gib(size: int | None) -> str:
  return 'unknown' if size is None else f'{size / 2**30:.2f}'


def describe_paper(name: str) -> str:
  """What pre-training a model took by table 3 of the paper."""
  rows = [row for row in paper.rows(name) if row.table == 3 and row.resolution == 224]
  if not rows:
    return f'nothing of {name}'
  costs = [
    f'{1e3 * row.kilo_core_days:.0f} ({paper.DATA_NAMES[row.data]}, {row.epochs} epochs)'
    for row in rows
  ]
  return f'core-days of TPU v3 for {name}: {", ".join(costs)}'


_CURES = (
  'More devices, or per device: config.mesh.fsdp (parameters and optimiser state are split), '
  'config.model.dtype=bfloat16, config.model.remat=True, config.microbatches.'
)
