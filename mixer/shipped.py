"""Where train.py, evaluate.py and the configs are: in a clone, or inside the installed package."""

import os
import pathlib
import sys

_PACKAGE = pathlib.Path(__file__).parent
_INSTALLED = _PACKAGE / 'programs'  # pyproject.toml puts the root of the clone there
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
TRAIN, EVALUATE, CONFIGS = ROOT / 'train.py', ROOT / 'evaluate.py', ROOT / 'configs'


def find(path: str) -> str:
  """The file at `path`, or the one that is shipped: configs/digits.py is found from anywhere.

  Then `configs` can be imported, as the shipped configs do.
  """
  shipped = ROOT / path
  if os.path.exists(path) or not shipped.is_file():
    return path
  if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
  return str(shipped)


def config_names() -> list[str]:
  """The names under which shipped configs can be given: 'finetune' of configs/finetune.py."""
  return sorted(path.stem for path in CONFIGS.glob('*.py') if path.stem != 'common')
