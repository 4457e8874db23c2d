"""How the levels of a tensor become tuples, tables and lanes.

A block is a matrix of levels. A tuple is `rows` consecutive levels of a column,
so there is a matrix of tuples, `height` x `width`. It goes to the lanes in
row-major order, one tuple to each in turn. So that rows and columns may have
scales of their own, each row and each column of tuples has a class, and a tuple
is coded under table number row class + column class, clipped.
"""

from typing import NamedTuple

import numpy as np

MAX_ROWS = 4
MAX_TABLES = 12
LIMIT = 127  # Levels beyond are stored as values.
_EDGE = 0.02  # Of the tuples, that share the lowest and the highest table.


class Shape(NamedTuple):
  """Where the tuples of a block of R rows and C columns are.

  Attributes:
    rows: levels of a tuple.
    lanes: streams that decode side by side.
    segments: steps of all lanes for a row of tuples. With one segment, the
      lanes are a whole number of rows of tuples.
    height: rows of tuples, those that only fill up the last step included.
    width: columns of tuples, likewise.
  """

  rows: int
  lanes: int
  segments: int
  height: int
  width: int

  @property
  def steps(self) -> int:
    return self.height * self.width // self.lanes


class Classes(NamedTuple):
  """What decides the table of a tuple.

  Attributes:
    unit: octaves of the mean magnitude from class to class.
    by_row: whether the rows have classes.
    by_column: likewise.
  """

  unit: float = 1.0
  by_row: bool = False
  by_column: bool = False


def blocks(levels: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
  """[blocks, rows, columns]: the blocks that a grid divides a tensor into."""
  count = len(grid)
  block = tuple(n // g for n, g in zip(levels.shape, grid, strict=False))
  split = [n for pair in zip(grid, block, strict=True) for n in pair]
  found = levels.reshape(*split, *levels.shape[count:])
  order = [*range(0, 2 * count, 2), *range(1, 2 * count, 2)]
  found = found.transpose(*order, *range(2 * count, found.ndim))
  total = int(np.prod(grid, dtype=np.int64))
  rest = found.shape[count:]
  columns = rest[-1] if len(rest) > 1 and levels.size else 1
  return np.ascontiguousarray(found).reshape(total, -1, columns)


def shape(size: tuple[int, int], rows: int, lanes: int, segments: int) -> Shape:
  """The shape of a block of `size` with so many lanes and segments."""
  height, width = -(-size[0] // rows), size[1]
  if segments > 1:
    width = lanes * segments
  else:
    each = lanes // width
    height = -(-height // each) * each
  return Shape(rows, lanes, segments, height, width)


def keys(block: np.ndarray, rows: int) -> np.ndarray:
  """The tuples of a matrix as uint32 [height, columns], a byte per level.

  Levels beyond LIMIT count as 0, and so do rows beyond the last.
  """
  size, columns = block.shape
  found = np.where(is_beyond(block), 0, block).astype(np.int8)
  if size % rows:
    padding = np.zeros([-size % rows, columns], np.int8)
    found = np.concatenate([found, padding])
  found = found.view(np.uint8).reshape(-1, rows, columns).astype(np.uint32)
  out = found[:, 0]
  for i in range(1, rows):
    out = out | (found[:, i] << np.uint32(8 * i))
  return out


def is_beyond(levels: np.ndarray) -> np.ndarray:
  """Whether levels have no tuple."""
  return (levels > LIMIT) | (levels < -LIMIT)


def classes_of(
  block: np.ndarray, rows: int, classes: Classes
) -> tuple[np.ndarray, np.ndarray]:
  """Classes of the rows and columns of tuples of a matrix, int64.

  Those of a side that has none are 0. A row of tuples has one for its `rows`
  rows together.
  """
  sizes = np.minimum(np.abs(block.astype(np.float32)), LIMIT)
  height, width = -(-block.shape[0] // rows), block.shape[1]
  row, column = np.zeros(height, np.int64), np.zeros(width, np.int64)
  mean = float(sizes.mean()) or 1.0
  if classes.by_row:
    starts = np.arange(0, block.shape[0], rows)
    counts = np.diff(np.append(starts, block.shape[0]))
    own = np.add.reduceat(sizes.mean(1, dtype=np.float64), starts) / counts
    row = _class(own / mean, classes.unit)
  if classes.by_column:
    own = sizes.mean(0, dtype=np.float64)
    column = _class(own / mean, classes.unit)
  return row, column


def _class(ratio: np.ndarray, unit: float) -> np.ndarray:
  steps = np.log2(np.maximum(ratio, 1 / 64)) / unit
  return np.rint(steps).astype(np.int64)


def tables_of(
  sides: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[int, int]:
  """The lowest and the highest sum of classes that have a table of their own.

  Args:
    sides: classes of the rows and of the columns of each block.
  """
  counts = np.zeros(0)
  reach = max(int(abs(a).max() + abs(b).max()) for a, b in sides)
  for row, column in sides:
    a = np.bincount(row + reach, minlength=2 * reach + 1)
    b = np.bincount(column + reach, minlength=2 * reach + 1)
    own = np.convolve(a, b)
    counts = own if not counts.size else counts + own
  share = np.cumsum(counts) / counts.sum()
  low = int(np.searchsorted(share, _EDGE))
  high = max(int(np.searchsorted(share, 1 - _EDGE)), low)
  high = min(high, low + MAX_TABLES - 1)
  return low - 2 * reach, high - 2 * reach
