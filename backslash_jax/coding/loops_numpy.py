"""The row loops of rANS in NumPy: all lanes of a row at once.

`loops` chooses between this module and `loops_numba`. An entry is a uint32,
frequency << 16 | start, where the frequencies sum to 2**PRECISION.
"""

import numpy as np

from backslash_jax.coding import models, trellis
from backslash_jax.coding.frequencies import PRECISION

FLOOR = 1 << 16  # The smallest state of a lane between two symbols.
_BLOCK = 16  # Rows whose operands are prepared at once, to stay in cache.
_LOOK_UP_BLOCK = 1 << 14  # Symbols looked up at once, to stay in cache.
_NONE = np.empty(0, np.int32)
_MASK = np.uint32((1 << PRECISION) - 1)
_LOW = np.uint32(0xFFFF)
_SHIFT = np.uint32(PRECISION)
_LIMIT = np.uint32(32 - PRECISION)
_SIXTEEN = np.uint32(16)


def magnitude_sums(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The sums of |symbols| over each row and each column.

  Args:
    symbols: int32 [rows, columns].

  Returns:
    int64 [rows] and [columns].
  """
  sizes = np.abs(symbols)
  if symbols.min(initial=0) == -(2**31):
    sizes = np.abs(symbols.astype(np.int64))
  return sizes.sum(1, dtype=np.int64), sizes.sum(0, dtype=np.int64)


def squares(
  values: np.ndarray, decoded: np.ndarray, step: float
) -> tuple[float, float]:
  """The sums of ((values - decoded) / step)^2 and of (values / step)^2.

  Args:
    values: float32 or float64 vector.
    decoded: likewise.
    step: the unit, so that no square overflows.
  """
  x = np.divide(values, step, dtype=np.float64)
  # Without the threads of BLAS: there are enough.
  power = float(np.einsum("i,i->", x, x))
  x -= np.divide(decoded, step, dtype=np.float64)
  return float(np.einsum("i,i->", x, x)), power


def look_up(
  symbols: np.ndarray,
  codes: np.ndarray,
  lengths: np.ndarray,
  limits: np.ndarray,
  row_class: np.ndarray,
  column_class: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
  """Looks up the entry of each symbol of a matrix.

  The table of element (i, j) is number row_class[i] + column_class[j].

  Args:
    symbols: int32 [rows, columns].
    codes: uint32 [tables, 2 * reach + 3], the entries of the symbols from
      -reach - 1 to reach + 1.
    lengths: float32, bits of each entry, of the shape of `codes`.
    limits: int64 [tables], the largest magnitude that is not escaped.
    row_class: int64 [rows].
    column_class: int64 [columns].

  Returns:
    The entries, uint32 [rows * columns]; the excess of each escaped symbol over
    its limit, with the symbol's sign, int32; the sum of the lengths in bits.
  """
  reach, nearest = (codes.shape[1] - 3) // 2, int(limits.min())
  row_place = (row_class * codes.shape[1] + reach + 1)[:, None]
  column_place = column_class * codes.shape[1]
  codes, lengths = codes.ravel(), lengths.ravel()
  entries = np.empty(symbols.shape, np.uint32)
  escapes, total = [_NONE], 0.0
  rows = max(_LOOK_UP_BLOCK // symbols.shape[1], 1)
  for start in range(0, symbols.shape[0], rows):
    block = symbols[start : start + rows]
    places = block.astype(np.intp)
    if max(-int(places.min()), int(places.max())) > nearest:
      i, j = (np.abs(places) > nearest).nonzero()
      own = limits[row_class[start + i] + column_class[j]]
      excess = np.abs(places[i, j]) - own
      signed = np.sign(places[i, j]) * excess
      escapes.append(signed[excess > 0].astype(np.int32))
      np.clip(places, -reach - 1, reach + 1, out=places)
    places += row_place[start : start + rows]
    places += column_place
    codes.take(places, out=entries[start : start + rows], mode="clip")
    total += float(lengths.take(places, mode="clip").sum(dtype=np.float64))
  return entries.ravel(), np.concatenate(escapes), total


def encode_rows(
  states: np.ndarray, entries: np.ndarray, words: np.ndarray, position: int
) -> int:
  """Encodes rows of symbols, the last symbol first.

  Symbol i is coded by lane i % lanes.

  Args:
    states: uint32 [lanes], changed in place.
    entries: uint32, one per symbol.
    words: uint16; the stream is written into it, backwards from `position`.
    position: index of the last word that was written.

  Returns:
    The new position.
  """
  width = states.size
  block = width * _BLOCK
  for start in range((entries.size - 1) // block * block, -1, -block):
    entry = entries[start : start + block]
    frequency = entry >> _SIXTEEN
    limit = frequency << _LIMIT
    entry = entry & _LOW
    complement = np.uint32(1 << PRECISION) - frequency
    for row in range((entry.size - 1) // width * width, -1, -width):
      here = slice(row, min(row + width, entry.size))
      x = states[: here.stop - row]
      full = (x >= limit[here]).nonzero()[0]
      if full.size:
        over = x[full]
        words[position - full.size : position] = over
        position -= full.size
        over >>= _SIXTEEN
        x[full] = over
      # x // f * 2**14 + x % f + start, with one division.
      quotient = x // frequency[here]
      quotient *= complement[here]
      x += quotient
      x += entry[here]
  return position


def decode_rows(
  states: np.ndarray,
  words: np.ndarray,
  position: int,
  decoding: models.Decoding,
  numbers: np.ndarray | None,
  out: np.ndarray,
) -> int:
  """Decodes rows of symbols into `out`.

  Symbol i is decoded by lane i % lanes.

  Args:
    states: uint32 [lanes], changed in place.
    words: uint16, the stream.
    position: index of the next word.
    decoding: the tables.
    numbers: uint8, the number of each symbol's table; None means 0.
    out: int16, one per symbol.

  Returns:
    The new position.

  Raises:
    ValueError: if there are too few words.
  """
  width = states.size
  entries, symbols = decoding.entries, decoding.symbols
  places = np.empty(width * _BLOCK, np.intp)
  first_slot = first_place = np.empty(0, np.intp)
  for start in range(0, out.size, places.size):
    count = min(places.size, out.size - start)
    if numbers is not None:
      number = numbers[start : start + count].astype(np.intp)
      first_slot, first_place = number << PRECISION, number * entries.shape[1]
    for row in range(0, count, width):
      n = min(width, count - row)
      x, place = states[:n], places[row : row + n]
      slot = x & _MASK
      if numbers is None:
        place[:] = decoding.places.take(slot, mode="clip")
      else:
        own = first_slot[row : row + n] + slot
        place[:] = decoding.places.take(own, mode="clip")
        place += first_place[row : row + n]
      entry = entries.take(place, mode="clip")
      x >>= _SHIFT
      x *= entry >> _SIXTEEN
      x += slot
      x -= entry & _LOW
      empty = (x < FLOOR).nonzero()[0]
      if empty.size:
        under = x[empty]
        under <<= _SIXTEEN
        stop = position + empty.size
        if stop > words.size:
          raise ValueError("the stream ends too early")
        under |= words[position:stop]
        x[empty] = under
        position = stop
    symbols.take(places[:count], out=out[start : start + count], mode="clip")
  return position


def decode_trellis(
  states: np.ndarray,
  words: np.ndarray,
  position: int,
  decoding: models.Decoding,
  numbers: np.ndarray | None,
  out: np.ndarray,
  machines: np.ndarray,
  done: int,
) -> int:
  """As `decode_rows`, of the symbols of a trellis.

  Args:
    states: and the next five as for decode_rows; the numbers are those of the
      tables of the even quantizer.
    words: see there.
    position: see there.
    decoding: see there.
    numbers: see there.
    out: see there.
    machines: states of the machines of the trellis, uint8, changed in place.
    done: how many symbols of the piece were decoded before.
  """
  start, width, count = 0, states.size, machines.size
  while start < out.size:
    # Up to where the lanes or the machines begin anew.
    lane, machine = start % width, (done + start) % count
    n = min(width - lane, count - machine, out.size - start)
    x, state = states[lane : lane + n], machines[machine : machine + n]
    number = (state & 1).astype(np.intp)
    if numbers is not None:
      number += numbers[start : start + n]
    slot = x & _MASK
    place = decoding.places.take((number << PRECISION) + slot, mode="clip")
    place = place + number * decoding.entries.shape[1]
    entry = decoding.entries.take(place, mode="clip")
    found = decoding.symbols.take(place, mode="clip")
    out[start : start + n] = found
    trellis.NEXT.take(2 * state + (found & 1).astype(np.uint8), out=state)
    x >>= _SHIFT
    x *= entry >> _SIXTEEN
    x += slot - (entry & _LOW)
    empty = (x < FLOOR).nonzero()[0]
    if empty.size:
      stop = position + empty.size
      if stop > words.size:
        raise ValueError("the stream ends too early")
      x[empty] = (x[empty] << _SIXTEEN) | words[position:stop]
      position = stop
    start += n
  return position
