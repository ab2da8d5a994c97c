"""Makes the C library keep the memory that a program frees."""

from collections.abc import Mapping
import ctypes
import glob
import os

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/kfd', '/dev/accel[0-9]*', '/dev/vfio/[0-9]*')


def keep_freed_memory() -> bool:
  """Makes glibc keep what this process frees, where JAX will run on the CPU; whether it does so.

  XLA allocates the temporaries of a step anew each time. By default glibc returns blocks of this
  size to the system, and the kernel then clears each page again at its first use. All threads have
  to share one arena, since in others such blocks are returned in any case: call this before
  there are threads. Settings of the user and other allocators are left alone.
  """
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'gnu_get_libc_version') or _is_set(os.environ) or not _on_cpu(os.environ):
    return False
  values = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
  return all([libc.mallopt(name, value) for name, value in values.items()])


def _is_set(environment: Mapping[str, str]) -> bool:
  """Whether the user has set how memory is allocated."""
  return (
    'glibc.malloc.' in environment.get('GLIBC_TUNABLES', '')
    or 'malloc' in environment.get('LD_PRELOAD', '')
    or any(name.startswith('MALLOC_') for name in environment)
  )


def _on_cpu(environment: Mapping[str, str]) -> bool:
  """Whether JAX will run on the CPU, as far as can be told before it looks for devices."""
  asked = environment.get('JAX_PLATFORMS') or environment.get('JAX_PLATFORM_NAME')
  return asked.startswith('cpu') if asked else not any(map(glob.glob, _ACCELERATORS))
