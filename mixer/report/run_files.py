"""Reads the files in the workdir of a run of train.py for a report."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath

from mixer import files, models
from mixer.errors import InputError
from mixer.pretrained import description as descriptions
from mixer.run import metrics_log

# Options of models that the paper's runs differ in, or that do not change what is computed.
_NOT_ARCHITECTURE = (
  'dropout', 'dtype', 'fused_attention', 'head_bias', 'remat', 'rescale_drop_path', 'scan',
  'stochastic_depth', 'tiles',
)  # fmt: skip

_START = {'time', 'step', 'cores'}
_INIT_FILE = 'init.json'


@dataclasses.dataclass(frozen=True)
class Run:
  """One run, finished or not.

  Attributes:
    label: the shortest end of its path that no other run of the report has.
    path: the workdir.
    config: the config of train.py.
    rows: of metrics.jsonl.
    starts: of starts.jsonl; empty for a run of an earlier version.
    description: model.json; None for an unfinished run.
    evaluations: {name: {result: value}} of the files that evaluate.py writes.
  """

  label: str
  path: epath.Path
  config: Mapping
  rows: Sequence[Mapping]
  description: Mapping | None
  evaluations: Mapping[str, Mapping[str, float]]
  starts: Sequence[Mapping] = ()

  @property
  def final(self) -> dict[str, float]:
    """The last value of every metric that was logged."""
    return {name: value for row in self.rows for name, value in row.items()}

  @property
  def results(self) -> dict[str, float]:
    """The last value of every result of an evaluation, such as 'val/top1'."""
    return {k: v for k, v in self.final.items() if '/' in k and not k.startswith('train/')}

  @property
  def data(self) -> str:
    """The name of the training set."""
    return _data(self.config)

  @property
  def start(self) -> str | None:
    """The path of the weights that training started from; None for random ones."""
    return _start(self.config)

  @property
  def pretraining(self) -> str | None:
    """The name of the set that the weights were first trained on; None if it is not recorded.

    Weights that the run started from are described by the files of their own run. They are known if
    that run started from random weights, with this model, and could be one of the paper.
    """
    if not self.start:
      return self.data
    recorded = _record(self.path / _INIT_FILE).get('source', self.start)
    before = _config_of(files.absolute(recorded))
    if not before or _start(before) or _difference_from_paper(before):
      return None
    return _data(before) if before['model']['name'] == self.config['model']['name'] else None

  @property
  def paper_model(self) -> str | None:
    """The name of the model, if tables 2 and 3 of the paper have runs of this kind."""
    return None if self.difference_from_paper else self.config['model']['name']

  @property
  def difference_from_paper(self) -> str | None:
    """How the run obviously differs from those in the paper's tables 2 and 3, or None."""
    return _difference_from_paper(self.config)


def read(paths: Sequence[str]) -> list[Run]:
  """The runs in these workdirs.

  Raises:
    InputError: one of them is not a workdir of train.py, or its files are damaged.
  """
  directories = list(dict.fromkeys(files.absolute(path) for path in paths))
  return [_read(path, label) for path, label in zip(directories, labels(directories))]


def labels(paths: Sequence[epath.Path]) -> list[str]:
  """The last parts of each path, as many as make all labels different."""
  longest = max(len(path.parts) for path in paths)
  for count in range(1, longest + 1):
    found = ['/'.join(path.parts[-count:]) for path in paths]
    if len(set(found)) == len(found):
      break
  return found


def _data(config: Mapping) -> str:
  section = config['train_input']
  return section.get('name') or section.get('path') or section['source']


def _start(config: Mapping) -> str | None:
  return (config.get('init') or {}).get('path')


def _config_of(weights: epath.Path) -> dict | None:
  """The config of the run that made a file of weights, or is in this workdir, if it is recorded."""
  inside = weights / descriptions.MODEL_FILE
  described = _record(inside if weights.is_dir() else descriptions.beside(weights)).get('config')
  config = described or _record(weights / files.CONFIG_FILE)
  return config if isinstance(config, dict) and not _lacking(config) else None


def _record(path: epath.Path) -> dict:
  """The object in a JSON file; {} if there is none, or a damaged one."""
  try:
    return files.read_json(path, advice='') if path.is_file() else {}
  except InputError:
    return {}


def _lacking(config: Mapping) -> list[str]:
  """What a report reads of a config, and this one does not have."""
  sections = {name: config.get(name) for name in ('model', 'train_input', 'evals')}
  wrong = [name for name, section in sections.items() if not isinstance(section, dict)]
  return wrong or ([] if 'name' in config['model'] else ['model.name'])


def _difference_from_paper(config: Mapping) -> str | None:
  if not _is_published(config['model']):
    return 'a model of other dimensions'
  if (config.get('permutation') or {}).get('kind', 'none') != 'none':
    return 'a model trained on permuted images'
  if config['train_input'].get('subset_fraction', 1.0) < 1:
    return 'a model trained on a subset of the images'
  return None


def _is_published(model: Mapping) -> bool:
  """Whether `config.model` is a named size of a family, with the default architecture."""
  family, _, size = model['name'].partition('-')
  if family not in models.FAMILIES or not size:
    return False
  defaults = {f.name: f.default for f in dataclasses.fields(models.FAMILIES[family].module)}
  return all(
    key == 'name' or key in _NOT_ARCHITECTURE or _same(value, defaults.get(key))
    for key, value in model.items()
  )


def _same(value, default) -> bool:
  """Whether a value from JSON is the default of a field; empty sequences and 0 are equal."""
  return value == default or (not value and not default)


def _read(path: epath.Path, label: str) -> Run:
  if not (path / files.CONFIG_FILE).exists():
    inside = sorted(p.parent.name for p in path.glob(f'*/{files.CONFIG_FILE}'))
    hint = f' Its subdirectories {", ".join(inside)} are workdirs.' if inside else ''
    what = f'has no {files.CONFIG_FILE}' if path.is_dir() else 'is not a directory'
    raise InputError(f'{path} is not a workdir of train.py: it {what}.{hint}')
  config = files.read_json(path / files.CONFIG_FILE, advice='Restore it from a copy.')
  if wrong := _lacking(config):
    raise InputError(
      f'{path} is not a workdir of train.py: its {files.CONFIG_FILE} lacks {", ".join(wrong)}.'
    )
  rows = [_numbers(row) for row in metrics_log.read_rows(path)]
  starts = [s for s in map(_numbers, metrics_log.read_starts(path)) if s.keys() >= _START]
  starts.sort(key=lambda start: start['time'])
  description = descriptions.read_model_file(path)
  return Run(label, path, config, rows, description, _evaluations(path), starts)


def _evaluations(workdir: epath.Path) -> dict[str, dict[str, float]]:
  """The results of each evaluation by evaluate.py; earlier versions wrote one evaluation.json."""
  paths = {'evaluation': workdir / 'evaluation.json'}
  for directory, prefix in (('evaluation', ''), ('model.evaluation', 'model.npz ')):
    if (workdir / directory).is_dir():
      paths |= {f'{prefix}{path.stem}': path for path in sorted((workdir / directory).iterdir())}
  found = {}
  for name, path in paths.items():
    if path.suffix != '.json' or not path.exists():
      continue
    content = files.read_json(path, advice='Delete it, and run evaluate.py again.')
    if 'checkpoint' in content:  # and not a record of sample ids
      found[name] = {k: value for k, value in _numbers(content).items() if '/' in k}
  return found


def _numbers(row: Mapping) -> dict[str, float]:
  return {name: value for name, value in row.items() if isinstance(value, int | float)}
