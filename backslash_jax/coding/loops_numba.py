"""The row loops of rANS, compiled by numba.

`loops` chooses between this module and `loops_numpy`, which documents the
contracts. The compiled loops release the interpreter's lock, so threads code
chunks in parallel.
"""

import numba
import numpy as np

from backslash_jax.coding import loops_numpy, trellis
from backslash_jax.coding.frequencies import PRECISION

_MASK = np.uint32((1 << PRECISION) - 1)
_SHIFT = np.uint32(PRECISION)
_SIXTEEN = np.uint32(16)
_LOW = np.uint32(0xFFFF)
_FLOOR = np.uint32(loops_numpy.FLOOR)
_NONE = np.empty(0, np.uint32)


def look_up(symbols, codes, lengths, limits, row_class, column_class):
  """See `loops_numpy.look_up`."""
  entries = np.empty(symbols.size, np.uint32)
  excess = np.empty(1024, np.int32)
  arrays = (codes, lengths, limits, row_class, column_class)
  count, total = _look_up(symbols, *arrays, entries, excess)
  if count > excess.size:
    excess = np.empty(count, np.int32)
    _look_up(symbols, *arrays, entries, excess)
  return entries, excess[:count], float(total)


def encode_rows(states, entries, words, position):
  """See `loops_numpy.encode_rows`."""
  return int(_encode(states, entries, words, position))


def decode_rows(states, words, position, table, symbols, offsets, out):
  """See `loops_numpy.decode_rows`."""
  offsets = _NONE if offsets is None else offsets
  stop = _decode(states, words, position, table, symbols, offsets, out)
  if stop < 0:
    raise ValueError("the stream ends too early")
  return int(stop)


def decode_trellis(
  states, words, position, table, symbols, offsets, out, machines, done
):
  """See `loops_numpy.decode_trellis`."""
  offsets = _NONE if offsets is None else offsets
  # The moves are an argument: numba's cache keeps globals of other files.
  stop = _decode_trellis(
    states,
    words,
    position,
    table,
    symbols,
    offsets,
    out,
    machines,
    done,
    trellis.NEXT,
  )
  if stop < 0:
    raise ValueError("the stream ends too early")
  return int(stop)


@numba.njit(nogil=True, cache=True)
def _look_up(
  symbols, codes, lengths, limits, row_class, column_class, entries, excess
):
  width, columns = codes.shape[1], symbols.shape[1]
  codes, lengths = codes.ravel(), lengths.ravel()
  count, total = 0, 0.0
  for i in range(symbols.shape[0]):
    for j in range(columns):
      own = row_class[i] + column_class[j]
      y = np.int64(symbols[i, j])
      limit = limits[own]
      if y > limit or y < -limit:
        if count < excess.size:
          excess[count] = y - limit if y > 0 else y + limit
        count += 1
        y = limit + 1
      # Unsigned: numba would treat a signed index as one that may be negative.
      place = np.uint64(own * width + (width - 1) // 2 + y)
      entries[i * columns + j] = codes[place]
      total += lengths[place]
  return count, total


@numba.njit(nogil=True, cache=True)
def _encode(states, entries, words, position):
  width = states.size
  limit = np.uint32(32 - PRECISION)
  lane = (entries.size - 1) % width
  for i in range(entries.size - 1, -1, -1):
    frequency = entries[i] >> _SIXTEEN
    start = entries[i] & _LOW
    x = states[lane]
    # No branch, since it could not be predicted: the word is always written,
    # and the position moves only if it is needed.
    full = np.uint32(x >= np.uint32(frequency << limit))
    words[position - 1] = x & _LOW
    position -= np.int64(full)
    x = x >> np.uint32(full << np.uint32(4))
    quotient = x // frequency
    states[lane] = np.uint32(
      (quotient << _SHIFT) + (x - quotient * frequency) + start
    )
    lane = lane - 1 if lane else width - 1
  return position


@numba.njit(nogil=True, cache=True)
def _decode(states, words, position, table, symbols, offsets, out):
  width = states.size
  for row in range(0, out.size, width):
    count = min(width, out.size - row)
    for lane in range(count):
      x = states[lane]
      slot = x & _MASK
      if offsets.size:
        slot = np.uint32(slot + offsets[row + lane])
      entry = table[slot]
      out[row + lane] = symbols[slot]
      x = np.uint32((entry >> _SIXTEEN) * (x >> _SHIFT) + (entry & _LOW))
      if x < _FLOOR:
        if position >= words.size:
          return -1
        x = np.uint32((x << _SIXTEEN) | words[position])
        position += 1
      states[lane] = x
  return position


@numba.njit(nogil=True, cache=True)
def _decode_trellis(
  states, words, position, table, symbols, offsets, out, machines, done, moves
):
  width, count = states.size, machines.size
  lane, machine = 0, done % count
  for i in range(out.size):
    x = states[lane]
    state = machines[machine]
    slot = (x & _MASK) + (np.uint32(state & 1) << _SHIFT)
    if offsets.size:
      slot = slot + offsets[i]
    entry = table[slot]
    symbol = symbols[slot]
    out[i] = symbol
    machines[machine] = moves[2 * state + (symbol & 1)]
    x = np.uint32((entry >> _SIXTEEN) * (x >> _SHIFT) + (entry & _LOW))
    if x < _FLOOR:
      if position >= words.size:
        return -1
      x = np.uint32((x << _SIXTEEN) | words[position])
      position += 1
    states[lane] = x
    lane = lane + 1 if lane + 1 < width else 0
    machine = machine + 1 if machine + 1 < count else 0
  return position
