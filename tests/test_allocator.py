"""Freed memory that the C library keeps, counted by page faults in processes of their own."""

import platform
import subprocess
import sys

import pytest

import runs

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
MEASURE = """
import resource, threading

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = b'x' * 2**26  # 16,384 pages
  del block
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def measure():
  print((faults(), faults())[1])

def in_a_thread():
  thread = threading.Thread(target=measure)
  thread.start()
  thread.join()
"""


def python(code: str, **environment: str) -> list[str]:
  done = subprocess.run(
    [sys.executable, '-c', MEASURE + code], env={'JAX_PLATFORMS': 'cpu'} | environment,
    cwd=runs.ROOT, capture_output=True, text=True, check=True, timeout=300,
  )  # fmt: skip
  return done.stdout.split()


@pytest.mark.parametrize(
  'environment, kept',
  [
    ({}, True),
    ({'GLIBC_TUNABLES': 'glibc.pthread.rseq=0'}, True),
    ({'GLIBC_TUNABLES': 'glibc.pthread.rseq=0:glibc.malloc.hugetlb=0'}, False),
    ({'MALLOC_ARENA_MAX': '2'}, False),
    ({'LD_PRELOAD': '/nowhere/libjemalloc.so.2'}, False),
    ({'JAX_PLATFORMS': 'cuda,cpu'}, False),
    ({'JAX_PLATFORMS': '', 'JAX_PLATFORM_NAME': 'cpu'}, True),
  ],
)
def test_freed_memory_is_kept(environment, kept):
  """In a thread too; not where the user has settings of his own, or an accelerator."""
  keep = 'from mixer import allocator; print(allocator.keep_freed_memory()); in_a_thread()'
  said, count = python(keep, **environment)
  assert (said, int(count) < 1000) == (str(kept), kept)


def test_every_program_keeps_it():
  assert int(python('from mixer import cli; cli.run(measure)')[0]) < 1000
