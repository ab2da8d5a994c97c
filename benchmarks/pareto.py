"""Draws figure 3 of the paper, with what was measured here: accuracy against cost and speed.

  python benchmarks/pareto.py --output=pareto.png
  python benchmarks/pareto.py --output=pareto.svg --measured=throughput.json --runs=WORKDIR,WORKDIR

--measured adds hollow points at the speeds of benchmarks/throughput.py, --runs those of training
runs that have evaluated on ImageNet. See docs/performance.md.
"""

import json
import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from mixer import cli, files
from mixer.errors import InputError
from mixer.report import pareto, run_files
from mixer.visualize import plots


def read_report(path: str) -> dict:
  """The content of a throughput.json."""
  try:
    report = json.loads(files.absolute(path).read_text())
    report['rows'], report['device']['kind']
  except (OSError, ValueError, KeyError, TypeError) as fault:
    raise InputError(
      f'--measured={path}: give the throughput.json that benchmarks/throughput.py writes to its '
      f'--output ({type(fault).__name__}: {fault}).'
    ) from fault
  return report


def main() -> None:
  values = flags.FLAGS
  output = files.absolute(values.output)
  form = output.suffix.removeprefix('.')
  if form not in ('png', 'svg'):
    raise InputError(f'--output={values.output}: give a file name that ends in .png or .svg.')
  runs = run_files.read(values.runs) if values.runs else []
  for run in runs:
    if why := pareto.why_not_drawn(run):
      print(f'{run.label} is not drawn: {why}')
  panels = pareto.panels(read_report(values.measured) if values.measured else None, runs)
  files.write(output, plots.scatter(panels, ylabel=pareto.ACCURACY, form=form))
  print(output)


def define_flags() -> None:
  flags.DEFINE_string('output', None, 'The file to write, .png or .svg.', required=True)
  flags.DEFINE_string('measured', None, 'A throughput.json of benchmarks/throughput.py.')
  flags.DEFINE_list('runs', [], 'Workdirs of train.py.')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
