"""Hooks of MkDocs: README.md, notebooks and files outside docs/ that pages link to become pages.

Links are written as they are right in the clone, and changed here to those of the site.
"""

from collections.abc import Iterator
import os
import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = pathlib.Path(__file__).parent.parent
_README, _FIRST_PAGE = 'README.md', 'index.md'
_OTHERS = 'files/'  # where files outside docs/ are on the site
_LINK = re.compile(r'(?<=\]\()[^):#\s]+(?=[)#])')
_PICTURE = re.compile(r'^!\[(.*)\]\((.*)\)$', re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds README.md, a page for each notebook, and every file outside docs/ that pages link to."""
  new = [_README, *(f'docs/{uri}' for uri in files.src_uris if uri.endswith('.md'))]
  for uri in [uri for uri in files.src_uris if uri.endswith('.ipynb')]:
    text, resources = MarkdownExporter().from_filename(str(ROOT / 'docs' / uri))
    page = _uri(f'docs/{uri}')
    for name, content in {page: text, **resources['outputs']}.items():
      files.append(File.generated(config, name, content=content))
    new += _targets(text, f'docs/{page}')
  for path in new:  # which grows
    if _uri(path) not in files.src_uris:
      files.append(File.generated(config, _uri(path), abs_src_path=str(ROOT / path)))
    if path.endswith('.md'):
      text = (ROOT / path).read_text(encoding='utf-8')
      new += [target for target in _targets(text, path) if target not in new]
  return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
  """Changes the links of a page, and adds the pictures of all pages to the first one."""
  path = _path(page.file.src_uri)
  if path == _README:
    markdown += ''.join(_gallery())
  return _LINK.sub(lambda match: _changed(match[0], path), markdown)


def _gallery() -> Iterator[str]:
  """The pictures of the pages in docs/, each with a link to its page."""
  yield '\n## Pictures\n'
  for page in sorted((ROOT / 'docs').glob('*.md')):
    for title, name in _PICTURE.findall(page.read_text(encoding='utf-8')):
      yield f'\n[{title}](docs/{page.name})\n\n![{title}](docs/{name})\n'


def _targets(markdown: str, path: str) -> list[str]:
  """The files that a page links to, without those in docs/; of a folder, its README.md."""
  found = (_target(link, path) for link in _LINK.findall(markdown))
  return [target for target in found if target and not target.startswith('docs/')]


def _changed(link: str, path: str) -> str:
  """A link on the page of `path`, as on the site; one to nowhere stays, and MkDocs says so."""
  target = _target(link, path)
  return os.path.relpath(_uri(target), os.path.dirname(_uri(path))) if target else link


def _target(link: str, path: str) -> str | None:
  """The path in the clone that a link leads to, None for nowhere."""
  target = os.path.normpath(os.path.join(os.path.dirname(path), link))
  if (ROOT / target).is_dir():
    target = f'{target}/{_README}'
  return target if (ROOT / target).is_file() else None


def _uri(path: str) -> str:
  """Where a file of the clone is on the site, as MkDocs names the sources of its pages."""
  if path == _README:
    return _FIRST_PAGE
  if path.startswith('docs/'):
    return path.removeprefix('docs/').replace('.ipynb', '.md')
  return _OTHERS + path


def _path(uri: str) -> str:
  """The inverse of `_uri`, but for notebooks, of which it is a path beside them."""
  if uri == _FIRST_PAGE:
    return _README
  return uri.removeprefix(_OTHERS) if uri.startswith(_OTHERS) else f'docs/{uri}'
