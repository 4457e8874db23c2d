"""Several processes for one training, as on the hosts of a pod.

All processes run the same program. Process 0 prints and writes, but each
process writes its own shards of a checkpoint, so the workdir must be on a file
system that all of them share.
"""

import contextlib
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from experiments import interrupt, settings, straight, watch

# What the messages of a lost connection have in common.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")

_watch: watch.Watch | None = None


def initialize(config: ml_collections.ConfigDict) -> None:
  """Joins the processes of config.distributed; call it before using JAX.

  Raises:
    UserError: the others cannot be reached, or neither the fields nor a
      cluster tell their addresses.
  """
  global _watch
  fields = config.distributed
  if not fields.enable or jax.distributed.is_initialized():
    return
  found = ", ".join(f"{k}={v!r}" for k, v in fields.items())
  if fields.coordinator:
    _check_address(fields, found)
  try:
    with _in_time(fields, found):
      jax.distributed.initialize(
        coordinator_address=fields.coordinator,
        num_processes=fields.processes,
        process_id=fields.process,
        # Where it expires, JAX aborts the process; `_in_time` has a message.
        initialization_timeout=fields.timeout + 60,
        heartbeat_timeout_seconds=max(10, min(100, fields.timeout)),
        shutdown_timeout_seconds=min(60, fields.timeout),
      )
  except (RuntimeError, ValueError, OSError) as error:
    reason = " ".join(str(error).split())[:300]
    raise settings.UserError(
      f"cannot join the other processes ({found}): {reason}. On a TPU pod and"
      " under SLURM or MPI leave coordinator, processes and process at None;"
      " elsewhere give all three, the same host:port everywhere"
    ) from error
  state = jax_distributed.global_state
  if state.num_processes > 1:
    _watch = watch.Watch(
      state.client,
      state.process_id,
      state.num_processes,
      fields.timeout,
    )
    _watch.start()


def is_main() -> bool:
  """Whether this process prints and writes."""
  return jax.process_index() == 0


@contextlib.contextmanager
def waiting(purpose: str) -> Iterator[None]:
  """Around all that needs the other processes, such as reading a result.

  If that takes longer than config.distributed.timeout, the process ends; see
  `watch.Watch`.

  Args:
    purpose: for the message, such as "finish update 12".
  """
  with contextlib.nullcontext() if _watch is None else _watch.waiting(purpose):
    yield


@contextlib.contextmanager
def membership() -> Iterator[None]:
  """Around the program: ends a process of several at once if it fails.

  Without this it would wait for the others in the end, and they for it.
  """
  try:
    yield
  except interrupt.StoppedError:  # All processes stop together.
    raise
  except Exception as error:
    if _watch is None:
      raise
    message, code = str(error), getattr(error, "exit_code", 1)
    reason = " ".join(message.split())
    if isinstance(error, settings.UserError):
      pass
    elif any(word in reason for word in _LOST):
      message = (
        f"process {jax.process_index()} lost the connection to another process:"
        f" {reason[:200]}. {watch.ADVICE}"
      )
    else:
      traceback.print_exception(error)
      message = repr(error)
    _watch.leave(message, code)


def ordered(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function, to be jitted by several processes.

  On CPUs its collectives must not be in branches and loops, see `straight`.
  """
  if jax.process_count() == 1 or jax.default_backend() != "cpu":
    return function
  return straight.straight(function)


def barrier(name: str) -> None:
  """Waits until every process has called it with this name."""
  if jax.process_count() > 1:
    with waiting(f"pass the barrier {name!r}"):
      multihost_utils.sync_global_devices(name)


def agree(value: int) -> int:
  """The value that process 0 found, on all processes.

  What a process finds on a shared file system may differ for a moment. All have
  to take the same way.
  """
  if jax.process_count() == 1:
    return value
  with waiting("agree with the others"):
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def gather(x: jax.Array, name: str = "") -> np.ndarray | None:
  """The whole array on the host of process 0; None on the others.

  JAX keeps no copy of it, so that an array that is dropped is gone.

  Args:
    x: an array, split over the devices of all processes.
    name: of it, for messages.
  """
  with waiting(f"gather {name}"):
    assert isinstance(x.sharding, NamedSharding)
    everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
    whole = jax.jit(jnp.copy, out_shardings=everywhere)(x)
    return np.asarray(whole.addressable_data(0)) if is_main() else None


def _check_address(fields, found):
  """Raises UserError unless the address of the coordinator can be used."""
  host, _, port = fields.coordinator.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
    raise settings.UserError(
      f"config.distributed.coordinator is {fields.coordinator!r}, wanted"
      " host:port, such as localhost:12345"
    )
  if fields.process != 0:
    return
  # JAX would share the port with a process of an earlier run that hangs.
  with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      s.bind(("", int(port)))
    except OSError as error:
      raise settings.UserError(
        f"cannot listen at the port of config.distributed.coordinator"
        f" ({found}): {error}. A process of an earlier run may still be there:"
        " end it, or take another port"
      ) from error


@contextlib.contextmanager
def _in_time(fields, found):
  """Ends the process unless what is inside ends within fields.timeout."""
  since = watch.now()

  def end():
    missing = "not all of the others have come"
    if fields.process and not _answers(fields.coordinator):
      missing = f"process 0 does not answer at {fields.coordinator}"
    print(
      f"error: waiting since {since}, for {fields.timeout} s, to join the other"
      f" processes ({found}): {missing}. Are all of them running, and is the"
      " port open between the hosts?",
      file=sys.stderr,
    )
    watch.leave(1)

  timer = threading.Timer(fields.timeout, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _answers(address):
  """Whether a process listens at host:port."""
  host, _, port = (address or "").rpartition(":")
  try:
    socket.create_connection((host, int(port)), timeout=5).close()
  except (OSError, ValueError):
    return False
  return True
