"""Images per second and core of the input pipeline, and of what it is made of.

  python benchmarks/input.py
  python benchmarks/input.py --peer=DIR                 # a checkout of google-research/big_vision too

Writes 2,000 JPEGs of 500 x 375 pixels into a TFDS set, and reads them with every variant below in
turn, over and over: each in a process of its own, all pinned to one core. Only ratios within one
run compare on a shared machine, and those of the CPU time better than those of the clock.
"""

from collections.abc import Callable, Iterator
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

_IMAGES = flags.DEFINE_integer('images', 2000, 'How many JPEGs are written.')
_MEASURED = flags.DEFINE_integer('measured', 1024, 'Images that one measurement takes.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Measurements of each variant; the best counts.')
_CORE = flags.DEFINE_integer('core', 0, 'The core that all of it runs on.')
_ONLY = flags.DEFINE_list('only', None, 'Names of variants; all where it is left out.')
_PEER = flags.DEFINE_string('peer', None, 'A checkout of google-research/big_vision.')
_DATA = flags.DEFINE_string('data', None, 'Where the JPEGs are kept; None for a temporary folder.')
_VARIANT = flags.DEFINE_string('variant', None, 'Set in the processes that this program starts.')

BATCH, SIDE = 64, 224
WARM_UP = 512  # images, so that what lies ready in queues at the start is as much as at the end


# The images.


def write(folder: str) -> None:
  """A TFDS set 'photos' of JPEGs of about 100 KB, as much as ImageNet's."""
  import numpy as np
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  rng = np.random.default_rng(0)
  scenes = [_scene(rng, 2048, power) for power in (1.1, 1.15, 1.2)]
  features = {'image': tfds.features.Image(shape=(None, None, 3)),
              'label': tfds.features.ClassLabel(num_classes=1000)}  # fmt: skip
  rows = [
    (i, {'image': io.BytesIO(_photo(rng, scenes[i % len(scenes)])), 'label': i % 1000})
    for i in range(_IMAGES.value)
  ]
  sizes = [len(row['image'].getvalue()) for _, row in rows]
  print(f'{len(rows)} JPEGs of {min(sizes)} to {max(sizes)} bytes, {np.mean(sizes):.0f} on average')
  tfds.dataset_builders.store_as_tfds_dataset(
    name='photos',
    version='1.0.0',
    features=tfds.features.FeaturesDict(features),
    split_datasets={'train': rows},
    data_dir=folder,
    download_config=tfds.download.DownloadConfig(num_shards=8),
  )


def _scene(rng, side: int, power: float):
  """float32 (side, side, 3) about 0, with the falling spectrum of photographs."""
  import numpy as np

  frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
  frequency[0, 0] = 1.0

  def field():
    waves = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    levels = np.fft.irfft2(waves * frequency**-power, (side, side))
    return (levels / levels.std()).astype(np.float32)

  light = field()
  return np.stack([light + 0.35 * field() for _ in range(3)], axis=-1)


def _photo(rng, scene) -> bytes:
  import numpy as np
  from PIL import Image

  top, left = rng.integers(0, scene.shape[0] - 375), rng.integers(0, scene.shape[1] - 500)
  levels = 128 + 55 * scene[top : top + 375, left : left + 500]
  file = io.BytesIO()
  Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
  return file.getvalue()


# The variants: name -> a function of the folder that starts a stream of batches.


def ceiling(folder: str) -> Iterator:
  """The window drawn and its part of the JPEG decoded; not read, resized or handed over."""
  from mixer import runtime
  from mixer.input import crops

  tf = runtime.tensorflow()
  photos = _own(folder, crop='inception', layers=0)._examples

  def decode(index, encoded):
    seed = tf.stack([tf.constant(0, tf.int64), index])
    return tf.shape(crops.jpeg_window(encoded, seed))

  files = [photos.parse(photos.fetch([i])[0][0])[0] for i in range(photos.num_examples)]
  dataset = tf.data.Dataset.from_tensor_slices(tf.stack(files)).repeat().enumerate()
  dataset = dataset.map(decode, tf.data.AUTOTUNE, deterministic=True).batch(BATCH)
  return dataset.prefetch(2).as_numpy_iterator()


def _own(folder: str, *, crop: str, layers: int, **more):
  from mixer import input as inputs

  return inputs.build(
    source='tfds', name='photos', split='train', data_dir=folder, batch_size=BATCH,
    image_size=SIDE, crop=crop, randaugment_layers=layers, randaugment_magnitude=15, **more,
  )  # fmt: skip


def plain(folder: str) -> Iterator:
  return _own(folder, crop='inception', layers=0).train_batches(0, seed=0)


def on_host(folder: str) -> Iterator:
  return _own(folder, crop='inception', layers=2).train_batches(0, seed=0)


def evaluation(folder: str) -> Iterator:
  data = _own(folder, crop='resize_small', layers=0, resize=256)
  while True:
    yield from data.eval_batches(BATCH)


def _big_vision(folder: str, pp: str) -> Iterator:
  sys.path.insert(0, _PEER.value)
  from big_vision import input_pipeline
  from big_vision.pp import builder  # noqa: F401
  import importlib
  import ml_collections

  for module in ('ops_general', 'ops_image', 'archive.randaug'):
    importlib.import_module(f'big_vision.pp.{module}')
  config = ml_collections.ConfigDict(
    {
      'data': {'name': 'photos', 'split': 'train', 'data_dir': folder},
      'batch_size': BATCH,
      'pp': pp,
    }
  )
  dataset, _ = input_pipeline.training(config)
  return dataset.as_numpy_iterator()


_TAIL = '|value_range(-1, 1)|onehot(1000, key="label", key_result="labels")|keep("image", "labels")'


def peer(folder: str) -> Iterator:
  return _big_vision(folder, 'decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2,15)' + _TAIL)


def peer_plain(folder: str) -> Iterator:
  return _big_vision(folder, 'decode_jpeg_and_inception_crop(224)|flip_lr' + _TAIL)


VARIANTS: dict[str, Callable[[str], Iterator]] = {
  'ceiling': ceiling,
  'plain': plain,
  'on_host': on_host,
  'evaluation': evaluation,
  'peer': peer,
  'peer_plain': peer_plain,
}


# Measuring.


def work() -> None:
  """Measures one variant each time a line comes in."""
  start = VARIANTS[_VARIANT.value]
  for _ in sys.stdin:
    batches = start(_DATA.value)
    for _ in range(WARM_UP // BATCH):
      next(batches)
    clock, cpu = time.perf_counter(), time.process_time()
    count = _MEASURED.value // BATCH
    for _ in range(count):
      next(batches)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    batches.close() if hasattr(batches, 'close') else None
    del batches
    rss = [int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(('VmRSS', 'VmHWM'))]
    print(
      '@'
      + json.dumps(
        {'clock': clock / count / BATCH * 1e6, 'cpu': cpu / count / BATCH * 1e6, 'rss': rss}
      ),
      flush=True,
    )


def main(_) -> None:
  os.sched_setaffinity(0, {_CORE.value})
  if _VARIANT.value:
    return work()
  folder = _DATA.value or tempfile.mkdtemp()
  if not os.path.exists(os.path.join(folder, 'photos')):
    write(folder)
  names = _ONLY.value or [n for n in VARIANTS if _PEER.value or not n.startswith('peer')]
  workers = {}
  for name in names:
    command = [
      sys.executable,
      __file__,
      f'--variant={name}',
      f'--data={folder}',
      f'--measured={_MEASURED.value}',
      f'--core={_CORE.value}',
    ]
    command += [f'--peer={_PEER.value}'] if _PEER.value else []
    workers[name] = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
  found = {name: [] for name in names}
  for _ in range(_ROUNDS.value):
    for name, worker in workers.items():
      worker.stdin.write('\n')
      worker.stdin.flush()
      while not (line := worker.stdout.readline()).startswith('@'):
        if not line:
          raise SystemExit(f'{name} failed')
      found[name].append(json.loads(line[1:]))
  for name, ms in found.items():
    print(
      f'{name:12s} clock {min(m["clock"] for m in ms):7.0f} cpu {min(m["cpu"] for m in ms):7.0f}   all cpu',
      [round(m['cpu']) for m in ms],
      ms[-1]['rss'],
    )


if __name__ == '__main__':
  app.run(main)
