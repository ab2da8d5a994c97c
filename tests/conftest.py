"""Eight CPU devices in one process; quick compilation; accidental broadcasts raise."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# The tests compile far more than they compute; whole runs in processes of their own optimise.
jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='module')
def compiled_once(tmp_path_factory):
  """Keeps compiled programs for a module whose tests compile the same ones again."""
  values = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('cache')),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  before = {name: getattr(jax.config, name) for name in values}

  def configure(settings):
    compilation_cache.reset_cache()
    for name, value in settings.items():
      jax.config.update(name, value)

  configure(values)
  yield
  configure(before)
