"""Interleaved rANS: many 32-bit states that share one stream of 16-bit words.

Symbols are coded in rows, one symbol per lane; a row never crosses the border
of two segments. A decoder's lane that falls below 2**16 takes the next word,
the lowest lane first. A symbol's entry is frequency << 16 | start, of 2**14.

A lane costs the 32 bits of its state. Most of that is won back: near the end of
the stream all but an eighth of the lanes retire, and the low half of a retired
state is the next word of the stream. (Seen from the encoder, which runs
backwards, a new lane starts from a word that an older one has emitted.)
"""

import importlib
import sys

import numpy as np

PRECISION = 14
MAX_LANES = 4096
_FLOOR = 1 << 16
_LARGE = 1 << 16  # Symbols that are worth the import of a compiler.
_BLOCK = 16  # Rows whose operands are prepared at once, to stay in cache.
_MASK = np.uint32((1 << PRECISION) - 1)
_LOW = np.uint32(0xFFFF)
_SHIFT = np.uint32(PRECISION)
_LIMIT = np.uint32(32 - PRECISION)
_SIXTEEN = np.uint32(16)


def survivors(lanes: int) -> int:
  """How many of the lanes go on to the end."""
  return max(lanes >> 3, 1)


def encode(
  segments: list[np.ndarray], lanes: int, tail: int
) -> tuple[np.ndarray, np.ndarray]:
  """Codes segments of uint32 entries.

  Args:
    segments: the entries of the symbols, segment by segment.
    lanes: 1 to MAX_LANES.
    tail: how many symbols at the end the surviving lanes code alone. They must
      emit a word for each lane that retires, so must have 16 * lanes bits.

  Returns:
    The uint32 states that the decoder starts from and its uint16 words.
  """
  total = sum(segment.size for segment in segments)
  rows = compiled(total) or sys.modules[__name__]
  words = np.empty(total + lanes, np.uint16)
  position = words.size
  few = survivors(lanes)
  states = np.full(lanes, _FLOOR, np.uint32)
  spawned = few == lanes
  stop = total
  for segment in reversed(segments):
    start = stop - segment.size
    split = min(max(total - tail - start, 0), segment.size)
    if split < segment.size:
      position = rows.encode_rows(
        states[:few], segment[split:], words, position
      )
    if split > 0:
      if not spawned:
        position = _spawn(states, few, words, position)
        spawned = True
      position = rows.encode_rows(states, segment[:split], words, position)
    stop = start
  if not spawned:
    position = _spawn(states, few, words, position)
  return states, words[position:]


class Decoder:
  """Takes a stream apart, segment by segment.

  Raises ValueError wherever the stream is not what an encoder makes.
  """

  def __init__(
    self, states: np.ndarray, words: np.ndarray, tail: int, total: int
  ):
    self._states = states.astype(np.uint32)
    # Retired states are written back before the words that are left.
    self._words = words.astype(np.uint16)
    self._position = 0
    self._few = survivors(states.size)
    self._head = total - tail
    self._left = total
    self._rows = compiled(total) or sys.modules[__name__]
    if (self._states < _FLOOR).any():
      raise ValueError("a state below 2**16")

  def segment(
    self,
    table: np.ndarray,
    symbols: np.ndarray,
    offsets: np.ndarray | None,
    size: int,
  ) -> np.ndarray:
    """The next `size` symbols.

    Args:
      table: uint32 frequency << 16 | (slot - start) by slot, and by table where
        there are several, end to end.
      symbols: int16 symbol by slot, alike.
      offsets: None, or the uint32 place of each symbol's table.
      size: how many.
    """
    out = np.empty(size, np.int16)
    done = 0
    while done < size:
      part = size - done
      if self._head > 0:
        part, width = min(part, self._head), self._states.size
      else:
        if self._states.size > self._few:
          self._retire()
        width = self._few
      stop = done + part
      self._position = self._rows.decode_rows(
        self._states[:width],
        self._words,
        self._position,
        table,
        symbols,
        None if offsets is None else offsets[done:stop],
        out[done:stop],
      )
      self._head -= part
      self._left -= part
      done = stop
    return out

  def finish(self) -> None:
    """Checks that the stream ends here, in the encoder's first state."""
    if self._states.size > self._few:
      self._retire()
    if self._left or self._position != self._words.size:
      raise ValueError("words are left over")
    if (self._states != _FLOOR).any():
      raise ValueError("the last states are not the encoder's first")

  def _retire(self):
    retired = self._states[self._few :]
    if (retired >> _SIXTEEN != 1).any():
      raise ValueError("a lane retires in a state that no encoder starts from")
    low = (retired & _LOW).astype(np.uint16)
    self._words = np.concatenate([low, self._words[self._position :]])
    self._position = 0
    self._states = self._states[: self._few].copy()


def compiled(size: int):
  """The module of compiled loops if numba is there and `size` worth it."""
  name = "backslash_jax.coding.compiled"
  if size < _LARGE and name not in sys.modules:
    return None
  try:
    return importlib.import_module(name)
  except ImportError:
    return None


def _spawn(states, few, words, position):
  """New lanes take the words that the decoder would read next."""
  count = states.size - few
  if words.size - position < count:
    raise ValueError("too few words for so many lanes: take a longer tail")
  states[few:] = words[position : position + count]
  states[few:] += np.uint32(_FLOOR)
  return position + count


def encode_rows(states, entries, words, position):
  """Codes one part's rows, the last first, and returns the new position."""
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


def decode_rows(states, words, position, table, symbols, offsets, out):
  """Decodes one part's rows into `out` and returns the new position."""
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
      empty = (x < _FLOOR).nonzero()[0]
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
