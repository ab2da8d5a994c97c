"""Writes a report on one or several runs: python -m mixer.report WORKDIR... --output=report.html

The report is a web page in a single file: training curves, results beside the paper's, cost,
pictures of weights, sample predictions, settings and versions. A .csv beside it has the last value
of every metric, a line for each run. Runs may be unfinished. See docs/figures.md.
"""

from absl import flags
from etils import epath

from mixer import cli, console, files
from mixer.errors import InputError
from mixer.report import run_files
from mixer.report.document import write


def check_output(path: str) -> epath.Path:
  output = files.absolute(path)
  if output.suffix not in ('.html', '.htm'):
    raise InputError(f'--output={path}: give a file name that ends in .html.')
  if not output.parent.is_dir():
    raise InputError(f'--output={path}: there is no directory {output.parent}; create it first.')
  for one in (output, output.with_suffix('.csv')):
    files.check_writable(one)
  return output


def main(*workdirs: str) -> None:
  if not workdirs:
    raise InputError('no workdir; give one or several: python -m mixer.report WORKDIR...')
  output = check_output(flags.FLAGS.output)
  write(run_files.read(workdirs), output, flags.FLAGS.samples)
  console.print_line(f'{output}, {output.with_suffix(".csv")}')


if __name__ == '__main__':
  flags.DEFINE_string('output', 'report.html', 'The page to write; the .csv is written beside it.')
  flags.DEFINE_integer('samples', 12, 'Sample predictions per run.', lower_bound=1)
  cli.run(main)
