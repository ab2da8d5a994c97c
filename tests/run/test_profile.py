"""Profiles of some steps, without a run."""

import pathlib

from etils import epath
import jax
import jax.numpy as jnp
import pytest

from mixer.errors import InputError
from mixer.run.profile import Profile


@pytest.mark.parametrize('first', [0, 3])
def test_a_profile_of_the_steps_asked_for(tmp_path, monkeypatch, first):
  calls = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda where: calls.append(('start', where)))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  profile = Profile(epath.Path(tmp_path), '3:4')
  for step in range(first, 8):
    profile.boundary(step)
    calls.append(step)
  profile.close()
  after = [3, 4, 'stop', 5, 6, 7]
  start = ('start', str(tmp_path))
  assert calls == ([0, 1, start, 2, *after] if first == 0 else [start, *after])


def test_a_profile_is_written(tmp_path):
  profile = Profile(epath.Path(tmp_path), '1:1')
  profile.boundary(0)
  jnp.ones(3).block_until_ready()
  profile.close()
  assert list(pathlib.Path(tmp_path).rglob('*.xplane.pb'))


@pytest.mark.parametrize('steps', ['10', '15:10', 'a:b', ':', '-1:4', '0:3', ''])
def test_steps_that_are_none(tmp_path, steps):
  with pytest.raises(InputError, match='--profile_steps=.*: write FIRST:LAST, as in 10:15'):
    Profile(epath.Path(tmp_path), steps)


def test_a_profile_of_steps_that_do_not_come_is_missed(tmp_path, caplog):
  profile = Profile(epath.Path(tmp_path), '500:510')
  profile.boundary(3)
  profile.close()
  assert 'no profile: none of the steps 500 to 510 was run.' in caplog.text
  caplog.clear()
  Profile(epath.Path(tmp_path), None).close()
  assert not caplog.text and not list(tmp_path.iterdir())
