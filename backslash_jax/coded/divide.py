"""A tensor on the host, divided into blocks that are coded on their own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from backslash_jax.coded import exact

Place = Callable[[np.ndarray], Any]  # Puts a child on the device.


class Tensor(NamedTuple):
  """A quantized tensor on the host.

  Attributes:
    levels: integers, of the tensor's shape.
    units: what they are multiples of: one number for all, or one for each index
      of the first axis, float64 [n].
    dtype: of the values.
  """

  levels: np.ndarray
  units: np.ndarray
  dtype: np.dtype


class Grid(NamedTuple):
  """How a tensor is divided, and where its parts lie.

  Attributes:
    axes: into how many blocks each leading axis is divided.
    shards: over how many devices the first axis is split.
    place: from a NumPy array with the grid's axes first to one of JAX.
  """

  axes: tuple[int, ...] = ()
  shards: int = 1
  place: Place = np.asarray


class Block(NamedTuple):
  """A block of a tensor.

  Attributes:
    levels: integers [rows, columns].
    unit: what they are multiples of.
    dtype: of the values.
  """

  levels: np.ndarray
  unit: float
  dtype: np.dtype

  def beside(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places, where `at` is True, and the values there."""
    places = np.flatnonzero(at.reshape(-1))
    levels = self.levels.reshape(-1)[places]
    return places.astype(np.int32), exact.values(levels, self.unit, self.dtype)


def matrices(x: Tensor, grid: Grid) -> np.ndarray:
  """The blocks as matrices [blocks, rows, columns], row-major in the grid."""
  count = len(grid.axes)
  sizes = shape(x, grid)[:count]
  split = [n for pair in zip(grid.axes, sizes, strict=True) for n in pair]
  found = x.levels.reshape((*split, *x.levels.shape[count:]))
  order = [*range(0, 2 * count, 2), *range(1, 2 * count, 2)]
  found = found.transpose((*order, *range(2 * count, found.ndim)))
  rest = found.shape[count:]
  columns = rest[-1] if len(rest) > 1 and x.levels.size else 1
  total = int(np.prod(grid.axes, dtype=np.int64))
  return np.ascontiguousarray(found).reshape(total, -1, columns)


def blocks(levels: np.ndarray, x: Tensor) -> list[Block]:
  """The blocks of a tensor, given their matrices."""
  units = np.repeat(x.units, len(levels) // len(x.units))
  return [
    Block(own, float(unit), x.dtype)
    for own, unit in zip(levels, units, strict=True)
  ]


def shape(x: Tensor, grid: Grid) -> tuple[int, ...]:
  """That of a block."""
  count = len(grid.axes)
  whole = x.levels.shape
  divided = (n // g for n, g in zip(whole, grid.axes, strict=False))
  return (*divided, *whole[count:])


def stacked(parts: Sequence[Any] | np.ndarray, grid: Grid) -> Any:
  """A child with an axis for each of the grid, from that of each block."""
  found = np.stack(list(parts))
  return grid.place(found.reshape(grid.axes + found.shape[1:]))


def in_turn(
  parts: Sequence[np.ndarray], grid: Grid, least: int = 0
) -> tuple[Any, np.ndarray]:
  """A child that has those of the blocks one after the other.

  Args:
    parts: of each block, of any length.
    grid: the blocks along its first axis share a row of each shard.
    least: its least length.

  Returns:
    The child, [shards, *grid.axes[1:], n], and where each block begins, int64.
  """
  if not grid.axes:
    (part,) = parts
    return grid.place(_padded(part, max(least, part.size))), np.zeros(1, int)
  rest = int(np.prod(grid.axes[1:], dtype=np.int64))
  numbers = np.arange(len(parts)).reshape(grid.shards, -1, rest)
  begins = np.zeros(len(parts), int)
  rows = []
  for own in numbers.transpose(0, 2, 1).reshape(-1, numbers.shape[1]):
    sizes = [parts[i].size for i in own]
    begins[own] = np.cumsum(sizes) - sizes
    rows.append(np.concatenate([parts[i] for i in own]))
  size = max(least, *(row.size for row in rows))
  found = np.stack([_padded(row, size) for row in rows])
  return grid.place(found.reshape(grid.shards, *grid.axes[1:], size)), begins


def scales(
  parts: Sequence[Block], levels: range, table: range
) -> list[np.ndarray]:
  """What each block multiplies its levels by, or a table of their values.

  Args:
    parts: the blocks.
    levels: that a block may have.
    table: those that a table has, where one block needs it.
  """
  found = [exact.scales(x.unit, levels[0], levels[-1]) for x in parts]
  if any(own is None for own in found):
    known = np.asarray(table)
    return [exact.values(known, x.unit, x.dtype) for x in parts]
  return [own for own in found if own is not None]


def _padded(x: np.ndarray, size: int) -> np.ndarray:
  return np.pad(x, (0, size - x.size))
