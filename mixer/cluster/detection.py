"""Which process of a run this is: from flags, a launcher, or the environment."""

import os
from typing import NamedTuple

from mixer.cluster import jax_internals
from mixer.errors import InputError

# Variables of launchers, those included that JAX does not detect: the number of processes, the
# number of this one, and its number on its machine.
_LAUNCHERS = (
  ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
  ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
  ('PMI_SIZE', 'PMI_RANK', 'MPI_LOCALRANKID'),
)


class Membership(NamedTuple):
  """One process of a run of several."""

  coordinator: str  # HOST:PORT of process 0
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None  # None for all devices of this machine


def detect(
  coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Membership | None:
  """This process's membership from flags (None where not given) and environment.

  None for a process that runs alone.

  Raises:
    InputError: the process is one of several, but the values are incomplete or inconsistent.
  """
  size, rank, local_rank = _launched()
  if num_processes == 1 or (num_processes is None and size == 1):
    return None
  given = (coordinator, num_processes, process_id)
  if given == (None, None, None) and size is None and _is_single_pod():
    return None
  launched = tuple(a if a is not None else b for a, b in zip(given, (None, size, rank)))
  try:
    if None in launched:
      *found, local = jax_internals.detect(*given, int(timeout))
    else:  # JAX's detection raises for launchers that it does not support
      found, local = launched, None
  except Exception as fault:  # each launcher's detection has its own exceptions
    raise InputError(
      f'this looks like one of several processes, but JAX cannot detect which: {fault} Give '
      '--coordinator, --num_processes and --process_id, or --num_processes=1 to run alone.'
    ) from fault
  names = ('coordinator', 'num_processes', 'process_id')
  values = [a if a is not None else b for a, b in zip(found, launched)]
  missing = [f'--{name}' for name, value in zip(names, values) if value is None]
  if len(missing) == 3:
    return None
  if missing:
    known = ', '.join(f'--{n}={v}' for n, v in zip(names, values) if v is not None)
    raise InputError(
      f'this looks like one of several processes ({known}), but {", ".join(missing)} cannot be '
      'detected: give it, or --num_processes=1 to run alone.'
    )
  coordinator, num_processes, process_id = values
  if not 0 <= process_id < num_processes:
    raise InputError(f'--process_id={process_id} is not in 0 to {num_processes - 1}.')
  if local is None and local_rank is not None:
    local = [local_rank]  # one GPU per process, as JAX does for the launchers it supports
  if 'JAX_LOCAL_DEVICE_IDS' in os.environ:
    local = None  # JAX reads it
  return Membership(coordinator, num_processes, process_id, local) if num_processes > 1 else None


def _launched() -> tuple[int | None, int | None, int | None]:
  """(processes, number of this one, number on its machine); None for what is not set."""
  for names in _LAUNCHERS:
    if names[0] in os.environ:
      return tuple(int(os.environ[name]) if name in os.environ else None for name in names)
  return None, None, None


def _is_single_pod() -> bool:
  """Whether this is a Kubernetes pod without the variables of a job of several pods."""
  of_a_job = ('JOB_COMPLETION_INDEX', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES')
  return 'KUBERNETES_SERVICE_HOST' in os.environ and not any(n in os.environ for n in of_a_job)
