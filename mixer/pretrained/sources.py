"""Where parameters are read: a file, or a checkpoint in the workdir of a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import re

from absl import logging
from etils import epath
import ml_dtypes
import numpy as np

from mixer.checkpoints import integrity
from mixer.cluster.coordination import SINGLE, Cluster
from mixer.errors import InputError
from mixer.models import permutations, scanning
from mixer.pretrained import formats, hub, inference, layouts, trees
from mixer.pretrained.description import Description, recorded_parameters
from mixer.sizes import pair

_NAMED = 8  # parameters in a message


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Parameters with their origin and what is recorded about them.

  Attributes:
    params: a nested dict of float32 arrays in the released layout.
    identity: 'source', 'bytes' and 'sha256' of the file; of a workdir also 'step', and the others
      are those of its checkpoint. A checkpoint is many files: its sha256 is that of its manifest,
      which has a checksum of each. Of a run with `config.ema` also 'parameters': 'raw' or 'ema'.
    kind: '.npz', '.safetensors', '.pth' or 'workdir of a run'.
    layout: in which they are stored, a key of `layouts.LAYOUTS`, and what wraps it.
    dtypes: in which they are stored.
    description: what the run that made them has recorded; `describe` adds the rest.
    faults: what makes them invalid, a line each, see `check_valid`.
  """

  params: dict
  identity: dict
  kind: str
  layout: str
  dtypes: tuple[str, ...]
  description: Description = dataclasses.field(default_factory=Description)
  faults: tuple[str, ...] = ()

  @property
  def source(self) -> str:
    """The file, or the workdir and the step, for messages."""
    identity = self.identity
    step = f', step {identity["step"]}' if 'step' in identity else ''
    parameters = f', {identity["parameters"]}' if 'parameters' in identity else ''
    return identity['source'] + step + parameters

  def describe(self, **given) -> Description:
    """All that is needed to use the parameters; takes the options of `inference.complete`."""
    return inference.complete(self.description, self.params, self.source, **given)

  def check_valid(self) -> None:
    """Raises InputError if parameters are not finite, no numbers, or doubled."""
    if self.faults:
      shown = [*self.faults[:_NAMED], *(['...'] if len(self.faults) > _NAMED else [])]
      raise InputError(
        f'{self.source} has {len(self.faults)} invalid parameters:\n'
        + '\n'.join(f'  {fault}' for fault in shown)
        + '\nThe file is damaged, or its training diverged: use another one or an earlier '
        'checkpoint. To look at these, give --allow_invalid to mixer.pretrained or mixer.visualize.'
      )

  def check_permutation(self, section: Mapping | None, image_size: tuple[int, int]) -> None:
    """Raises InputError if the parameters were trained with another input permutation.

    Args:
      section: `config.permutation` of what they are to be used for.
      image_size: of the images of that.
    """
    known = self.description
    if known.file is None:
      return
    have, want = permutations.normalize(known.permutation), permutations.normalize(section)
    if have != want:
      raise InputError(
        f'{self.source} was trained with the input permutation {have or "none"}, and '
        f'config.permutation is {want or "none"}; the parameters work with their own permutation '
        'only. Use the config of that run.'
      )
    if have and known.image_size not in (None, pair(image_size)):
      raise InputError(
        f'{self.source} was trained on permuted images of {known.image_size}, and these are of '
        f'{pair(image_size)}; another size has another permutation. Use the same size.'
      )

  def check_preprocessing(self, tests: Mapping) -> None:
    """Warns of tests whose images are not prepared as a hub's config.json says.

    `tests` is {section of `config.evals`: its `mixer.input.Input`}.
    """
    wanted = self.description.preprocessing
    if not self.description.partial or wanted is None:
      return
    for name, data in tests.items():
      if dict(data.preprocessing) != dict(wanted):
        logging.warning(
          '%s asks for images prepared by %s, and config.evals.%s.input has %s. Results may differ '
          'by some tenths of a percent; mixer.predict does as the file says.',
          self.description.file, _sizes(wanted), name, _sizes(data.preprocessing),
        )  # fmt: skip

  def check_classes(self, tests: Mapping) -> None:
    """Raises InputError if the parameters were trained on other classes than those of a test.

    `tests` is {section of `config.evals`: its `mixer.input.Input`}.
    """
    trained = self.description.class_names
    for name, data in tests.items():
      if trained is not None and tuple(data.class_names) != trained:
        raise InputError(
          f'config.evals.{name}.input has the classes {list(data.class_names)[:5]}..., and the '
          f'model was trained on {list(trained[:5])}... ({self.description.file}): names and order '
          'must agree.'
        )


def _sizes(preprocessing: Mapping) -> str:
  return ', '.join(f'{k} {v}' for k, v in preprocessing.items() if k != 'value_range')


LATEST = ('latest', 'newest')


def local(path: epath.PathLike) -> epath.Path:
  """The path of existing weights, with '~' expanded.

  Raises:
    InputError: there is nothing, or it cannot be looked at; for a URL, what to do.
  """
  try:
    found = epath.Path(path).expanduser()
    exists = found.exists()
  # A filesystem that is not there raises what it likes: KeyError, or an error of TensorFlow.
  except Exception as fault:
    advice = ' Fetch the file, and give its path.' if '://' in str(path) else ''
    raise InputError(f'{path} cannot be read: {reason(fault)}.{advice}') from fault
  if not exists:
    raise InputError(
      f'no file {path}; give the path of an .npz, .safetensors or .pth file with parameters, or '
      'the workdir of a run.'
    )
  return found


def reason(fault: Exception) -> str:
  """Why a path cannot be read or written, in few words."""
  if isinstance(fault, KeyError):
    return 'no filesystem of this kind can be reached from here'
  return getattr(fault, 'strerror', None) or str(fault).splitlines()[0]


def check_which(path: epath.Path, which: str | None, *, has_checkpoints: bool) -> None:
  """Raises InputError unless `which`, see `mixer.pretrained.open`, can name a checkpoint."""
  if which is None:
    return
  split_which(which, f'--which={which}')
  if which != 'newest' and not has_checkpoints:
    raise InputError(
      f'--which={which} is for the workdir of a run, and {path} is a file of weights; leave it out.'
    )


def split_which(which: str, given: str) -> tuple[str, str | None]:
  """('latest', 'newest', 'best' or a step, 'raw', 'ema' or None) of what names a checkpoint.

  Raises InputError, which begins with `given`, if it is something else.
  """
  checkpoint, colon, parameters = which.partition(':')
  if checkpoint not in (*LATEST, 'best') and not re.fullmatch('[0-9]+', checkpoint):
    raise InputError(f'{given}: give best, latest or the step of a checkpoint.')
  if colon and parameters not in ('raw', 'ema'):
    raise InputError(f'{given}: after the colon give raw or ema, as in {checkpoint}:raw.')
  return checkpoint, parameters or None


def read(
  path: epath.Path,
  which: str = 'latest',
  keep_best: str | None = None,
  cluster: Cluster = SINGLE,
  num_heads: int | None = None,
) -> Pretrained:
  """The parameters at `path`, as in `mixer.pretrained.open`, without their description."""
  if path.is_dir():
    which, parameters = split_which(which, f'--which={which}')
    parameters = parameters or recorded_parameters(path)
    return _read_workdir(path, which, keep_best, cluster, parameters)
  return _read_file(path, num_heads)


def _read_file(path: epath.Path, num_heads: int | None) -> Pretrained:
  content = path.read_bytes()
  kind, arrays, doubled, others = formats.parse(content, str(path))
  try:
    flat, layout, dropped, choice = layouts.to_released(
      arrays, nested=kind == '.pth', num_heads=num_heads
    )
  except InputError as fault:
    raise InputError(f'{path}: {fault}') from fault
  if choice:
    logging.warning('%s: %s.', path, choice)
  if dropped or others:
    logging.warning('%s: left out beside the parameters: %s', path, _summary(dropped, others))
  identity = {'source': str(path), 'bytes': len(content), 'sha256': _sha256(content)}
  faults = [f'{name}: several arrays have this name' for name in doubled]
  return _pretrained(flat, identity, kind, layout, faults)


def _summary(arrays: Sequence[str], others: Sequence[str]) -> str:
  """Few words for many names: those in one dict are counted."""
  boxes = Counter(name.split('/')[0] if '/' in name else '' for name in arrays)
  words = [f'{count} arrays in {box}' for box, count in boxes.items() if box]
  words += [name for name in arrays if '/' not in name]
  words += [other for other in others if '/' not in other]
  return ', '.join(words[:_NAMED]) + (', ...' if len(words) > _NAMED else '')


def _read_workdir(
  path: epath.Path, which: str, keep_best: str | None, cluster: Cluster, parameters: str | None
) -> Pretrained:
  """Reads a checkpoint; the next one, if the run in `path` removes it before it is read."""
  from mixer.checkpoints import manager  # loads orbax, which takes seconds

  saved = manager.Checkpoints(
    path.resolve() / 'checkpoints', keep_best=keep_best, read_only=True, cluster=cluster
  )
  while True:
    step = _choose(path, saved, which, keep_best)
    manifest = saved.directory / str(step) / integrity.FILE
    try:
      content = manifest.read_bytes()
      params = saved.restore_params(step, averaged=parameters == 'ema')
      unchanged = manifest.read_bytes() == content
    except InputError:
      raise
    except Exception:
      if integrity.damage(manifest.parent) is None:
        raise
      unchanged = False
    if unchanged:
      break
    if cluster.is_multiprocess:  # one process must not choose again alone
      raise InputError(
        f'{path}: the checkpoint of step {step} was replaced while it was read, by the run that '
        'trains there. Start again.'
      )
  flat = {k: np.asarray(x) for k, x in trees.flatten(scanning.unstack_blocks(params)).items()}
  size = sum(size for size, _ in json.loads(content).values())
  identity = {'source': str(path), 'step': step, 'bytes': size, 'sha256': _sha256(content)}
  identity |= {'parameters': parameters} if parameters else {}
  layout = 'released' if flat.keys() == trees.flatten(params).keys() else 'scanned'
  return _pretrained(flat, identity, 'workdir of a run', layout)


def _choose(path: epath.Path, saved, which: str, keep_best: str | None) -> int:
  """The step of the checkpoint to read, the same on all processes."""
  if which == 'best' and not keep_best:
    raise InputError('--which=best needs config.checkpoints.keep_best, such as val/top1.')
  step = saved.find(which)
  if step is None:
    there = ', '.join(map(str, saved.steps())) or 'no checkpoint'
    what = f'has no intact checkpoint of step {which} (there are: {there})'
    if which in LATEST:
      what = 'is a directory without an intact checkpoint'
    elif which == 'best':
      what = f'is a directory without an intact checkpoint that has a result {keep_best}'
    names = sorted(file.name for file in path.iterdir() if file.suffix in hub.ENDINGS)
    hint = f', or one of its files, {", ".join(names)}' if names else ' or a file'
    raise InputError(f'{path} {what}; give a workdir of train.py{hint}.')
  return step


def _pretrained(
  flat: dict[str, np.ndarray], identity: dict, kind: str, layout: str, faults: Sequence[str] = ()
) -> Pretrained:
  with np.errstate(over='ignore'):
    converted = {name: np.array(x, np.float32, order='C') for name, x in flat.items()}
  pairs = sorted(flat.items())
  wrong = [f'{name}: {what}' for name, x in pairs if (what := _fault(x, converted[name]))]
  try:
    params = trees.nest(converted)
  except InputError as fault:
    raise InputError(f'{identity["source"]}: {fault}') from fault
  return Pretrained(
    params=params,
    identity=identity,
    kind=kind,
    layout=layout,
    dtypes=tuple(sorted({str(array.dtype) for array in flat.values()})),
    faults=(*faults, *wrong),
  )


def _fault(stored: np.ndarray, converted: np.ndarray) -> str:
  """What is wrong with a parameter, as it is stored and as float32; '' for nothing."""
  if stored.dtype.kind != 'f' and stored.dtype != ml_dtypes.bfloat16:
    return f'it is of {stored.dtype}, and parameters are floating-point numbers'
  lost = ~np.isfinite(converted)
  if not lost.any():
    return ''
  values = np.asarray(stored, np.float64 if stored.dtype.itemsize < 8 else stored.dtype)[lost]
  kinds = {'NaN': np.isnan(values), 'infinite': np.isinf(values)}
  kinds[f'{stored.dtype} beyond the range of float32'] = np.isfinite(values)
  counts = ', '.join(f'{where.sum()} {what}' for what, where in kinds.items() if where.any())
  return f'{counts} of {stored.size}'


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
