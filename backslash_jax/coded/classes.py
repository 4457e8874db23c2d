"""Classes of rows and columns, which decide the tables of the tuples.

So that rows and columns may have scales of their own, each row and each column
of tuples has a class, and a tuple is coded under table number row class +
column class, clipped.
"""

from typing import NamedTuple

import numpy as np

from backslash_jax.coded import layout

MAX_TABLES = 12
_EDGE = 0.02  # Of the tuples, that share the lowest and the highest table.


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


def of_block(
  block: np.ndarray, rows: int, classes: Classes
) -> tuple[np.ndarray, np.ndarray]:
  """Classes of the rows and columns of tuples of a matrix, int64.

  Those of a side that has none are 0. A row of tuples has one for its `rows`
  rows together.
  """
  sizes = np.minimum(np.abs(block.astype(np.float32)), layout.LIMIT)
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


def tables(
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
