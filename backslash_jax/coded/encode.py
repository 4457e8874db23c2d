"""Levels of a tensor to entropy-coded leaves, on the host."""

import numpy as np

from backslash_jax.coded import alphabet, classes, divide, layout, plan, streams
from backslash_jax.coded.leaves import Coded

_WIDEST = 2048  # Lanes that are encoded at once.
_TABLE = range(-128, 128)  # Levels that a table of values has.


def encode(x: divide.Tensor, grid: divide.Grid) -> Coded:
  """The coded leaf of a tensor."""
  levels = divide.matrices(x, grid)
  shape, choice = plan.plan(levels, x.dtype.itemsize)
  blocks = divide.blocks(levels, x)
  sides = [
    classes.of_block(block.levels, shape.rows, choice) for block in blocks
  ]
  low, high = classes.tables(sides)
  tables = high - low + 1
  ids, alphabets, places, values = [], [], [], []
  for block, (row, column) in zip(blocks, sides, strict=True):
    table = np.clip(row[:, None] + column - low, 0, tables - 1)
    own, found, escaped = _look_up(block, table, tables, shape.rows)
    alphabets.append(own)
    ids.append(layout.lanes(found, shape))
    levels = block.levels
    rows = np.repeat(escaped, shape.rows, 0)[: len(levels)]
    at, y = block.beside(rows & (levels != 0) | layout.is_beyond(levels))
    places.append(at)
    values.append(y)
  frequency, keys = _tabulated(alphabets)
  states, counts, words = _encode(ids, frequency)
  levels = _levels(keys)
  known = range(int(levels.min()), int(levels.max()) + 1)
  # A row's class is that of its table where the columns have none.
  row_classes = [_extended(row, shape.height) - low for row, _ in sides]
  column_classes = [_extended(own, shape.width) for _, own in sides]
  if not choice.by_row:
    column_classes = [own - low for own in column_classes]
  if not choice.by_row or tables == 1:
    row_classes = [own[:0] for own in row_classes]
  if not choice.by_column or tables == 1:
    column_classes = [own[:0] for own in column_classes]
  all_words, first = divide.in_turn(words, grid, 1)
  all_places, place = divide.in_turn(places, grid)
  numbers = [at.size for at in places]
  fewest = counts.min(1)
  begins = np.stack([first, fewest, place, numbers], 1).astype(np.int32)
  above = counts - fewest[:, None]
  return Coded(
    words=all_words,
    places=all_places,
    values=divide.in_turn(values, grid)[0],
    begins=divide.stacked(begins, grid),
    counts=divide.stacked(above.astype(_width(above)), grid),
    states=divide.stacked(states, grid),
    frequency=divide.stacked(frequency, grid),
    tuples=divide.stacked(levels[..., : shape.rows], grid),
    row_classes=divide.stacked([_narrow(own) for own in row_classes], grid),
    column_classes=divide.stacked(
      [_narrow(own) for own in column_classes], grid
    ),
    scale=divide.stacked(divide.scales(blocks, known, _TABLE), grid),
    block=divide.shape(x, grid),
    divided=len(grid.axes),
    segments=shape.segments,
    longest=max(int(counts.max()), 1),
    most=max(numbers),
    dtype=x.dtype,
  )


def _look_up(block: divide.Block, table: np.ndarray, tables: int, rows: int):
  """The alphabet of each table, the id of each tuple, and which are escapes.

  An id is counted from that of its table, MAX_IDS after the one before.
  """
  keys = layout.keys(block.levels, rows)
  shift = 8 * rows
  if tables > 1:
    wide = np.uint32 if rows <= 2 else np.uint64
    keys = table.astype(wide) << wide(shift) | keys
  known, counts, at = alphabet.counted(keys, rows)
  price = alphabet.price(rows, block.dtype.itemsize)
  ids = np.empty(known.size, np.int16)
  beyond = np.empty(known.size, bool)
  stops = np.searchsorted(
    known.astype(np.uint64) >> shift, np.arange(1, tables)
  )
  alphabets = []
  for i, own in enumerate(np.split(np.arange(known.size), stops)):
    if own.size:
      mine = (known[own] & ((1 << shift) - 1)).astype(np.uint32)
      best = alphabet.best(mine, counts[own], price)
    else:
      mine = np.zeros(0, np.uint32)
      best = alphabet.best(np.zeros(1, np.uint32), np.ones(1), price)
    alphabets.append(best)
    place = np.searchsorted(best.keys, mine)
    beyond[own] = best.keys[np.minimum(place, best.keys.size - 1)] != mine
    place[beyond[own]] = best.keys.size
    ids[own] = place + i * streams.MAX_IDS
  return alphabets, ids[at], beyond[at]


def _tabulated(alphabets) -> tuple[np.ndarray, np.ndarray]:
  """Frequencies uint16 and tuples uint32, [blocks, tables, ids]."""
  width = max(own.frequency.size for block in alphabets for own in block)

  def of(field):
    return np.stack(
      [
        np.stack([np.pad(x, (0, width - x.size)) for x in block])
        for block in [[getattr(own, field) for own in b] for b in alphabets]
      ]
    )

  return of("frequency").astype(np.uint16), of("keys")


def _encode(ids: list[np.ndarray], frequency: np.ndarray):
  """States, counts and words of each block; several blocks at once."""
  blocks, tables, width = frequency.shape
  wide = np.zeros([blocks, tables, streams.MAX_IDS], np.uint32)
  wide[..., :width] = frequency
  start = np.cumsum(wide, -1, dtype=np.uint32) - wide
  states, counts, words = [], [], []
  group = max(_WIDEST // ids[0].shape[1], 1)
  for first in range(0, blocks, group):
    own = slice(first, min(first + group, blocks))
    symbols = np.concatenate(
      [
        part.astype(np.int32) + i * tables * streams.MAX_IDS
        for i, part in enumerate(ids[own])
      ],
      1,
    )
    found = streams.encode(symbols, wide[own].ravel(), start[own].ravel())
    here = found[1].reshape(own.stop - own.start, -1)
    states.append(found[0].reshape(here.shape))
    counts.append(here)
    words += np.split(found[2], np.cumsum(here.sum(1))[:-1])
  return np.concatenate(states), np.concatenate(counts), words


def _levels(keys: np.ndarray) -> np.ndarray:
  """The levels of tuples, int8 [..., MAX_ROWS]."""
  return keys.astype("<u4")[..., None].view(np.int8)


def _extended(x: np.ndarray, size: int) -> np.ndarray:
  """x with its last number repeated."""
  return np.pad(x, (0, size - x.size), "edge")


def _width(counts: np.ndarray):
  """The smallest dtype that holds counts."""
  return next(
    dtype
    for dtype in (np.uint8, np.uint16, np.uint32)
    if counts.max() <= np.iinfo(dtype).max
  )


def _narrow(classes: np.ndarray) -> np.ndarray:
  return classes.astype(np.int8)
