"""Many independent rANS streams, encoded side by side on the host.

Every lane has a 32-bit state and its own 16-bit words. A decoder takes the id
in the slot of its state, state % SLOTS, and then at most one word:

    state = frequency * (state // SLOTS) + slot - start
    if state < 2**16: state = state * 2**16 + word
"""

import numpy as np

PRECISION = 12
SLOTS = 1 << PRECISION
MAX_IDS = 256
FLOOR = 1 << 16
_BITS = PRECISION - np.log2(np.arange(1, SLOTS + 1))


def frequencies(counts: np.ndarray) -> np.ndarray:
  """Frequencies of 2 to MAX_IDS ids, each at least 1, that add up to SLOTS.

  Args:
    counts: how often each id occurs, not all 0.
  """
  share = counts / counts.sum() * SLOTS
  found = np.maximum(np.floor(share), 1).astype(np.int64)
  while (left := SLOTS - int(found.sum())) != 0:
    # What a unit more saves, or a unit less costs, in bits.
    if left > 0:
      order = np.argsort(-counts * np.log1p(1 / found), kind="stable")
      found[order[:left]] += 1
    else:
      cost = np.where(
        found > 1, -counts * np.log1p(-1 / np.maximum(found, 2)), np.inf
      )
      order = np.argsort(cost, kind="stable")
      can = int(np.isfinite(cost).sum())
      found[order[: min(-left, max(can // 2, 1))]] -= 1
  return found


def bits(counts: np.ndarray, frequency: np.ndarray) -> float:
  """The code length of ids that occur `counts` times."""
  return float(counts @ _BITS[frequency - 1])


def encode(
  symbols: np.ndarray, frequency: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Encodes lanes, each from its last symbol to its first.

  Args:
    symbols: int32 [steps, lanes], indices of the other two.
    frequency: uint32, of each symbol.
    start: uint32, sum of the frequencies before it in its table.

  Returns:
    The states that the decoder starts from, uint32 [lanes]; how many words each
    lane has, int64 [lanes]; and the words, uint16, lane after lane.
  """
  steps, lanes = symbols.shape
  state = np.full(lanes, FLOOR, np.uint32)
  words = np.empty([steps, lanes], np.uint16)
  taken = np.empty([steps, lanes], bool)
  for t in range(steps - 1, -1, -1):
    own = frequency[symbols[t]]
    np.greater_equal(state >> (32 - PRECISION), own, out=taken[t])
    words[t] = state
    state = np.where(taken[t], state >> 16, state)
    whole = state // own
    state = (whole << PRECISION) + (state - whole * own) + start[symbols[t]]
  return state, taken.sum(0), words.T[taken.T]
