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
_NONE = np.empty(0, np.uint8)
# Code lengths are summed in these parts of a bit: integers need no order.
_PARTS = 2.0**32
# x // f is x * _RECIPROCAL[f] >> 46, exactly, for x < f << 18.
_RECIPROCAL = np.zeros((1 << PRECISION) + 1, np.uint64)
_RECIPROCAL[1:] = [-(-(1 << 46) // f) for f in range(1, _RECIPROCAL.size)]


def magnitude_sums(symbols):
  """See `loops_numpy.magnitude_sums`."""
  rows, columns = (np.zeros(size, np.int64) for size in symbols.shape)
  _magnitude_sums(symbols, rows, columns)
  return rows, columns


def look_up(symbols, codes, lengths, limits, row_class, column_class):
  """See `loops_numpy.look_up`."""
  entries = np.empty(symbols.size, np.uint32)
  excess = np.empty(1024, np.int32)
  parts = (lengths.astype(np.float64) * _PARTS).astype(np.int64)
  # In 32 bits, twice as many fit into a register.
  arrays = (codes, parts, limits.astype(np.int32), row_class, column_class)
  count, total = _look_up(symbols, *arrays, entries, excess)
  if count > excess.size:
    excess = np.empty(count, np.int32)
    _look_up(symbols, *arrays, entries, excess)
  return entries, excess[:count], total / _PARTS


def encode_rows(states, entries, words, position):
  """See `loops_numpy.encode_rows`."""
  return int(_encode(states, entries, words, position, _RECIPROCAL))


def decode_rows(states, words, position, decoding, numbers, out):
  """See `loops_numpy.decode_rows`."""
  numbers = _NONE if numbers is None else numbers
  stop = _decode(states, words, position, *decoding, numbers, out)
  if stop < 0:
    raise ValueError("the stream ends too early")
  return int(stop)


def decode_trellis(
  states, words, position, decoding, numbers, out, machines, done
):
  """See `loops_numpy.decode_trellis`."""
  numbers = _NONE if numbers is None else numbers
  # The moves are an argument: numba's cache keeps globals of other files.
  stop = _decode_trellis(
    states,
    words,
    position,
    *decoding,
    numbers,
    out,
    machines,
    done,
    trellis.NEXT,
  )
  if stop < 0:
    raise ValueError("the stream ends too early")
  return int(stop)


@numba.njit(nogil=True, cache=True)
def _magnitude_sums(symbols, rows, columns):
  for i in range(symbols.shape[0]):
    for j in range(symbols.shape[1]):
      size = abs(np.int64(symbols[i, j]))
      rows[i] += size
      columns[j] += size


@numba.njit(nogil=True, cache=True)
def _look_up(
  symbols, codes, parts, limits, row_class, column_class, entries, excess
):
  width, columns = codes.shape[1], symbols.shape[1]
  codes, parts = codes.ravel(), parts.ravel()
  count, total = 0, np.int64(0)
  for i in range(symbols.shape[0]):
    escaped = 0
    for j in range(columns):
      # Unsigned: numba would treat a signed index as one that may be negative.
      own = np.uint64(row_class[i] + column_class[j])
      y, limit = symbols[i, j], limits[own]
      is_out = (y > limit) | (y < -limit)
      escaped += is_out
      y = np.int32(limit + 1) if is_out else y
      place = np.uint64(np.int64(own) * width + (width - 1) // 2 + np.int64(y))
      entries[i * columns + j] = codes[place]
      total += parts[place]
    if escaped:
      for j in range(columns):
        y = np.int64(symbols[i, j])
        limit = limits[row_class[i] + column_class[j]]
        if y > limit or y < -limit:
          if count < excess.size:
            excess[count] = y - limit if y > 0 else y + limit
          count += 1
  return count, total


@numba.njit(nogil=True, cache=True)
def _encode(states, entries, words, position, reciprocal):
  width = states.size
  limit = np.uint32(32 - PRECISION)
  complement = np.uint32(1 << PRECISION)
  for row in range((entries.size - 1) // width * width, -1, -width):
    for lane in range(min(width, entries.size - row) - 1, -1, -1):
      entry = entries[row + lane]
      frequency = entry >> _SIXTEEN
      x = states[lane]
      # No branch, since it could not be predicted: the word is always written,
      # and the position moves only if it is needed.
      full = np.uint32(x >= np.uint32(frequency << limit))
      words[position - 1] = x & _LOW
      position -= np.int64(full)
      x = x >> np.uint32(full << np.uint32(4))
      product = np.uint64(x) * reciprocal[frequency]
      quotient = np.uint32(product >> np.uint64(46))
      # x // f * 2**14 + x % f + start.
      x += np.uint32(quotient * np.uint32(complement - frequency))
      states[lane] = np.uint32(x + (entry & _LOW))
  return position


@numba.njit(nogil=True, cache=True)
def _decode(states, words, position, places, entries, symbols, numbers, out):
  width, stride = states.size, np.uint32(entries.shape[1])
  places, entries, symbols = places.ravel(), entries.ravel(), symbols.ravel()
  for row in range(0, out.size, width):
    count = min(width, out.size - row)
    is_safe = position + count <= words.size
    for lane in range(count):
      x = states[lane]
      slot = x & _MASK
      if numbers.size:
        number = np.uint32(numbers[row + lane])
        place = places[np.uint32(slot + (number << _SHIFT))]
        place = np.uint32(place + number * stride)
      else:
        place = np.uint32(places[slot])
      entry = entries[place]
      out[row + lane] = symbols[place]
      x = np.uint32((entry >> _SIXTEEN) * (x >> _SHIFT) + slot)
      x = np.uint32(x - (entry & _LOW))
      is_low = x < _FLOOR
      if is_safe:
        # No branch: the next word is always read, and the position moves only
        # if it is needed.
        longer = np.uint32((x << _SIXTEEN) | words[position])
        x = longer if is_low else x
        position += np.int64(is_low)
      elif is_low:
        if position >= words.size:
          return -1
        x = np.uint32((x << _SIXTEEN) | words[position])
        position += 1
      states[lane] = x
  return position


@numba.njit(nogil=True, cache=True)
def _decode_trellis(
  states,
  words,
  position,
  places,
  entries,
  symbols,
  numbers,
  out,
  machines,
  done,
  moves,
):
  width, count = states.size, machines.size
  stride = np.uint32(entries.shape[1])
  places, entries, symbols = places.ravel(), entries.ravel(), symbols.ravel()
  lane, machine = 0, done % count
  for i in range(out.size):
    x = states[lane]
    state = machines[machine]
    number = np.uint32(state & 1)
    if numbers.size:
      number = np.uint32(number + numbers[i])
    slot = x & _MASK
    place = places[np.uint32(slot + (number << _SHIFT))]
    place = np.uint32(place + number * stride)
    entry = entries[place]
    symbol = symbols[place]
    out[i] = symbol
    machines[machine] = moves[2 * state + (symbol & 1)]
    x = np.uint32((entry >> _SIXTEEN) * (x >> _SHIFT) + slot)
    x = np.uint32(x - (entry & _LOW))
    if x < _FLOOR:
      if position >= words.size:
        return -1
      x = np.uint32((x << _SIXTEEN) | words[position])
      position += 1
    states[lane] = x
    lane = lane + 1 if lane + 1 < width else 0
    machine = machine + 1 if machine + 1 < count else 0
  return position
