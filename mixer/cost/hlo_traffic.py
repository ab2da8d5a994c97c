"""Bytes that a compiled program reads and writes in the main memory of a device.

The compiler's count (`cost_analysis`) does not measure time on a TPU: it includes accesses to
on-chip memory, where much of a step runs, and counts the body of a loop once. Here each instruction
counts as often as it runs, with its accesses to main memory only.
"""

from collections.abc import Collection, Mapping, Sequence
import re
from typing import NamedTuple

from mixer.cost import hlo

_NO_ACCESS = (
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'opt-barrier',
  'partition-id', 'replica-id', 'while', 'conditional', 'call',
)  # fmt: skip
_ALIASES = ('ConcatBitcast', 'AllocateBuffer')  # custom calls without an access
_COPIES = ('copy-start', 'slice-start', 'dynamic-slice-start')
_SLICES = (
  'slice',
  'dynamic-slice',
  'gather',
)  # read as many bytes of their first operand as they return
_INSTRUCTION = re.compile(
  r'\s*(?P<root>ROOT )?%?(?P<name>\S+) = (?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w\-]*)'
  r'\((?P<inner>.*?)\)(?:, |$)'
)
_ARRAY = re.compile(r'\w+\[[\d,]*\](?:\{[^}]*\})?')


class _Instruction(NamedTuple):
  type: str
  op: str
  inner: str  # the number of a parameter
  operands: tuple[str, ...]
  called: str  # the computation of a fusion
  target: str  # of a custom call
  passed: tuple[tuple[int, int], ...]  # (result, operand) that a fusion passes through
  root: bool


_Computation = Mapping[str, _Instruction]


def bytes_accessed(text: str) -> int:
  """Bytes that one device reads and writes in a step.

  Args:
    text: a compiled program, from `jax.stages.Compiled.as_text`.
  """
  program = hlo.computations(text)
  counter = _Counter(program)
  runs = hlo.runs(program, fused=False)
  return round(sum(times * counter.computation(name) for name, times in runs.items()))


class _Counter:
  """Counts the bytes of accesses to main memory."""

  def __init__(self, program: Mapping[str, Sequence[str]]):
    self._program = {name: _read(lines) for name, lines in program.items()}

  def computation(self, name: str) -> int:
    found = self._program[name]
    return sum(self._instruction(one, found) for one in found.values())

  def _instruction(self, one: _Instruction, around: _Computation) -> int:
    types = [around[name].type for name in one.operands if name in around]
    if one.op in _NO_ACCESS or one.op.endswith('-done') or one.target in _ALIASES:
      return 0
    if one.op in _COPIES:
      sides = [side for side in _ARRAY.findall(one.type) if '[]' not in side][:2]
      return sum(self._at(side, min(map(hlo.type_bytes, sides))) for side in sides)
    if one.op.endswith('-start') and one.op != 'all-reduce-start':
      return self._at(one.type)  # operands and results side by side
    if one.op in _SLICES:
      return self._at(types[0], hlo.type_bytes(one.type)) + self._at(one.type)
    if one.op == 'dynamic-update-slice':
      return self._at(types[1]) + self._at(one.type, hlo.type_bytes(types[1]))
    if one.op == 'fusion':
      inside = self._program[one.called]
      results, operands = map(set, zip(*one.passed)) if one.passed else (set(), set())
      return self._written(one.type, _root(inside), inside, results) + sum(
        self._at(type_, self._read_of(i, inside))
        for i, type_ in enumerate(types)
        if i not in operands
      )
    return sum(map(self._at, types)) + self._at(one.type)

  def _at(self, types: str, part: int | None = None) -> int:
    """Bytes of an access to the arrays of a type, or to as many of their bytes as `part`."""
    arrays = [one for one in _ARRAY.findall(types) if 'S(' not in one]  # not on chip
    whole = sum(map(hlo.type_bytes, arrays))
    return whole if part is None else min(part, whole)

  def _read_of(self, number: int, inside: _Computation) -> int | None:
    """Bytes that a fusion reads of an operand of which it only takes slices; None for all."""
    (name,) = [n for n, i in inside.items() if i.op == 'parameter' and int(i.inner) == number]
    return self._used(name, inside)

  def _used(self, name: str, inside: _Computation) -> int | None:
    total = 0
    for user_name, user in inside.items():
      if name not in user.operands:
        continue
      first = user.operands[0] == name
      if user.op in _SLICES and first:
        part = hlo.type_bytes(user.type)
      elif user.op == 'dynamic-update-slice' and first:
        part = 0  # in place
      elif user.op == 'bitcast':
        part = self._used(user_name, inside)
      elif user.op == 'fusion':
        part = self._read_of(user.operands.index(name), self._program[user.called])
      else:
        part = None
      if part is None:
        return None
      total += part
    return total

  def _written(
    self, types: str, root: _Instruction, inside: _Computation, passed: Collection[int] = ()
  ) -> int:
    """Bytes that a fusion writes: of a result that it updates in place, the update."""
    if root.op == 'tuple':
      parts = zip(_ARRAY.findall(types), [inside[name] for name in root.operands])
      return sum(
        self._written(type_, part, inside)
        for i, (type_, part) in enumerate(parts)
        if i not in passed
      )
    if root.op == 'bitcast':
      return self._written(types, inside[root.operands[0]], inside)
    if root.op == 'dynamic-update-slice':
      return self._at(types, hlo.type_bytes(inside[root.operands[1]].type))
    if root.op == 'fusion' and not types.startswith('('):
      within = self._program[root.called]
      return self._written(types, _root(within), within)
    return self._at(types)


def _root(computation: _Computation) -> _Instruction:
  return next(one for one in computation.values() if one.root)


def _read(lines: Sequence[str]) -> _Computation:
  found = {}
  for match in filter(None, map(_INSTRUCTION.match, lines)):
    rest = match.string[match.end() :]
    called, target = (re.search(key, rest) for key in (r'calls=%?([\w.\-]+)', r'target="(\w+)"'))
    # A collective under way goes from one of its fusions to the next.
    passed = re.search(r'output_to_operand_aliasing=\{(.*?\))\}', rest)
    passed = passed if called and called[1].startswith('async_collective_fusion') else None
    found[match['name']] = _Instruction(
      type=match['type'],
      op=match['op'],
      inner=match['inner'],
      operands=tuple(re.findall(r'%([\w.\-]+)', match['inner'])),
      called=called[1] if called else '',
      target=target[1] if target else '',
      passed=_pairs(passed[1]) if passed else (),
      root=bool(match['root']),
    )
  return found


def _pairs(aliasing: str) -> tuple[tuple[int, int], ...]:
  """'{1}: (0, {}), {2}: (1, {})' -> ((1, 0), (2, 1))."""
  return tuple((int(a), int(b)) for a, b in re.findall(r'\{(\d+)\}: \((\d+),', aliasing))
