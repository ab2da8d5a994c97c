"""One page about runs: python -m mixer.report WORKDIR... --output=report.html

Writes a web page that is one file and loads nothing from elsewhere, with the curves of all runs,
their results beside the paper's, pictures of weights, sample predictions and cost; and beside it a
.csv with the last value of every metric, a line a run. Runs need not have ended. See
docs/figures.md.
"""

from absl import flags
from etils import epath

from mixer import cli, files
from mixer.errors import InputError
from mixer.report import run_files
from mixer.report.document import write


def check_output(path: str) -> epath.Path:
  output = files.absolute(path)
  if output.suffix not in ('.html', '.htm'):
    raise InputError(f'--output={path}: give a name that ends in .html.')
  if not output.parent.is_dir():
    raise InputError(f'--output={path}: there is no folder {output.parent}.')
  return output


def main(*workdirs: str) -> None:
  if not workdirs:
    raise InputError('give the workdirs of one or several runs: python -m mixer.report WORKDIR...')
  output = check_output(flags.FLAGS.output)
  write(run_files.read(workdirs), output, flags.FLAGS.samples)
  print(f'{output}, {output.with_suffix(".csv")}')


if __name__ == '__main__':
  flags.DEFINE_string('output', 'report.html', 'The page; the .csv is written beside it.')
  flags.DEFINE_integer('samples', 12, 'Images with predictions for each run.', lower_bound=1)
  cli.run(main)
