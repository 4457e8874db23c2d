"""Uniform quantizers: which integers stand for a tensor, after training."""

import numpy as np


def quantize(x: np.ndarray, step: float) -> np.ndarray:
  """The int32 multiples of `step` nearest to `x`, ties to even.

  Raises:
    ValueError: if a value is not finite or its multiple is outside int32.
  """
  check_step(step)
  x = np.asarray(x)
  wide = np.float64 if x.dtype.itemsize > 4 else np.float32
  mantissa, _ = np.frexp(step)
  if mantissa != 0.5 or not 2.0**-126 <= step <= 2.0**126:
    wide = np.float64  # Only a power of two divides exactly in float32.
  with np.errstate(over="ignore"):
    levels = np.divide(x, step, dtype=wide)
  np.rint(levels, out=levels)
  if not np.abs(levels).max(initial=0.0) < 2**31:
    _raise(x, step)
  return levels.astype(np.int32)


def dequantize(symbols: np.ndarray, step: float, dtype) -> np.ndarray:
  """symbols * step in float64, rounded to `dtype` (through float32 if narrow).

  The result is the same on every platform: one exact product, then the
  roundings of IEEE 754.
  """
  values = symbols.astype(np.float64)
  with np.errstate(over="ignore"):
    values *= step
    if np.dtype(dtype).itemsize < 4:
      values = values.astype(np.float32)
    return values.astype(dtype)


def check_step(step: float) -> None:
  """ValueError unless `step` is a positive finite number."""
  if not (np.isfinite(step) and step > 0):
    raise ValueError(f"step is {step}: it must be positive and finite")


def _raise(x: np.ndarray, step: float):
  """Says what is wrong with a tensor that has no int32 levels."""
  bad = np.count_nonzero(~np.isfinite(x))
  if bad:
    raise ValueError(f"{bad} of {x.size} values are NaN or infinite")
  worst = x.flat[int(np.argmax(np.abs(x)))]
  raise ValueError(
    f"the value {worst} is more than 2**31 - 1 steps of {step}: "
    "take a larger step or leave this tensor out"
  )
