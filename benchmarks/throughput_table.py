"""What follows from the measurements of benchmarks/throughput.py, and its tables."""

from collections.abc import Iterable, Sequence
import dataclasses
import statistics

from mixer import hardware, models, paper

MODES, DTYPES = ('training', 'inference'), ('float32', 'bfloat16')
RUNNERS = ('jax', 'timm', 'timm compiled')
HEAD = (
  'model', 'batch', 'ms', 'images/s', 'least to most', 'of product', 'of peak', 'GiB',
  'compile, s', 'times the Mixer', 'in the paper',
)  # fmt: skip
_NONE = '-'


@dataclasses.dataclass(frozen=True)
class Case:
  """What a row of a table measures; `runner` is one of RUNNERS, or 'plain'."""

  model: str
  mode: str
  dtype: str
  runner: str = 'jax'

  def __str__(self) -> str:
    return f'{self.model} {self.mode} {self.dtype} ({self.runner})'


@dataclasses.dataclass
class Row:
  """The measurements of a case.

  Attributes:
    sweep: the worker's answer for every batch size that fits.
    refusal: why no batch size fits; empty if one does.
    rates: images/s in each round, at the best batch size.
  """

  case: Case
  sweep: dict[int, dict]
  refusal: str = ''
  rates: list[float] = dataclasses.field(default_factory=list)

  @property
  def batch_size(self) -> int | None:
    """The one with the most images/s in the sweep; None if none fits."""
    return max(self.sweep, key=lambda size: size / self.sweep[size]['seconds'], default=None)

  def drop(self, *batch_sizes: int, why: str) -> None:
    """Gives up batch sizes that fit alone, but not beside what else is measured."""
    self.sweep = {k: v for k, v in self.sweep.items() if k not in batch_sizes}
    self.refusal, self.rates = ('' if self.sweep else f'only alone: {why}'), []


def facts(
  row: Row, rows: Sequence[Row], product: dict, kind: str, image_size: int, num_classes: int
) -> dict:
  """An element of 'rows' in throughput.json. None stands for what is not known.

  Args:
    row, rows: the one to describe, and all of the run.
    product: 'rates' in FLOP/s of a matrix product, measured in the same rounds.
    kind: of the device.
  """
  case = row.case
  found = {
    **dataclasses.asdict(case),
    'batch_size': row.batch_size,
    'refusal': row.refusal,
    'sweep': row.sweep,
  }
  if row.batch_size is None:
    return found
  best, mixer, peak = row.sweep[row.batch_size], reference(row, rows), hardware.peak_flops(kind)
  rate, flops = statistics.median(row.rates), flops_per_image(case, image_size, num_classes)
  return {
    **found,
    'images_per_sec': rate,
    'images_per_sec_of_rounds': row.rates,
    'seconds': row.batch_size / rate,
    'flops_per_image': flops,
    'mfu_of_product': flops * _median_ratio(row.rates, product['rates']),
    # The published peaks are those of bfloat16.
    'mfu_of_peak': flops * rate / peak if peak and case.dtype == 'bfloat16' else None,
    'memory': best['memory'],
    'memory_source': best['memory_source'],
    'compile_seconds': best['compile_seconds'],
    'mixer': mixer and mixer.case.model,
    'ratio_to_mixer': mixer and _median_ratio(row.rates, mixer.rates),
    'ratio_in_paper': mixer and ratio_in_paper(case.model, mixer.case.model, case.mode, image_size),
  }


def flops_per_image(case: Case, image_size: int, num_classes: int) -> int:
  """Those of the matmuls and convolutions alone, as is usual for MFU."""
  model = models.build(case.model, num_classes)
  if case.mode == 'training':
    return models.train_flops(model, image_size)
  family = models.FAMILIES[case.model.partition('-')[0]]
  return sum(family.matmul_flops(model, image_size).values())


def reference(row: Row, rows: Sequence[Row]) -> Row | None:
  """The row of the Mixer that a row is compared with: of its size, else the first of the run.

  Only Mixers of the same mode, dtype and runner count. A Mixer is compared with itself.
  """
  mixers = {
    other.case.model: other
    for other in rows
    if other.rates
    and other.case.model.startswith('Mixer')
    and dataclasses.replace(other.case, model=row.case.model) == row.case
  }
  size = row.case.model.partition('-')[2]
  return mixers.get(f'Mixer-{size}') or next(iter(mixers.values()), None)


def ratio_in_paper(model: str, mixer: str, mode: str, image_size: int) -> float | None:
  """How many times as fast as `mixer` a model is by table 3 of the paper; None if it is not there.

  Inference: images/s per core at this image size. Training: epochs per core-day on the same data,
  of the rows with the largest cost, since the table rounds to 10 core-days.
  """
  pairs = [
    (a, b)
    for a in paper.rows(model)
    for b in paper.rows(mixer)
    if a.table == b.table == 3 and a.resolution == b.resolution == image_size
  ]
  if mode == 'inference':
    return next((a.images_per_sec_per_core / b.images_per_sec_per_core for a, b in pairs), None)
  # Rows of other sizes have the cost of pre-training at 224 pixels.
  pairs = [(a, b) for a, b in pairs if a.data == b.data and image_size == 224]
  if not pairs:
    return None
  a, b = max(pairs, key=lambda pair: pair[1].kilo_core_days)
  return (a.epochs / a.kilo_core_days) / (b.epochs / b.kilo_core_days)


def _median_ratio(a: Iterable[float], b: Iterable[float]) -> float:
  """The median of the ratios in each round, which a change of the machine's speed leaves alone."""
  return statistics.median(x / y for x, y in zip(a, b, strict=True))


def tables(report: dict) -> str:
  """Markdown of the content of throughput.json: a table for each mode and dtype."""
  parts = [f'{report["device"]["line"]}; images of {report["image_size"]} pixels.']
  for mode in MODES:
    for dtype, product in report['products'].items():
      rows = [row for row in report['rows'] if (row['mode'], row['dtype']) == (mode, dtype)]
      if rows:
        rates = [rate / 1e12 for rate in product['rates']]
        parts.append(
          f'**{mode.capitalize()}, {dtype}.** The product of two matrices of {product["side"]} x '
          f'{product["side"]}: {statistics.median(rates):.3g} TFLOP/s '
          f'({min(rates):.3g} to {max(rates):.3g}).'
        )
        lines = [HEAD, ['---'] * len(HEAD), *map(_cells, rows)]
        parts.append('\n'.join(f'| {" | ".join(line)} |' for line in lines))
  return '\n\n'.join([*parts, *report['notes']])


def _cells(row: dict) -> list[str]:
  name = row['model'] if row['runner'] == 'jax' else f'{row["model"]}, {row["runner"]}'
  if row['batch_size'] is None:
    return [name, f'none fits: {row["refusal"]}', *[''] * (len(HEAD) - 2)]
  rates, mixer = row['images_per_sec_of_rounds'], row['mixer']
  memory = row['memory'] and row['memory'] / 2**30
  return [
    name,
    f'{row["batch_size"]}',
    _three_digits(1e3 * row['seconds']),
    _three_digits(row['images_per_sec']),
    f'{_three_digits(min(rates))} to {_three_digits(max(rates))}',
    f'{row["mfu_of_product"]:.0%}',
    _cell('{:.0%}', row['mfu_of_peak']),
    _cell(f'{{:.2f}} ({row["memory_source"]})', memory),
    _cell('{:.1f}', row['compile_seconds']),
    '1' if mixer == row['model'] else _cell(f'{{:.2f}} ({mixer})', row['ratio_to_mixer']),
    '1' if mixer == row['model'] else _cell('{:.2f}', row['ratio_in_paper']),
  ]


def _cell(form: str, value: float | None) -> str:
  return _NONE if value is None else form.format(value)


def _three_digits(value: float) -> str:
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
