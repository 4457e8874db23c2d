"""Static models of integers: tables of frequencies that sum to 2**14.

The table of a `QuantizedGGD` is computed from a grid point of shape and scale
(see `frequencies`). A `Table` holds its frequencies. The scale of a grid point
may vary by row and by column of a matrix, in quarters of an octave: an element
of row class r and column class c has the scale alpha_index + 4 * (r + c). A
`Trellis` has two such distributions, one for each quantizer (see `trellis`).
"""

import functools
import reprlib
from typing import NamedTuple

import numpy as np

from backslash_jax.coding import frequencies
from backslash_jax.coding.frequencies import PRECISION

TOTAL = 1 << PRECISION
# They mark escapes in decoding tables and are never symbols of these. With a
# trellis there are two, for even and for odd symbols.
ESCAPE = -(1 << 15)
ODD_ESCAPE = ESCAPE + 1
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


class Trellis(NamedTuple):
  """The distributions of the symbols of the two quantizers of a trellis.

  Attributes:
    nu_index: of the even quantizer, as in QuantizedGGD.
    alpha_index: likewise.
    tail: likewise, at least 1: each of the two escapes has half of it.
    row_alpha_index: as in QuantizedGGD, for both quantizers.
    column_alpha_index: likewise.
    odd_nu_index: of the odd quantizer.
    odd_alpha_index: likewise.
    odd_tail: likewise, at least 1.
  """

  nu_index: int
  alpha_index: int
  tail: int
  row_alpha_index: int | None
  column_alpha_index: int | None
  odd_nu_index: int
  odd_alpha_index: int
  odd_tail: int

  @property
  def even(self) -> QuantizedGGD:
    """The distribution of the even quantizer, with the classes."""
    points = (self.row_alpha_index, self.column_alpha_index)
    return QuantizedGGD(*self[:3], 0, *points)

  @property
  def odd(self) -> QuantizedGGD:
    """The distribution of the odd quantizer, without the classes."""
    return QuantizedGGD(*self[5:])


class Table(NamedTuple):
  """Explicit frequencies, one per integer from `lowest` on; TOTAL in all.

  A table of one symbol is constant: its symbols are not coded.
  """

  lowest: int
  counts: tuple[int, ...]


Model = QuantizedGGD | Table | Trellis


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
    case Trellis(tail=tail, odd_tail=odd_tail):
      check(model.even)
      check(model.odd)
      ok = tail > 0 and odd_tail > 0
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
  return _symmetric(sides[:-1], sides[-1:])


@functools.lru_cache(1024)
def tabulate_trellis(
  nu_index: int, alpha_index: int, tail: int, odd: bool
) -> Table:
  """That of one quantizer; the last two counts are those of the escapes."""
  sides = frequencies.one_sided(nu_index, alpha_index, tail, odd=odd)
  return _symmetric(sides[:-1], np.repeat(sides[-1:] // 2, 2))


def _symmetric(sides: np.ndarray, escapes: np.ndarray) -> Table:
  counts = np.concatenate([sides[:0:-1], sides, escapes])
  return Table(1 - sides.size, tuple(counts.tolist()))


def reach(nu_index: int, alpha_index: int) -> int:
  """The largest magnitude that a grid point's table does not escape."""
  return frequencies.one_sided(nu_index, alpha_index, 0).size - 2


class Decoding(NamedTuple):
  """What a decoder looks up in each of its tables.

  The first array is indexed by the slot, the state's low PRECISION bits, the
  others by what it holds. They are small: those of all classes stay in cache.

  Attributes:
    places: number of the symbol, uint16 [tables, TOTAL].
    entries: frequency << 16 | start, uint32 [tables, 2^k].
    symbols: int16 [tables, 2^k].
  """

  places: np.ndarray
  entries: np.ndarray
  symbols: np.ndarray


def decoding(tables: list[Table], escapes: int) -> Decoding:
  """The tables of a decoder.

  Args:
    tables: the tables.
    escapes: how many of the last symbols of each are escapes, decoded as ESCAPE
      and ODD_ESCAPE.
  """
  parts = [_decoding(table, escapes) for table in tables]
  width = 1 << (max(entries.size for _, entries, _ in parts) - 1).bit_length()
  result = Decoding(
    np.stack([places for places, _, _ in parts]),
    np.zeros([len(parts), width], np.uint32),
    np.zeros([len(parts), width], np.int16),
  )
  for i, (_, entries, symbols) in enumerate(parts):
    result.entries[i, : entries.size] = entries
    result.symbols[i, : symbols.size] = symbols
  return result


@functools.lru_cache(256)
def _decoding(table, escapes):
  counts = np.array(table.counts, np.uint32)
  starts = np.cumsum(counts, dtype=np.uint32) - counts
  places = np.repeat(np.arange(counts.size, dtype=np.uint16), counts)
  symbols = np.arange(table.lowest, table.lowest + counts.size)
  if escapes:
    symbols[-escapes:] = (ESCAPE, ODD_ESCAPE)[:escapes]
  return places, (counts << 16) | starts, symbols.astype(np.int16)


@functools.lru_cache(512)
def encoding(
  table: Table, reach: int | None = None, escapes: int = 1
) -> np.ndarray:
  """What an encoder looks up by symbol: uint32 frequency << 16 | start.

  Args:
    table: the table.
    reach: None for the symbols of the table from `lowest` on. Otherwise the
      table's last symbols are the escapes, and the entries are those of the
      symbols of magnitude at most reach + escapes, escaped where the table
      lacks them.
    escapes: how many there are; of two, the first is that of even symbols.

  Returns:
    The entries; 0 for a symbol of frequency 0.
  """
  counts = np.array(table.counts, np.uint32)
  starts = np.cumsum(counts, dtype=np.uint32) - counts
  entries = np.where(counts > 0, (counts << 16) | starts, np.uint32(0))
  if reach is None:
    return entries
  known, ends = entries[:-escapes], entries[-escapes:]
  symbols = np.arange(-reach - escapes, reach + escapes + 1)
  out = ends[symbols % escapes]
  place = table.lowest + reach + escapes
  out[place : place + known.size] = known
  return out
