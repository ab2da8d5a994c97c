"""What a program sets before TensorFlow starts."""

import subprocess
import sys

import pytest

import runs

pytest.importorskip('tensorflow', reason='needs TensorFlow')


def python(code: str, tmp_path, **environment: str) -> subprocess.CompletedProcess:
  env = runs.environment(**environment)
  command = [sys.executable, '-c', code]
  return subprocess.run(
    command, cwd=runs.ROOT, env=env, capture_output=True, text=True, check=True, timeout=300
  )


PIPELINE = """
import os, pathlib
import numpy as np
from PIL import Image
from mixer import input

folder = pathlib.Path(os.environ['FOLDER'])
for name in 'ab':
  (folder / name).mkdir()
  Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / name / 'a.jpg')
data = input.build(
  source='folder', path=str(folder), split='train', val_fraction=0, batch_size=512, image_size=16,
  crop='inception', randaugment_layers=1, randaugment_magnitude=10,
)
batches = data.train_batches(0, 0)
next(batches)
"""


@pytest.mark.slow
def test_tensorflow_prints_nothing_of_its_own(tmp_path):
  """From the import to the exit, with XLA, and with a pipeline whose threads still run at exit."""
  done = python(PIPELINE, tmp_path, FOLDER=str(tmp_path))
  assert done.stderr == done.stdout == ''


@pytest.mark.slow
def test_warnings_of_tensorflow_are_printed(tmp_path):
  code = (
    "from mixer import runtime; tf = runtime.tensorflow(); tf.get_logger().warning('a warning'); "
    "import logging; print(logging.getLogger('tensorflow').getEffectiveLevel() <= logging.WARNING)"
  )
  done = python(code, tmp_path)
  assert 'a warning' in done.stderr and done.stdout == 'True\n'


@pytest.mark.slow
def test_the_settings_of_the_user_come_first(tmp_path):
  code = """
import contextlib, os
from mixer import runtime
tf = runtime.tensorflow()
with contextlib.suppress(tf.errors.InvalidArgumentError):
  tf.io.decode_image(b'')
print(os.environ['TF_CPP_MIN_LOG_LEVEL'], os.environ['TF_ENABLE_ONEDNN_OPTS'])
"""
  done = python(code, tmp_path, TF_CPP_MIN_LOG_LEVEL='0', TF_ENABLE_ONEDNN_OPTS='1')
  assert done.stdout == '0 1\n' and 'Local rendezvous is aborting' in done.stderr
  done = python(code, tmp_path)
  assert done.stdout == '1 0\n' and done.stderr == ''  # JAX sets the 1
