"""What the grid points of the Gaussian cost, for encoders that compare them.

The same sums as in `frequencies`, in floating point and without the roundings,
which is faster. Not part of the file format.
"""

import functools
import math

import numpy as np

from backslash_jax.coding import frequencies
from backslash_jax.coding.lanes import PRECISION

_FINE = 16  # Bins below it are summed at 8 points, the others at one.
_TOTAL = 1 << PRECISION


@functools.lru_cache(8192)
def costs(nu: int, alpha: int, tail: int = 0) -> np.ndarray:
  """Bits of each magnitude from 0 to LARGEST + 1, escapes estimated."""
  shares = _shares(nu, alpha)
  known = 1 + np.count_nonzero(shares[1:] >= 0.5 / _TOTAL)
  free = _TOTAL - 2 * known + 1 - (1 << tail)
  units = shares[:known] * free + 1
  beyond = max(1 - shares[0] - 2 * shares[1:known].sum(), 0.0)
  escape = PRECISION - math.log2(beyond * free + (1 << tail))
  bits = np.empty(frequencies.LARGEST + 2)
  bits[:known] = PRECISION - np.log2(units)
  bits[known:] = escape + _EXCESS[: bits.size - known]
  bits.setflags(write=False)
  return bits


@functools.lru_cache(8192)
def mean_magnitude(nu: int, alpha: int) -> float:
  """The expectation of |symbol|."""
  shares = _shares(nu, alpha)
  return float(2 * (shares @ np.arange(shares.size)))


def _shares(nu: int, alpha: int) -> np.ndarray:
  """The probability of zero and of each magnitude of one sign."""
  shape, scale = frequencies.nu_value(nu), frequencies.alpha_value(alpha)
  reach = scale * 20.0 ** (1 / shape)
  bins = int(min(reach + 2, frequencies.LARGEST + 1))
  logs, starts = _points()
  starts = starts[: max(bins - 1, 1)]
  logs = logs[: starts[-1] + (8 if starts.size < _FINE else 1)]
  density = np.exp(-np.exp2(shape * (logs - alpha / 16)))
  masses = np.add.reduceat(density, starts)
  masses[: _FINE - 1] /= 8
  half = scale * math.gamma(1 + 1 / shape) if shape > 0.1 else math.inf
  shares = np.concatenate([[0.0], masses / (2 * half)])
  # The rest is zero's: a cusp there does not matter.
  shares[0] = max(1 - 2 * shares.sum(), 1e-6)
  return shares


@functools.cache
def _points() -> tuple[np.ndarray, np.ndarray]:
  """log2 of the abscissae above the zero bin, and where each bin begins."""
  fine = np.arange(1, _FINE)[:, None] - 0.5 + np.arange(1, 17, 2) / 16
  outer = np.arange(_FINE, frequencies.LARGEST + 1)
  starts = np.concatenate(
    [8 * np.arange(_FINE - 1), fine.size + np.arange(outer.size)]
  )
  return np.log2(np.concatenate([fine.ravel(), outer])), starts


# An excess of n steps takes about so many bits of an exp-Golomb code.
_EXCESS = 1.5 * np.log2(np.arange(1.0, frequencies.LARGEST + 3)) + 3
