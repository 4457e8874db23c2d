"""How the levels of a tensor become tuples, tables and lanes.

A block is a matrix of levels. A tuple is `rows` consecutive levels of a column,
so there is a matrix of tuples, `height` x `width`. It goes to the lanes in
row-major order, one tuple to each in turn. So that rows and columns may have
scales of their own, each row and each column of tuples has a class, and a tuple
is coded under table number row class + column class, clipped.
"""

from typing import NamedTuple

import numpy as np

from backslash_jax import sampling
from backslash_jax.coded import streams

MAX_ROWS = 4
MAX_TABLES = 12
LIMIT = 127  # Levels beyond are stored as values.
# Bits of a lane beside its words: a state, of which about 8 come back, and a
# number of words.
_LANE_BITS = 40
_LANE_SHARE = 0.006  # Of the code, that the lanes may add.
_MIN_LANES, _MAX_LANES = 8, 2048
_ROWS_SHARE = 0.005  # Of the code, that longer tuples may add: they are faster.
_CLASSES_SHARE = 0.003  # Of the code, that classes must save.
_EDGE = 0.02  # Of the tuples, that share the lowest and the highest table.
_SAMPLE = 1 << 18  # Levels of a tensor that decide about classes,
_FEWER = 1 << 18  # and about rows.
_CLASS_BITS = 8  # Of a row or column.
_ID_BITS = 40  # Of an id: its frequency and its levels.
_FRACTIONS = (1, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0)


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


_CHOICES = [
  Classes(),
  *(
    Classes(unit, by_row, by_column)
    for unit in (0.5, 1.0)
    for by_row, by_column in ((True, False), (False, True), (True, True))
  ),
]


class Alphabet(NamedTuple):
  """The tuples that have an id of their own.

  Attributes:
    keys: uint32, ascending; see `keys`.
    frequency: of each, and last that of all others, the escape.
    bits: code length of the counted tuples, with the escapes' values and the
      alphabet itself.
  """

  keys: np.ndarray
  frequency: np.ndarray
  bits: float


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


def plan(blocks: np.ndarray, itemsize: int) -> tuple[Shape, Classes]:
  """The shape and the classes for blocks of one tensor."""
  size = blocks.shape[1:]
  classes = _classes(blocks)
  rows, bits = _rows(blocks, classes, itemsize)
  wanted = bits * blocks[0].size * _LANE_SHARE / _LANE_BITS
  tuples = -(-size[0] // rows) * size[1]
  wanted = int(min(np.clip(wanted, _MIN_LANES, _MAX_LANES), tuples))
  segments = -(-size[1] // wanted)
  if segments > 1:
    return shape(size, rows, -(-size[1] // segments), segments), classes
  return shape(size, rows, wanted // size[1] * size[1], 1), classes


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


def counted(keys: np.ndarray, rows: int):
  """The different tuples, how many there are, and the number of each tuple."""
  if rows > 2:
    known, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return known, counts, at.reshape(keys.shape)
  counts = np.bincount(keys.ravel(), minlength=1)
  known = np.flatnonzero(counts)
  number = np.zeros(counts.size, np.int32)
  number[known] = np.arange(known.size)
  return known.astype(np.uint32), counts[known], number[keys]


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


def alphabet(keys: np.ndarray, counts: np.ndarray, price: float) -> Alphabet:
  """The best alphabet for tuples that occur `counts` times.

  Args:
    keys: the tuples, uint32.
    counts: of each.
    price: bits of an escaped tuple beside its id.
  """
  order = np.argsort(-counts, kind="stable")
  keys, counts = keys[order], counts[order]
  most = min(keys.size, streams.MAX_IDS - 1)
  sums = np.cumsum(counts)
  best = None
  for size in sorted({max(int(most * f), 1) for f in _FRACTIONS}):
    rest = int(sums[-1] - sums[size - 1])
    frequency = streams.frequencies(np.append(counts[:size], max(rest, 1e-3)))
    own = streams.bits(np.append(counts[:size], rest), frequency)
    own += price * rest + _ID_BITS * size
    if best is None or own < best[0]:
      best = own, size, frequency
  assert best is not None
  bits, size, frequency = best
  order = np.argsort(keys[:size])
  frequency = np.append(frequency[:-1][order], frequency[-1])
  return Alphabet(keys[:size][order], frequency, bits)


def price(rows: int, itemsize: int) -> int:
  """About the bits of an escaped tuple beside its id."""
  return 8 * rows * (4 + itemsize)


def _sample(blocks: np.ndarray, size: int) -> np.ndarray:
  """Some rows of some blocks, in runs that hold whole tuples."""
  count, height, width = blocks.shape
  run = 12  # A multiple of any number of rows.
  if blocks.size <= size or height < 2 * run:
    return blocks[: max(size // blocks[0].size, 1)]
  taken = sampling.strata(count, 4)
  runs = max(size // (taken.size * run * width), 1)
  starts = run * sampling.strata(height // run, runs)
  at = (starts[:, None] + np.arange(run)).ravel()
  return blocks[taken][:, at]


def _classes(blocks: np.ndarray) -> Classes:
  """The choice of classes with the fewest bits."""
  sample = _sample(blocks, _SAMPLE)
  clipped = np.clip(sample, -LIMIT, LIMIT) + LIMIT
  best = None
  for choice in _CHOICES:
    sides = [classes_of(block, 1, choice) for block in sample]
    low, high = tables_of(sides)
    bits = 0.0
    for block, (row, column) in zip(clipped, sides, strict=True):
      table = np.clip(row[:, None] + column - low, 0, high - low)
      counts = np.bincount((table * 256 + block).ravel())
      counts = np.pad(counts, (0, -counts.size % 256)).reshape(-1, 256)
      bits += _entropy(counts) + _ID_BITS * np.count_nonzero(counts)
    bits *= blocks.size / sample.size
    for used, side in (
      (choice.by_row, blocks.shape[1]),
      (choice.by_column, blocks.shape[2]),
    ):
      bits += _CLASS_BITS * used * side * len(blocks)
    # Looking up a table takes time: it must pay.
    if choice != _CHOICES[0]:
      bits *= 1 + _CLASSES_SHARE
    if best is None or bits < best[0]:
      best = bits, choice
  assert best is not None
  return best[1]


def _entropy(counts: np.ndarray) -> float:
  """Bits of symbols that occur `counts` times, [tables, symbols]."""
  totals = counts.sum(1, keepdims=True)
  logs = np.log2(np.maximum(totals, 1)) - np.log2(np.maximum(counts, 1))
  return float((counts * logs).sum())


def _rows(
  blocks: np.ndarray, classes: Classes, itemsize: int
) -> tuple[int, float]:
  """How many rows a tuple had better have, and bits per level then."""
  sample = _sample(blocks, _FEWER)
  best, found = np.inf, (1, np.inf)
  for rows in range(1, min(MAX_ROWS, blocks.shape[1]) + 1):
    bits, count = 0.0, 0
    for block in sample:
      for _, own in divided(block, rows, classes):
        values, counts, _ = counted(own, rows)
        scale = blocks[0].size / block.size
        bits += alphabet(values, counts * scale, price(rows, itemsize)).bits
        count += own.size * rows * scale
    bits /= count
    best = min(best, bits)
    if bits <= best * (1 + _ROWS_SHARE):
      found = rows, bits
  return found


def divided(block: np.ndarray, rows: int, classes: Classes):
  """(table, its tuples) of the tables of a matrix."""
  own = keys(block, rows)
  sides = classes_of(block, rows, classes)
  low, high = tables_of([sides])
  if low == high:
    return [(0, own)]
  table = np.clip(sides[0][:, None] + sides[1] - low, 0, high - low)
  return [(i, own[table == i]) for i in np.unique(table)]
