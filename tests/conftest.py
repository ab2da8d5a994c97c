"""Eight CPU devices in one process; quick compilation; accidental broadcasts raise."""

import gc
import importlib.metadata
import os
import shutil
import tempfile

# The tests compile far more than they compute: XLA optimises little, and this process and those
# that it starts (see runs.environment) keep what they compiled in one directory.
os.environ.update(
  JAX_PLATFORMS='cpu',
  JAX_DISABLE_MOST_OPTIMIZATIONS='1',
  XLA_FLAGS='--xla_cpu_parallel_codegen_split_count=1 '
  '--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE '
  # Newer versions do not know this flag.
  + '--xla_cpu_use_fusion_emitters=false'
  * importlib.metadata.version('jaxlib').startswith('0.10.'),
  JAX_COMPILATION_CACHE_DIR=tempfile.mkdtemp(prefix='compiled-'),
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
)

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# JAX has its flags now. TensorFlow would read them too, and end the process: it lacks some.
jax.jit(lambda: 0)()
del os.environ['XLA_FLAGS']


def pytest_collection_finish():
  gc.freeze()  # the modules are not looked through each time


def pytest_unconfigure():
  shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
