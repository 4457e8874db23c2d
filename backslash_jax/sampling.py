"""Sampling that is robust to periodic data."""

import numpy as np


def strata(size: int, count: int) -> np.ndarray:
  """Sample indices, one from each of `count` equal parts of range(size).

  The position of an index within its part is a multiple of the golden ratio,
  modulo one. These positions are evenly spread and cannot coincide with an
  integer period of the data, such as interleaved rows of two kinds (Weyl 1916).

  Args:
    size: size of the range.
    count: number of indices. If it is `size` or more, all indices are returned.

  Returns:
    int64 indices in increasing order, the same on every platform.
  """
  if count >= size:
    return np.arange(size)
  part = np.arange(count)
  starts = part * size // count
  widths = (part + 1) * size // count - starts
  # A fraction of 2^64, then of 2^32, so the product fits into int64.
  place = part.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
  place = (place >> np.uint64(32)).astype(np.int64)
  return starts + (place * widths >> 32)
