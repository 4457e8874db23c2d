"""The row loops of rANS in NumPy: all lanes of a row at once.

`loops` chooses between this module and `loops_numba`. An entry is a uint32,
frequency << 16 | start, where the frequencies sum to 2**PRECISION.
"""

import numpy as np

from backslash_jax.coding import trellis
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
  table: np.ndarray,
  symbols: np.ndarray,
  offsets: np.ndarray | None,
  out: np.ndarray,
) -> int:
  """Decodes rows of symbols into `out`.

  Symbol i is decoded by lane i % lanes.

  Args:
    states: uint32 [lanes], changed in place.
    words: uint16, the stream.
    position: index of the next word.
    table: uint32, frequency << 16 | (slot - start) by slot.
    symbols: int16, the symbol by slot.
    offsets: uint32, the first slot of each symbol's table; None means 0.
    out: int16, one per symbol.

  Returns:
    The new position.

  Raises:
    ValueError: if there are too few words.
  """
  width = states.size
  slots = np.empty(width * _BLOCK, np.uint32)
  entry, low = np.empty(width, np.uint32), np.empty(width, np.uint32)
  for start in range(0, out.size, slots.size):
    count = min(slots.size, out.size - start)
    for row in range(0, count, width):
      n = min(width, count - row)
      x, slot, e, b = states[:n], slots[row : row + n], entry[:n], low[:n]
      np.bitwise_and(x, _MASK, out=slot)
      if offsets is not None:
        slot += offsets[start + row : start + row + n]
      table.take(slot, out=e, mode="clip")
      np.bitwise_and(e, _LOW, out=b)
      e >>= _SIXTEEN
      x >>= _SHIFT
      x *= e
      x += b
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
    symbols.take(slots[:count], out=out[start : start + count], mode="clip")
  return position


def decode_trellis(
  states: np.ndarray,
  words: np.ndarray,
  position: int,
  table: np.ndarray,
  symbols: np.ndarray,
  offsets: np.ndarray | None,
  out: np.ndarray,
  machines: np.ndarray,
  done: int,
) -> int:
  """As `decode_rows`, of the symbols of a trellis.

  Args:
    states: and the next six as for decode_rows; the offsets are those of the
      tables of the even quantizer.
    words: see there.
    position: see there.
    table: see there.
    symbols: see there.
    offsets: see there.
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
    slot = (x & _MASK) + ((state & 1).astype(np.uint32) << _SHIFT)
    if offsets is not None:
      slot += offsets[start : start + n]
    entry = table.take(slot, mode="clip")
    found = symbols.take(slot, mode="clip")
    out[start : start + n] = found
    trellis.NEXT.take(2 * state + (found & 1).astype(np.uint8), out=state)
    x >>= _SHIFT
    x *= entry >> _SIXTEEN
    x += entry & _LOW
    empty = (x < FLOOR).nonzero()[0]
    if empty.size:
      stop = position + empty.size
      if stop > words.size:
        raise ValueError("the stream ends too early")
      x[empty] = (x[empty] << _SIXTEEN) | words[position:stop]
      position = stop
    start += n
  return position
