"""Measures a Mixer's compiled step beside its plain Flax form, and beside timm's where that is.

  python benchmarks/compare.py --models=Mixer-S/16 --batch_size=8
  python benchmarks/compare.py --models=Mixer-S/16 --batch_size=8 --modes=training --default_env

The plain form is benchmarks/plain.py. First its logits and gradients are compared with ours, for
the same weights. Then each form runs in a process of its own, and they take turns, round by round.
With --default_env the plain form and timm's are started as by a user who sets nothing, so without
the memory that the programs of this package keep. See docs/performance.md.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import statistics
import sys

from absl import flags

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import throughput  # noqa: E402
from benchmarks.throughput_table import DTYPES, MODES, Case  # noqa: E402
from mixer import cli  # noqa: E402
from mixer.errors import InputError  # noqa: E402

# Of `plain.difference`: the order of additions, and in bfloat16 the rounding of each result.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 0.1}
AS_BY_DEFAULT = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}  # keeps no freed memory
HEAD = (
  'form', 'images/s', 'least to most', 'GiB', 'times as fast', 'by CPU time', 'each round',
)  # fmt: skip


def measure(
  cases: Sequence[Case],
  ask: Mapping[str, throughput.Ask],
  sizes: Mapping[str, int],
  *,
  batch_size: int,
  rounds: int,
  seconds: float,
) -> dict[Case, list[dict]]:
  """The answers of the workers for each case, one of each round, after one to compile.

  Raises InputError if one does not fit into the memory.
  """
  found = {case: [] for case in cases}
  for number in range(rounds + 1):
    throughput.note(f'round {number} of {rounds}' if number else 'compiling')
    for case, answers in found.items():
      request = throughput.arguments(case, sizes)
      length = seconds if number else 0.0
      answer = ask[case.runner]('model', **request, batch_size=batch_size, seconds=length)
      if 'does_not_fit' in answer:
        raise InputError(
          f'{case} does not fit beside the others: {answer["does_not_fit"]}. '
          'Use a smaller --batch_size.'
        )
      answers.append(answer)
  return {case: answers[1:] for case, answers in found.items()}


def table(found: Mapping[Case, Sequence[Mapping]], batch_size: int) -> str:
  """Markdown: the forms of one model, mode and dtype; 'times as fast' is ours over the other.

  `found` is of `measure`, with ours first.
  """
  (first, ours), *_ = found.items()
  lines = [f'**{first.model}, {first.mode}, {first.dtype}, batch {batch_size}**', '']
  lines += [f'| {" | ".join(HEAD)} |', f'|{" --- |" * len(HEAD)}']
  for case, answers in found.items():
    rates = [batch_size / answer['seconds'] for answer in answers]
    ratios = [other['seconds'] / own['seconds'] for own, other in zip(ours, answers)]
    of_cpu = [other['cpu_seconds'] / own['cpu_seconds'] for own, other in zip(ours, answers)]
    memory = answers[0].get('compiled_memory') or answers[0]['memory']
    cells = [
      'ours' if case.runner == 'jax' else case.runner,
      f'{statistics.median(rates):.4g}',
      f'{min(rates):.4g} to {max(rates):.4g}',
      f'{memory / 2**30:.2f}' if memory else '-',
      f'{statistics.median(ratios):.2f}',
      f'{statistics.median(of_cpu):.2f}',
      ', '.join(f'{ratio:.2f}' for ratio in ratios),
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def check(case: Case, ask: throughput.Ask, sizes: Mapping[str, int]) -> str:
  """A line on how far ours is from the plain form; raises RuntimeError if it is too far."""
  found = ask('difference', model=case.model, dtype=case.dtype, **sizes)
  line = f'{case.model}, {case.dtype}: relative difference from the plain form: ' + ', '.join(
    f'{name} {value:.1g}' for name, value in found.items()
  )
  if not all(value < TOLERANCES[case.dtype] for value in found.values()):  # also for NaN
    raise RuntimeError(f'{line}; below {TOLERANCES[case.dtype]} was expected.')
  return line


def make_cases(
  names: Sequence[str], modes: Sequence[str], dtypes: Sequence[str], *, timm: bool
) -> tuple[list[list[Case]], list[str]]:
  """(the cases of each table, notes); raises InputError for wrong flags."""
  others = [name for name in names if not name.startswith('Mixer-')]
  if others:
    raise InputError(f'--models={",".join(others)}: the plain form is that of Mixers alone.')
  cases, notes = throughput.make_cases(names, modes, dtypes, 'timm' if timm else None)
  groups = [
    [case, dataclasses.replace(case, runner='plain')] for case in cases if case.runner == 'jax'
  ]
  for group in groups:
    group += [
      case
      for case in cases
      if case.runner.startswith('timm') and dataclasses.replace(case, runner='jax') == group[0]
    ]
  return groups, notes


def main() -> None:
  values = flags.FLAGS
  timm = None not in map(importlib.util.find_spec, ('torch', 'timm'))
  groups, notes = make_cases(values.models, values.modes, values.dtypes, timm=timm)
  sizes = {'image_size': values.image_size, 'num_classes': values.num_classes}
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # several processes share a GPU
  others = AS_BY_DEFAULT if values.default_env else {}
  with contextlib.ExitStack() as stack:
    workers = {
      kind: stack.enter_context(contextlib.closing(throughput.Worker(kind, **environment)))
      for kind, environment in (('jax', {}), ('plain', others), ('timm', others))
    }
    device = workers['jax'].ask('device')
    print(device['line'], flush=True)
    if timm:
      notes.append(throughput.check_peer(workers['timm'].ask('device'), device))
    for case in {(group[0].model, group[0].dtype): group[0] for group in groups}.values():
      print(check(case, workers['plain'].ask, sizes), flush=True)
    ask = {case.runner: workers[case.runner.split()[0]].ask for group in groups for case in group}
    for group in groups:
      found = measure(
        group, ask, sizes,
        batch_size=values.batch_size, rounds=values.rounds, seconds=values.seconds,
      )  # fmt: skip
      print(f'\n{table(found, values.batch_size)}', flush=True)
  print('\n'.join(['', *notes]) if notes else '', flush=True)


def define_flags() -> None:
  flags.DEFINE_list('models', ['Mixer-S/16'], 'Names of Mixers of `mixer.models.build`.')
  flags.DEFINE_integer('batch_size', 8, 'Images of a step.', lower_bound=1)
  flags.DEFINE_integer('image_size', 224, 'Pixels of a side.', lower_bound=1)
  flags.DEFINE_integer('num_classes', 1000, 'Width of the head.', lower_bound=1)
  flags.DEFINE_list('dtypes', list(DTYPES[:1]), f'Some of {",".join(DTYPES)}.')
  flags.DEFINE_list('modes', list(MODES), f'Some of {",".join(MODES)}.')
  flags.DEFINE_integer('rounds', 5, 'Measurements of each form.', lower_bound=1)
  flags.DEFINE_float('seconds', 2.0, 'Of each measurement.', lower_bound=0.0)
  flags.DEFINE_bool('default_env', False, 'Start the other forms without kept memory.')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
