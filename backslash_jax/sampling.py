"""Samples that nothing periodic can mislead."""

import numpy as np


def strata(size: int, count: int) -> np.ndarray:
  """Indices of a sample, one from each of `count` equal parts of a range.

  Where in its part an index lies follows multiples of the golden ratio, modulo
  one. They are spread evenly, and no integer period of the data, such as
  interleaved rows of two kinds, can meet them (Weyl 1916).

  Args:
    size: of the range.
    count: how many; all of the range if that is fewer.

  Returns:
    int64, increasing, the same on every platform.
  """
  if count >= size:
    return np.arange(size)
  part = np.arange(count)
  starts = part * size // count
  widths = (part + 1) * size // count - starts
  # The fraction of 2^64, then of 2^32, which leaves room for the product.
  place = part.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
  place = (place >> np.uint64(32)).astype(np.int64)
  return starts + (place * widths >> 32)
