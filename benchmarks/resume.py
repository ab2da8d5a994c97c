"""Time to start at a late step, at the sizes of ImageNet and ImageNet-21k.

  python benchmarks/resume.py [--folder=DIR] [--examples=1281167,14197122]

Writes sets of tiny images in 1,024 TFRecord files each under DIR (0.2 and 2.1 GB, which are kept),
and prints a table of seconds, in brackets those of CPU, which other work on the machine changes
less. Every row is measured in a separate process, after TensorFlow is loaded. The first
start has no index and walks over all headers, which the system has in memory.
"""

import importlib
import io
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

from absl import app, flags
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

FILES, BATCH, EPOCHS = 1024, 256, 5.5
PARTS = ('index', 'order', 'first batch')

_FOLDER = flags.DEFINE_string('folder', '/tmp/mixer_resume', 'Where the sets are written.')
_EXAMPLES = flags.DEFINE_list('examples', ['1281167', '14197122'], 'Sizes of the sets.')
_ONE = flags.DEFINE_string('one', None, 'Internal: measure one start, given as JSON.')


def main(_) -> None:
  if _ONE.value:
    print(json.dumps(measure(**json.loads(_ONE.value))))
    return
  print(f'| examples | start | {" | ".join(PARTS)} | memory |\n|---|---|---|---|---|---|')
  for n in map(int, _EXAMPLES.value):
    folder = write(n)
    late = int(EPOCHS * n / BATCH)
    shutil.rmtree(folder / '.record_index', ignore_errors=True)
    for name, step in (('the first', 0), ('at step 0', 0), (f'at step {late:,}', late)):
      start = {'files': f'{folder}/*', 'n': n, 'step': step}
      command = [sys.executable, __file__, f'--one={json.dumps(start)}']
      found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
      cells = [f'{found[part][0]:.1f} ({found[part][1]:.1f})' for part in PARTS]
      cells = [f'{n:,}', name, *cells, f'{found["peak"] / 2**20:.0f} MiB']
      print(f'| {" | ".join(cells)} |', flush=True)


def measure(files: str, n: int, step: int) -> dict:
  """(seconds, CPU seconds) of each of PARTS; bytes at the peak."""
  from mixer import input as inputs
  from mixer.input import order

  importlib.import_module('mixer.input.sources.shards')  # loads TensorFlow, not measured
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  marks = [now()]
  data = inputs.build(
    source='shards', files=files, num_classes=10, batch_size=BATCH, image_size=16, crop='inception'
  )
  assert data.num_examples == n
  marks.append(now())
  order.permutation(n, 0, step * BATCH // n)
  marks.append(now())
  next(data.train_batches(step, 0))
  marks.append(now())
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  return {**dict(zip(PARTS, np.diff(marks, axis=0).tolist())), 'peak': peak * 1024}


def now() -> tuple[float, float]:
  return time.perf_counter(), time.process_time()


def write(n: int) -> pathlib.Path:
  """The folder with `n` examples in FILES files, written if it does not exist."""
  from mixer import runtime

  tf = runtime.tensorflow()
  folder = pathlib.Path(_FOLDER.value) / str(n)
  done = folder.with_suffix('.done')
  if done.exists():
    return folder
  folder.mkdir(parents=True, exist_ok=True)
  encoded = io.BytesIO()
  Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(encoded, 'PNG')
  features = {
    'image/encoded': tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded.getvalue()])),
    'image/class/label': tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
  }
  record = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
  single = folder.with_suffix('.one')
  with tf.io.TFRecordWriter(str(single)) as writer:
    writer.write(record)
  frame = single.read_bytes()
  for number in range(FILES):
    records = (number + 1) * n // FILES - number * n // FILES
    (folder / f'{number:04}').write_bytes(frame * records)
  done.touch()
  return folder


if __name__ == '__main__':
  app.run(main)
