"""Eight CPU devices in one process; quick compilation; accidental broadcasts raise."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# The tests compile far more than they compute; whole runs in processes of their own optimise.
jax.config.update('jax_disable_most_optimizations', True)
