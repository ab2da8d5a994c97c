"""Measures training and inference of models on one device, beside each other.

  python benchmarks/throughput.py --models=Mixer-B/16,ViT-B/16,BiT-R50x1 --output=DIR
  python benchmarks/throughput.py --models=Mixer-S/32 --batch_sizes=4       # minutes on a CPU
  .venv-timm/bin/python benchmarks/throughput.py --models=... --peers=timm  # `make test-timm`

First each model's best batch size is searched for, in a process of its own. Then all are measured
at their best in turn, round by round, so that a change of the machine's speed affects all of them.
Prints markdown tables. --output=DIR also keeps them, as throughput.md, with every measurement in
throughput.json. See docs/performance.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from absl import flags

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import throughput_workers  # noqa: E402
from benchmarks.throughput_table import DTYPES, MODES, RUNNERS, Case, Row, facts, tables  # noqa: E402
from mixer import cli, files, models, runtime  # noqa: E402
from mixer.errors import InputError  # noqa: E402
from mixer.timm_names import ARCHITECTURES  # noqa: E402

MAX_BATCH_SIZE = 4096  # the paper's global batch

# Asks a worker: a method and its arguments -> its answer, {'does_not_fit': ...} included.
Ask = Callable[..., dict]


class Worker:
  """A process of benchmarks/throughput_workers.py, started when it is first asked."""

  def __init__(self, kind: str, program: str = throughput_workers.__file__, **environment: str):
    self._command, self._process = [sys.executable, program, kind], None
    self._environment = environment

  def ask(self, what: str, **arguments) -> dict:
    """The answer; after 'does_not_fit' the next request starts a new process.

    Raises:
      InputError: the request is wrong.
      RuntimeError: the process failed; its error is printed above.
    """
    if self._process is None:
      self._process = subprocess.Popen(
        self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | self._environment,
      )  # fmt: skip
    self._process.stdin.write(json.dumps({'what': what, **arguments}) + '\n')
    self._process.stdin.flush()
    start = throughput_workers.RESULT
    line = next((line for line in self._process.stdout if line.startswith(start)), None)
    if line is None:
      status = self._process.wait()
      self.close()
      if status == -signal.SIGKILL:  # by the system, most often
        return {'does_not_fit': 'the process was killed (SIGKILL), as if for lack of memory'}
      raise RuntimeError(f'a worker ended with status {status} on {what} {arguments}; see above.')
    answer = json.loads(line.removeprefix(start))
    if 'error' in answer:
      raise InputError(answer['error'])
    if 'does_not_fit' in answer:
      self.close()  # whatever it left in the device's memory goes with it
    return answer

  def close(self) -> None:
    """Ends the process, by SIGKILL only if it does not end with its input."""
    if self._process is not None:
      process, self._process = self._process, None
      with process:  # closes its input and output
        try:
          process.stdin.close()
          process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
          process.kill()


def sweep(
  measure: Callable[[int], dict],
  batch_sizes: Sequence[int] = (),
  *,
  first: int = 64,
  longest_step: float = 2.0,
) -> tuple[dict[int, dict], str]:
  """({batch size: what was measured}, why none fits).

  Args:
    measure: batch size -> {'seconds': of a step, ...}, or {'does_not_fit': why}.
    batch_sizes: those to measure, up to the first that does not fit. If empty, `first`, doubled
      while it fits and a step takes at most `longest_step` seconds, up to MAX_BATCH_SIZE; halved
      where `first` does not fit.
  """
  found, refusal = {}, ''
  for size in sorted(batch_sizes) or _doubled(first):
    answer = measure(size)
    if 'does_not_fit' in answer:
      refusal = answer['does_not_fit']
      break
    found[size] = answer
    if not batch_sizes and answer['seconds'] > longest_step:
      break
  smaller = first // 2
  while not found and not batch_sizes and smaller:
    answer = measure(smaller)
    refusal = answer.get('does_not_fit', '')
    if not refusal:
      found[smaller] = answer
    smaller //= 2
  return found, '' if found else refusal


def _doubled(size: int) -> Iterator[int]:
  while size <= MAX_BATCH_SIZE:
    yield size
    size *= 2


def search(cases: Sequence[Case], sizes: Mapping[str, int], **options) -> list[Row]:
  """The row of each case with its sweep, `options` being those of `sweep`."""
  rows = []
  for case in cases:
    with contextlib.closing(Worker(case.runner.split()[0])) as worker:

      def measure(size, case=case, worker=worker):
        request = arguments(case, sizes)
        answer = worker.ask('model', **request, batch_size=size, seconds=0.3)
        why = answer.get('does_not_fit')
        text = f'does not fit: {why}' if why else f'{size / answer["seconds"]:,.1f} images/s'
        note(f'{case}, batch of {size}: {text}')
        return answer

      rows.append(Row(case, *sweep(measure, **options)))
  return rows


def arguments(case: Case, sizes: Mapping[str, int]) -> dict:
  """Those of the workers' method `model`, but for the batch size and the seconds."""
  return {
    'model': case.model,
    'mode': case.mode,
    'dtype': case.dtype,
    **sizes,
    **({'compiled': case.runner == 'timm compiled'} if case.runner.startswith('timm') else {}),
  }


def take_turns(
  rows: Sequence[Row],
  ask: Mapping[str, Ask],
  sizes: Mapping[str, int],
  *,
  rounds: int,
  seconds: float,
) -> dict[str, dict]:
  """Fills the `rates` of the rows; returns {dtype: {'side', 'rates' in FLOP/s} of a product}.

  `ask` has the worker of each runner. Before the first round every program is compiled and run
  once; a batch that does not fit beside the other programs gives way to the next best.
  """

  def measure(row, seconds):
    request = arguments(row.case, sizes)
    return ask[row.case.runner]('model', **request, batch_size=row.batch_size, seconds=seconds)

  for row in rows:
    while row.sweep and 'does_not_fit' in (answer := measure(row, seconds=0)):
      row.drop(row.batch_size, why=answer['does_not_fit'])
  products = {row.case.dtype: {'rates': []} for row in rows}
  for number in range(rounds):
    note(f'round {number + 1} of {rounds}')
    for dtype, product in products.items():
      answer = ask['jax']('product', dtype=dtype, seconds=seconds)
      product['side'] = answer['side']
      product['rates'].append(answer['flops'])
      for row in rows:
        if row.case.dtype == dtype and row.sweep:
          answer = measure(row, seconds)
          if 'does_not_fit' in answer:
            row.drop(*row.sweep, why=answer['does_not_fit'])
          else:
            row.rates.append(row.batch_size / answer['seconds'])
  return products


def note(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def make_cases(
  names: Sequence[str], modes: Sequence[str], dtypes: Sequence[str], peers: str | None = None
) -> tuple[list[Case], list[str]]:
  """(what to measure, notes on models that timm lacks); the arguments are those of the flags.

  Raises:
    InputError: an unknown name, or packages are missing.
  """
  for flag, given, known in (('modes', modes, MODES), ('dtypes', dtypes, DTYPES)):
    if not given or set(given) - set(known):
      raise InputError(f'--{flag}={",".join(given)}; use some of {",".join(known)}.')
  if not names:
    raise InputError('--models is empty; write names such as Mixer-B/16,ViT-B/16.')
  names, with_peer = list(dict.fromkeys(names)), ARCHITECTURES
  for name in names:
    models.build(name, 1000)
  if peers and None in map(importlib.util.find_spec, ('torch', 'timm')):
    raise InputError(
      '--peers=timm needs torch and timm: pip install -r requirements-timm.txt, or use the '
      'environment of `make test-timm`, .venv-timm/bin/python.'
    )
  cases = [
    Case(name, mode, dtype, runner)
    for mode in modes
    for dtype in dtypes
    for name in names
    for runner in (RUNNERS if peers and name in with_peer else RUNNERS[:1])
  ]
  return cases, [f'timm has no {name}.' for name in names if peers and name not in with_peer]


def check_peer(peer: Mapping, device: Mapping) -> str:
  """A note on the peer's device; raises InputError if it is of another kind than JAX's."""
  if peer['platform'] != device['platform']:
    raise InputError(
      f'JAX runs on {device["line"]}, but PyTorch on {peer["line"]}; install both '
      'for the same device.'
    )
  return f'{peer["line"]}.'


def whole_numbers(texts: Sequence[str]) -> list[int]:
  if not all(text.isdigit() and int(text) for text in texts):
    raise InputError(f'--batch_sizes={",".join(texts)}; write whole numbers from 1 on, as in 4,8.')
  return [int(text) for text in texts]


def main() -> None:
  values = flags.FLAGS
  cases, notes = make_cases(values.models, values.modes, values.dtypes, values.peers)
  sizes = {'image_size': values.image_size, 'num_classes': values.num_classes}
  batch_sizes = whole_numbers(values.batch_sizes)
  if values.peers:
    share = str(throughput_workers.SHARED_FRACTION)
    os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION'] = share
    notes.append(f'On a GPU, each framework has {share} of the memory.')
  with contextlib.ExitStack() as stack:
    kinds = {case.runner: case.runner.split()[0] for case in cases}
    workers = {
      kind: stack.enter_context(contextlib.closing(Worker(kind))) for kind in set(kinds.values())
    }
    device = workers['jax'].ask('device')
    print(device['line'], flush=True)
    if values.peers:
      notes.append(check_peer(workers['timm'].ask('device'), device))
      workers['timm'].close()
    if device['platform'] != 'cpu':
      workers['jax'].close()  # so that the sweep has the memory
      # The rounds load what the sweep has compiled.
      cache = stack.enter_context(tempfile.TemporaryDirectory())
      os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
    first = 8 if device['platform'] == 'cpu' else 64
    rows = search(cases, sizes, batch_sizes=batch_sizes, first=first)
    ask = {runner: workers[kind].ask for runner, kind in kinds.items()}
    products = take_turns(rows, ask, sizes, rounds=values.rounds, seconds=values.seconds)
  report = {
    'device': device,
    'versions': runtime.versions(),
    **sizes,
    'products': products,
    'rows': [facts(row, rows, products[row.case.dtype], device['kind'], **sizes) for row in rows],
    'notes': notes,
  }
  print(tables(report))
  if values.output:
    folder = files.absolute(values.output)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / 'throughput.json', json.dumps(report, indent=1).encode())
    files.write(folder / 'throughput.md', (tables(report) + '\n').encode())


def define_flags() -> None:
  default = ['Mixer-B/16', 'ViT-B/16', 'BiT-R50x1']
  flags.DEFINE_list('models', default, 'Names of `mixer.models.build`.')
  flags.DEFINE_integer('image_size', 224, 'Pixels of a side.', lower_bound=1)
  flags.DEFINE_integer('num_classes', 1000, 'Width of the head.', lower_bound=1)
  flags.DEFINE_list(
    'batch_sizes', [], 'Those to try. By default doubled up to what fits; see docs/performance.md.'
  )
  flags.DEFINE_list('dtypes', list(DTYPES), f'Some of {",".join(DTYPES)}.')
  flags.DEFINE_list('modes', list(MODES), f'Some of {",".join(MODES)}.')
  flags.DEFINE_integer('rounds', 5, 'Measurements of each model.', lower_bound=1)
  flags.DEFINE_float('seconds', 1.0, 'Of each measurement.', lower_bound=0.0)
  flags.DEFINE_enum('peers', None, ['timm'], 'Other implementations to measure in the same run.')
  flags.DEFINE_string('output', None, 'A directory for throughput.json and throughput.md.')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
