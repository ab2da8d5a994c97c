"""Time per image on one core: the input pipeline, its parts, and another pipeline.

  python benchmarks/input.py
  python benchmarks/input.py --peer=DIR     # and the pipeline of a checkout of big_vision

Writes 2,000 JPEGs of 500 x 375 pixels as a TFDS set. Every variant runs in a separate process,
all pinned to one core; they are measured in turn, over and over. On a shared machine only ratios
within one run compare, and those of CPU time better than those of the clock. docs/input.md has a
table.
"""

from collections.abc import Callable, Iterator, Sequence
import importlib
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from absl import app, flags
import ml_collections
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each variant.')
_MEASURED = flags.DEFINE_integer('measured', 512, 'Images that one measurement takes.')
_IMAGES = flags.DEFINE_integer('images', 2000, 'JPEGs that are written.')
_ONLY = flags.DEFINE_list('only', None, 'Names of variants; all where it is left out.')
_CORE = flags.DEFINE_integer('core', 0, 'The core that all of it runs on.')
_PEER = flags.DEFINE_string('peer', None, 'A checkout of google-research/big_vision.')
_DATA = flags.DEFINE_string('data', None, 'Where the JPEGs are kept; None for a temporary folder.')
_VARIANT = flags.DEFINE_string('variant', None, 'Set in the processes that this program starts.')

BATCH, SIDE = 64, 224
WARM_UP = 512  # images, in which every operation has been compiled
RESULT = '@'  # begins the lines that hold one


def main(_) -> None:
  os.sched_setaffinity(0, {_CORE.value})  # before TensorFlow counts the cores; children inherit it
  if _VARIANT.value:
    answer(VARIANTS[_VARIANT.value], _DATA.value)
    return
  names = _ONLY.value or [name for name in VARIANTS if _PEER.value or not name.startswith('peer')]
  with tempfile.TemporaryDirectory() as temporary:
    folder = _DATA.value or temporary
    if not os.path.exists(os.path.join(folder, 'photos')):
      write(folder)
    print_table(compare(names, folder))


# The images.


def write(folder: str) -> None:
  """The TFDS set 'photos', of JPEGs of about ImageNet's 100 KB."""
  from mixer import runtime

  runtime.tensorflow()
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  rng = np.random.default_rng(0)
  scenes = [scene(rng, 2048, power) for power in (1.1, 1.15, 1.2)]
  files = [photo(rng, scenes[i % len(scenes)]) for i in range(_IMAGES.value)]
  sizes = [len(file) / 1000 for file in files]
  print(f'{len(files)} JPEGs of {min(sizes):.0f} to {max(sizes):.0f} KB')
  label = tfds.features.ClassLabel(num_classes=1000)
  tfds.dataset_builders.store_as_tfds_dataset(
    name='photos',
    version='1.0.0',
    features=tfds.features.FeaturesDict(
      {'image': tfds.features.Image(shape=(None, None, 3)), 'label': label}
    ),
    split_datasets={
      'train': [(i, {'image': io.BytesIO(f), 'label': i % 1000}) for i, f in enumerate(files)]
    },
    data_dir=folder,
    download_config=tfds.download.DownloadConfig(num_shards=8),
  )


def scene(rng: np.random.Generator, side: int, power: float) -> np.ndarray:
  """float32 (side, side, 3) around 0, with the falling spectrum that photographs have."""
  frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
  frequency[0, 0] = 1.0

  def field():
    waves = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    levels = np.fft.irfft2(waves * frequency**-power, (side, side))
    return (levels / levels.std()).astype(np.float32)

  light = field()
  return np.stack([light + 0.35 * field() for _ in range(3)], axis=-1)


def photo(rng: np.random.Generator, where: np.ndarray) -> bytes:
  """A JPEG of quality 90 of a random part of a scene, 375 x 500 pixels."""
  from PIL import Image

  top, left = rng.integers(0, where.shape[0] - 375), rng.integers(0, where.shape[1] - 500)
  levels = np.clip(128 + 55 * where[top : top + 375, left : left + 500], 0, 255)
  file = io.BytesIO()
  Image.fromarray(levels.astype(np.uint8)).save(file, 'JPEG', quality=90)
  return file.getvalue()


# The variants: a folder -> a stream of batches.


def build(folder: str, *, crop: str, **more):
  from mixer import input as inputs

  return inputs.build(
    source='tfds', name='photos', split='train', data_dir=folder, batch_size=BATCH,
    image_size=SIDE, crop=crop, **more,
  )  # fmt: skip


def ceiling(folder: str, *, whole: bool = False) -> Iterator:
  """Windows, or whole images, decoded from JPEGs in memory; no reading, resizing, handing over."""
  import tensorflow_datasets as tfds

  from mixer import runtime
  from mixer.input import crops

  tf = runtime.tensorflow()

  def decode(number, file):
    if whole:
      return tf.shape(tf.io.decode_jpeg(file, channels=3))
    return tf.shape(crops.jpeg_window(file, tf.stack([tf.constant(0, tf.int64), number])))

  skip = {'image': tfds.decode.SkipDecoding()}
  photos = tfds.load('photos', split='train', data_dir=folder, decoders=skip, download=False)
  files = tf.stack([row['image'] for row in photos])
  dataset = tf.data.Dataset.from_tensor_slices(files).repeat().enumerate()
  dataset = dataset.map(decode, tf.data.AUTOTUNE, deterministic=True).batch(BATCH).prefetch(2)
  return dataset.as_numpy_iterator()


def train(folder: str, **randaugment) -> Iterator:
  return build(folder, crop='inception', **randaugment).train_batches(0, seed=0)


def evaluate(folder: str) -> Iterator:
  data = build(folder, crop='resize_small', resize=256)
  while True:
    yield from data.eval_batches(BATCH)


def big_vision(folder: str, *pp: str) -> Iterator:
  """Its own pipeline, unmodified, with neither its shuffle buffer nor its cache of records."""
  sys.path.insert(0, _PEER.value)
  pipeline = importlib.import_module('big_vision.input_pipeline')
  for module in ('ops_general', 'ops_image', 'archive.randaug'):
    importlib.import_module(f'big_vision.pp.{module}')
  data = {'name': 'photos', 'split': 'train', 'data_dir': folder}
  config = {'data': data, 'batch_size': BATCH, 'pp': '|'.join(pp)}
  return pipeline.training(ml_collections.ConfigDict(config))[0].as_numpy_iterator()


CROP = ('decode_jpeg_and_inception_crop(224)', 'flip_lr')
TO_FLOAT = (
  'value_range(-1, 1)',
  'onehot(1000, key="label", key_result="labels")',
  'keep("image", "labels")',
)
FACTS = {'randaugment_layers': 2, 'randaugment_magnitude': 15}
VARIANTS: dict[str, Callable[[str], Iterator]] = {
  'ceiling': ceiling,
  'crop': train,
  'device': lambda folder: train(folder, **FACTS, randaugment_on='device'),
  'host': lambda folder: train(folder, **FACTS, randaugment_on='host'),
  'whole': lambda folder: ceiling(folder, whole=True),
  'evaluation': evaluate,
  'peer_crop': lambda folder: big_vision(folder, *CROP, *TO_FLOAT),
  'peer': lambda folder: big_vision(folder, *CROP, 'randaug(2,15)', *TO_FLOAT),
}


# Measuring.


def answer(start: Callable[[str], Iterator], folder: str) -> None:
  """Measures once for each line on stdin."""
  batches = start(folder)
  for _ in range(WARM_UP // BATCH):
    next(batches)
  for _ in sys.stdin:
    settle()
    clock, cpu, count = time.perf_counter(), time.process_time(), _MEASURED.value // BATCH
    for _ in range(count):
      next(batches)
    settle()
    found = {
      'clock': (time.perf_counter() - clock) / (count * BATCH) * 1e6,
      'cpu': (time.process_time() - cpu) / (count * BATCH) * 1e6,
      'peak': int(
        pathlib.Path('/proc/self/status').read_text(encoding='utf-8').split('VmHWM:')[1].split()[0]
      ),
    }
    print(RESULT + json.dumps(found), flush=True)


def settle() -> None:
  """Waits until every queue of the pipeline is full, so that no other thread has work to do.

  So the queues hold as much after a measurement as before it.
  """
  quiet = 0
  while quiet < 5:
    time.sleep(0.02)
    # After the name, which is in brackets, is the state: 'R' runs or waits for a core.
    tasks = [t for t in os.listdir('/proc/self/task') if t != str(threading.get_native_id())]
    states = [pathlib.Path(f'/proc/self/task/{t}/stat').read_text(encoding='utf-8') for t in tasks]
    busy = any(state.rpartition(')')[2].split()[0] in 'RD' for state in states)
    quiet = 0 if busy else quiet + 1


def compare(names: Sequence[str], folder: str) -> dict[str, list[dict]]:
  """name -> its measurements, which are taken in turn."""
  given = [f for f in sys.argv[1:] if not f.startswith(('--data', '--only'))]
  workers = {
    name: subprocess.Popen(
      [sys.executable, __file__, *given, f'--variant={name}', f'--data={folder}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for name in names
  }
  found = {name: [] for name in names}
  for _ in range(_ROUNDS.value):
    for name, worker in workers.items():
      worker.stdin.write('\n')
      worker.stdin.flush()
      line = next((line for line in worker.stdout if line.startswith(RESULT)), None)
      if line is None:
        raise SystemExit(f'the variant {name} failed, see above')
      found[name].append(json.loads(line.removeprefix(RESULT)))
      print(f'{name}: {found[name][-1]}', file=sys.stderr, flush=True)
  for worker in workers.values():
    worker.kill()
  return found


def print_table(found: dict[str, list[dict]]) -> None:
  """The median CPU time of each variant, and its ratios to the first and the last of them."""
  cpu = {name: statistics.median(one['cpu'] for one in those) for name, those in found.items()}
  first, last = next(iter(found)), list(found)[-1]
  print(f'| variant | CPU us | least, most | images/s | of {first} | times {last} | peak MB |')
  print('|---|---|---|---|---|---|---|')
  for name, those in found.items():
    least, most = (of(one['cpu'] for one in those) for of in (min, max))
    print(
      f'| {name} | {cpu[name]:.0f} | {least:.0f}, {most:.0f} | {1e6 / cpu[name]:.0f} '
      f'| {cpu[first] / cpu[name]:.0%} | {cpu[last] / cpu[name]:.2f} '
      f'| {max(one["peak"] for one in those) / 1e3:.0f} |'
    )


if __name__ == '__main__':
  app.run(main)
