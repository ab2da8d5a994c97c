"""What pre-training needs of TPU slices: python benchmarks/pods.py --output=DIR

  python benchmarks/pods.py --output=DIR --models=Mixer-B/16,BiT-R50x1 --slices=v5e:16x16

Compiles the train step of each model at batch 4096 with the JFT-300M recipe for a slice of every
generation of TPU (`train.py --dry_run`: one to four minutes each on a CPU; no TPU is needed) and
prints the table of docs/scale.md. What has been compiled is kept in DIR and not done again.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

from absl import flags

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mixer import cli, models, paper  # noqa: E402
from mixer.cost import dry_run  # noqa: E402

MODELS = [f'Mixer-{size}' for size in ('S/32', 'S/16', 'B/32', 'B/16', 'L/32', 'L/16', 'H/14')]
# family -> the config of a size's recipe for JFT-300M, with random images
CONFIGS = {
  'Mixer': lambda size: f'mixer_{size.lower().replace("/", "")}.py:jft,synthetic',
  'ViT': lambda size: f'vit.py:{size},synthetic',
  'BiT': lambda size: f'bit.py:{size},synthetic',
}
SLICES = ('v3:8x8', 'v4:4x4x4', 'v5e:16x16', 'v5p:4x4x4', 'v6e:16x16')


def compiled(model: str, where: str, folder: pathlib.Path) -> dict:
  """What the dry run found; with recomputed activations where the plain step does not fit."""
  family, _, size = model.partition('-')
  config = CONFIGS[family](size)
  for remat in ('False', 'True'):
    name = f'{model}-{where}'.replace('/', '').replace(':', '-')
    path = folder / f'{name}{"-remat" * (remat == "True")}.json'
    if not path.exists() or 'core_days' not in json.loads(path.read_text()):
      command = [
        sys.executable, str(ROOT / 'train.py'),
        f'--config={ROOT}/configs/{config}', '--dry_run',
        f'--topology={where}', f'--dry_run_output={path}',
        '--config.model.dtype=bfloat16', f'--config.model.remat={remat}',
      ]  # fmt: skip
      subprocess.run(command, check=True, cwd=ROOT)
    row = {**json.loads(path.read_text()), 'remat': remat == 'True'}
    if row['fits']:
      break
  return row


def in_the_paper(model: str) -> str:
  """Core-days of TPU v3 in the paper, after a model's longest training on JFT-300M."""
  costs = [1e3 * row.kilo_core_days for row in paper.rows(model, 'jft_300m')]
  costs = costs or [point.core_days for point in paper.figure_3() if point.model == model]
  return f'{max(costs):.0f}' if costs else '-'


def line(model: str, where: str, row: dict) -> str:
  name = model.removeprefix('Mixer-')
  found = dry_run.Report(**{f.name: row[f.name] for f in dataclasses.fields(dry_run.Report)})
  if not found.fits:
    return f'| {name} | {where} | {found.devices} | does not fit |' + ' |' * 9
  parts = [
    name, where, f'{found.devices}',
    f'{found.memory / 2**30:.1f} of {found.memory_limit / 2**30:.0f}' + ' (remat)' * row['remat'],
    f'{found.flops / 1e12:.2f}', f'{found.bytes_accessed / 2**30:.1f}',
    f'{found.sent / 2**20:.0f}', *[f'{1e3 * seconds:.1f}' for seconds in found.times().values()],
    f'{found.core_days(row["steps"]):.1f}', in_the_paper(model),
  ]  # fmt: skip
  return f'| {" | ".join(parts)} |'


def main() -> None:
  values = flags.FLAGS
  for model in values.models:
    models.build(model, 1000)
  folder = pathlib.Path(values.output)
  folder.mkdir(parents=True, exist_ok=True)
  rows = [
    line(model, where, compiled(model, where, folder))
    for model in values.models
    for where in values.slices
  ]
  print(
    '| model | slice | devices | GiB per device | TFLOP | GiB accessed | MiB sent | matmuls, ms '
    '| memory, ms | network, ms | step, ms | core-days | core-days in paper |'
  )
  print('|' + '---|' * 13)
  print('\n'.join(rows))


def define_flags() -> None:
  flags.DEFINE_string('output', None, 'Folder for the results.', required=True)
  flags.DEFINE_list('models', MODELS, 'Names of `mixer.models.build`.')
  flags.DEFINE_list('slices', list(SLICES), 'Which slices, chips of each side.')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
