"""The documentation as a site: what `make docs` builds, and what it refuses."""

import os
import re
import shutil
import subprocess

import pytest

import runs

MKDOCS = runs.ROOT / '.venv-docs' / 'bin' / 'mkdocs'


def copy_pages(target):
  """A copy of all that the site is made of."""
  for name in ('docs', 'weights', 'mixer/labels'):
    shutil.copytree(runs.ROOT / name, target / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('README.md', 'mkdocs.yml'):
    shutil.copy(runs.ROOT / name, target)


def build(root):
  """(exit status, everything printed)."""
  command = [os.environ.get('MKDOCS_FOR_TESTS', MKDOCS), 'build', '--strict']
  done = subprocess.run(
    command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'}, timeout=600,
  )  # fmt: skip
  return done.returncode, done.stdout


def test_every_page_is_in_the_navigation():
  text = (runs.ROOT / 'mkdocs.yml').read_text()
  listed = re.findall(r'^ +- (?:[^:\n]+: )?(\w+)\.md$', text, re.M)
  docs = (runs.ROOT / 'docs').iterdir()
  pages = [path.stem for path in docs if path.suffix in ('.md', '.ipynb')]
  assert sorted(listed) == sorted(['index', *pages])


@pytest.mark.slow
@pytest.mark.skipif(not (MKDOCS.exists() or 'MKDOCS_FOR_TESTS' in os.environ), reason='make docs')
def test_the_site(tmp_path):
  """Links within the site and its pictures exist, nothing is loaded from elsewhere."""
  copy_pages(tmp_path)
  status, output = build(tmp_path)
  assert status == 0, output
  site = tmp_path / 'site'
  pages = {path: path.read_text() for path in site.rglob('*.html') if path.name != '404.html'}
  for path, text in pages.items():
    for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
      place, _, anchor = link.partition('#')
      if not re.match(r'\w+:', place):
        target = (path.parent / place).resolve() if place else path
        assert target.is_file(), f'{path}: {link}'
        assert not anchor or f'id="{anchor}"' in target.read_text(), f'{path}: {link}'
    for link in re.findall(r'(?:<script [^>]*src|<link [^>]*href|<img [^>]*src)="([^"]+)"', text):
      assert link.startswith('data:') or (path.parent / link).resolve().is_file(), f'{path}: {link}'
  first = pages[site / 'index.html']
  for picture in (runs.ROOT / 'docs').glob('*.png'):
    assert f'src="{picture.name}"' in first, picture
  assert (site / 'search' / 'search_index.json').exists()


@pytest.mark.slow
@pytest.mark.skipif(not (MKDOCS.exists() or 'MKDOCS_FOR_TESTS' in os.environ), reason='make docs')
@pytest.mark.parametrize(
  ('page', 'link', 'fault'),
  [
    ('docs/predict.md', '[a](no_such.md)', "contains a link 'no_such.md'"),
    ('README.md', '[a](docs/predict.md#no-such)', "'predict.md#no-such'"),
    ('weights/fashion_mnist_mixer_m/README.md', '[a](../../docs/no_such.md)', 'no_such.md'),
  ],
)
def test_a_broken_link_is_an_error(tmp_path, page, link, fault):
  copy_pages(tmp_path)
  with (tmp_path / page).open('a') as file:
    file.write(f'\n{link}\n')
  status, output = build(tmp_path)
  assert status == 1 and fault in output, output
