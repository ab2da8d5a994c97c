"""What chips can do, for MFU and cost; what the host has."""

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


def peak_flops(device_kind: str) -> float | None:
  """Peak FLOP/s of one device, or None for a kind without a published matmul rate."""
  for prefix in sorted(PEAK_TFLOPS, key=len, reverse=True):
    if re.match(rf'{prefix}\b', device_kind):
      return PEAK_TFLOPS[prefix] * 1e12
  return None


def core_count() -> int:
  """Cores in the sense of the paper's cost: TPU cores, or devices of another kind."""
  return sum(getattr(device, 'num_cores', None) or 1 for device in jax.devices())


def memory_limit() -> int | None:
  """Bytes JAX may use on the first local device, where the backend tells."""
  return (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')


def host_memory() -> int:
  """Bytes of memory that this host, or the container this runs in, has."""
  size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  limit = pathlib.Path('/sys/fs/cgroup/memory.max')
  text = limit.read_text().strip() if limit.exists() else 'max'
  return min(size, int(text)) if text.isdigit() else size
