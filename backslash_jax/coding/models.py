"""Static models of integers: tables of frequencies that sum to 2**14.

The table of a `QuantizedGGD` is computed from a grid point of shape and scale
(see `frequencies`). A `Table` holds its frequencies. The scale of a grid point
may vary by row and by column of a matrix, in quarters of an octave: an element
of row class r and column class c has the scale alpha_index + 4 * (r + c).
"""

import functools
import reprlib
from typing import NamedTuple

import numpy as np

from backslash_jax.coding import frequencies
from backslash_jax.coding.frequencies import PRECISION

TOTAL = 1 << PRECISION
ESCAPE = -(1 << 15)  # Marks an escape in decoding tables; never a symbol.
CLASS_STEP = 4  # One class changes alpha_index by this much.
CLASS_NU_INDEX = 8  # Classes are coded under a normal distribution, nu = 2.
MAX_CLASS = 12
MAX_SHIFT = 24


class QuantizedGGD(NamedTuple):
  """The quantized generalized Gaussian distribution of symbols >> shift.

  Attributes:
    nu_index: grid point of the shape, in frequencies.NU_INDEX_RANGE.
    alpha_index: grid point of the scale, in frequencies.ALPHA_INDEX_RANGE.
    tail: log2 of the escape's extra units, in frequencies.TAIL_RANGE.
    shift: low bits of a symbol that are stored uncoded, 0 to MAX_SHIFT.
    row_alpha_index: grid point of the scale of the distribution that codes the
      row classes; None if all of them are 0 and not coded.
    column_alpha_index: the same of the column classes.
  """

  nu_index: int
  alpha_index: int
  tail: int = 0
  shift: int = 0
  row_alpha_index: int | None = None
  column_alpha_index: int | None = None


class Table(NamedTuple):
  """Explicit frequencies, one per integer from `lowest` on; TOTAL in all.

  A table of one symbol is constant: its symbols are not coded.
  """

  lowest: int
  counts: tuple[int, ...]


Model = QuantizedGGD | Table


def check(model: Model) -> Model:
  """Returns the model; ValueError if it is outside the format's limits."""
  match model:
    case QuantizedGGD(nu_index, alpha_index, tail, shift, row, column):
      points = [alpha_index, row or 0, column or 0]
      ok = (
        _within(frequencies.NU_INDEX_RANGE, nu_index)
        and all(_within(frequencies.ALPHA_INDEX_RANGE, p) for p in points)
        and _within(frequencies.TAIL_RANGE, tail)
        and 0 <= shift <= MAX_SHIFT
      )
    case Table(lowest, counts):
      ok = len(counts) > 0 and min(counts) >= 0 and sum(counts) == TOTAL
      if is_constant(model):
        ok = ok and -(2**31) <= lowest < 2**31
      else:
        ok = ok and ESCAPE < lowest and lowest + len(counts) <= -ESCAPE
        ok = ok and TOTAL not in counts
  if not ok:
    raise ValueError(
      f"the model {reprlib.repr(model)} is outside the format's limits"
    )
  return model


def _within(limits: tuple[int, int], value: int) -> bool:
  return limits[0] <= value <= limits[1]


def is_constant(model: Model) -> bool:
  """Whether the model has one symbol only, which needs no bits."""
  return isinstance(model, Table) and len(model.counts) == 1


def class_alpha_index(model: QuantizedGGD, class_sum: int) -> int:
  """The grid point of the scale where row and column class add to class_sum."""
  low, high = frequencies.ALPHA_INDEX_RANGE
  return min(max(model.alpha_index + CLASS_STEP * class_sum, low), high)


@functools.lru_cache(1024)
def tabulate(nu_index: int, alpha_index: int, tail: int = 0) -> Table:
  """The symmetric table of a grid point; the last count is the escape's."""
  sides = frequencies.one_sided(nu_index, alpha_index, tail)
  largest = sides.size - 2
  counts = np.concatenate([sides[largest:0:-1], sides])
  return Table(-largest, tuple(counts.tolist()))


def reach(nu_index: int, alpha_index: int) -> int:
  """The largest magnitude that a grid point's table does not escape."""
  return frequencies.one_sided(nu_index, alpha_index, 0).size - 2


@functools.lru_cache(256)
def decoding(table: Table, escapes: bool) -> tuple[np.ndarray, np.ndarray]:
  """What a decoder looks up by slot, the state's low PRECISION bits.

  Args:
    table: the table.
    escapes: whether its last symbol is the escape, decoded as ESCAPE.

  Returns:
    uint32 frequency << 16 | (slot - start) and the int16 symbol, [TOTAL] each.
  """
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
  """What an encoder looks up by symbol: uint32 frequency << 16 | start.

  Args:
    table: the table.
    reach: None for the symbols of the table from `lowest` on. Otherwise the
      table's last symbol is the escape, and the entries are those of the
      symbols from -reach - 1 to reach + 1, escaped where the table lacks them.

  Returns:
    The entries; 0 for a symbol of frequency 0.
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
