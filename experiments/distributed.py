"""Several processes for one training, as on the hosts of a pod.

All processes run the same program. Process 0 prints and writes, but each
process writes its own shards of a checkpoint, so the workdir must be on a file
system that all of them share.
"""

from typing import Any

import jax
import ml_collections
from jax.experimental import multihost_utils

from experiments import settings


def initialize(config: ml_collections.ConfigDict) -> None:
  """Joins the processes of config.distributed; call it before using JAX.

  Raises:
    UserError: the others cannot be reached, or neither the fields nor a
      cluster tell their addresses.
  """
  fields = config.distributed
  if not fields.enable or jax.distributed.is_initialized():
    return
  try:
    jax.distributed.initialize(
      coordinator_address=fields.coordinator,
      num_processes=fields.processes,
      process_id=fields.process,
    )
  except (RuntimeError, ValueError, OSError) as error:
    found = ", ".join(f"{k}={v!r}" for k, v in fields.items())
    raise settings.UserError(
      f"cannot join the other processes ({found}): {error}. On a TPU pod and"
      " under SLURM or MPI leave coordinator, processes and process at None;"
      " elsewhere give all three, the same host:port everywhere"
    ) from error


def is_main() -> bool:
  """Whether this process prints and writes."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process has called it with this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
  """The whole arrays on the host of every process, as NumPy."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
