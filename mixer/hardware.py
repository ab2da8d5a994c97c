"""Published rates and memory of chips, for MFU and cost; memory of the host."""

import dataclasses
import os
import pathlib
import re

import jax

# Dense bfloat16 matmul TFLOP/s of one JAX device, as its maker publishes them. A JAX device is
# one core on TPU v2 and v3 and one chip after that. Matched by prefix, longest first.
PEAK_TFLOPS = {
  'TPU v2': 22.5,
  'TPU v3': 61.5,
  'TPU v4': 275.0,
  'TPU v5 lite': 197.0,
  'TPU v5e': 197.0,
  'TPU v5': 459.0,
  'TPU v5p': 459.0,
  'TPU v6 lite': 918.0,
  'TPU v6e': 918.0,
  'Tesla V100': 125.0,
  'Tesla T4': 65.0,
  'NVIDIA A10G': 70.0,
  'NVIDIA A10': 125.0,
  'NVIDIA A100': 312.0,
  'NVIDIA L4': 121.0,
  'NVIDIA L40S': 362.0,
  'NVIDIA H100 PCIe': 756.0,
  'NVIDIA H100': 989.0,
  'NVIDIA H200': 989.0,
  'NVIDIA B200': 2250.0,
}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Of one JAX device.

  Attributes:
    bytes: of its main memory.
    bandwidth: bytes/s to and from them.
    all_reduce: bytes/s that it puts into an all-reduce of a whole pod.
    dimensions: of the torus of a pod. It has two links in each.
  """

  bytes: int
  bandwidth: float
  all_reduce: float
  dimensions: int


_GIB, _GB = 2**30, 1e9
# From Google's pages on each generation. The all-reduce rate is a pod's, divided by its devices;
# v5p's page has the links' bidirectional rate instead, of which half counts.
MEMORY = {
  'TPU v3': Memory(16 * _GIB, 450 * _GB, 340e12 / 2048, 2),
  'TPU v4': Memory(32 * _GIB, 1200 * _GB, 1.1e15 / 4096, 3),
  'TPU v5 lite': Memory(16 * _GIB, 819 * _GB, 51.2e12 / 256, 2),
  'TPU v5': Memory(95 * _GIB, 2765 * _GB, 600 * _GB, 3),
  'TPU v6 lite': Memory(32 * _GIB, 1638 * _GB, 102.4e12 / 256, 2),
}


def peak_flops(device_kind: str) -> float | None:
  """Peak FLOP/s of one device, or None for a kind without a published matmul rate."""
  peak = _find(PEAK_TFLOPS, device_kind)
  return None if peak is None else peak * 1e12


def memory(device_kind: str) -> Memory | None:
  """The published memory and network rates of a device, or None for a kind that is not listed."""
  return _find(MEMORY, device_kind)


def _find(table: dict, device_kind: str):
  for prefix in sorted(table, key=len, reverse=True):
    if re.match(rf'{prefix}\b', device_kind):
      return table[prefix]
  return None


def core_count() -> int:
  """Cores in the sense of the paper's cost: TPU cores, or devices of another kind."""
  return sum(getattr(device, 'num_cores', None) or 1 for device in jax.devices())


def memory_limit(device: jax.Device | None = None) -> int | None:
  """Bytes JAX may use on a device of this process, by default the first; None if unknown."""
  return ((device or jax.local_devices()[0]).memory_stats() or {}).get('bytes_limit')


def host_memory() -> int:
  """Bytes of memory that this host, or the container this runs in, has."""
  size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  limit = pathlib.Path('/sys/fs/cgroup/memory.max')
  text = limit.read_text(encoding='utf-8').strip() if limit.exists() else 'max'
  return min(size, int(text)) if text.isdigit() else size


def host_swap() -> int:
  """Bytes of memory that this host may move to its disk; 0 where Linux does not report them."""
  path = pathlib.Path('/proc/meminfo')
  found = re.search(r'SwapTotal: +(\d+) kB', path.read_text('utf-8') if path.exists() else '')
  return 1024 * int(found[1]) if found else 0
