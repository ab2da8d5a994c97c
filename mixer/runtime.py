"""The environment of a program: settings before JAX starts, devices, versions, TensorFlow."""

from collections.abc import Mapping
import importlib.metadata
import os
import platform

from absl import logging
from etils import epath
import jax

from mixer import allocator, console, files
from mixer.errors import InputError

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tensorflow-datasets')
DETERMINISM_SCOPE = (
  'same losses bit for bit for the same seed, machine, device count and package versions; '
  'slower on a GPU, where it excludes kernels that add in random order'
)


def configure(*, deterministic: bool, compilation_cache: str | None = None) -> None:
  """Sets what JAX and its memory need when it starts; call it before JAX lists devices."""
  if compilation_cache:
    jax.config.update('jax_compilation_cache_dir', str(_made(compilation_cache)))
  if deterministic:
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_deterministic_ops=true'.strip()
    console.print_line(f'--deterministic: {DETERMINISM_SCOPE}')
  if allocator.keep_freed_memory():
    console.print_line('freed memory is kept for the next step (docs/performance.md, "On a CPU")')


def _made(compilation_cache: str) -> epath.Path:
  path = files.absolute(compilation_cache)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except Exception as fault:  # each filesystem behind epath has its own exceptions
    raise InputError(f'--compilation_cache={path} cannot be made: {fault}.') from fault
  return path


def check_backend(require: str | None) -> None:
  """Raises InputError unless JAX runs on the backend `require`; if that is None, warns of a CPU."""
  backend = jax.default_backend()
  if require and backend != require:
    raise InputError(
      f'--require={require}, but JAX found only {backend} devices. Install jax[cuda13] for a GPU '
      'or jax[tpu] for a TPU (README, "Install"), and check its driver.'
    )
  if backend == 'cpu' and not require:
    unused = ' although this machine has an NVIDIA GPU' if os.path.exists('/dev/nvidia0') else ''
    logging.warning(
      'RUNNING ON THE CPU%s. Use --require=gpu or --require=tpu to stop here instead, '
      '--require=cpu to confirm.',
      unused,
    )


def tensorflow():
  """TensorFlow without its start-up messages and without accelerators, which are JAX's.

  Environment variables of the user come first.
  """
  level = os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1')  # JAX sets 1 when it is imported
  # Nothing of TensorFlow's C++ code: it logs an error for each image that cannot be decoded, which
  # this program reports itself, and it raises its other errors.
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3' if level == '1' else level
  # With oneDNN it prints a message at import at any log level. No op of the input uses oneDNN.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  import tensorflow as tf

  os.environ['TF_CPP_MIN_LOG_LEVEL'] = level  # for the programs that this one starts

  for kind in ('GPU', 'TPU'):
    if tf.config.get_visible_devices(kind):
      tf.config.set_visible_devices([], kind)
  return tf


def versions() -> dict[str, str]:
  """The versions of Python and of the installed packages that affect numbers."""
  found = {'python': platform.python_version()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = 'not installed'
  return found


def device_line() -> str:
  """The devices of JAX, in one line."""
  devices = jax.devices()
  return (
    f'{jax.default_backend()}: {len(devices)} x {devices[0].device_kind}, '
    f'{jax.local_device_count()} of them in process {jax.process_index()} of {jax.process_count()}'
  )


def banner(sections: Mapping[str, str]) -> None:
  """Prints titled blocks of text, on process 0."""
  if jax.process_index() == 0:
    for title, text in sections.items():
      console.print_line(f'--- {title} ---\n{text}')
