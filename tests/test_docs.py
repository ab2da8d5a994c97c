"""What the README, the docs and the configs' docstrings name is there."""

import importlib
import importlib.util
import re

import pytest

import runs

PAGES = [
  runs.ROOT / 'README.md',
  *sorted((runs.ROOT / 'docs').glob('*.md')),
  *sorted((runs.ROOT / 'configs').glob('*.py')),
]
TEXTS = {str(path.relative_to(runs.ROOT)): path.read_text() for path in PAGES}


@pytest.mark.parametrize('page', TEXTS)
def test_configs_load_with_their_arguments(page):
  for name, argument in re.findall(r'--config=configs/(\w+)\.py(?::([\w=,/.]+))?', TEXTS[page]):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config(argument) if argument else module.get_config()
    assert config.model.name


@pytest.mark.parametrize('page', TEXTS)
def test_programs_links_and_overrides_are_there(page):
  text = TEXTS[page]
  for module in re.findall(r'python -m (mixer[\w.]*)', text):
    assert importlib.util.find_spec(module), module
  for target in re.findall(r'make ([a-z-]+)`', text):
    assert re.search(rf'^{target}:', (runs.ROOT / 'Makefile').read_text(), re.M), target
  if page.endswith('.md'):
    folder = (runs.ROOT / page).parent
    for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
      assert (folder / link).exists(), link


def test_overrides_exist():
  from configs import digits, fewshot, finetune, imagenet, upstream

  configs = [
    digits.get_config(),
    fewshot.get_config(),
    imagenet.get_config(),
    finetune.get_config(),
    finetune.get_config('data=/a/folder'),
    upstream.get_config('Mixer-B/16', 'imagenet21k'),
    upstream.get_config('Mixer-B/16', 'jft_shards'),
  ]
  for page, text in TEXTS.items():
    for path in set(re.findall(r'--config\.([a-z_.]+)=', text)):
      known = False
      for config in configs:
        *sections, key = path.split('.')
        section = config
        for name in sections:
          section = section.get(name, {}) if name in section else {}
        known |= key in section
      assert known, f'{page}: --config.{path}'
