"""Evaluates a checkpoint: python evaluate.py --config=configs/digits.py --checkpoint=/tmp/digits

The checkpoint is the workdir of a run, or a file of parameters: .npz, .safetensors or .pth in any
layout that docs/weights.md lists. Every evaluation of the config is run; the results are printed
and written as JSON.
"""

import json

from absl import flags
from etils import epath
import jax
from ml_collections import config_flags

from mixer import cli, evaluators, files, models, pretrained, runtime, settings
from mixer import input as inputs
from mixer.checkpoints import integrity, manager
from mixer.cluster import coordination
from mixer.errors import InputError
from mixer.models import permutations, scanning
from mixer.pretrained import warm_start
from mixer.run import workdirs
from mixer.training import sharding

_CONFIG = config_flags.DEFINE_config_file('config', None, 'FILE[:ARGUMENT]', lock_config=True)
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A file of parameters or a workdir.')
_WHICH = flags.DEFINE_enum(
  'which', 'newest', ['newest', 'best'], 'Of a workdir: the newest checkpoint or the best.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'JSON file; by default evaluation.json in the workdir, or beside the file.'
)
_REQUIRE_EVALS = flags.DEFINE_bool(
  'require_evals', False, 'Stop if the data of an evaluation are not on disk, which leave it out.'
)
_REQUIRE = flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Stop on any other backend.')
coordination.define_flags()
flags.mark_flags_as_required(['config', 'checkpoint'])


def main() -> None:
  config = settings.config(_CONFIG)
  coordination.join({**runtime.versions(), **settings.flatten({'config': config})})
  path = files.absolute(_CHECKPOINT.value)
  tests, skipped = inputs.open_evals(config['evals'], require=_REQUIRE_EVALS.value)
  if skipped:
    runtime.banner({'evaluations LEFT OUT': inputs.describe_skipped(skipped)})
  if not tests:
    raise InputError(
      'the data of no evaluation are on disk, so there is nothing to evaluate; see above.'
      if skipped
      else 'the config has no evals, so there is nothing to evaluate.'
    )
  # One with training images of its own looks at the features, and the head does not matter.
  classified = {
    name: opened['data'] for name, opened in tests.items() if 'support_set' not in opened
  }
  permutation = config.get('permutation')
  sizes = [opened['data'].image_size for opened in tests.values()]
  for size in sizes:
    permutations.check_same(path, permutation, size)
  check_classes(path, classified)
  params, source = load(path, config['checkpoints'])
  num_classes = warm_start.check_head(params, source, classified)
  if num_classes is None:
    params = {name: leaf for name, leaf in params.items() if name != 'head'}
  net = models.in_released_layout(models.build(**config['model'], num_classes=num_classes))
  for opened in tests.values():
    data = opened['data']
    pretrained.check(params, models.shapes(net, data.image_size, data.channels), source)
  runtime.check_backend(_REQUIRE.value)
  devices = settings.call('config.mesh', sharding.make_mesh, config['mesh'])
  output = epath.Path(_OUTPUT.value) if _OUTPUT.value else default_output(path)
  evaluate = evaluators.build(
    config['evals'],
    tests,
    apply=permutations.before(models.apply_function(net), permutation, sizes[0]),
    features=permutations.before(models.features_function(net), permutation, sizes[0]),
    loss=config['loss'],
    mesh=devices,
    records=output.with_suffix(''),
  )
  coordination.check_same(inputs.identity(tests))
  results = evaluate(jax.device_put(params, sharding.replicated(devices)))

  if jax.process_index() != 0:
    return
  identity = {} if path.is_dir() else pretrained.identify(path)
  if identity:
    print(f'{identity["bytes"]} bytes, sha256 {identity["sha256"]}')
  width = max(map(len, results))
  print('\n'.join([source, *(f'{name:<{width}} {value:.6g}' for name, value in results.items())]))
  report = {'checkpoint': source, **identity, 'model': config['model']['name'], **results}
  if skipped:
    report['left_out'] = sorted(skipped)
  files.write(output, json.dumps(report, indent=1).encode())
  print(f'written to {output}')


def load(path: epath.Path, keep: dict) -> tuple[dict, str]:
  """(parameters in the released layout, where they come from) of a file or a workdir."""
  if not path.is_dir():
    return pretrained.load(path), str(path)
  if _WHICH.value == 'best' and not keep.get('keep_best'):
    raise InputError('--which=best needs config.checkpoints.keep_best, such as val/top1.')
  saved = settings.call(
    'config.checkpoints',
    manager.Checkpoints,
    keep,
    directory=path / 'checkpoints',
    read_only=True,
  )
  while True:
    step = saved.best() if _WHICH.value == 'best' else saved.latest_intact()
    if step is None:
      raise InputError(f'{path} holds no intact checkpoint; give a workdir of train.py or an .npz.')
    try:
      return scanning.unstack_blocks(saved.restore_params(step)), f'{path}, step {step}'
    except Exception:
      if coordination.several() or integrity.damage(saved.directory / str(step)) is None:
        raise  # of several processes, one must not try again alone
      # A run that trains there has removed it meanwhile, for a newer one.


def check_classes(path: epath.Path, tests: dict) -> None:
  """Raises InputError if the parameters were trained on other classes than those of a test."""
  places = [path / workdirs.CLASSES_FILE, path / 'model.json']
  places = places if path.is_dir() else [path.with_suffix('.json')]
  beside = next((place for place in places if place.exists()), None)
  if beside is None:
    return
  found = json.loads(beside.read_text())
  trained = found if isinstance(found, list) else found.get('class_names')
  for name, data in tests.items():
    if trained is not None and list(data.class_names) != trained:
      raise InputError(
        f'config.evals.{name}.input has the classes {list(data.class_names)[:5]}..., and the model '
        f'was trained on {trained[:5]}... ({beside}): names and order must agree.'
      )


def default_output(path: epath.Path) -> epath.Path:
  return path / 'evaluation.json' if path.is_dir() else path.with_suffix('.evaluation.json')


if __name__ == '__main__':
  cli.run(main, leave=coordination.leave)
