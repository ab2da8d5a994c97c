"""Which process of a run this is: from flags, from a launcher, or from the machine."""

import os
from typing import NamedTuple

from jax._src import clusters  # jax.distributed.initialize asks them too, but joins at once

from mixer.errors import InputError

# Of the launchers that JAX knows and of those that it does not: how many processes there are, which
# one this is, and which one of its machine.
_LAUNCHERS = (
  ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
  ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
  ('PMI_SIZE', 'PMI_RANK', 'MPI_LOCALRANKID'),
)


class Place(NamedTuple):
  """One process among those of a run."""

  coordinator: str  # HOST:PORT of process 0
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None  # None for all that this machine has


def find(
  coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Place | None:
  """This process's place from flags (None where not given) and surroundings; None if alone."""
  size, rank, local_rank = _launched()
  if num_processes == 1 or (num_processes is None and size == 1):
    return None
  given = (coordinator, num_processes, process_id)
  alone_in_a_pod = 'KUBERNETES_SERVICE_HOST' in os.environ and not any(
    name in os.environ
    for name in ('JOB_COMPLETION_INDEX', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES')
  )
  if given == (None, None, None) and size is None and alone_in_a_pod:
    return None
  launched = tuple(a if a is not None else b for a, b in zip(given, (None, size, rank)))
  try:
    if None in launched:
      *found, local = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        *given, None, None, int(timeout)
      )
    else:  # of launchers that it does not know, JAX's detection raises instead of leaving them
      found, local = launched, None
  except Exception as fault:  # each launcher's detection has exceptions of its own
    raise InputError(
      f'this looks like one of several processes, but JAX cannot tell which: {fault} Give '
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
      f'this looks like one of several processes ({known}), and {", ".join(missing)} cannot be '
      'found out: give it, or --num_processes=1 to run alone.'
    )
  coordinator, num_processes, process_id = values
  if not 0 <= process_id < num_processes:
    raise InputError(f'--process_id={process_id} is not in 0 to {num_processes - 1}.')
  if local is None and local_rank is not None:
    local = [local_rank]  # a GPU for each process of a machine, as JAX does where it knows
  if 'JAX_LOCAL_DEVICE_IDS' in os.environ:
    local = None  # JAX reads it
  return Place(coordinator, num_processes, process_id, local) if num_processes > 1 else None


def _launched() -> tuple[int | None, int | None, int | None]:
  """(processes, number of this one, number on its machine); None for what no launcher says."""
  for names in _LAUNCHERS:
    if names[0] in os.environ:
      return tuple(int(os.environ[name]) if name in os.environ else None for name in names)
  return None, None, None
