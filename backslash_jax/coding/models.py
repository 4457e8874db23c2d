"""Static models of integers: tables of frequencies that sum to 2**14.

A Gaussian's table is computed from its grid point, a Table brings its own. The
scale of a Gaussian may vary by row and by column of a matrix, in quarters of an
octave: an element of row class r and column class c has the grid point
alpha + 4 * (r + c).
"""

import functools
from typing import NamedTuple

import numpy as np

from backslash_jax.coding import frequencies
from backslash_jax.coding.lanes import PRECISION

TOTAL = 1 << PRECISION
ESCAPE = -(1 << 15)  # No symbol of a table; the symbol itself comes later.
CLASS_STEP = 4  # Points of the alpha grid.
CLASS_NU = 8  # Classes themselves are coded as if from a normal distribution.
MAX_CLASS = 12
MAX_SHIFT = 24


class Gaussian(NamedTuple):
  """The quantized generalized Gaussian, for symbols >> shift.

  Attributes:
    nu: grid point of the shape, in frequencies.NU_RANGE.
    alpha: grid point of the scale, in frequencies.ALPHA_RANGE.
    tail: log2 of the escape's extra units, in frequencies.TAIL_RANGE.
    shift: low bits that are stored as they are, 0 to MAX_SHIFT.
    rows: grid point of the scale of the row classes; None if there are none.
    columns: the same of the column classes.
  """

  nu: int
  alpha: int
  tail: int = 0
  shift: int = 0
  rows: int | None = None
  columns: int | None = None


class Table(NamedTuple):
  """Explicit frequencies, one per integer from `lowest` on; TOTAL in all.

  One single symbol has the frequency TOTAL and costs nothing.
  """

  lowest: int
  counts: tuple[int, ...]


Model = Gaussian | Table


def check(model: Model) -> Model:
  """The model itself; ValueError if it is outside its limits."""
  match model:
    case Gaussian(nu, alpha, tail, shift, rows, columns):
      points = [alpha, rows or 0, columns or 0]
      low, high = frequencies.ALPHA_RANGE
      ok = frequencies.NU_RANGE[0] <= nu <= frequencies.NU_RANGE[1]
      ok = ok and low <= min(points) and max(points) <= high
      ok = ok and frequencies.TAIL_RANGE[0] <= tail <= frequencies.TAIL_RANGE[1]
      ok = ok and 0 <= shift <= MAX_SHIFT
    case Table(lowest, counts):
      ok = len(counts) > 0 and min(counts) >= 0 and sum(counts) == TOTAL
      if is_constant(model):
        ok = ok and -(2**31) <= lowest < 2**31
      else:
        ok = ok and ESCAPE < lowest and lowest + len(counts) <= -ESCAPE
        ok = ok and TOTAL not in counts
  if not ok:
    raise ValueError(f"the model {model} is outside the format's limits")
  return model


def is_constant(model: Model) -> bool:
  """Whether there is only one symbol, and so no code at all."""
  return isinstance(model, Table) and len(model.counts) == 1


def point(model: Gaussian, offset: int) -> int:
  """The grid point of alpha of the elements whose classes sum to `offset`."""
  low, high = frequencies.ALPHA_RANGE
  return min(max(model.alpha + CLASS_STEP * offset, low), high)


@functools.lru_cache(1024)
def gaussian(nu: int, alpha: int, tail: int = 0) -> Table:
  """The symmetric table of a grid point, its escape in the last place."""
  sides = frequencies.magnitudes(nu, alpha, tail, PRECISION)
  largest = sides.size - 2
  counts = np.concatenate([sides[largest:0:-1], sides])
  return Table(-largest, tuple(counts.tolist()))


def reach(nu: int, alpha: int) -> int:
  """The largest magnitude of a grid point's table, before its escape."""
  return frequencies.magnitudes(nu, alpha, 0, PRECISION).size - 2


@functools.lru_cache(256)
def decoding(table: Table, escapes: bool) -> tuple[np.ndarray, np.ndarray]:
  """By slot: uint32 frequency << 16 | (slot - start), and the int16 symbol."""
  counts = np.array(table.counts, np.uint32)
  starts = np.cumsum(counts, dtype=np.uint32) - counts
  place = np.repeat(np.arange(counts.size), counts)
  bias = np.arange(TOTAL, dtype=np.uint32) - starts[place]
  symbols = np.arange(table.lowest, table.lowest + counts.size)
  if escapes:
    symbols[-1] = ESCAPE
  return (counts[place] << 16) | bias, symbols.astype(np.int16)[place]


@functools.lru_cache(512)
def encoding(table: Table, reach: int | None = None) -> np.ndarray:
  """uint32 frequency << 16 | start of each symbol from `lowest` on.

  With `reach`, of -reach - 1 to reach + 1, the escape's where the table, a
  Gaussian's, has none.
  """
  counts = np.array(table.counts, np.uint32)
  starts = np.cumsum(counts, dtype=np.uint32) - counts
  entries = np.where(counts > 0, (counts << 16) | starts, np.uint32(0))
  if reach is None:
    return entries
  out = np.full(2 * reach + 3, entries[-1], np.uint32)
  place = table.lowest + reach + 1
  out[place : place + entries.size - 1] = entries[:-1]
  return out
