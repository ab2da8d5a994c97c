"""Runs an entry point with a fault built in: python tests/faulty.py FAULT[,FAULT] train.py FLAGS

A fault tells of itself by a file in $MARKS, so that nobody has to wait for luck.
"""

import os
import pathlib
import resource
import runpy
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixer.checkpoints import manager
from mixer.cluster import coordination, preemption
from mixer.input.sources import arrays
from mixer.training import sharding, train_step

ROOT = pathlib.Path(__file__).parent.parent
STEP = 25  # where faults come


def mark(name: str) -> None:
  pathlib.Path(os.environ['MARKS'], name).touch()


def wait_for(name: str) -> None:
  while not pathlib.Path(os.environ['MARKS'], name).exists():
    time.sleep(0.02)


requests: list[preemption.StopRequests] = []  # of the run


def note_requests() -> None:
  """Puts what handles the run's signals into `requests`."""
  original = preemption.StopRequests.__enter__

  def enter(self):
    requests.append(self)
    return original(self)

  preemption.StopRequests.__enter__ = enter


def wait_until_stopped() -> None:
  """Waits until the run is to stop, and all processes have agreed where."""

  def agreed(stop) -> bool:
    return bool(stop._stop_at if stop._cluster.is_multiprocess else stop._requested.is_set())

  while not any(map(agreed, requests)):
    time.sleep(0.02)


def input_raises() -> None:
  original = arrays.Arrays.train_batches

  def train_batches(self, first_batch, *args):
    for number, batch in enumerate(original(self, first_batch, *args), first_batch + 1):
      if number == STEP:
        raise OSError('the disk of the images has gone')
      yield batch

  arrays.Arrays.train_batches = train_batches


def gradient_is_nan() -> None:
  original = train_step.make_step

  def make_step(*, tx, **arguments):
    traced = {}

    def update(grads, *rest):
      bad = jnp.where(traced['step'] == STEP - 1, jnp.nan, 1.0)
      return tx.update(jax.tree.map(lambda x: x * bad, grads), *rest)

    step = original(tx=optax.GradientTransformation(tx.init, update), **arguments)

    def traced_step(state, batch):
      traced['step'] = state.step
      return step(state, batch)

    return traced_step

  train_step.make_step = make_step


def disk_is_full() -> None:
  """From the third save on, no file can grow beyond 12 kB."""
  original, steps = manager.Checkpoints.save, []

  def save(self, step, *args):
    steps.append(step)
    if len(steps) == 3:
      self.wait()
      resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
    return original(self, step, *args)

  manager.Checkpoints.save = save


def disk_is_full_at_the_end() -> None:
  """As `disk_is_full`, from the last save on, after which no step comes to tell of it."""
  original = manager.Checkpoints.save

  def save(self, step, *args):
    if step == 40:
      self.wait()
      resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
    return original(self, step, *args)

  manager.Checkpoints.save = save


def stops_while_evaluating() -> None:
  """The second evaluation waits in its middle until the run has been told to stop."""
  original, calls = arrays.Arrays.eval_batches, []

  def eval_batches(self, *args, **kwargs):
    calls.append(args)
    for i, batch in enumerate(original(self, *args, **kwargs)):
      if len(calls) == 2 and i == 1:
        mark(f'evaluating-{jax.process_index()}')
        wait_until_stopped()
      yield batch

  arrays.Arrays.eval_batches = eval_batches


def compiles_long() -> None:
  original = train_step.compile_step

  def compile_step(*args):
    mark(f'compiling-{jax.process_index()}')
    wait_for('go')
    return original(*args)

  train_step.compile_step = compile_step


def opens_long() -> None:
  def digits(*, split):
    mark('opening')
    wait_for('never')

  arrays.digits = digits


def step_stalls() -> None:
  """Step 25 waits for its images until the stall has been told of."""
  original = arrays.Arrays.train_batches

  def train_batches(self, first_batch, *args):
    for number, batch in enumerate(original(self, first_batch, *args), first_batch + 1):
      if number == STEP:
        mark(f'stalled-{jax.process_index()}')
        wait_for('go')
      yield batch

  arrays.Arrays.train_batches = train_batches


def waits_to_be_stopped() -> None:
  """The seventh step of each start waits until the run has been told to stop."""
  original = arrays.Arrays.train_batches

  def train_batches(self, first_batch, *args):
    for number, batch in enumerate(original(self, first_batch, *args), first_batch + 1):
      if number == first_batch + 7:
        mark(f'waiting-{first_batch}-{jax.process_index()}')
        wait_until_stopped()
      yield batch

  arrays.Arrays.train_batches = train_batches


def hears_late() -> None:
  """Notices are not heard before the end of the run."""
  coordination._TICK_SECONDS = 3600.0


def is_told_at_the_end() -> None:
  """A SIGTERM comes when the last step has been saved, and this process alone hears of it."""
  original = coordination.Cluster.barrier

  def barrier(self, name):
    if name == 'done':
      os.kill(os.getpid(), signal.SIGTERM)
      while 'stop' in self._handlers:
        time.sleep(0.02)
    original(self, name)

  coordination.Cluster.barrier = barrier


def shards_everything() -> None:
  sharding._MIN_SHARDED_SIZE = 1


def other_code() -> None:
  coordination.code_version = lambda: 'changed'


def other_data() -> None:
  """One training image more."""
  original = arrays.digits

  def digits(*, split):
    more = int(split == 'train')
    images, labels, names = original(split=split)
    return np.concatenate([images, images[:more]]), np.concatenate([labels, labels[:more]]), names

  arrays.digits = digits


if __name__ == '__main__':
  note_requests()
  for fault in sys.argv[1].split(','):
    globals()[fault]()
  program = ROOT / sys.argv[2]
  sys.argv = [str(program), *sys.argv[3:]]
  runpy.run_path(str(program), run_name='__main__')
