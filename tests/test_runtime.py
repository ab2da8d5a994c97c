"""What a program sets before TensorFlow starts."""

import ctypes
import platform
import subprocess
import sys

import pytest

from mixer import runtime

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has mallopt')
# What stays resident of 16 MiB that are freed, before and after.
KEPT = """
import ctypes, pathlib
from mixer import runtime

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def kept():
  resident = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096
  before = resident()
  block = libc.malloc(2**24)
  ctypes.memset(block, 1, 2**24)
  libc.free(block)
  return (resident() - before) / 2**20

print(kept())
runtime._keep_memory()
print(kept())
"""


def test_freed_memory_is_kept():
  run = subprocess.run([sys.executable, '-c', KEPT], capture_output=True, text=True, check=True)
  before, after = map(float, run.stdout.split())
  assert before < 2 and after > 14


def test_the_users_own_settings_come_first(monkeypatch):
  monkeypatch.setenv('MALLOC_ARENA_MAX', '2')
  monkeypatch.setattr(ctypes, 'CDLL', lambda _: pytest.fail('malloc was changed'))
  runtime._keep_memory.__wrapped__()
