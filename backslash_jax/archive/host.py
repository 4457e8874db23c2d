"""Tensors from devices to the host, a few at a time."""

import collections
import sys
import threading
from typing import Any

import numpy as np

_KEPT = 2  # Tensors: the one that is encoded and the next.


class Pool:
  """Copies on the host of the tensors that were read last.

  Everything else that holds a copy lets it go after use, so the host holds a
  few tensors of a model that is on devices.
  """

  def __init__(self):
    self._copies: collections.OrderedDict[str, np.ndarray] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def hosted(self, name: str, leaf: Any) -> Any:
    """The leaf itself if it is on the host, else a `Hosted`."""
    is_here = isinstance(leaf, (np.ndarray, np.generic))
    return leaf if is_here else Hosted(self, name, leaf)

  def read(self, name: str, leaf: Any) -> np.ndarray:
    """The copy of a leaf, made if it is not there."""
    with self._lock:
      if name not in self._copies:
        while len(self._copies) >= _KEPT:
          self._copies.popitem(last=False)
        self._copies[name] = copied(name, leaf)
      self._copies.move_to_end(name)
      return self._copies[name]


class Hosted:
  """A tensor that is copied to the host when it is read."""

  def __init__(self, pool: Pool, name: str, leaf: Any):
    self._pool, self._name, self._leaf = pool, name, leaf
    self.shape, self.dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
    self.ndim, self.size = len(self.shape), int(leaf.size)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    x = self._pool.read(self._name, self._leaf)
    return x if dtype is None else x.astype(dtype, copy=False)


def copied(name: str, leaf: Any) -> np.ndarray:
  """The tensor as a NumPy array that nothing else refers to.

  `np.asarray` of a JAX array keeps the copy for as long as the array lives:
  after all tensors have been read, the host would hold the model.

  Args:
    name: of the tensor, for errors.
    leaf: an array of JAX, or what has `__array__`.

  Raises:
    ValueError: if parts of it are on devices of other processes.
  """
  jax = sys.modules.get("jax")
  if not (jax and isinstance(leaf, jax.Array)):
    return np.asarray(leaf)
  if leaf.is_fully_replicated:
    return _own(jax, leaf.addressable_data(0))
  if not leaf.is_fully_addressable:
    raise ValueError(
      f"tensor {name!r} is split over the devices of several processes: gather"
      " it, jax.experimental.multihost_utils.process_allgather(x, tiled=True)"
    )
  found = np.empty(leaf.shape, leaf.dtype)
  for shard in leaf.addressable_shards:
    if shard.replica_id == 0:
      found[shard.index] = _own(jax, shard.data)
  return found


def _own(jax, x) -> np.ndarray:
  """A copy of an array of one device. No computation: a mesh may be in use."""
  return np.asarray(jax.device_put(x, x.sharding, may_alias=False))
