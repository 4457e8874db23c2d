"""How many lanes, rows and classes a tensor had better have."""

import numpy as np

from backslash_jax import sampling
from backslash_jax.coded import alphabet, classes, layout

# Bits of a lane beside its words: a state, of which about 8 come back, and a
# number of words.
_LANE_BITS = 32
_LANE_SHARE = 0.006  # Of the code, that the lanes may add,
_FEW_SHARE = 0.02  # or as long as there are few: a step of few lanes takes as
_FEW = 384  # long as one of this many.
_MIN_LANES, _MAX_LANES = 8, 2048
_ROWS_SHARE = 0.005  # Of the code, that longer tuples may add: they are faster.
_CLASSES_SHARE = 0.003  # Of the code, that classes must save.
_SAMPLE = 1 << 18  # Levels of a tensor that decide about classes,
_FEWER = 1 << 18  # and about rows.
_CLASS_BITS = 8  # Of a row or column.
_CHOICES = [
  classes.Classes(),
  *(
    classes.Classes(unit, by_row, by_column)
    for unit in (0.5, 1.0)
    for by_row, by_column in ((True, False), (False, True), (True, True))
  ),
]


def plan(
  blocks: np.ndarray, itemsize: int
) -> tuple[layout.Shape, classes.Classes]:
  """The shape and the classes for blocks of one tensor."""
  size = blocks.shape[1:]
  choice = _choice(blocks)
  rows, bits = _rows(blocks, choice, itemsize)
  lanes = bits * blocks[0].size / _LANE_BITS
  wanted = max(lanes * _LANE_SHARE, min(lanes * _FEW_SHARE, _FEW))
  tuples = -(-size[0] // rows) * size[1]
  wanted = int(min(np.clip(wanted, _MIN_LANES, _MAX_LANES), tuples))
  segments = -(-size[1] // wanted)
  if segments > 1:
    return layout.shape(size, rows, -(-size[1] // segments), segments), choice
  return layout.shape(size, rows, wanted // size[1] * size[1], 1), choice


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


def _choice(blocks: np.ndarray) -> classes.Classes:
  """The choice of classes with the fewest bits."""
  sample = _sample(blocks, _SAMPLE)
  clipped = np.clip(sample, -layout.LIMIT, layout.LIMIT).astype(np.int32)
  clipped += layout.LIMIT
  best = None
  for choice in _CHOICES:
    sides = [classes.of_block(block, 1, choice) for block in sample]
    low, high = classes.tables(sides)
    bits = 0.0
    for block, (row, column) in zip(clipped, sides, strict=True):
      table = np.clip(row[:, None] + column - low, 0, high - low)
      counts = np.bincount((table * 256 + block).ravel())
      counts = np.pad(counts, (0, -counts.size % 256)).reshape(-1, 256)
      bits += _entropy(counts) + alphabet.ID_BITS * np.count_nonzero(counts)
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
  blocks: np.ndarray, choice: classes.Classes, itemsize: int
) -> tuple[int, float]:
  """How many rows a tuple had better have, and bits per level then."""
  sample = _sample(blocks, _FEWER)
  best, found = np.inf, (1, np.inf)
  for rows in range(1, min(layout.MAX_ROWS, blocks.shape[1]) + 1):
    bits, count = 0.0, 0
    for block in sample:
      for _, own in _divided(block, rows, choice):
        values, counts, _ = alphabet.counted(own, rows)
        scale = blocks[0].size / block.size
        bits += alphabet.best(
          values, counts * scale, alphabet.price(rows, itemsize)
        ).bits
        count += own.size * rows * scale
    bits /= count
    best = min(best, bits)
    if bits <= best * (1 + _ROWS_SHARE):
      found = rows, bits
  return found


def _divided(block: np.ndarray, rows: int, choice: classes.Classes):
  """(table, its tuples) of the tables of a matrix."""
  own = layout.keys(block, rows)
  sides = classes.of_block(block, rows, choice)
  low, high = classes.tables([sides])
  if low == high:
    return [(0, own)]
  table = np.clip(sides[0][:, None] + sides[1] - low, 0, high - low)
  return [(i, own[table == i]) for i in np.unique(table)]
