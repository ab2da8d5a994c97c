"""Evaluates a checkpoint: what evaluate.py does."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import itertools
import json

from etils import epath
import jax

from mixer import console, evaluators, files, models, pretrained, runtime, settings
from mixer import input as inputs
from mixer.cluster import coordination
from mixer.errors import InputError
from mixer.evaluators import details, per_image
from mixer.pretrained import dimensions, warm_start
from mixer.run import build, other_images
from mixer.training import sharding
from mixer.visualize import plots


@dataclasses.dataclass(frozen=True)
class Options:
  """What is to be evaluated, and how.

  Attributes:
    config: nested plain dicts; its keys evals, model, loss, mesh, checkpoints and permutation are
      read.
    checkpoint: a file of parameters, or the workdir of a run.
    which: of a workdir the 'newest' ('latest') or 'best' checkpoint, or its step, and if wanted
      ':raw' or ':ema', see `pretrained.open`.
    name: of this evaluation, such as that of its config file.
    output: a JSON file for the results. None for NAME-step_STEP.json in the directory 'evaluation'
      of the workdir (with '-raw' or '-ema' after STEP if the run has `config.ema`), or NAME.json in
      the directory FILE.evaluation beside a file; with a number added if another evaluation has
      that name. If that place is read-only, nothing is written.
    per_image: a .csv or .jsonl file for a line about each classified image. None for no such file.
    require: 'cpu', 'gpu' or 'tpu'; any other backend is an error. None accepts all.
    require_evals: fail if evaluation data are missing, instead of skipping the evaluation.
    cluster: how this process joins the others.
  """

  config: dict
  checkpoint: str
  which: str = 'newest'
  name: str = 'evaluation'
  output: str | None = None
  per_image: str | None = None
  require: str | None = None
  require_evals: bool = False
  cluster: coordination.Options = dataclasses.field(default_factory=coordination.Options)


def evaluate(options: Options) -> dict[str, float]:
  """Runs every evaluation of the config, prints and writes the results, and returns them.

  Raises:
    InputError: the config, the checkpoint or the data are wrong or do not fit each other.
  """
  facts = {**runtime.versions(), **settings.flatten({'config': options.config})}
  with coordination.join(options.cluster, facts) as cluster:
    return _evaluate(options, cluster)


def _evaluate(options: Options, cluster: coordination.Cluster) -> dict[str, float]:
  config, path = options.config, files.absolute(options.checkpoint)
  build.check_evaluation(config)
  evals = other_images.adapt(config['evals'], path)
  tests, skipped = _open_tests(evals, require=options.require_evals)
  if options.per_image is not None:
    cluster.on_process_0(lambda: per_image.check(files.absolute(options.per_image)))
    if not evaluators.classifying(evals, tests):
      raise InputError(
        f'--per_image={options.per_image}: no evaluation of {sorted(tests)} classifies images; '
        'leave it out, or use one of kind="classification" or "real".'
      )
  inputs.check_batches(tests, jax.process_count())
  # An evaluation with its own training images uses the features and not the head.
  classified = {name: of['data'] for name, of in tests.items() if 'support_set' not in of}
  permutation = config.get('permutation')
  sizes = [opened['data'].image_size for opened in tests.values()]
  keep_best = config['checkpoints'].get('keep_best')
  trained = pretrained.open(path, which=options.which, keep_best=keep_best, cluster=cluster)
  for size in sizes:
    trained.check_permutation(permutation, size)
  trained.check_classes(classified)
  trained.check_preprocessing({name: of['data'] for name, of in tests.items()})
  params, source = trained.params, trained.source
  num_classes = warm_start.check_head(params, source, classified)
  if num_classes is None:
    params = {name: leaf for name, leaf in params.items() if name != 'head'}
  model = {**config['model'], **dimensions.unnamed(params, config['model'])}
  net = models.in_released_layout(models.build(**model, num_classes=num_classes))
  warm_start.check_family(params, net, source)
  for opened in tests.values():
    data = opened['data']
    pretrained.check(params, models.shapes(net, data.image_size, data.channels), source)
  runtime.check_backend(options.require)
  mesh = settings.call('config.mesh', sharding.make_mesh, config['mesh'])
  used = {key: config.get(key) for key in ('evals', 'model', 'permutation', 'loss')}
  output = cluster.on_process_0(lambda: _output(options, path, trained.identity, used))
  output = output and epath.Path(output)
  cluster.check_same(inputs.identity(tests))
  with _details(options, output, cluster) as details:
    evaluator = evaluators.build(
      config['evals'],
      tests,
      apply=models.apply_function(net, permutation, sizes[0]),
      features=models.features_function(net, permutation, sizes[0]),
      loss=config['loss'],
      mesh=mesh,
      records=output and output.with_suffix(''),
      details=details,
    )
    results = evaluator(jax.device_put(params, sharding.replicated(mesh)))

  if cluster.process_id == 0:
    identity = {} if 'step' in trained.identity else trained.identity
    if identity:
      console.print_line(f'{identity["bytes"]} bytes, sha256 {identity["sha256"]}')
    width = max(map(len, results))
    lines = [f'{name:<{width}} {value:.6g}' for name, value in results.items()]
    console.print_line('\n'.join([source, *lines]))
    report = {'checkpoint': source, **identity, 'model': config['model']['name'], **results}
    if skipped:
      report['left_out'] = sorted(skipped)
    if output:
      files.write(output, json.dumps({**report, 'config': used}, indent=1).encode())
      console.print_line(f'written to {output}')
    else:
      console.print_line(
        f'not written: {_directory(path)} is read-only; --output=FILE gives another place'
      )
  return results


@contextlib.contextmanager
def _details(
  options: Options, output: epath.Path | None, cluster: coordination.Cluster
) -> Iterator[details.Place | None]:
  """Where the details of the evaluations go; None if there is no place."""
  if output is None and options.per_image is None:
    yield None
    return
  place = details.Place(output and _details_directory(output), always=True, draw=plots.reliability)
  if options.per_image is None or cluster.process_id != 0:
    yield place
    return
  path = files.absolute(options.per_image)
  with per_image.writing(path) as write_image:
    yield dataclasses.replace(place, write_image=write_image)
  console.print_line(f'each image is in {path}')


def _details_directory(output: epath.Path) -> epath.Path:
  """RESULTS of RESULTS.json; RESULTS.details if that is a file, or the output has no suffix."""
  directory = output.with_suffix('')
  taken = directory == output or (directory.exists() and not directory.is_dir())
  return output.with_suffix('.details') if taken else directory


def _open_tests(evals: dict, *, require: bool) -> tuple[dict[str, dict], dict[str, str]]:
  """(the inputs of the evaluations, the evaluations that are skipped)."""
  tests, skipped = inputs.open_evals(evals, require=require)
  if skipped:
    runtime.banner({'evaluations SKIPPED': inputs.describe_skipped(skipped)})
  if not tests:
    why = 'the data of all evaluations are missing, see above' if skipped else 'no config.evals'
    raise InputError(f'nothing to evaluate: {why}.')
  return tests, skipped


def _output(options: Options, path: epath.Path, identity: Mapping, used: Mapping) -> str | None:
  """The file for the results; None if no place is given and the default one is read-only.

  A file there is replaced if it is of the same evaluation (`used`) and the same weights: those of a
  step in a workdir, or a file of the same content.

  Raises:
    InputError: the given place cannot be written to.
  """
  if options.output:
    output = files.absolute(options.output)
    if output.is_dir() or not files.is_writable(output.parent):
      raise InputError(f'--output={output} cannot be written; give a JSON file in a directory.')
    return str(output)
  directory = _directory(path)
  if not files.is_writable(directory):
    return None
  step = identity.get('step')
  parameters = f'-{identity["parameters"]}' if 'parameters' in identity else ''
  stem = options.name if step is None else f'{options.name}-step_{step}{parameters}'
  wanted = json.loads(json.dumps(used)), identity['sha256'] if step is None else None
  for number in itertools.count(1):
    output = directory / f'{stem}{f"-{number}" * (number > 1)}.json'
    if not output.exists() or _evaluated(output) == wanted:
      return str(output)


def _evaluated(output: epath.Path) -> tuple[Mapping, str | None] | None:
  """(what was evaluated, sha256 of the weights) of a file; None if it cannot be read."""
  try:
    found = json.loads(output.read_text())
    return found['config'], found.get('sha256')
  except (OSError, KeyError, TypeError, ValueError):
    return None


def _directory(path: epath.Path) -> epath.Path:
  return path / 'evaluation' if path.is_dir() else path.with_suffix('.evaluation')
