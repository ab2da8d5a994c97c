"""Eight CPU devices in one process; quick compilation; accidental broadcasts raise."""

import gc
import importlib.metadata
import os
import shutil
import tempfile

# The tests compile far more than they compute: XLA optimises little, and this process and those
# that it starts (see runs.environment) keep what they compiled in one directory.
_XLA_FLAGS = [
  '--xla_cpu_parallel_codegen_split_count=1', '--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE'
]  # fmt: skip
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 11):
  _XLA_FLAGS.append('--xla_cpu_use_fusion_emitters=false')  # newer versions do not know it
os.environ.update(
  JAX_PLATFORMS='cpu',
  JAX_DISABLE_MOST_OPTIMIZATIONS='1',
  XLA_FLAGS=' '.join(_XLA_FLAGS),
  JAX_COMPILATION_CACHE_DIR=tempfile.mkdtemp(prefix='compiled-'),
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
)

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_finish():
  gc.freeze()  # the modules are not looked through each time


def pytest_unconfigure():
  shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
