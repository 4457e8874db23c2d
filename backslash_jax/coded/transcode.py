"""From the tensors of a file to leaves that stay coded, one after another."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from backslash_jax import tree
from backslash_jax.archive.index import Entry
from backslash_jax.coded import pack

KINDS = (True, "packed")


class Transcoder:
  """Makes the leaves of a file; a tensor that the file stores once, once.

  Args:
    entries: of the file.
    kind: True for coded leaves, "packed" for packed ones.
    stacked: selects the tensors whose first axis is that of layers.
    sharding: from a tensor's name and shape to its sharding, or to None.
    blocks: into how many blocks of rows a tensor is divided, by name.

  Raises:
    ValueError: if `kind` is not one of KINDS, `stacked` selects nothing, or a
      tensor has no such blocks.
  """

  def __init__(
    self,
    entries: list[Entry],
    kind: Any,
    stacked: tree.Mask,
    sharding: Callable[[str, tuple[int, ...]], Any],
    blocks: Mapping[str, int],
  ):
    if not any(kind is known or kind == known for known in KINDS):
      raise ValueError(f"coded is {kind!r}: it must be False, True or 'packed'")
    self._kind, self._sharding, self._blocks = kind, sharding, blocks
    known = {entry.name: entry.shape for entry in entries}
    for name, count in blocks.items():
      if not (shape := known.get(name)) or count < 1 or shape[0] % count:
        raise ValueError(
          f"tensor {name!r} of shape {shape} has no {count} blocks of rows"
        )
    self._stored = {
      e.name: e.name if e.same is None else entries[e.same].name
      for e in entries
    }
    self._shared = {self._stored[e.name] for e in entries if e.same is not None}
    self._made: dict[tuple, Any] = {}
    self._stacked = _selected([e for e in entries if self.takes(e)], stacked)

  def takes(self, entry: Entry) -> bool:
    """Whether the levels of a tensor are wanted, and not its values."""
    return bool(
      entry.step is not None
      and entry.base is None
      and entry.size
      and entry.dtype.itemsize <= 4
      and tree.is_float(entry.dtype)
    )

  def leaf(self, entry: Entry, levels: np.ndarray) -> Any:
    """The leaf of a tensor: coded, packed or an array, the smallest."""
    sharding = self._sharding(entry.name, entry.shape)
    name = entry.name
    key = (self._stored[name], sharding, name in self._stacked)
    key += (self._blocks.get(name),)
    if key not in self._made:
      made = self._make(entry, levels, sharding)
      if key[0] not in self._shared:
        return made
      self._made[key] = made
    return self._made[key]

  def _make(self, entry: Entry, levels: np.ndarray, sharding) -> Any:
    assert entry.unit is not None
    own = pack.Tensor(levels, entry.unit, entry.dtype)
    grid = _grid(entry, sharding)
    if entry.name in self._stacked:
      grid = (entry.shape[0], *grid[1:])
    if entry.name in self._blocks:
      grid = (self._blocks[entry.name], *grid[1:])
    place = _placing(sharding, len(grid))
    makers = [pack.packed] if self._kind == "packed" else [pack.coded]
    made = makers[0](own, grid, place)
    if self._kind is True and made.nbytes > levels.size:
      other = pack.packed(own, grid, place)
      made = min(made, other, key=lambda x: x.nbytes)
    if made.nbytes < entry.nbytes:
      return made
    values = pack.dense(own)
    return values if sharding is None else jax.device_put(values, sharding)


def _selected(entries: list[Entry], mask: tree.Mask) -> set[str]:
  if mask == () or mask is False:
    return set()
  known = {e.name: jax.ShapeDtypeStruct(e.shape, e.dtype) for e in entries}
  flags = tree.select(known, mask)
  return {name for name, flag in flags.items() if flag and known[name].ndim}


def _grid(entry: Entry, sharding) -> tuple[int, ...]:
  """How many shards there are along each leading axis."""
  if sharding is None or not entry.shape:
    return ()
  shard = sharding.shard_shape(entry.shape)
  grid = [n // own for n, own in zip(entry.shape, shard, strict=True)]
  while grid and grid[-1] == 1:
    grid.pop()
  if grid and not isinstance(sharding, NamedSharding):
    raise ValueError(
      f"tensor {entry.name!r}: coded weights are divided by a NamedSharding"
      f" only, found {sharding}"
    )
  return tuple(grid)


def _placing(sharding, axes: int) -> pack.Place:
  if sharding is None:
    return jax.numpy.asarray
  if isinstance(sharding, NamedSharding):
    spec = PartitionSpec(*sharding.spec[:axes])
    sharding = NamedSharding(sharding.mesh, spec)
  return lambda x: jax.make_array_from_callback(
    x.shape, sharding, x.__getitem__
  )
