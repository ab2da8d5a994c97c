"""The collectives of a compiled program, read from its HLO text."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction by which devices exchange data."""

  kind: str
  bytes: int  # of its result, on one device
  group: int  # devices that take part together
  times: int  # in a step

  @property
  def sent(self) -> float:
    """Bytes that a device sends in a step, by the ring algorithm."""
    others = (self.group - 1) / self.group
    parts = {'all-reduce': 2 * others, 'reduce-scatter': self.group - 1, 'all-gather': others}
    return self.times * self.bytes * parts.get(self.kind, 1.0)


def collectives(hlo: str) -> list[Collective]:
  """The collectives of a program; those inside a loop count as often as it runs.

  TPU programs have two more forms: a fusion called all-reduce-scatter, which keeps only a part of
  its all-reduce, and a chain of fusions that all contain one collective, which runs while they
  compute.
  """
  program = computations(hlo)
  found, links = [], set()
  for name, times in runs(program, fused=True).items():
    for line in program[name]:
      match = _COLLECTIVE.match(line)
      if not match:
        continue
      chain = re.search(r'(channel_id=\d+).*(chain_id="\d+")', line)
      link = (match['kind'], *chain.groups()) if chain else (name, line)
      if link in links:
        continue
      links.add(link)
      kind, group = match['kind'], _group_size(line)
      share = _RESULT[kind](group) if match['start'] else 1
      if name.startswith('all-reduce-scatter'):
        kind, share = 'reduce-scatter', share / group
      found.append(Collective(kind, round(type_bytes(match['type']) * share), group, round(times)))
  return found


def by_kind(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
  """{kind: {'count', 'bytes' of the results, 'sent'}}, on one device in a step."""
  totals = collections.defaultdict(lambda: {'count': 0, 'bytes': 0, 'sent': 0})
  for one in found:
    total = totals[one.kind]
    total['count'] += one.times
    total['bytes'] += one.times * one.bytes
    total['sent'] += round(one.sent)
  return dict(sorted(totals.items()))


# A '-start' has operands and results side by side: the part of the bytes that is results.
_RESULT = {
  'all-reduce': lambda group: 1,  # results only
  'all-gather': lambda group: group / (group + 1),
  'reduce-scatter': lambda group: 1 / (group + 1),
  'all-to-all': lambda group: 1 / 2,
  'collective-permute': lambda group: 1 / 2,
  'collective-broadcast': lambda group: 1 / 2,
}
_COLLECTIVE = re.compile(
  rf'\s*(?:ROOT )?%?\S+ = (?P<type>.*?) (?P<kind>{"|".join(_RESULT)})(?P<start>-start)?\('
)


def computations(hlo: str) -> dict[str, list[str]]:
  """{name: its instructions} of the text of a compiled program; the one that starts is ''."""
  found, current = {}, None
  for line in hlo.splitlines():
    header = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    if header:
      current = found.setdefault('' if header[1] else header[2], [])
    elif current is not None:
      current.append(line)
  return found


def runs(program: Mapping[str, Sequence[str]], *, fused: bool) -> dict[str, float]:
  """How often a step runs each of these computations, as far as it does.

  How often a loop runs is read from the constant that its condition compares with; the branches of
  a choice count as equally frequent. With `fused`, the computations inside instructions count too.
  """
  found = collections.Counter()

  def visit(name: str, times: float) -> None:
    found[name] += times
    for line in program[name]:
      loop = re.search(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)', line)
      branches = re.search(r' conditional\(.*branch_computations=\{(.*?)\}', line)
      called = re.findall(r'(?:calls|to_apply|\w+_computation)=%?([\w.\-]+)', line)
      if loop:
        turns = _bound(program[loop[1]])
        visit(loop[1], times * turns)
        visit(loop[2], times * turns)
      elif ' conditional(' in line:
        names = re.findall(r'[\w.\-]+', branches[1]) if branches else called
        for one in names:
          visit(one, times / len(names))
      elif fused or ' call(' in line:
        for one in called:
          visit(one, times)

  visit('', 1)
  return dict(found)


def _bound(condition: list[str]) -> int:
  """The largest integer constant of a loop's condition; 1 where it has none."""
  constants = re.findall(r'= [su]32\[\]\S* constant\((\d+)\)', '\n'.join(condition))
  return max(map(int, constants), default=1) or 1


def type_bytes(types: str) -> int:
  """Bytes of all the arrays in an instruction's type, such as '(f32[8,4]{1,0}, bf16[2])'."""
  total = 0
  for kind, sides in re.findall(r'\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\]', types):
    bits = {'pred': 8, 'bf16': 16}.get(kind) or int(re.search(r'\d+', kind)[0])
    total += math.prod(int(side) for side in sides.split(',') if side) * bits // 8
  return total


def _group_size(line: str) -> int:
  """Devices in each group of a collective, 2 where it names pairs."""
  axes = re.search(r'replica_groups=mesh\[(.*?)\] ?\{(.*?)\}', line)
  if axes:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
    return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", axes[2]))
  iota = re.search(r'replica_groups=\[\d+,(\d+)\]', line)
  if iota:
    return int(iota[1])
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', line)
  return listed[1].count(',') + 1 if listed else 2
