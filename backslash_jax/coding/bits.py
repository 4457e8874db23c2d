"""Fields of varying width, packed from the least significant bit.

Field i occupies bits [o_i, o_i + width_i) of the string, where o_i is the sum
of the widths before it; bit j of the string is bit j % 8 of byte j // 8.
"""

import numpy as np

MAX_WIDTH = 33


def pack(values: np.ndarray, widths: np.ndarray) -> bytes:
  """Packs fields into ceil(sum of the widths / 8) bytes.

  Args:
    values: integers [n], each at least 0 and below 2**width.
    widths: integers [n], 0 to MAX_WIDTH.
  """
  widths = widths.astype(np.int64)
  ends = np.cumsum(widths)
  total = int(ends[-1]) if ends.size else 0
  offsets = ends - widths
  word = offsets >> 5
  # At most 33 bits, shifted by at most 31: both halves fit in one uint64.
  shifted = values.astype(np.uint64) << (offsets & 31).astype(np.uint64)
  count = (total + 31) // 32 + 1
  # The fields of a word are disjoint, so their float64 sum is exact.
  words = np.bincount(word, (shifted & 0xFFFFFFFF).astype(np.float64), count)
  words += np.bincount(word + 1, (shifted >> 32).astype(np.float64), count + 1)[
    :count
  ]
  return words.astype("<u4").tobytes()[: (total + 7) // 8]


def unpack(data: bytes | memoryview, widths: np.ndarray) -> np.ndarray:
  """Unpacks the fields of `data`, uint64 [n].

  Args:
    data: what `pack` returned.
    widths: integers [n], 0 to MAX_WIDTH.

  Raises:
    ValueError: if `data` is shorter or longer than the fields.
  """
  widths = widths.astype(np.int64)
  ends = np.cumsum(widths)
  total = int(ends[-1]) if ends.size else 0
  if len(data) != (total + 7) // 8:
    raise ValueError(f"{len(data)} bytes of fields, {total} bits wanted")
  offsets = ends - widths
  padded = np.zeros((total + 31) // 32 + 2, "<u4")
  padded.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
  words = padded.astype(np.uint64)
  index = offsets >> 5
  window = words[index] | (words[index + 1] << np.uint64(32))
  window >>= (offsets & 31).astype(np.uint64)
  return window & ((np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1))
