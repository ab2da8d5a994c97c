"""The commands, flags, files and links in README, docs, cards and docstrings of configs exist."""

import ast
import functools
import importlib
import importlib.util
import inspect
import json
import re

import pytest

import runs
from test_architecture import ENTRY_POINTS, LAYERS, SOURCES, loads

PAGES = [
  runs.ROOT / 'README.md',
  *sorted((runs.ROOT / 'docs').glob('*.md')),
  *sorted((runs.ROOT / 'docs').glob('*.ipynb')),
  *sorted((runs.ROOT / 'weights').glob('*/README.md')),
  *sorted((runs.ROOT / 'configs').glob('*.py')),
]


def read(path) -> str:
  """The text of a page; of a notebook without its outputs."""
  text = path.read_text()
  if path.suffix == '.ipynb':
    text = '\n\n'.join(''.join(cell['source']) for cell in json.loads(text)['cells'])
  return text


TEXTS = {str(path.relative_to(runs.ROOT)): read(path) for path in PAGES}
# A command ends with its line, if that does not end in a backslash, or with inline code.
COMMAND = (
  r'python (?:-m )?(train\.py|evaluate\.py|benchmarks/\w+\.py|mixer[\w.]*)((?:\\\n|[^\n`])*)'
)
# The flags that they lack are passed on to train.py.
PASS_ON = ('mixer.progressive', 'mixer.sweep', 'mixer.vtab')
BUILT_ON = {'mixer.serve': 'mixer.predict'}  # which defines flags of both
WIDTH = 100


def program(name: str) -> str:
  """The module that `python NAME` or `python -m NAME` runs."""
  module = name.removesuffix('.py').replace('/', '.')
  return f'{module}.__main__' if f'{module}.__main__' in SOURCES else module


@functools.cache
def flags_of(module: str) -> frozenset[str]:
  """The flags that a program defines, in itself or in a module it loads, and --no... of them."""
  if module in SOURCES:
    trees, new = [], {module}
    reached = set()
    while new:
      reached |= new
      trees += [SOURCES[one] for one in new]
      new = {one for each in new for one in loads(each)} - reached - set(ENTRY_POINTS)
  else:
    trees = [ast.parse((runs.ROOT / f'{module.replace(".", "/")}.py').read_text())]
  names = {'help'}
  for call in (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)):
    if ast.unparse(call.func).rpartition('.')[2].startswith('DEFINE_'):
      name = call.args[0].value
      names |= {name, f'no{name}'} if 'bool' in ast.unparse(call.func) else {name}
  if module in BUILT_ON:
    names |= flags_of(BUILT_ON[module])
  return frozenset(names).union(flags_of('train') if module in PASS_ON else ())


@pytest.mark.parametrize('page', TEXTS)
def test_configs_load_with_their_arguments(page):
  for name, argument in re.findall(r'--config=configs/(\w+)\.py(?::([\w=,/.]+))?', TEXTS[page]):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config(argument) if argument else module.get_config()
    assert config.model.name


@pytest.mark.parametrize('page', TEXTS)
def test_programs_and_their_flags_exist(page):
  text = TEXTS[page]
  for name, rest in re.findall(COMMAND, text):
    assert (runs.ROOT / name).exists() or importlib.util.find_spec(name), name
    for flag in re.findall(r'(?<!\S)--(\w+)', rest):
      assert flag in flags_of(program(name)), f'{name} --{flag}'
  benchmarks = [f'benchmarks.{path.stem}' for path in runs.ROOT.glob('benchmarks/*.py')]
  every = frozenset().union(*map(flags_of, [*ENTRY_POINTS, *benchmarks]))
  for flag in re.findall(r'`--(\w+)(?![\w-])', text):
    assert flag in every, flag
  for target in re.findall(r'make ([a-z-]+)`', text):
    assert re.search(rf'^{target}:', (runs.ROOT / 'Makefile').read_text(), re.M), target


@pytest.mark.parametrize(
  ('name', 'flag', 'known'),
  [
    ('train.py', 'workdir', True),
    ('train.py', 'coordinator', True),  # defined by a module of mixer.cluster
    ('train.py', 'checkpoint', False),
    ('evaluate.py', 'dry_run', False),
    ('mixer.vtab', 'require', True),  # passed on to train.py
    ('mixer.visualize', 'grid', True),
    ('mixer.visualize', 'samples', False),
    ('mixer.input.prepare', 'noverify', True),
    ('benchmarks/soak.py', 'lanes', True),
  ],
)
def test_flags_are_found(name, flag, known):
  assert (flag in flags_of(program(name))) == known


@pytest.mark.parametrize('page', [page for page in TEXTS if not page.endswith('.py')])
def test_links_and_files_exist(page):
  text, folder = TEXTS[page], (runs.ROOT / page).parent
  for path, anchor in re.findall(r'\]\(([^):#]*)(#[^)]*)?\)', text):
    target = folder / path if path else runs.ROOT / page
    assert target.exists(), path
    if anchor:
      headings = re.findall(r'^#+ (.*)$', read(target), re.M)
      anchors = {re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings}
      assert anchor[1:] in anchors, f'{path}{anchor}'
  for path in re.findall(r'(?<![\w./])(?:mixer|tests|configs|benchmarks)/[\w/]+\.\w+', text):
    assert (runs.ROOT / path).exists(), path
  for name in re.findall(r'(?<![\w./-])mixer(?:\.\w+)+', text):
    assert defined(name), name


def defined(name: str) -> bool:
  """Whether a dotted name is a module of mixer, or a name (and its attribute) defined in one."""
  module, rest = name, []
  while module not in SOURCES:
    module, _, last = module.rpartition('.')
    rest.insert(0, last)
  body = SOURCES[module].body
  for last in rest:
    found = [
      node
      for node in body
      if last == getattr(node, 'name', None)
      or last in [ast.unparse(target) for target in getattr(node, 'targets', ())]
      or last in [(a.asname or a.name) for a in getattr(node, 'names', ()) if hasattr(a, 'name')]
    ]
    if not found:
      return False
    body = getattr(found[0], 'body', [])
  return True


def test_design_has_all_packages_and_layers():
  packages, layers = re.findall(r'```\n(.*?)```', TEXTS['docs/design.md'], re.S)[:2]
  drawn = []
  for line in layers.splitlines():
    grouped = re.sub(r'mixer\.\{(.*?)\}', lambda m: 'mixer.' + m[1].replace(', ', ' mixer.'), line)
    drawn.append(sorted(grouped.split()))
  assert drawn == [sorted(line.split()) for line in LAYERS]
  for package in ' '.join(LAYERS).split():
    assert re.search(rf'\b{package.rpartition(".")[2]}(/|\.py)', packages), package


@pytest.mark.parametrize('page', TEXTS)
def test_prose_is_wrapped(page):
  lines = enumerate(TEXTS[page].splitlines(), 1)
  assert not [i for i, line in lines if len(line) > WIDTH and not line.startswith('|')]


def test_overrides_exist():
  from configs import digits, fewshot, finetune, imagenet, upstream
  from mixer.pretrained import distillation
  from mixer.run import build
  from mixer.training import ema, param_groups, plan
  from mixer.training.augmentation import RandomErasing

  configs = [
    digits.get_config(),
    fewshot.get_config(),
    imagenet.get_config(),
    finetune.get_config('resolution=256,resample=True'),
    finetune.get_config('data=/a/folder'),
    upstream.get_config('Mixer-B/16', 'imagenet21k'),
    upstream.get_config('Mixer-B/16', 'jft_shards'),
    {  # the keys that a config may leave out
      **{key: {} for key in inspect.signature(build.TrainConfig).parameters},
      'random_erasing': inspect.signature(RandomErasing).parameters,
      'distill': inspect.signature(distillation.load).parameters,
      'ema': inspect.signature(ema.Ema).parameters,
      'early_stopping': inspect.signature(plan.EarlyStopping).parameters,
      'optim': inspect.signature(param_groups.make).parameters,
    },
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
