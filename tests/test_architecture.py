"""What may import what, read from the sources; docs/design.md draws the layers."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
# From top to bottom; a module imports from the lines below its own, so nobody from the first.
LAYERS = [
  'train evaluate mixer.predict mixer.vtab mixer.convert mixer.report mixer.input.prepare '
  'mixer.input.check mixer.studies',
  'mixer.sections',
  'mixer.run_files',
  'mixer.model_files mixer.warmstart mixer.visualize mixer.sweep mixer.dry_run',
  'mixer.models mixer.evaluators mixer.input',
  'mixer.pretrained mixer.input.vtab',
  'mixer.models.mlp_mixer mixer.models.bit_resnet mixer.evaluators.classification '
  'mixer.evaluators.fewshot mixer.training '
  'mixer.input.arrays mixer.input.folder mixer.input.shards mixer.input.tfds '
  'mixer.input.single_images mixer.input.synthetic '
  'mixer.input.class_folders mixer.input.registered mixer.input.inspection',
  'mixer.input.images mixer.evaluators.features mixer.permutations',
  'mixer.models.variants',
  'mixer.models.layers mixer.losses mixer.batch_ops mixer.optim mixer.sharding mixer.checkpoints '
  'mixer.containers mixer.layouts mixer.released mixer.growth mixer.reporting '
  'mixer.workdir mixer.preemption mixer.watch mixer.units mixer.charts mixer.page mixer.paper '
  'mixer.input.order mixer.input.records mixer.input.crops mixer.input.randaugment '
  'mixer.input.bad_images mixer.input.odd_files',
  'mixer.settings mixer.runtime mixer.labels mixer.randaugment mixer.distributed mixer.hlo_traffic '
  'mixer.input.record_index',
  'mixer.place mixer.rollcall mixer.save_faults mixer.hlo mixer.manifests',
  'mixer.files mixer.hardware mixer.input.checksums mixer.errors mixer.messages mixer',
]
LAYER = {module: i for i, line in enumerate(LAYERS) for module in line.split()}
# package -> where it may be imported
ONLY_IN = {
  'tensorflow': ('mixer.input', 'mixer.runtime'),
  'tensorflow_datasets': ('mixer.input',),
  'orbax': ('mixer.checkpoints',),
  'matplotlib': ('mixer.visualize',),
  'flax.linen': ('mixer.models',),
}
LATE = ('tensorflow', 'tensorflow_datasets', 'matplotlib', 'clu.metric_writers')  # slow to load
GONE = {
  'jax': 'tree_map tree_leaves tree_flatten tree_unflatten tree_structure device_put_replicated '
  'device_put_sharded xla_computation linear_util',
  'jax.sharding': 'PositionalSharding',
  'jax.experimental': 'maps pjit host_callback',
  'optax': 'global_norm',
}


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


def test_every_module_has_its_layer():
  assert set(LAYER) == {name for name in SOURCES if not within(name, ['configs'])}


def test_imports_go_down():
  wrong = [
    f'{module} -> {used}'
    for module in LAYER
    for used in sorted(set(own_modules(imports(ast.walk(SOURCES[module])))))
    if LAYER[used] <= LAYER[module]
  ]
  assert not wrong


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


def test_slow_packages_load_late():
  """No entry point loads them before it has looked at its flags and its config."""
  for entry in (
    'train',
    'evaluate',
    'mixer.predict',
    'mixer.input.prepare',
    'mixer.input.check',
    'mixer.pretrained',
    'mixer.convert',
    'mixer.sweep',
    'mixer.studies',
    'mixer.vtab',
    'mixer.visualize',
    'mixer.report',
  ):
    reached, new = set(), {entry}
    while new:
      reached |= new
      found = {name for module in new for name in imports(SOURCES[module].body)}
      assert not [name for name in found if within(name, LATE)], (entry, new)
      new = set(own_modules(found)) - reached


def test_configs_hold_values_only():
  for module, tree in SOURCES.items():
    if within(module, ['configs']):
      assert all(within(n, ['ml_collections', 'configs']) for n in imports(ast.walk(tree))), module


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
