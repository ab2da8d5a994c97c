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

from mixer import checkpoints as checkpointing
from mixer import evaluators, files, models, pretrained, runtime, settings, sharding, warmstart
from mixer import input as inputs
from mixer import workdir as workdirs
from mixer.errors import InputError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'FILE[:ARGUMENT]', lock_config=True)
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A file of parameters or a workdir.')
_WHICH = flags.DEFINE_enum(
  'which', 'newest', ['newest', 'best'], 'Of a workdir: the newest checkpoint or the best.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'JSON file; by default evaluation.json in the workdir, or beside the file.'
)
_REQUIRE = flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Stop on any other backend.')
flags.mark_flags_as_required(['config', 'checkpoint'])


def main() -> None:
  config = settings.config(_CONFIG)
  path = files.absolute(_CHECKPOINT.value)
  tests = inputs.open_evals(config['evals'])
  if not tests:
    raise InputError('the config has no evals, so there is nothing to evaluate.')
  check_classes(path, tests)
  params, source = load(path, config['checkpoints'])
  runtime.check_backend(_REQUIRE.value)
  devices = settings.call('config.mesh', sharding.make_mesh, config['mesh'])

  results = {}
  if warmstart.has_zero_head(params):
    raise InputError(
      f'the head of {source} is all zeros, so it classifies nothing: fine-tune it first '
      '(configs/finetune.py).'
    )
  for name, data in tests.items():
    net = models.build(**{**config['model'], 'scan': False}, num_classes=data.num_classes)
    pretrained.check(params, models.shapes(net, data.image_size, data.channels), source)
    evaluate = evaluators.build(
      {name: config['evals'][name]},
      tests,
      apply=models.apply_function(net),
      loss=config['loss'],
      mesh=devices,
    )
    results |= evaluate(jax.device_put(params, sharding.replicated(devices)))

  identity = {} if path.is_dir() else pretrained.identify(path)
  if identity:
    print(f'{identity["bytes"]} bytes, sha256 {identity["sha256"]}')
  print(f'{source}\n' + '\n'.join(f'{name:<28} {value:.6g}' for name, value in results.items()))
  output = epath.Path(_OUTPUT.value) if _OUTPUT.value else default_output(path)
  report = {'checkpoint': source, **identity, 'model': config['model']['name'], **results}
  if jax.process_index() == 0:
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
    checkpointing.Checkpoints,
    keep,
    directory=path / 'checkpoints',
    read_only=True,
  )
  while True:
    step = saved.best() if _WHICH.value == 'best' else saved.latest_intact()
    if step is None:
      raise InputError(f'{path} holds no intact checkpoint; give a workdir of train.py or an .npz.')
    try:
      return pretrained.unstack_blocks(saved.restore_params(step)), f'{path}, step {step}'
    except Exception:
      if checkpointing.damage(saved.directory / str(step)) is None:
        raise
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
  settings.run(main)
