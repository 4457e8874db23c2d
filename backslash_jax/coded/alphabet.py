"""The tuples that have an id of their own in a table, and the others."""

from typing import NamedTuple

import numpy as np

from backslash_jax.coded import streams

ID_BITS = 40  # Of an id: its frequency and its levels.
_FRACTIONS = (1, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0)


class Alphabet(NamedTuple):
  """The tuples that have an id of their own.

  Attributes:
    keys: uint32, ascending; see `keys`.
    frequency: of each, and last that of all others, the escape.
    bits: code length of the counted tuples, with the escapes' values and the
      alphabet itself.
  """

  keys: np.ndarray
  frequency: np.ndarray
  bits: float


def counted(keys: np.ndarray, rows: int):
  """The different tuples, how many there are, and the number of each tuple.

  Args:
    keys: unsigned integers, the low bytes of which are tuples.
    rows: of the tuples.
  """
  if rows > 2:
    known, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return known, counts, at.reshape(keys.shape)
  counts = np.bincount(keys.ravel(), minlength=1)
  known = np.flatnonzero(counts)
  number = np.zeros(counts.size, np.int32)
  number[known] = np.arange(known.size)
  return known.astype(np.uint32), counts[known], number[keys]


def best(keys: np.ndarray, counts: np.ndarray, price: float) -> Alphabet:
  """The best alphabet for tuples that occur `counts` times.

  Args:
    keys: the tuples, uint32.
    counts: of each.
    price: bits of an escaped tuple beside its id.
  """
  order = np.argsort(-counts, kind="stable")
  keys, counts = keys[order], counts[order]
  most = min(keys.size, streams.MAX_IDS - 1)
  sums = np.cumsum(counts)
  best = None
  for size in sorted({max(int(most * f), 1) for f in _FRACTIONS}):
    rest = int(sums[-1] - sums[size - 1])
    frequency = streams.frequencies(np.append(counts[:size], max(rest, 1e-3)))
    own = streams.bits(np.append(counts[:size], rest), frequency)
    own += price * rest + ID_BITS * size
    if best is None or own < best[0]:
      best = own, size, frequency
  assert best is not None
  bits, size, frequency = best
  order = np.argsort(keys[:size])
  frequency = np.append(frequency[:-1][order], frequency[-1])
  return Alphabet(keys[:size][order], frequency, bits)


def price(rows: int, itemsize: int) -> int:
  """About the bits of an escaped tuple beside its id."""
  return 8 * rows * (4 + itemsize)
