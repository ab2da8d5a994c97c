"""Files that are never seen half-written."""

from etils import epath


def write(path: epath.Path, content: bytes) -> None:
  """Writes a file under a temporary name and renames it; until then an older one stays."""
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(content)
  partial.replace(path)
