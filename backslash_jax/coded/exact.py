"""Levels to values, bit-equal to `bs.load`, in float32 arithmetic.

The file's value of a level is the float64 product of level and unit, rounded to
float32 and then to the tensor's dtype. A device computes

    float32(level * high + level * low)

where high + low is the unit to 48 bits, and high has so few that its product
is exact. The result is within a known distance of the exact product, so it is
the same float32 unless the product lies that near to a rounding boundary. The
host tests every level of the range. Where one fails, the values are looked up.
"""

from typing import Any

import numpy as np

from backslash_jax import quantize

DTYPES = ("float32", "bfloat16", "float16")
_BITS = 24  # Of the significand of float32.
# Far from the denormal numbers, which some devices flush to zero.
_SMALLEST, _LARGEST = 2.0**-80, 2.0**100


def scales(unit: float, lowest: int, highest: int) -> np.ndarray | None:
  """float32 (high, low) that give the values of a range; None if none do.

  Args:
    unit: what the levels are multiples of.
    lowest: the smallest level.
    highest: the largest level.
  """
  largest = max(abs(lowest), abs(highest), 1)
  bits = largest.bit_length()
  if not _SMALLEST < unit < _LARGEST / largest or bits > _BITS - 2:
    return None
  fraction, exponent = np.frexp(unit)
  high = np.float32(
    np.ldexp(np.rint(np.ldexp(fraction, _BITS - bits)), exponent - _BITS + bits)
  )
  low = np.float32(unit - float(high))
  exact = np.arange(lowest, highest + 1) * unit
  # The product with low, and the sum with it, may each be rounded once or not.
  error = (
    abs(float(low)) * 2.0**-23 + abs(unit - float(high) - float(low))
  ) / (unit) + 2.0**-52
  if low == 0:
    return np.array([high, low])
  below, above = exact * (1 - error), exact * (1 + error)
  if (below.astype(np.float32) != above.astype(np.float32)).any():
    return None
  return np.array([high, low])


def values(levels: np.ndarray, unit: float, dtype) -> np.ndarray:
  """The values of levels, as `bs.load` gives them."""
  return quantize.dequantize(levels, unit, dtype)


def dequantize(levels: Any, scale: Any, dtype) -> Any:
  """The same on a device: integer levels of any shape, scale of `scales`."""
  import jax.numpy as jnp

  levels = levels.astype(jnp.float32)
  return (levels * scale[0] + levels * scale[1]).astype(dtype)
