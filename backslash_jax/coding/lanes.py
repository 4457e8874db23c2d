"""Interleaved rANS: many 32-bit states that share one stream of 16-bit words.

Symbols are coded in rows, one symbol per lane. A row does not cross the border
between two segments. When a decoder's states fall below 2**16, they take the
next words of the stream, in the order of the lanes. A symbol's entry is
frequency << 16 | start, out of 2**14.

A lane costs the 32 bits of its state. Retiring lanes wins most of them back:
near the end of the stream all but an eighth of the lanes retire, and the low
half of a retired state becomes the next word of the stream. The encoder runs
backwards, so for it a new lane starts from a word that an older lane wrote.
"""

import numpy as np

from backslash_jax.coding import loops, models
from backslash_jax.coding.loops_numpy import FLOOR

MAX_LANES = 4096


def survivors(lanes: int) -> int:
  """How many of the lanes code the end of the stream."""
  return max(lanes >> 3, 1)


def encode(
  segments: list[np.ndarray], lanes: int, tail: int
) -> tuple[np.ndarray, np.ndarray]:
  """Encodes segments of symbols.

  Args:
    segments: the uint32 entries of the symbols of each segment.
    lanes: number of lanes, 1 to MAX_LANES.
    tail: how many symbols at the end the surviving lanes code alone. These must
      have about 16 * lanes bits: a word for each lane that retires.

  Returns:
    The states that the decoder starts from, uint32 [lanes], and the words that
    it reads, uint16.

  Raises:
    ValueError: if the tail has too few bits.
  """
  total = sum(segment.size for segment in segments)
  rows = loops.choose(total)
  words = np.empty(total + lanes, np.uint16)
  position = words.size
  few = survivors(lanes)
  states = np.full(lanes, FLOOR, np.uint32)
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
  """Decodes a stream, segment by segment.

  Every method raises ValueError if no encoder makes such a stream.
  """

  def __init__(
    self, states: np.ndarray, words: np.ndarray, tail: int, total: int
  ):
    self._states = states.astype(np.uint32)
    self._words = words.astype(np.uint16)
    self._position = 0
    self._few = survivors(states.size)
    self._head = total - tail
    self._left = total
    self._rows = loops.choose(total)
    if (self._states < FLOOR).any():
      raise ValueError("a state below 2**16")

  def segment(
    self,
    decoding: models.Decoding,
    numbers: np.ndarray | None,
    size: int,
    machines: np.ndarray | None = None,
  ) -> np.ndarray:
    """Decodes the next `size` symbols, int16 [size].

    Args:
      decoding: the tables.
      numbers: uint8 [size], the number of each symbol's table; None means 0.
      size: number of symbols.
      machines: of a trellis, the states of its machines, uint8, changed in
        place. If one has the odd quantizer, the symbol's table is the next one.
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
      own = None if numbers is None else numbers[done:stop]
      common = (self._states[:width], self._words, self._position, decoding)
      if machines is None:
        self._position = self._rows.decode_rows(*common, own, out[done:stop])
      else:
        self._position = self._rows.decode_trellis(
          *common, own, out[done:stop], machines, done
        )
      self._head -= part
      self._left -= part
      done = stop
    return out

  def finish(self) -> None:
    """Checks that all words are used and all states are the encoder's first."""
    if self._states.size > self._few:
      self._retire()
    if self._left or self._position != self._words.size:
      raise ValueError("words are left over")
    if (self._states != FLOOR).any():
      raise ValueError("the last states are not the encoder's first")

  def _retire(self):
    retired = self._states[self._few :]
    if (retired >> 16 != 1).any():
      raise ValueError("a lane retires in a state that no encoder starts from")
    low = (retired & 0xFFFF).astype(np.uint16)
    self._words = np.concatenate([low, self._words[self._position :]])
    self._position = 0
    self._states = self._states[: self._few].copy()


def _spawn(states, few, words, position):
  """Starts the new lanes from the words that the decoder would read next."""
  count = states.size - few
  if words.size - position < count:
    raise ValueError("too few words for so many lanes: take a longer tail")
  states[few:] = words[position : position + count]
  states[few:] += np.uint32(FLOOR)
  return position + count
