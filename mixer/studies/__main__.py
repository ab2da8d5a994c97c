"""The paper's claims in small, on Fashion-MNIST: python -m mixer.studies fashion --workdir=DIR

  rates         learning rates on held-out training images
  families      figures 2, left, and 3: accuracy against cost, two sizes of Mixer, ViT and BiT
  full_length   the larger Mixer, trained for as long as the config trains it
  transfer      tables 2 and 3: fine-tuning and few-shot evaluation on scikit-learn's digits
  data_size     figure 2, right: 1, 3, 10, 30 and 100 percent of the training images
  permutations  figure 4: permuted pixels
  options       mixup, stochastic depth and what the paper left out, on and off

--only=PART,PART makes some of them. Each run has its own folder in DIR and one core of its own; an
interrupted study continues with the same command. Of each part DIR/PART.csv has every number,
DIR/PART.md the table and DIR/PART.png the figure, if it has one. --fast makes everything in
minutes, on made-up images and with hardly any steps. See docs/small_scale.md.
"""

from collections.abc import Sequence
import dataclasses
import os

from absl import flags
from etils import epath
import numpy as np

from mixer import cli, console, files, sweep
from mixer.errors import InputError
from mixer.input.sources import idx
from mixer.studies import fashion, schedule


def study(scale: fashion.Scale, parts: Sequence[str], *, jobs: int) -> None:
  """Makes the runs of the parts, and writes and prints their results."""
  chosen = {name: fashion.PARTS[name](scale) for name in parts}
  runs = [run for part in chosen.values() for run in part.runs]
  schedule.run_all(runs, scale.workdir, jobs=jobs)
  for name, part in chosen.items():
    rows = part.rows()
    files.write_csv(scale.workdir / f'{name}.csv', rows)
    text = part.tables(rows)
    files.write_text(scale.workdir / f'{name}.md', text)
    if part.figure:
      part.figure(rows, scale.workdir / f'{name}.png')
    console.print_line(f'\n{name}\n\n{text}')
  console.print_line(f'written: .csv, .md and .png of these parts in {scale.workdir}')


def fast(scale: fashion.Scale) -> fashion.Scale:
  """A scale of minutes, on made-up images in its workdir."""
  folder = scale.workdir / 'images'
  _make_images(folder)
  return dataclasses.replace(
    scale,
    seeds=scale.seeds[:1],
    sizes=('S',),
    epochs=4 * 128 / 60_000,
    full_epochs=4 * 128 / 60_000,
    steps=4,
    rate_steps=4,
    subset_steps=4,
    digits_steps=4,
    percents=(3, 100),
    rates={'S': (0.004, 0.008)},
    digits_rates=(0.001,),
    flags=(*scale.flags, f'--config.train_input.path={folder}'),
  )


def _make_images(folder: epath.Path) -> None:
  """60,000 + 300 images of noise around a level that depends on the class, as IDX files."""
  rng = np.random.default_rng(0)
  for name, n in (('train', 60_000), ('t10k', 300)):
    labels = np.arange(n, dtype=np.uint8) % 10
    noise = rng.integers(0, 30, (n, 28, 28), np.uint8)
    images = noise + (labels * 20)[:, None, None]
    for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
      header = bytes([0, 0, 8, array.ndim]) + b''.join(n.to_bytes(4, 'big') for n in array.shape)
      files.write(folder / f'{name}-{kind}-ubyte', header + array.tobytes())


def main(name: str = 'fashion') -> None:
  if name != 'fashion':
    raise InputError(f'unknown study {name!r}; the one that there is has the name fashion.')
  parts = flags.FLAGS.only or list(fashion.PARTS)
  if wrong := sorted(set(parts) - fashion.PARTS.keys()):
    raise InputError(f'--only={",".join(wrong)}: give some of {",".join(fashion.PARTS)}.')
  if not flags.FLAGS.seeds or len(set(flags.FLAGS.seeds)) < len(flags.FLAGS.seeds):
    raise InputError(f'--seeds={",".join(flags.FLAGS.seeds)}: give different numbers, as in 0,1,2.')
  sweep.exit_on_sigterm()
  workdir = files.absolute(flags.FLAGS.workdir)
  scale = fashion.Scale(workdir, seeds=flags.FLAGS.seeds, sizes=flags.FLAGS.sizes)
  if not scale.sizes or not set(scale.sizes) <= scale.rates.keys():
    raise InputError(f'--sizes={",".join(scale.sizes)}: give some of {",".join(scale.rates)}.')
  if flags.FLAGS.fast:
    scale = fast(scale)
  else:
    path = flags.FLAGS.path or idx.FASHION_MNIST
    for split in ('train', 'test'):
      idx.load(split=split, path=path)  # raises now what each of the runs would raise
    if flags.FLAGS.path:
      scale = dataclasses.replace(scale, flags=(f'--config.train_input.path={path}',))
  study(scale, parts, jobs=flags.FLAGS.jobs)


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'For the folders of the runs, the tables and the figures.')
  flags.DEFINE_list('only', [], f'Some of {",".join(fashion.PARTS)}; by default all.')
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Each run is made with each of these seeds.')
  flags.DEFINE_list(
    'sizes',
    ['S', 'M'],
    'Of the models; parts but rates, families and full_length have the first alone.',
  )
  flags.DEFINE_string('path', None, 'The folder of the IDX files, see docs/data.md.')
  flags.DEFINE_integer(
    'jobs', os.cpu_count(), 'Runs at a time, each on one core; 1 on a GPU or TPU.', lower_bound=1
  )
  flags.DEFINE_bool('fast', False, 'Made-up images and hardly any steps, to try the commands.')
  flags.mark_flags_as_required(['workdir'])
  cli.run(main)
