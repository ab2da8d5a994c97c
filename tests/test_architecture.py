"""What may import what, read from the sources; docs/design.md draws the layers."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# From top to bottom. A package imports from the lines below its own, and never from its own line.
LAYERS = [
  'mixer.serve',
  'mixer.__main__ train evaluate mixer.convert mixer.predict mixer.progressive mixer.studies '
  'mixer.vtab',
  'mixer.report mixer.sweep mixer.cost',
  'mixer.run',
  'mixer.evaluators mixer.visualize',
  'mixer.pretrained',
  'mixer.checkpoints mixer.models',
  'mixer.input',
  'mixer.training',
  'mixer.cluster',
  'mixer.cli mixer.labels mixer.paper mixer.runtime mixer.settings',
  'mixer.allocator mixer.config_file mixer.console mixer.files mixer.hardware mixer.sizes',
  'mixer.shipped',
  'mixer.errors mixer.timm_names mixer.values',
]
LAYER = {package: i for i, line in enumerate(LAYERS) for package in line.split()}
# package -> where it may be imported
ONLY_IN = {
  'tensorflow': ('mixer.input', 'mixer.runtime'),
  'tensorflow_datasets': ('mixer.input',),
  'orbax': ('mixer.checkpoints',),
  'matplotlib': ('mixer.visualize',),
  'jinja2': ('mixer.report',),
  'flax.linen': ('mixer.models',),
  'mlflow': ('mixer.run.trackers',),
  'trackio': ('mixer.run.trackers',),
  'wandb': ('mixer.run.trackers',),
  'jax._src': ('mixer.cluster.jax_internals',),
}
LATE = (  # slow to load
  'tensorflow', 'tensorflow_datasets', 'matplotlib', 'clu.metric_writers', 'mlflow', 'trackio',
  'wandb',
)  # fmt: skip
GONE = {
  'jax': 'tree_map tree_leaves tree_flatten tree_unflatten tree_structure device_put_replicated '
  'device_put_sharded xla_computation linear_util',
  'jax.sharding': 'PositionalSharding',
  'jax.experimental': 'maps pjit host_callback',
  'optax': 'global_norm',
}
ENTRY_POINTS = (
  'mixer.__main__',
  'train',
  'evaluate',
  'mixer.convert',
  'mixer.input.check',
  'mixer.input.prepare',
  'mixer.predict',
  'mixer.pretrained.__main__',
  'mixer.progressive',
  'mixer.report.__main__',
  'mixer.serve',
  'mixer.studies.__main__',
  'mixer.sweep',
  'mixer.visualize.__main__',
  'mixer.vtab',
)


def sources():
  """{module: its tree} of the whole program."""
  paths = [*ROOT.glob('*.py'), *ROOT.glob('mixer/**/*.py'), *ROOT.glob('configs/*.py')]
  names = {p: p.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.') for p in paths}
  return {n.removesuffix('.__init__'): ast.parse(p.read_text()) for p, n in names.items()}


SOURCES = sources()


def imports(nodes):
  """Dotted names of all that `nodes` import, with the name taken `from` a module attached."""
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'write imports in full'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def within(name, packages):
  return any(name == package or name.startswith(package + '.') for package in packages)


def own_modules(names):
  """Those of this program: 'mixer.errors.InputError' is of 'mixer.errors'."""
  for name in names:
    if within(name, ('mixer', 'configs', 'train', 'evaluate')):
      yield name if name in SOURCES else name.rpartition('.')[0]


def package(module):
  """'mixer.input' of 'mixer.input.sources.tfds': what stands in LAYERS."""
  return '.'.join(module.split('.')[:2])


def loads(module):
  """The modules that importing `module` loads, lazy imports included.

  Importing a.b.c runs the `__init__` of a and of a.b too, unless `module` lies in them itself.
  """
  for name in set(own_modules(imports(ast.walk(SOURCES[module])))):
    parts = name.split('.')
    parents = ('.'.join(parts[:i]) for i in range(1, len(parts)))
    yield from (parent for parent in parents if not within(module, [parent]))
    yield name


def cycle(graph):
  """A path {node: its successors} that comes back to where it began, or None."""
  done = set()

  def visit(node, path):
    if node in path:
      return [*path[path.index(node) :], node]
    if node not in done:
      for following in graph.get(node, ()):
        if found := visit(following, [*path, node]):
          return found
      done.add(node)
    return None

  return next((found for node in graph if (found := visit(node, []))), None)


def test_every_package_has_its_layer():
  packages = {package(name) for name in SOURCES if not within(name, ['configs'])}
  assert set(LAYER) == packages - {'mixer'}


def test_imports_go_down():
  wrong = [
    f'{module} -> {used}'
    for module in SOURCES
    if package(module) in LAYER
    for used in sorted(set(own_modules(imports(ast.walk(SOURCES[module])))))
    if package(used) != package(module) and LAYER[package(used)] <= LAYER[package(module)]
  ]
  assert not wrong


def test_no_module_imports_itself_by_a_detour():
  assert cycle({module: sorted(loads(module)) for module in SOURCES}) is None


@pytest.mark.parametrize(
  'graph, found',
  [
    ({'a': ['b', 'c'], 'b': ['c'], 'c': []}, None),
    ({'a': ['b'], 'b': ['c'], 'c': ['b']}, ['b', 'c', 'b']),
    ({'a': ['a']}, ['a', 'a']),
  ],
)
def test_cycles_are_found(graph, found):
  assert cycle(graph) == found


def test_packages_stay_in_their_places():
  wrong = [
    f'{module} imports {name}'
    for module, tree in SOURCES.items()
    for name in imports(ast.walk(tree))
    for package, places in ONLY_IN.items()
    if within(name, [package]) and not within(module, places)
  ]
  assert not wrong
  functions = [n for n in ast.walk(SOURCES['mixer.runtime']) if isinstance(n, ast.FunctionDef)]
  loading = [f.name for f in functions if 'tensorflow' in imports(ast.walk(f))]
  assert loading == ['tensorflow']


@pytest.mark.parametrize('entry', ENTRY_POINTS)
def test_slow_packages_load_late(entry):
  """No entry point loads them before it has looked at its flags and its config."""
  reached, new = set(), {entry}
  while new:
    reached |= new
    found = {name for module in new for name in imports(SOURCES[module].body)}
    assert not [name for name in found if within(name, LATE)], (entry, new)
    new = set(own_modules(found)) - reached


def functions(tree):
  return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


# Functions whose parameters are the keys of a config section.
OF_A_SECTION = (
  'mixer.evaluators.fewshot.make',
  'mixer.input.pipeline.__init__',
  'mixer.input.sources.table.__init__',
)


def test_functions_are_short_and_have_few_parameters():
  long, wide = [], []
  for module, tree in SOURCES.items():
    for function in functions(tree):
      name, given = f'{module}.{function.name}', function.args
      if function.end_lineno - function.lineno >= 90:
        long.append(name)
      if len([*given.posonlyargs, *given.args, *given.kwonlyargs]) > 10:
        wide.append(name)
  assert not long and sorted(wide) == sorted(OF_A_SECTION)


def test_modules_have_no_mutable_state():
  """Constants are upper-case; what else a module binds at its top level is never rebound."""
  wrong = []
  for module, tree in SOURCES.items():
    wrong += [f'{module}: global {n.names}' for n in ast.walk(tree) if isinstance(n, ast.Global)]
    for node in tree.body:
      if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [ast.unparse(target) for target in targets]
        empty = isinstance(node.value, ast.List | ast.Dict | ast.Set) and not list(
          ast.iter_child_nodes(node.value)
        )
        made = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).split('.')[0] in (
          'collections', 'contextvars', 'dict', 'itertools', 'list', 'set', 'threading',
        )  # fmt: skip
        if empty or made:
          wrong.append(f'{module}: {names}')
  assert not wrong


def test_configs_hold_values_only():
  for module, tree in SOURCES.items():
    if within(module, ['configs']):
      allowed = ['ml_collections', 'configs']
      if module == 'configs.common':
        allowed += ['csv', 'json', 'pathlib', 're']  # to see the splits of a folder or table
      assert all(within(n, allowed) for n in imports(ast.walk(tree))), module


def test_nothing_gone_from_jax_is_used():
  gone = {f'{package}.{name}' for package, names in GONE.items() for name in names.split()}
  wrong = [
    f'{module}: {name}'
    for module, tree in SOURCES.items()
    for name in [
      *imports(ast.walk(tree)),
      *(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)),
    ]
    if within(name, gone)
  ]
  assert not wrong
