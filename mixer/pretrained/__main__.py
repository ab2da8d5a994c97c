"""Tells what a file of parameters is: python -m mixer.pretrained FILE"""

from mixer import cli
from mixer.pretrained import describe


def main(path: str) -> None:
  print(describe(path))


if __name__ == '__main__':
  cli.run(main)
