"""The programs under one name: mixer COMMAND ..., also as python -m mixer COMMAND ..."""

import ast
import difflib
import pathlib
import runpy
import sys

from mixer import shipped

_PACKAGE = pathlib.Path(__file__).parent
COMMANDS = {  # name -> the file of the program
  'train': shipped.TRAIN,
  'evaluate': shipped.EVALUATE,
  'predict': _PACKAGE / 'predict.py',
  'serve': _PACKAGE / 'serve.py',
  'convert': _PACKAGE / 'convert.py',
  'visualize': _PACKAGE / 'visualize' / '__main__.py',
  'report': _PACKAGE / 'report' / '__main__.py',
  'pretrained': _PACKAGE / 'pretrained' / '__main__.py',
  'prepare': _PACKAGE / 'input' / 'prepare.py',
  'check': _PACKAGE / 'input' / 'check.py',
  'sweep': _PACKAGE / 'sweep.py',
  'progressive': _PACKAGE / 'progressive.py',
  'vtab': _PACKAGE / 'vtab.py',
  'studies': _PACKAGE / 'studies' / '__main__.py',
}


def main() -> None:
  """Runs the program that the first argument names, as if it were started by its file.

  Its exit status, signals and flags are its own. Without an argument the commands are listed.
  """
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in ('--help', '-h', 'help'):
    print(_usage())
    return
  if name not in COMMANDS:
    close = difflib.get_close_matches(name, COMMANDS, n=3)
    hint = f'did you mean {" or ".join(close)}?' if close else 'mixer --help lists them.'
    print(f'error: there is no command {name!r}; {hint}', file=sys.stderr)
    sys.exit(2)
  del sys.argv[1]
  runpy.run_path(str(COMMANDS[name]), run_name='__main__')


def _usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f'  {name:{width}}  {_summary(file)}' for name, file in COMMANDS.items()]
  return '\n'.join(
    ['usage: mixer COMMAND [FLAGS ...]', '', *lines, '', 'mixer COMMAND --help lists its flags.']
  )


def _summary(file: pathlib.Path) -> str:
  """The first line of the program's docstring, without the example in it."""
  line = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))).partition('\n')[0]
  return line.partition(': python')[0].rstrip('.')


if __name__ == '__main__':
  main()
