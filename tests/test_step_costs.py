"""A train step that becomes heavier, or lighter, has to say so; see tests/step_costs.py."""

import json

import pytest

import runs
import step_costs

TOLERANCE = 0.02
GOLDEN = json.loads(step_costs.GOLDEN.read_text(encoding='utf-8'))
FAST = ('mixer_b16:imagenet21k', 'vit:B/16,imagenet21k', 'bit:R50x1,jft', 'digits:model=Mixer')
pytestmark = pytest.mark.skipif(
  GOLDEN['versions'] != step_costs.versions(), reason=f'recorded with {GOLDEN["versions"]}'
)


def check(name: str, kind: str, found: dict[str, int]) -> None:
  wanted = GOLDEN['costs'][name][kind]
  changes = [
    f'{what} {wanted[what]:,} -> {found[what]:,}'
    for what in wanted
    if abs(found[what] / wanted[what] - 1) > TOLERANCE
  ]
  assert not changes, (
    f'the step of {name}, {kind}: {"; ".join(changes)}. If it is meant: python tests/step_costs.py'
  )


def test_every_config_has_its_cost():
  assert list(GOLDEN['costs']) == list(step_costs.CONFIGS)


@pytest.mark.parametrize(
  'name',
  [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in step_costs.CONFIGS],
)
def test_the_lowered_step(name):
  check(name, 'lowered', step_costs.lowered_cost(name))


@pytest.mark.slow
def test_the_compiled_steps():
  """In a process that optimises as a run does."""
  status, output = runs.run('tests/step_costs.py', *step_costs.CONFIGS, env=runs.optimised())
  assert status == 0, output
  for line in output.splitlines():
    if line.startswith('{'):
      ((name, found),) = json.loads(line).items()
      check(name, 'compiled', found['compiled'])


def test_a_change_is_named(monkeypatch):
  wanted = {'flops': 100, 'bytes accessed': 1000}
  monkeypatch.setitem(GOLDEN['costs'], 'a', {'lowered': wanted})
  check('a', 'lowered', {'flops': 101, 'bytes accessed': 999})
  with pytest.raises(AssertionError, match=r'of a, lowered: flops 100 -> 103. If .*step_costs.py'):
    check('a', 'lowered', {'flops': 103, 'bytes accessed': 1000})
