"""What a soak looks for: functions of what a run left behind that return the faults found.

A fault is a line of text; no fault is an empty list.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import re
from statistics import median
from typing import NamedTuple

TOLERANCE = 1e-6  # of losses, relative, once the layout has changed: another order of additions
FILES_BOUND = 8  # by how many open files a process may grow; a save under way has some
MEMORY_BOUND_MIB = 64  # by how much its resident memory may grow from its first steps to its last
_FEWEST_SAMPLES = 10
# Exit statuses by event, of the process that it befalls and of the others (docs/scale.md).
_STATUSES = {
  'none': ({0}, {0}),
  'SIGTERM': ({75}, {75}),
  'SIGTERM during the start': ({75, 143}, {75, 143}),  # 143: Python had not come to train.py
  'SIGKILL': ({137}, {1, 134}),
  'SIGKILL during a save': ({137}, {1, 134}),
  'SIGKILL during the start': ({137}, {1, 134}),
  'full disk': ({2}, {2}),
  'full disk during a save': ({2}, {2}),
  # No event of ours: on CPUs, processes that do not come to a collective within 30 s of each other
  # end as of an unforeseen error, and a loaded machine can keep one waiting for so long.
  'transport timed out': ({1, 134}, {1, 134}),
}
EVENTS = [event for event in _STATUSES if event not in ('none', 'transport timed out')]
_TIMED_OUT = 'Gloo context initialization failed: DEADLINE_EXCEEDED'
# What a finished run leaves (README, "What a run writes"; docs/data.md; docs/scale.md).
_FILES = re.compile(
  r'metrics\.jsonl|curves\.png|config\.json|classes\.json|model\.npz|model\.json|\.lock'
  r'|checkpoints/\d+/.*'
)


class Sample(NamedTuple):
  """A process at a moment of its training."""

  step: int
  open_files: int
  memory_mib: float


def length(samples: Sequence[Sample]) -> int:
  return samples[-1].step - samples[0].step if samples else 0


def event_in(event: str, logs: Sequence[str]) -> str:
  """What happened to an attempt: `event`, or what its logs report if there was none."""
  timed_out = event == 'none' and any(_TIMED_OUT in log for log in logs)
  return 'transport timed out' if timed_out else event


def status_faults(event: str, statuses: Sequence[int], victim: int, complete: bool) -> list[str]:
  """Are the exit statuses those of the event that befell process `victim`?

  An event may come when the last step is done; then a `complete` run may say so by status 0.
  """
  late = {0} if complete else set()
  own, others = (wanted | late for wanted in _STATUSES[event])
  return [
    f'{event}: process {i} ended with status {status} instead of {sorted(wanted)}'
    for i, status in enumerate(statuses)
    if status not in (wanted := own if i == victim else others)
  ]


def save_faults(event: str, before: Sequence[int], after: Sequence[int], rows: int) -> list[str]:
  """Did an attempt keep what was saved `before` it, and on SIGTERM all of its steps?"""
  newest, had = (steps[-1] if steps else 0 for steps in (after, before))
  faults = []
  if newest < had:
    faults.append(f'{event}: step {had} was saved, but {newest} is now the newest')
  if event == 'SIGTERM' and newest != rows:
    faults.append(f'{event}: {rows} steps were done, but the newest saved is {newest}')
  return faults


def start_faults(log: str, saved: Sequence[int]) -> list[str]:
  """Did an attempt go on from the newest of the `saved` steps, and find none damaged?"""
  faults = [line for line in log.splitlines() if 'is damaged' in line]
  wanted = saved[-1] if saved else 0
  found = re.search(r'; step (\d+) of \d+; compiled', log)
  if found and int(found[1]) != wanted:
    faults.append(f'went on from step {found[1]} instead of {wanted}')
  return faults


def step_faults(steps: Sequence[int], total: int) -> list[str]:
  """Is every step of 1 to `total` there once, in order?"""
  counts = Counter(steps)
  faults = [f'step {step} is lost' for step in range(1, total + 1) if not counts[step]]
  faults += [f'step {step} is there {count} times' for step, count in counts.items() if count > 1]
  faults += [f'step {step} is one too many' for step in counts if not 1 <= step <= total]
  if not faults and list(steps) != list(range(1, total + 1)):
    faults.append('the steps are not 1, 2, ... in order')
  return faults


def loss_faults(
  found: Iterable[Mapping], expected: Iterable[Mapping], exact_to: int
) -> tuple[list[str], float]:
  """Compares rows, without their timings, with those of the undisturbed run.

  Up to step `exact_to` all values must be the same to the last bit, after it the losses to
  TOLERANCE. Also returns the largest relative deviation of a loss.
  """
  expected, faults, worst = {row['step']: row for row in expected}, [], 0.0
  for row in found:
    step, wanted = row['step'], expected.get(row['step'], {})
    if row.keys() != wanted.keys():
      faults.append(f'step {step} has other values than the undisturbed run: {sorted(row)}')
      continue
    losses = [name for name in wanted if name.endswith('/loss')]
    apart = max(abs(row[name] - wanted[name]) / abs(wanted[name]) for name in losses)
    worst = max(worst, apart)
    if step <= exact_to and row != wanted:
      faults.append(f'step {step} differs in {[name for name in row if row[name] != wanted[name]]}')
    elif not apart <= TOLERANCE:
      faults.append(f'step {step}: a loss is off by {apart:.1e} of itself')
  return faults, worst


def leak_faults(samples: Sequence[Sample]) -> tuple[list[str], dict]:
  """Compares the first and the last quarter of a process's training, after a tenth to warm up."""
  if len(samples) < _FEWEST_SAMPLES:
    return [f'only {len(samples)} samples of open files and memory; train for longer'], {}
  first, last = samples[0].step, samples[-1].step
  rest = [s for s in samples if s.step >= first + (last - first) / 10]
  part = max(len(rest) // 4, 1)
  early, late = ([median(values) for values in zip(*few)] for few in (rest[:part], rest[-part:]))
  figures = {
    'steps': last - first,
    'open_files': [early[1], late[1]],
    'memory_mib': [round(early[2], 1), round(late[2], 1)],
  }
  faults = []
  if late[1] - early[1] > FILES_BOUND:
    faults.append(f'{early[1]:g} files were open early and {late[1]:g} late')
  if late[2] - early[2] > MEMORY_BOUND_MIB:
    faults.append(f'{early[2]:.0f} MiB were resident early and {late[2]:.0f} late')
  return faults, figures


def file_faults(names: Iterable[str], kept: int) -> list[str]:
  """Are the files of a finished run (paths relative to it) the documented ones?

  `kept` is how many checkpoints may be there.
  """
  names = list(names)
  faults = [f'{name} was left behind' for name in names if not _FILES.fullmatch(name)]
  missing = {'metrics.jsonl', 'curves.png', 'config.json', 'model.npz', 'model.json'} - set(names)
  faults += [f'{name} is not there' for name in sorted(missing)]
  steps = {name.split('/')[1] for name in names if name.startswith('checkpoints/')}
  if not 1 <= len(steps) <= kept:
    faults.append(f'{len(steps)} checkpoints are kept instead of 1 to {kept}: {sorted(steps)}')
  return faults


def verdict(faults: Sequence[str], events: Counter, runs: Sequence[Mapping], leak: dict) -> dict:
  """The result of a soak. `events` counts (event, statuses); `runs` have steps and deviations."""
  short = [] if runs else ['no run finished']
  return {
    'passed': not faults and not short,
    'faults': [*faults, *short],
    'events': [[event, list(statuses), n] for (event, statuses), n in sorted(events.items())],
    'runs': list(runs),
    'bit_equal_runs': sum(run['layout_changed_after'] is None for run in runs),
    'worst_deviation': max((run['worst_deviation'] for run in runs), default=0.0),
    'leak': leak,
  }


def describe(result: Mapping) -> str:
  """The verdict in words."""
  lines = ['| event | exit statuses | times |', '|---|---|---|']
  lines += [f'| {e} | {", ".join(map(str, s))} | {n} |' for e, s, n in result['events']]
  runs, leak = result['runs'], result['leak']
  lines += [
    '',
    f'{len(runs)} runs of {sum(run["steps"] for run in runs)} steps were done, '
    f'{result["bit_equal_runs"]} of them on one layout',
    f'largest deviation of a loss: {result["worst_deviation"]:.1e} (after a change of layout '
    f'{TOLERANCE:.0e} is allowed, before it nothing)',
  ]
  if leak:
    files, memory = leak['open_files'], leak['memory_mib']
    lines += [
      f'longest attempt, {leak["steps"]} steps: {files[0]:g} open files early, {files[1]:g} late '
      f'(bound: {FILES_BOUND} more); {memory[0]} MiB early, {memory[1]} MiB late '
      f'(bound: {MEMORY_BOUND_MIB} more)'
    ]
  lines += [f'FAULT: {fault}' for fault in result['faults']]
  return '\n'.join([*lines, f'verdict: {"passed" if result["passed"] else "FAILED"}'])
