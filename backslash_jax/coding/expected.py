"""Code lengths and mean magnitudes expected under a generalized Gaussian.

Encoders compare grid points (see `frequencies`) with them. The sums are those
of `frequencies`, but in floating point and not rounded, which is faster.
They are not part of the file format.
"""

import functools
import math

import numpy as np

from backslash_jax.coding import frequencies
from backslash_jax.coding.frequencies import PRECISION

_FINE = 16  # Bins below this one are summed at 8 points, the others at one.
_OCTAVES = 24  # Of the zero bin, each summed at 8 points.
_TOTAL = 1 << PRECISION


@functools.lru_cache(8192)
def costs(
  nu_index: int, alpha_index: int, tail: int = 0, *, odd: bool = False
) -> np.ndarray:
  """Bits of each magnitude, sign included, float64 [LARGEST + 2], read-only.

  The last one is that of all larger magnitudes. Bits of escaped magnitudes are
  estimates. `odd` as for frequencies.one_sided.
  """
  shares = _shares(nu_index, alpha_index, odd)
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
def mean_magnitude(nu_index: int, alpha_index: int) -> float:
  """The expected |symbol|."""
  shares = _shares(nu_index, alpha_index)
  return float(2 * (shares @ np.arange(shares.size)))


def _shares(nu_index: int, alpha_index: int, odd: bool = False) -> np.ndarray:
  """The probability of zero and of each magnitude of one sign.

  They add up to 1: what the density has beyond LARGEST is left out, as in
  `frequencies`. With a small nu it may be most of it.
  """
  shape = frequencies.nu_value(nu_index)
  scale = frequencies.alpha_value(alpha_index)
  reach = scale * 20.0 ** (1 / shape)
  bins = int(min(reach + 2, frequencies.LARGEST + 1))
  logs, weights, starts = _points()
  starts = starts[: max(bins, 2)]
  points = starts[-1] + (8 if starts.size <= _FINE else 1)
  density = np.exp(-np.exp2(shape * (logs[:points] - alpha_index / 16)))
  density *= weights[:points]
  if odd:
    masses = frequencies.odd_bins(density, starts, _FINE)
  else:
    masses = np.add.reduceat(density, starts)
  return masses / (masses[0] + 2 * masses[1:].sum())


@functools.cache
def _points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """log2 of the sample points, their weights, and the first of each bin.

  The zero bin, where the density may peak, is summed by octaves.
  """
  eighths = np.arange(1, 17, 2) / 16
  octaves = -1.0 - np.arange(1, _OCTAVES + 1)
  inner = np.exp2(octaves)[:, None] * (1 + eighths)
  fine = np.arange(1, _FINE)[:, None] - 0.5 + eighths
  outer = np.arange(_FINE, frequencies.LARGEST + 1)
  weights = (
    np.repeat(np.exp2(octaves) / 4, 8),  # Of both signs.
    np.full(fine.size, 1 / 8),
    np.ones(outer.size),
  )
  starts = (
    [0],
    inner.size + 8 * np.arange(_FINE - 1),
    inner.size + fine.size + np.arange(outer.size),
  )
  logs = np.log2(np.concatenate([inner.ravel(), fine.ravel(), outer]))
  return logs, np.concatenate(weights), np.concatenate(starts)


# About the bits that an exp-Golomb code takes for an excess of 1, 2, ...
_EXCESS = 1.5 * np.log2(np.arange(1.0, frequencies.LARGEST + 3)) + 3
