"""Integer frequencies of the quantized generalized Gaussian, for rANS.

The density exp(-|x / alpha|**nu), x in steps, is summed over each quantizer bin
in 64-bit integers. The encoder and the decoder must have exactly the same
frequencies, and integers are the same on every platform. The grid, the
roundings and the order of the operations are part of the file format
(docs/format.md).

Shape and scale lie on a grid. A point of it is a pair of integers, `nu_index`
and `alpha_index`, which stand for nu = 2**(nu_index / 8) and alpha =
2**(alpha_index / 16) steps. Finer grids do not reduce the code length.
"""

import functools
import math

import numpy as np

PRECISION = 14  # The frequencies of a table sum to 2**PRECISION.
NU_INDEX_RANGE = (-32, 32)
ALPHA_INDEX_RANGE = (-320, 176)
TAIL_RANGE = (0, 8)
LARGEST = 2047  # The largest magnitude with a frequency of its own.
_FINE = 32  # Bins below this one are summed at 8 points, the others at one.
_OCTAVES = 24  # The zero bin is summed by octaves: the density may peak there.
_ONE = 1 << 24  # Logarithms, powers and densities have 24 fractional bits.
_LN2 = 2977044471  # floor(ln 2 * 2**32)
_LOG2_LOG2_E = 8872266  # floor(log2(log2 e) * 2**24)


def nu_value(nu_index: int) -> float:
  """The shape nu that `nu_index` stands for."""
  return 2.0 ** (nu_index / 8)


def alpha_value(alpha_index: int) -> float:
  """The scale alpha, in steps, that `alpha_index` stands for."""
  return 2.0 ** (alpha_index / 16)


@functools.lru_cache(4096)
def one_sided(
  nu_index: int,
  alpha_index: int,
  tail: int,
  precision: int = PRECISION,
  *,
  odd: bool = False,
) -> np.ndarray:
  """The frequencies of the magnitudes 0, 1, ..., L and of the escape.

  A magnitude whose probability is less than half a unit is escaped.

  Args:
    nu_index: grid point of the shape, in NU_INDEX_RANGE.
    alpha_index: grid point of the scale, in ALPHA_INDEX_RANGE.
    tail: in TAIL_RANGE. The escape gets 2**tail units more than the density
      gives it, for values with heavier tails than the density.
    precision: log2 of the sum of the frequencies, 10 to 15.
    odd: of the odd quantizer of a trellis: magnitude k > 0 stands for the value
      k - 1/2. Its bin is that between k - 1 and k, without the bin of 0, which
      ends at 1/4.

  Returns:
    int64 [L + 2], read-only. The frequencies of 1 to L are those of one sign:
    f[0] + 2 * sum(f[1:-1]) + f[-1] is 2**precision.
  """
  # The sum of twice the bins of a wide density needs the 64th bit.
  masses = (_odd_masses if odd else _masses)(nu_index, alpha_index)
  masses = masses.astype(np.uint64)
  total = int(masses[0]) + 2 * int(masses[1:].sum())
  largest = np.count_nonzero(masses[1:] >= total >> (precision + 1))
  largest = min(largest, (1 << (precision - 2)) - 1)
  free = (1 << precision) - 2 * largest - 1 - (1 << tail)
  reduce = max(total.bit_length() - 48, 0)
  tails = np.append(np.cumsum(masses[:0:-1])[::-1], np.uint64(0))
  tails = tails[: largest + 1] >> reduce
  units = tails.astype(np.int64) * free // (total >> reduce)
  frequencies = np.empty(largest + 2, np.int64)
  frequencies[1:-1] = units[:-1] - units[1:] + 1
  frequencies[-1] = 2 * units[-1] + (1 << tail)
  frequencies[0] = free - 2 * units[0] + 1
  frequencies.setflags(write=False)
  return frequencies


def _masses(nu_index: int, alpha_index: int) -> np.ndarray:
  """The density summed over the zero bin and the positive bins, int64.

  Bins at the end whose sum is zero are left out.
  """
  density, starts = _densities(nu_index, alpha_index)
  return np.add.reduceat(density, starts)


def _odd_masses(nu_index: int, alpha_index: int) -> np.ndarray:
  """Twice the same of the bins of the odd quantizer."""
  return odd_bins(*_densities(nu_index, alpha_index), _FINE)


def odd_bins(density: np.ndarray, starts: np.ndarray, fine: int) -> np.ndarray:
  """Twice the sums over the bins of the odd quantizer, from halves of bins.

  Args:
    density: at the sample points, weighted: 8 for each octave of the zero bin,
      both signs together; 8 for each bin below `fine`; one for each other bin.
    starts: the first point of each bin.
    fine: the first bin with one point.
  """
  stop = starts[1] + 8 * min(starts.size - 1, fine - 1)
  halves = [
    density[:8].sum(keepdims=True),  # One side of the octave from 1/4 to 1/2.
    2 * density[starts[1] : stop].reshape(-1, 4).sum(1),
    np.repeat(density[stop:], 2),
  ]
  bins = np.concatenate(halves)[:-1].reshape(-1, 2).sum(1)
  return np.append(2 * density[8 : starts[1]].sum(), bins)


def _densities(nu_index: int, alpha_index: int):
  """The weighted densities at the sample points, and each bin's first point."""
  logarithms, weights, starts = _points()
  # Where the exponent has more than 25 bits the density is exactly zero.
  reach = alpha_value(alpha_index) * 20.0 ** (1 / nu_value(nu_index))
  bins = min(int(min(reach, LARGEST)) + _FINE + 1, LARGEST + 1)
  starts = starts[:bins]
  points = starts[-1] + 1
  logarithms, weights = logarithms[:points], weights[:points]
  slope = _root(160 + nu_index, 3)  # nu with 20 fractional bits.
  exponent = ((logarithms - (alpha_index << 20)) * slope) >> 20
  exponent += _LOG2_LOG2_E
  power = _exp2(np.clip(exponent, -40 * _ONE, 6 * _ONE - 1))
  return _exp2(-power) * weights, starts


@functools.cache
def _points():
  """log2 of the sample points, their weights, and the first of each bin."""
  eighths = np.arange(1, 17, 2)
  octaves = np.arange(1, _OCTAVES + 1)
  inner = _log2(16 + eighths)[None] - ((octaves[:, None] + 5) << 24)
  fine = np.arange(1, _FINE)
  middle = _log2((16 * fine[:, None] - 8 + eighths[None]).ravel()) - (4 << 24)
  outer = _log2(np.arange(_FINE, LARGEST + 1))
  weights = np.repeat(1 << (_OCTAVES - octaves + 1), 8)
  parts = (
    weights,
    np.full(middle.size, 1 << (_OCTAVES + 1)),
    np.full(outer.size, 8 << (_OCTAVES + 1)),
  )
  starts = np.concatenate(
    [
      [0],
      inner.size + 8 * np.arange(_FINE - 1),
      inner.size + middle.size + np.arange(outer.size),
    ]
  )
  return (
    np.concatenate([inner.ravel(), middle, outer]),
    np.concatenate(parts),
    starts,
  )


def _log2(integers: np.ndarray) -> np.ndarray:
  """log2 of positive integers below 2**31, with 24 fractional bits."""
  whole = np.frexp(integers.astype(np.float64))[1].astype(np.int64) - 1
  y = (integers.astype(np.int64) << (31 - whole)).astype(np.uint64)
  result = whole
  for _ in range(24):
    y = (y * y) >> 31
    carry = y >> 32
    y >>= carry
    result = (result << 1) | carry.astype(np.int64)
  return result


def _exp2(x: np.ndarray) -> np.ndarray:
  """2**x for x below 6, both with 24 fractional bits."""
  whole, fraction = x >> 24, x & (_ONE - 1)
  top = _mantissas()[fraction >> 16]
  e = ((fraction & 0xFFFF) * _LN2) >> 32
  mantissa = top + ((top * (e + ((e * e) >> 25))) >> 24)
  return mantissa >> np.minimum(6 - whole, 62)


@functools.cache
def _mantissas() -> np.ndarray:
  """floor(2**(30 + i / 256)) for i from 0 to 255."""
  return np.array([_root(256 * 30 + i, 8) for i in range(256)])


def _root(exponent: int, halvings: int) -> int:
  """floor(2**(exponent / 2**halvings)), exactly."""
  value = 1 << exponent
  for _ in range(halvings):
    value = math.isqrt(value)
  return value
