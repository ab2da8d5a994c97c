"""The classes of a head: a list with (synset, name) of each output, in order.

A synset is a WordNet id such as 'n01440764', or '' if the class has no id. It identifies the class;
names repeat, so no lookup uses them. README.md in this folder has the sources of the lists.
"""

from collections.abc import Sequence
import pathlib
import re

from etils import epath

from mixer.errors import InputError

Classes = list[tuple[str, str]]

BUNDLED = {'imagenet1k': 1000, 'imagenet21k': 21843}  # name -> classes

_SYNSET = re.compile(r'(n\d{8})(?:\s+(.*))?')
_KNOWN_SIZES = (
  'Known sizes: 1000 is ImageNet-1k (imagenet1k); 21,843 is Google\'s ImageNet-21k (imagenet21k); '
  '21,841 or 21,842 are other vendors\' ImageNet-22k, 11,221 or 10,450 Alibaba-MIIL\'s '
  'ImageNet-21k-P, and their order differs too.'
)  # fmt: skip


def load(name_or_path: str, num_classes: int | None) -> Classes:
  """The classes of a bundled list, or of a UTF-8 file with one per line.

  A line is 'n01440764<TAB>tench', 'n01440764 tench', 'n01440764' or 'tench'.

  Raises:
    InputError: no such list or file, a line without content, or not `num_classes` of them (None for
      any number).
  """
  if name_or_path in BUNDLED:
    path = epath.Path(pathlib.Path(__file__).with_name(f'{name_or_path}.txt'))
  else:
    path = epath.Path(name_or_path).expanduser()
  if not path.exists() or path.is_dir():
    raise InputError(f'no label map {name_or_path!r}; give a file or one of {sorted(BUNDLED)}.')
  try:
    lines = path.read_bytes().decode('utf-8-sig').rstrip().splitlines()
  except UnicodeDecodeError as fault:
    raise InputError(f'the label map {path} is not UTF-8 text: {fault}.') from fault
  empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
  if empty:
    raise InputError(
      f'the label map {path} has nothing on line {empty[0]}; write one class on each line.'
    )
  return _checked([_parse(line) for line in lines], num_classes, f'the label map {name_or_path!r}')


def describe(class_names: Sequence[str], num_classes: int, source: str) -> Classes:
  """The classes of a data set by its own names; WordNet ids get their names."""
  names: dict[str, str] = {}
  if any(_SYNSET.fullmatch(name) for name in class_names):
    names = {synset: text for known, n in BUNDLED.items() for synset, text in load(known, n)}
  classes = [(name, names[name]) if name in names else ('', name) for name in class_names]
  return _checked(classes, num_classes, f'{source}, "class_names",')


def is_synset(name: str) -> bool:
  """Whether a name is a WordNet id."""
  found = _SYNSET.fullmatch(name)
  return found is not None and found[2] is None


def _parse(line: str) -> tuple[str, str]:
  found = _SYNSET.fullmatch(line.strip())
  return (found[1], found[2] or found[1]) if found else ('', line.strip())


def _checked(classes: Classes, num_classes: int | None, source: str) -> Classes:
  if num_classes not in (None, len(classes)):
    raise InputError(
      f'{source} has {len(classes)} classes, and the head {num_classes}. {_KNOWN_SIZES}'
    )
  return classes
