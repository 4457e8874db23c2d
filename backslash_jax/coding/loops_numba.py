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
# Code lengths are summed in these parts of a bit: integers need no order.
_PARTS = 2.0**32
_ONE = np.uint64(1)
_NO_WORD = np.zeros(1, np.uint16)
# With the errors of NumPy, a division needs no branch.
_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


def magnitude_sums(symbols):
  """See `loops_numpy.magnitude_sums`."""
  rows, columns = (np.zeros(size, np.int64) for size in symbols.shape)
  _magnitude_sums(symbols, rows, columns)
  return rows, columns


def squares(values, decoded, step):
  """See `loops_numpy.squares`."""
  scale = 1 / np.float64(step)
  if not np.isfinite(scale):
    return loops_numpy.squares(values, decoded, step)
  return _squares(values, decoded, scale)


def look_up(symbols, codes, lengths, limits, row_class, column_class):
  """See `loops_numpy.look_up`."""
  entries = np.empty(symbols.size, np.uint32)
  excess = np.empty(1024, np.int32)
  parts = (lengths.astype(np.float64) * _PARTS).astype(np.int64)
  arrays = (codes, parts, limits, row_class, column_class)
  count, total = _look_up(symbols, *arrays, entries, excess)
  if count > excess.size:
    excess = np.empty(count, np.int32)
    _look_up(symbols, *arrays, entries, excess)
  return entries, excess[:count], total / _PARTS


def encode_rows(states, entries, words, position):
  """See `loops_numpy.encode_rows`."""
  return int(_encode(states, entries, words, position))


def decode_rows(states, words, position, decoding, numbers, out):
  """See `loops_numpy.decode_rows`."""
  size = words.size
  words = words if size else _NO_WORD
  stop = _decode(
    states, words, np.uint64(size), position, *decoding, numbers, out
  )
  if stop < 0:
    raise ValueError("the stream ends too early")
  return int(stop)


def decode_trellis(
  states, words, position, decoding, numbers, out, machines, done
):
  """See `loops_numpy.decode_trellis`."""
  # The moves are an argument: numba's cache keeps globals of other files.
  stop = _decode_trellis(
    *(states, words, position, *decoding),
    *(numbers, out, machines, done, trellis.NEXT),
  )
  if stop < 0:
    raise ValueError("the stream ends too early")
  return int(stop)


# LLVM computes several lanes at once in a loop without look-ups, branches and
# the words of the stream, so these are in loops of their own. Indices that are
# looked up are unsigned: numba checks whether a signed one is negative.
@_compiled
def _magnitude_sums(symbols, rows, columns):
  for i in range(symbols.shape[0]):
    total = np.int64(0)
    for j in range(symbols.shape[1]):
      size = abs(np.int64(symbols[i, j]))
      total += size
      columns[j] += size
    rows[i] = total


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _squares(values, decoded, scale):
  error, power = 0.0, 0.0
  for i in range(values.size):
    x = np.float64(values[i])
    error += ((x - decoded[i]) * scale) ** 2
    power += (x * scale) ** 2
  return error, power


@_compiled
def _look_up(
  symbols, codes, parts, limits, row_class, column_class, entries, excess
):
  width, columns = codes.shape[1], symbols.shape[1]
  codes, parts = codes.ravel(), parts.ravel()
  reach, nearest = np.int32(width // 2), limits.min()
  first_place = (column_class * width + reach).astype(np.int32)
  places = np.empty(columns, np.uint32)
  count, total = 0, np.int64(0)
  for i in range(symbols.shape[0]):
    first, largest = np.int32(row_class[i] * width), np.int32(0)
    for j in range(columns):
      y = min(max(symbols[i, j], np.int32(-reach)), reach)
      largest = max(largest, np.int32(abs(y)))
      places[j] = np.int32(np.int32(first + first_place[j]) + y)
    for j in range(columns):
      entries[i * columns + j] = codes[places[j]]
      total += parts[places[j]]
    if largest > nearest:
      for j in range(columns):
        y = np.int64(symbols[i, j])
        limit = limits[row_class[i] + column_class[j]]
        if y > limit or y < -limit:
          if count < excess.size:
            excess[count] = y - limit if y > 0 else y + limit
          count += 1
  return count, total


@_compiled
def _encode(states, entries, words, position):
  width, place = states.size, np.uint64(position)
  limit = np.uint32(32 - PRECISION)
  complement = np.uint32(1 << PRECISION)
  pending = np.empty(width, np.uint32)
  for row in range((entries.size - 1) // width * width, -1, -width):
    count = min(width, entries.size - row)
    for lane in range(count):
      entry, x = entries[row + lane], states[lane]
      frequency = entry >> _SIXTEEN
      is_full = x >= np.uint32(frequency << limit)
      pending[lane] = (x & _LOW) | np.uint32(np.uint32(is_full) << _SIXTEEN)
      x = np.uint32(x >> _SIXTEEN) if is_full else x
      # Exact: a double holds more bits than x and the frequency together.
      quotient = np.uint32(np.float64(x) / np.float64(frequency))
      # x // f * 2**14 + x % f + start.
      x += np.uint32(quotient * np.uint32(complement - frequency))
      states[lane] = np.uint32(x + (entry & _LOW))
    # A word is always written, and the place moves only if it is needed.
    for lane in range(count):
      word = pending[np.uint64(count - 1 - lane)]
      words[np.uint64(place - _ONE)] = word
      place = np.uint64(place - np.uint64(word >> _SIXTEEN))
  return place


@_compiled
def _decode(
  states, words, size, position, places, entries, symbols, numbers, out
):
  width, place = states.size, np.uint64(position)
  number, last = np.uint32(0), np.uint64(words.size - 1)
  found = np.empty(width, np.uint32)
  for row in range(0, out.size, width):
    count = min(width, out.size - row)
    for lane in range(count):
      if numbers is not None:
        number = np.uint32(numbers[row + lane])
      symbol = places[number, states[lane] & _MASK]
      found[lane] = entries[number, symbol]
      out[row + lane] = symbols[number, symbol]
    for lane in range(count):
      x, entry = states[lane], found[lane]
      slot = (x & _MASK) - (entry & _LOW)
      states[lane] = np.uint32((entry >> _SIXTEEN) * (x >> _SHIFT) + slot)
    # A word is always read, and the place moves only if it is needed.
    for lane in range(count):
      found[lane] = words[min(place, last)]
      place = np.uint64(place + np.uint64(states[lane] < _FLOOR))
    for lane in range(count):
      x = states[lane]
      longer = np.uint32((x << _SIXTEEN) | found[lane])
      states[lane] = longer if x < _FLOOR else x
    if place > size:
      return -1
  return np.int64(place)


@_compiled
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
  lane, machine = 0, done % count
  for i in range(out.size):
    x, state = states[lane], machines[machine]
    number = np.uint32(state & 1)
    if numbers is not None:
      number = np.uint32(number + numbers[i])
    slot = x & _MASK
    place = places[number, slot]
    entry = entries[number, place]
    symbol = symbols[number, place]
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
