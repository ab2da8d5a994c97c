"""What pre-training the seven models needs of TPU slices: python benchmarks/pods.py --output=DIR

Compiles the train step of each size at batch 4096 with the JFT-300M recipe for a slice of every
generation of TPU (`train.py --dry_run`: one to four minutes each on a CPU; no TPU is needed) and
prints the table of docs/scale.md. What has been compiled is kept in DIR and not done again.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

from absl import app, flags

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mixer import paper  # noqa: E402
from mixer.cost import dry_run  # noqa: E402

MODELS = ('s32', 's16', 'b32', 'b16', 'l32', 'l16', 'h14')
SLICES = ('v3:8x8', 'v4:4x4x4', 'v5e:16x16', 'v5p:4x4x4', 'v6e:16x16')

_OUTPUT = flags.DEFINE_string('output', None, 'Folder for the results.', required=True)
_MODELS = flags.DEFINE_list('models', list(MODELS), 'Which models.')
_SLICES = flags.DEFINE_list('slices', list(SLICES), 'Which slices, chips of each side.')


def compiled(model: str, where: str, folder: pathlib.Path) -> dict:
  """What the dry run found; with recomputed activations where the plain step does not fit."""
  for remat in ('False', 'True'):
    path = folder / f'{model}-{where.replace(":", "-")}{"-remat" * (remat == "True")}.json'
    if not path.exists() or 'core_days' not in json.loads(path.read_text()):
      command = [
        sys.executable, str(ROOT / 'train.py'),
        f'--config={ROOT}/configs/mixer_{model}.py:jft,synthetic', '--dry_run',
        f'--topology={where}', f'--dry_run_output={path}',
        '--config.model.dtype=bfloat16', f'--config.model.remat={remat}',
      ]  # fmt: skip
      subprocess.run(command, check=True, cwd=ROOT)
    row = {**json.loads(path.read_text()), 'remat': remat == 'True'}
    if row['fits']:
      break
  return row


def in_the_paper(name: str) -> float:
  """Core-days of TPU v3 that table 3 has of a model after its longest training on JFT-300M."""
  rows = [row for row in paper.rows(f'Mixer-{name}', 'jft_300m') if row.table == 3]
  return 1e3 * max(row.kilo_core_days for row in rows)


def line(model: str, where: str, row: dict) -> str:
  name = model.upper()[0] + '/' + model[1:]
  found = dry_run.Report(**{f.name: row[f.name] for f in dataclasses.fields(dry_run.Report)})
  if not found.fits:
    return f'| {name} | {where} | {found.devices} | does not fit |' + ' |' * 9
  parts = [
    name, where, f'{found.devices}',
    f'{found.memory / 2**30:.1f} of {found.memory_limit / 2**30:.0f}' + ' (remat)' * row['remat'],
    f'{found.flops / 1e12:.2f}', f'{found.bytes_accessed / 2**30:.1f}',
    f'{found.sent / 2**20:.0f}', *[f'{1e3 * seconds:.1f}' for seconds in found.times().values()],
    f'{found.core_days(row["steps"]):.1f}', f'{in_the_paper(name):.0f}',
  ]  # fmt: skip
  return f'| {" | ".join(parts)} |'


def main(_) -> None:
  folder = pathlib.Path(_OUTPUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  rows = [
    line(model, where, compiled(model, where, folder))
    for model in _MODELS.value
    for where in _SLICES.value
  ]
  print(
    '| model | slice | devices | GiB per device | TFLOP | GiB accessed | MiB sent | matmuls, ms '
    '| memory, ms | network, ms | step, ms | core-days | core-days in paper |'
  )
  print('|' + '---|' * 13)
  print('\n'.join(rows))


if __name__ == '__main__':
  app.run(main)
