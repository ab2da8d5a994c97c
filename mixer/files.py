"""Files that are never seen half-written, and what image files are called."""

import os

from etils import epath

CONFIG_FILE = 'config.json'  # of a workdir
IMAGE_ENDINGS = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.webp')  # in any case


def absolute(path: str) -> epath.Path:
  """The path from the root, with '~' expanded; a path with '://' stays as it is."""
  return epath.Path(path if '://' in path else os.path.abspath(os.path.expanduser(path)))


def write(path: epath.Path, content: bytes) -> None:
  """Writes a file under a temporary name and renames it; until then an older one stays."""
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(content)
  partial.replace(path)
