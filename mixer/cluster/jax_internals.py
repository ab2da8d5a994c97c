"""The parts of JAX without a public name that this program needs, in this one place.

- The client of the coordination service. `jax.distributed.initialize` makes it, and no public
  function returns it (`jax.experimental.multihost_utils` communicates through the devices).
- The detection of SLURM, Open MPI, Kubernetes and TPU pods. `jax.distributed.initialize` has it
  too, but connects at once, without saying which process is missing.
"""

from jax._src import clusters, distributed


def coordination_client():
  """The key-value store and barriers that all processes share; None before initialisation."""
  return distributed.global_state.client


def detect(
  coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> tuple[str | None, int | None, int | None, list[int] | None]:
  """The same values with None replaced by what the environment says, and local device ids."""
  return clusters.ClusterEnv.auto_detect_unset_distributed_params(
    coordinator, num_processes, process_id, None, None, timeout
  )
