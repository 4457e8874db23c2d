"""From the tensors of a file to leaves that stay coded, one after another."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from backslash_jax import tree
from backslash_jax.archive import file
from backslash_jax.archive.index import Entry
from backslash_jax.coded import divide, encode, exact, pack

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
    kind: bool | str,
    stacked: tree.Mask,
    sharding: Callable[[str, tuple[int, ...]], Any],
    blocks: Mapping[str, int],
  ):
    check(kind)
    self._kind, self._sharding, self._blocks = kind, sharding, blocks
    _check_blocks({entry.name: entry.shape for entry in entries}, blocks)
    self._stored = {
      e.name: e.name if e.same is None else entries[e.same].name
      for e in entries
    }
    self._shared = {self._stored[e.name] for e in entries if e.same is not None}
    self._made: dict[tuple, Any] = {}
    self._stacked = _selected(entries, stacked)

  def takes(self, entry: Entry) -> bool:
    """Whether the levels of a tensor are wanted, and not its values."""
    return has_levels(entry)

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
    own = divide.Tensor(levels, np.array([entry.unit]), entry.dtype)
    axes = _grid(entry, sharding)
    shards = axes[0] if axes else 1
    count = None
    if entry.name in self._stacked:
      count = entry.shape[0]
    if entry.name in self._blocks:
      count = self._blocks[entry.name]
    if count is not None:
      if count % shards:
        raise ValueError(
          f"tensor {entry.name!r}: {shards} devices cannot share its {count}"
          " blocks"
        )
      axes = (count, *axes[1:])
    place = _placing(sharding, len(axes))
    made = leaf(own, self._kind, divide.Grid(axes, shards, place))
    if made is not None:
      return made
    values = exact.values(levels, own.units[0], entry.dtype)
    return values if sharding is None else jax.device_put(values, sharding)


def check(kind: Any) -> None:
  """Raises ValueError if it is not one of KINDS."""
  if kind is not True and not (isinstance(kind, str) and kind in KINDS):
    raise ValueError(f"coded is {kind!r}: it must be False, True or 'packed'")


def has_levels(entry: Entry) -> bool:
  """Whether a tensor of a file can stay coded."""
  return bool(
    entry.step is not None
    and entry.base is None
    and entry.size
    and entry.dtype.itemsize <= 4
    and tree.is_float(entry.dtype)
  )


def leaf(x: divide.Tensor, kind: bool | str, grid: divide.Grid) -> Any:
  """The smallest leaf of a kind; None if the array is not larger."""
  found = [encode.encode(x, grid) if kind is True else pack.pack(x, grid)]
  if kind is True and found[0].nbytes > x.levels.size:
    found.append(pack.pack(x, grid))
  made = min(found, key=lambda own: own.nbytes)
  return made if made.nbytes < x.levels.size * x.dtype.itemsize else None


def _check_blocks(shapes: Mapping[str, tuple[int, ...]], blocks: Any) -> None:
  if not isinstance(blocks, Mapping):
    raise TypeError(
      f"blocks is {blocks!r}: it must map names of tensors to numbers of blocks"
    )
  for name, count in blocks.items():
    if name not in shapes:
      raise ValueError(f"blocks: the file has no tensor {name!r}")
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
      raise TypeError(
        f"blocks: {name!r} has {count!r}, it must be a number of blocks"
      )
    if not (shape := shapes[name]) or count < 1 or shape[0] % count:
      raise ValueError(
        f"tensor {name!r} of shape {shape} has no {count} blocks of rows"
      )


def _selected(entries: list[Entry], mask: tree.Mask) -> set[str]:
  """The names of the tensors with layers, also of those that stay arrays."""
  known = {e.name: jax.ShapeDtypeStruct(e.shape, e.dtype) for e in entries}
  try:
    flags = tree.select(known, mask)
  except ValueError as error:
    raise ValueError(
      f"stacked, as a mask of the file's tensors: {error}"
    ) from (error)
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


def _placing(sharding, axes: int) -> divide.Place:
  if sharding is None:
    return jnp.asarray
  if isinstance(sharding, NamedSharding):
    spec = PartitionSpec(*sharding.spec[:axes])
    sharding = NamedSharding(sharding.mesh, spec)
  return lambda x: jax.make_array_from_callback(
    x.shape, sharding, x.__getitem__
  )


class _Levels(NamedTuple):
  """The levels of a tensor, in the smallest dtype that holds them."""

  levels: np.ndarray
  unit: float
  dtype: np.dtype

  def values(self) -> np.ndarray:
    return exact.values(self.levels, self.unit, self.dtype)


class _Kept:
  """Keeps the levels of tensors."""

  def takes(self, entry: Entry) -> bool:
    return has_levels(entry)

  def leaf(self, entry: Entry, levels: np.ndarray) -> _Levels:
    assert entry.unit is not None
    ends = int(levels.min()), int(levels.max())
    narrow = next(
      kind
      for kind in (np.int8, np.int16, np.int32)
      if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max
    )
    return _Levels(levels.astype(narrow), entry.unit, entry.dtype)


def stack(
  sources: Sequence[tuple[str | os.PathLike, str]], kind: bool | str
) -> Any:
  """Tensors of files as one leaf, with an axis that counts them first.

  Each keeps its own step. They are read into memory as integers of 8 to 32 bits
  before they are coded.

  Args:
    sources: (file, name) of each tensor. All have one shape and dtype.
    kind: as `coded` of `bs.load`.

  Returns:
    A `bs.Coded` or `bs.Packed` leaf that is divided along its first axis, or an
    array, where a tensor has no levels or the leaf would not be smaller.

  Raises:
    ArchiveError: if a file is damaged.
    KeyError: if it has no such tensor.
    ValueError: if `kind` is something else, there are no sources, or the shapes
      or dtypes differ.
  """
  if kind is not False:
    check(kind)
  if not sources:
    raise ValueError("a stack needs a tensor, but there are no sources")
  parts: list[Any] = [None] * len(sources)
  for path in dict.fromkeys(path for path, _ in sources):
    own = [(i, name) for i, (p, name) in enumerate(sources) if p == path]
    keep = (lambda _: _Kept()) if kind is not False else None
    found = file.load(path, names=[name for _, name in own], leaves=keep)
    for i, name in own:
      if name not in found:  # It is a pattern.
        raise KeyError(f"{path} has no tensor named {name!r}")
      parts[i] = found[name]

  def form(part):
    x = part.levels if isinstance(part, _Levels) else part
    return x.shape, part.dtype

  if len({form(part) for part in parts}) > 1:
    listed = ", ".join(
      f"{name!r} {form(part)[1]}{list(form(part)[0])}"
      for (_, name), part in zip(sources, parts, strict=True)
    )
    raise ValueError(f"tensors of different kinds make no stack: {listed}")
  if all(isinstance(part, _Levels) for part in parts):
    units = np.array([part.unit for part in parts])
    levels = np.stack([part.levels for part in parts])
    x = divide.Tensor(levels, units, parts[0].dtype)
    made = leaf(x, kind, divide.Grid((len(parts),), 1, jnp.asarray))
    if made is not None:
      return made
  arrays = [p.values() if isinstance(p, _Levels) else p for p in parts]
  return np.stack(arrays)
