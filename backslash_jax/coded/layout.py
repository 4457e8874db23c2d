"""How the levels of a tensor become tuples, ids and lanes.

A block is a matrix of levels. A tuple is `rows` consecutive levels of a column.
The tuples of a block, row after row, go to the lanes in turn.
"""

from typing import NamedTuple

import numpy as np

from backslash_jax.coded import streams

MAX_ROWS = 4
LIMIT = 127  # Levels beyond are stored as values.
# Bits of a lane beside its words: a state, of which about 8 come back, and a
# number of words.
_LANE_BITS = 40
_LANE_SHARE = 0.008  # Of the code, that the lanes may add.
_MIN_LANES, _MAX_LANES = 8, 2048
_ROWS_SHARE = 0.01  # Of the code, that longer tuples may add: they are faster.
_WIDEST = 1 << 18  # Tuples that are counted.


class Alphabet(NamedTuple):
  """The tuples that have an id of their own.

  Attributes:
    keys: uint32, ascending; see `keys`.
    frequency: of each, and last that of all others, the escape.
    bits: code length of the counted tuples, the escapes' values included.
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
  best = None
  for size in sorted({max(int(most * f), 1) for f in _FRACTIONS}):
    rest = int(counts[size:].sum())
    frequency = streams.frequencies(np.append(counts[:size], max(rest, 1e-3)))
    own = streams.bits(np.append(counts[:size], rest), frequency)
    own += price * rest + 48 * size
    if best is None or own < best[0]:
      best = own, size, frequency
  bits, size, frequency = best
  order = np.argsort(keys[:size])
  frequency = np.append(frequency[:-1][order], frequency[-1])
  return Alphabet(keys[:size][order], frequency, bits)


_FRACTIONS = (1, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0)


def rows(blocks: np.ndarray, itemsize: int) -> int:
  """How many rows a tuple had better have."""
  best, found = None, 1
  sample = blocks.reshape(-1, blocks.shape[-1])
  step = max(sample.size // _WIDEST, 1)
  for own in range(1, MAX_ROWS + 1):
    if sample.shape[0] < own:
      break
    tuples = keys(sample, own)
    if step > 1:
      tuples = tuples[:: step // own + 1]
    values, counts = np.unique(tuples, return_counts=True)
    bits = alphabet(values, counts, own * 8 * (4 + itemsize)).bits
    bits /= tuples.size * own
    best = bits if best is None else min(best, bits)
    if bits <= best * (1 + _ROWS_SHARE):
      found = own
  return found


def lanes(bits: float, tuples: int) -> int:
  """How many lanes decode a block of so many bits and tuples."""
  wanted = bits * _LANE_SHARE / _LANE_BITS
  found = 1 << int(np.log2(np.clip(wanted, _MIN_LANES, _MAX_LANES)))
  return min(found, max(tuples, 1))
