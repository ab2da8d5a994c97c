"""The studies on Fashion-MNIST: the runs of each part, and the tables and figures of their results.

docs/small_scale.md has the results and what can be concluded from them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import re
import statistics

from etils import epath
import jax

from mixer import files, models, pretrained
from mixer.run import metrics_log
from mixer.studies import tables
from mixer.studies.schedule import Run

FAMILIES = tuple(models.FAMILIES)
STARTS = ('pre-trained', 'scratch')
KINDS = ('original', 'patch_pixel', 'global')
# What the runs of the part `options` change in a short run of a Mixer, one at a time.
OPTIONS = {
  'as configured: mixup 0.2, stochastic depth 0.1': (),
  'without mixup': ('--config.mixup=0.0',),
  'without stochastic depth': ('--config.model.stochastic_depth=0.0',),
  'average of the parameters (EMA), 0.99': ("--config.ema={'decay': 0.99, 'warmup': True}",),
  'distilled from a BiT': ("--config.distill={'path': 'TEACHER'}",),
  "Adam's first moment in bfloat16": ('--config.optim.optimizer.moment_dtype=bfloat16',),
}
# The learning rates of fine-tuning and of training from scratch on the digits, chosen by `rates`.
DIGITS_RATES = {
  ('Mixer', 'pre-trained'): 0.004, ('Mixer', 'scratch'): 0.004,
  ('ViT', 'pre-trained'): 0.004, ('ViT', 'scratch'): 0.004,
  ('BiT', 'pre-trained'): 0.004, ('BiT', 'scratch'): 0.001,
}  # fmt: skip
_BATCH, _EPOCH = 128, 60_000
_MFLOPS = {'S': 12, 'M': 44}  # of training on one image; for the estimate of the time left
_START = 2e6  # the time that a run needs beside its steps, as if it were MFLOP


@dataclasses.dataclass(frozen=True)
class Scale:
  """How much is run.

  Attributes:
    workdir: of the runs.
    seeds: each run is made with each of them, except those of `rates`, which have the first.
    sizes: of the models; studies of one size have the first.
    epochs: of a whole run; full_epochs: of those of `full_length`.
    steps: of a short run; rate_steps: of those that compare learning rates; subset_steps: of those
      of `data_size`.
    digits_steps: of a run on the digits.
    percents: of the training images in `data_size`.
    rates: the learning rates that are compared for each size; digits_rates: on the digits.
    flags: of train.py, for the runs on Fashion-MNIST.
  """

  workdir: epath.Path
  seeds: Sequence[str] = ('0', '1', '2')
  sizes: Sequence[str] = ('S', 'M')
  epochs: float = 4.0
  full_epochs: float = 12.0
  steps: int = 600
  rate_steps: int = 800
  subset_steps: int = 1600
  digits_steps: int = 400
  percents: Sequence[int] = (1, 3, 10, 30, 100)
  rates: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=lambda: {'S': (0.004, 0.008, 0.016, 0.032), 'M': (0.004, 0.008, 0.016)}
  )
  digits_rates: Sequence[float] = (0.001, 0.004)
  flags: Sequence[str] = ()

  def whole(self, model: str, size: str, seed: str) -> Run:
    """A run on all training images, for `epochs`."""
    return self._epochs('whole', model, size, seed, self.epochs)

  def full(self, model: str, size: str, seed: str) -> Run:
    """A run on all training images, for `full_epochs`: configs/fashion_mnist.py as it is."""
    return self._epochs('full', model, size, seed, self.full_epochs)

  def _epochs(self, name: str, model: str, size: str, seed: str, epochs: float) -> Run:
    flags, work = (f'--config.total_epochs={epochs}',), epochs * _EPOCH * _MFLOPS[size]
    return self._run(f'{name}-{model}-{size}', f'model={model},size={size}', seed, flags, work)

  def short(
    self, name: str, model: str, seed: str, *flags: str, size: str = '', argument: str = '', **facts
  ) -> Run:
    """A run of `steps` steps; `argument` is added to that of the config, `facts` are of `Run`."""
    size = size or self.sizes[0]
    steps = facts.pop('steps', self.steps)
    flags = (
      '--config.total_epochs=None', f'--config.total_steps={steps}', '--config.every.evaluate=200',
      '--config.every.checkpoint=200', *flags,
    )  # fmt: skip
    work = steps * _BATCH * _MFLOPS[size]
    argument = f'model={model},size={size}{argument}'
    return self._run(name, argument, seed, flags, work, **facts)

  def digits(self, name: str, model: str, seed: str, *flags: str, argument='', start='') -> Run:
    """A run of configs/fashion_transfer.py, from a run of `whole` or from scratch."""
    size, after = self.sizes[0], ()
    if start == 'pre-trained':
      source = self.whole(model, size, seed)
      after, path = (source,), self.workdir / source.name
      flags = (*flags, f'--config.init.path={path}', '--config.init.head=reset')
    flags = ('--config.total_epochs=None', f'--config.total_steps={self.digits_steps}', *flags)
    work = self.digits_steps * 64 * _MFLOPS[size]
    config = f'fashion_transfer.py:model={model},size={size}{argument}'
    return Run(f'{name}-seed{seed}', _flags(config, seed, flags), after, work + _START)

  def fewshot(self, run: Run, model: str) -> Run:
    """The few-shot evaluation of a run on the digits."""
    config = f'configs/fashion_transfer.py:model={model},size={self.sizes[0]},task=fewshot'
    arguments = (f'--config={config}', f'--checkpoint={self.workdir / run.name}')
    return Run(f'fewshot-{run.name}', arguments, (run,), _START, evaluates=True)

  def _run(self, name: str, argument: str, seed: str, flags, work: float, **facts) -> Run:
    arguments = _flags(f'fashion_mnist.py:{argument}', seed, (*flags, *self.flags))
    return Run(f'{name}-seed{seed}', arguments, work=work + _START, **facts)


def _flags(config: str, seed: str, flags: Sequence[str]) -> tuple[str, ...]:
  return f'--config=configs/{config}', f'--config.seed={seed}', '--notensorboard', *flags


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of the studies.

  Attributes:
    runs: those whose results it shows.
    rows: reads their results, as rows of a CSV file.
    tables: makes a markdown table or more of these rows, whose values may be strings.
    figure: writes a PNG of these rows, or is None.
  """

  runs: Sequence[Run]
  rows: Callable[[], list[dict]]
  tables: Callable[[Sequence[Mapping]], str]
  figure: Callable[[Sequence[Mapping], epath.Path], None] | None = None


def rates(scale: Scale) -> Part:
  """Learning rates on held-out training images, one seed: short runs, and runs on the digits."""
  seed, found = scale.seeds[0], {}
  grid = [(size, rate) for size in scale.sizes for rate in scale.rates[size]]
  for model, (size, rate) in itertools.product(FAMILIES, grid):
    flag, name = f'--config.optim.learning_rate={rate}', f'rates-{model}-{size}-{rate}'
    run = scale.short(
      name, model, seed, flag, size=size, argument=',stage=dev', steps=scale.rate_steps
    )
    found[run] = {'data': 'Fashion-MNIST', 'model': f'{model}-{size}', 'rate': rate}
  for model, start, rate in itertools.product(FAMILIES, STARTS, scale.digits_rates):
    flag, name = f'--config.optim.learning_rate={rate}', f'rates-digits-{model}-{start}-{rate}'
    run = scale.digits(name, model, seed, flag, argument=',stage=dev', start=start)
    found[run] = {'data': 'digits', 'model': f'{model}-{scale.sizes[0]}, {start}', 'rate': rate}

  def rows() -> list[dict]:
    return [{**facts, 'dev_top1': _last(scale, run, 'dev/top1')} for run, facts in found.items()]

  def text(rows) -> str:
    sets = dict.fromkeys(row['data'] for row in rows)
    return '\n'.join(
      tables.markdown(
        [row for row in rows if row['data'] == data], 'model', 'rate', 'dev_top1', corner=data
      )
      for data in sets
    )

  return Part(list(found), rows, text)


def families(scale: Scale) -> Part:
  """Accuracy against cost for two sizes of each family: figures 2, left, and 3 of the paper."""
  runs = {
    (model, size, seed): scale.whole(model, size, seed)
    for size, model, seed in itertools.product(scale.sizes, FAMILIES, scale.seeds)
  }
  speeds = {
    (model, size): [
      scale.short(f'speed{i}-{model}-{size}', model, '0', size=size, steps=150, alone=True)
      for i in range(len(scale.seeds))
    ]
    for size, model in itertools.product(scale.sizes, FAMILIES)
  }

  def rows() -> list[dict]:
    return list(_family_rows(scale, runs, speeds))

  needed = [*runs.values(), *itertools.chain(*speeds.values())]
  return Part(needed, rows, _family_table, tables.cost_figure)


def _family_rows(scale: Scale, runs, speeds) -> Iterator[dict]:
  for (model, size, seed), run in runs.items():
    source = pretrained.open(scale.workdir / run.name)
    found = source.describe()
    net, shape = models.build(**found.model), (found.image_size, found.channels)
    measured = [
      row['images_per_sec'] for speed in speeds[model, size] for row in _rows(scale, speed)[1:]
    ]
    yield {
      'model': f'{model}-{size}',
      'seed': seed,
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(source.params)),
      'mflops_per_image': models.train_flops(net, *shape) / 1e6,
      'train_images': round(scale.epochs * _EPOCH),
      'images_per_sec': statistics.median(measured),
      'test_top1': _last(scale, run, 'test/top1'),
      'test_loss': _last(scale, run, 'test/loss'),
    }


def _family_table(rows: Sequence[Mapping]) -> str:
  lines = [
    '| model | parameters | MFLOP per training image | images/s on a core | top-1 | each seed |',
    '| --- | --- | --- | --- | --- | --- |',
  ]
  for model, own in tables.groups(rows, 'model').items():
    first, top1 = own[0], [float(row['test_top1']) for row in own]
    lines.append(
      f'| {model} | {int(first["parameters"]):,} | {float(first["mflops_per_image"]):.1f} | '
      f'{float(first["images_per_sec"]):,.0f} | {tables.percent(top1)} | '
      f'{_each(top1)} |'
    )
  return '\n'.join(lines) + '\n'


def _each(top1: Sequence[float]) -> str:
  return ', '.join(f'{100 * one:.2f}' for one in top1)


def full_length(scale: Scale) -> Part:
  """The largest Mixer, trained as configs/fashion_mnist.py trains it."""
  size = scale.sizes[-1]
  runs = {seed: scale.full('Mixer', size, seed) for seed in scale.seeds}

  def rows() -> list[dict]:
    return [
      {'model': f'Mixer-{size}', 'epochs': scale.full_epochs, 'seed': seed,
       'test_top1': _last(scale, run, 'test/top1'), 'test_loss': _last(scale, run, 'test/loss')}
      for seed, run in runs.items()
    ]  # fmt: skip

  def text(rows) -> str:
    top1 = [float(row['test_top1']) for row in rows]
    cells = rows[0]['model'], str(rows[0]['epochs']), tables.percent(top1), _each(top1)
    head = '| model | epochs | top-1 | each seed |\n| --- | --- | --- | --- |'
    return f'{head}\n| {" | ".join(cells)} |\n'

  return Part(list(runs.values()), rows, text)


def data_size(scale: Scale) -> Part:
  """Parts of the training images, equal steps, best checkpoint by val: figure 2, right."""
  runs = {
    (model, percent, seed): scale.short(
      f'subset-{model}-{percent}',
      model,
      seed,
      argument=f',subset={percent}',
      steps=scale.subset_steps,
    )
    for model, percent, seed in itertools.product(FAMILIES, scale.percents, scale.seeds)
  }

  def rows() -> list[dict]:
    found = []
    for (model, percent, seed), run in runs.items():
      evaluated = [row for row in _rows(scale, run) if 'val/top1' in row]
      best = max(evaluated, key=lambda row: row['val/top1'])
      found.append(
        {'model': f'{model}-{scale.sizes[0]}', 'percent': percent, 'seed': seed,
         'best_step': best['step'], 'val_top1': best['val/top1'], 'test_top1': best['test/top1'],
         'last_test_top1': evaluated[-1]['test/top1']}
      )  # fmt: skip
    return found

  def text(rows) -> str:
    return tables.markdown(rows, 'model', 'percent', 'test_top1', corner='top-1, percent of images')

  def figure(rows, path: epath.Path) -> None:
    tables.lines_figure(rows, 'model', 'percent', path, xlabel='percent of the training images')

  return Part(list(runs.values()), rows, text, figure)


def permuted(scale: Scale) -> Part:
  """Permuted pixels: figure 4 of the paper."""
  runs = {
    (model, kind, seed): scale.short(
      f'kind-{model}-{kind}', model, seed, argument=f',kind={kind}'
    )
    for model, kind, seed in itertools.product(FAMILIES, KINDS, scale.seeds)
  }  # fmt: skip

  def rows() -> list[dict]:
    return [
      {'model': f'{model}-{scale.sizes[0]}', 'kind': kind, 'seed': seed, 'step': row['step'],
       'test_top1': row['test/top1']}
      for (model, kind, seed), run in runs.items()
      for row in _rows(scale, run) if 'test/top1' in row
    ]  # fmt: skip

  def text(rows) -> str:
    last = max(int(row['step']) for row in rows)
    final = [row for row in rows if int(row['step']) == last]
    return tables.markdown(final, 'model', 'kind', 'test_top1', corner=f'top-1 at step {last}')

  return Part(list(runs.values()), rows, text, tables.permutations_figure)


def transfer(scale: Scale) -> Part:
  """Fine-tuning and few-shot evaluation on the digits: tables 2 and 3 of the paper."""
  runs, shots = {}, {}
  for model, seed in itertools.product(FAMILIES, scale.seeds):
    size = scale.sizes[0]
    untrained = scale.short(
      f'untrained-{model}', model, seed, '--config.optim.learning_rate=1e-12', steps=1
    )
    sources = {'pre-trained': scale.whole(model, size, seed), 'scratch': untrained}
    for start, source in sources.items():
      rate = f'--config.optim.learning_rate={DIGITS_RATES[model, start]}'
      runs[model, start, seed] = scale.digits(
        f'digits-{model}-{start}', model, seed, rate, start=start
      )
      shots[model, start, seed] = scale.fewshot(source, model)

  def rows() -> list[dict]:
    found = []
    for (model, start, seed), run in shots.items():
      facts = {'model': f'{model}-{scale.sizes[0]}', 'start': start, 'seed': seed}
      result = files.read_json(run.result(scale.workdir), advice='Delete it, and start again.')
      found += [
        {**facts, 'task': f'{name[1]}-shot', 'test_top1': top1}
        for key, top1 in result.items()
        if (name := re.fullmatch(r'digits/(\d+)shot', key))
      ]
      top1 = _last(scale, runs[model, start, seed], 'test/top1')
      found.append({**facts, 'task': 'all images', 'test_top1': top1})
    return found

  def text(rows) -> str:
    named = [
      {**row, 'model': f'{row["model"]}, {row["start"].replace("scratch", "not pre-trained")}'}
      for row in rows
    ]
    return tables.markdown(named, 'model', 'task', 'test_top1', corner='top-1 on the digits')

  return Part([*runs.values(), *shots.values()], rows, text)


def options(scale: Scale) -> Part:
  """One change at a time to short runs of a Mixer."""
  teacher = scale.whole('BiT', scale.sizes[0], '0')
  runs = {}
  for number, (name, flags) in enumerate(OPTIONS.items()):
    flags = [flag.replace('TEACHER', str(scale.workdir / teacher.name)) for flag in flags]
    for seed in scale.seeds:
      if number:
        runs[name, seed] = scale.short(
          f'option{number}', 'Mixer', seed, *flags,
          after=(teacher,) if 'distill' in name else (),
        )  # fmt: skip
      else:
        runs[name, seed] = scale.short(
          'kind-Mixer-original', 'Mixer', seed, argument=',kind=original'
        )

  def rows() -> list[dict]:
    found = []
    for (name, seed), run in runs.items():
      last = _rows(scale, run)[-1]
      test = 'test_ema' if 'test_ema/top1' in last else 'test'
      results = {'test_top1': last[f'{test}/top1'], 'test_loss': last[f'{test}/loss']}
      found.append({'option': name, 'seed': seed, **results})
    return found

  def text(rows) -> str:
    lines = ['| Mixer-S, short run | top-1 | test loss |', '| --- | --- | --- |']
    for name, own in tables.groups(rows, 'option').items():
      top1, loss = ([float(row[key]) for row in own] for key in ('test_top1', 'test_loss'))
      lines.append(
        f'| {name} | {tables.percent(top1)} | {tables.mean_and_spread(loss, digits=3)} |'
      )
    return '\n'.join(lines) + '\n'

  return Part(list(runs.values()), rows, text)


PARTS: dict[str, Callable[[Scale], Part]] = {
  'rates': rates,
  'families': families,
  'full_length': full_length,
  'transfer': transfer,
  'data_size': data_size,
  'permutations': permuted,
  'options': options,
}


def _rows(scale: Scale, run: Run) -> list[dict]:
  return metrics_log.read_rows(scale.workdir / run.name)


def _last(scale: Scale, run: Run, key: str) -> float:
  """The last value of a result in the rows of a run."""
  return [row[key] for row in _rows(scale, run) if key in row][-1]
