"""The integers of a tensor, and what they differ by from its values."""

from typing import NamedTuple

import numpy as np

from backslash_jax import quantize
from backslash_jax.archive.index import Entry
from backslash_jax.coding import loops
from backslash_jax.quantize import viterbi

BLOCK = 1 << 16  # Elements converted at once, to stay in cache.


class Distortion(NamedTuple):
  """What quantizing did to a tensor.

  Attributes:
    error: sum of the squared errors, in step^2.
    power: sum of the squared values, in step^2.
    nonzero: whether a value that comes back is not zero.
  """

  error: float = 0.0
  power: float = 0.0
  nonzero: bool = False

  @property
  def relative(self) -> float:
    """rms of the error / rms of the values; 0 if all values are zero."""
    return (self.error / self.power) ** 0.5 if self.power else 0.0

  @property
  def erased(self) -> bool:
    """Whether values that were not all zero are all zero now."""
    return self.power > 0 and not self.nonzero

  def __or__(self, other: "Distortion") -> "Distortion":
    """That of two parts of a tensor together."""
    return Distortion(
      self.error + other.error,
      self.power + other.power,
      self.nonzero or other.nonzero,
    )


def symbols(entry: Entry, array: np.ndarray, mu: float = 0.0) -> np.ndarray:
  """The int32 multiples of an entry's step for an array of its values.

  Args:
    entry: quantized.
    array: of any shape. With mu, its last axis is the columns of the model.
    mu: squared error in step^2 accepted per bit saved, see
      quantize.rate_distortion.

  Raises:
    ValueError: if a value has no multiple; it names the tensor.
  """
  assert entry.step is not None
  try:
    if mu:
      return quantize.rate_distortion(array, entry.step, mu)
    return quantize.quantize(array, entry.step)
  except ValueError as error:
    raise ValueError(f"tensor {entry.name!r}: {error}") from None


def trellis_symbols(entry: Entry, array: np.ndarray, mu: float) -> np.ndarray:
  """As `symbols`, of an entry with a trellis; these are int32 as well."""
  assert entry.step is not None
  try:
    return viterbi.symbols(array, entry.step, mu)
  except ValueError as error:
    raise ValueError(f"tensor {entry.name!r}: {error}") from None


def distortion(array: np.ndarray, levels: np.ndarray, step) -> Distortion:
  """What dequantized symbols differ by from the array they stand for.

  In units of the step that is given, so that no square overflows.
  """
  values, levels = array.reshape(-1), levels.reshape(-1)
  error, power, nonzero = 0.0, 0.0, False
  squares = loops.choose(values.size).squares
  for start in range(0, values.size, BLOCK):
    block = slice(start, start + BLOCK)
    x, y = values[block], quantize.dequantize(levels[block], step, array.dtype)
    nonzero = nonzero or bool(y.any())
    if x.dtype.itemsize < 4:
      x, y = x.astype(np.float32), y.astype(np.float32)
    own = squares(x, y, step)
    error, power = error + own[0], power + own[1]
  return Distortion(error, power, nonzero)
