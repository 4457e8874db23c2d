"""The distribution of a tensor's values that the index reports."""

import math

import numpy as np

from backslash_jax import sampling

NU_RANGE = (0.1, 8.0)
_SAMPLE = 1 << 18
_ALPHA_LIMITS = (1e-308, 1e308)  # Of float64, after rounding to three digits.


def shape_and_scale(values: np.ndarray) -> tuple[float | None, float | None]:
  """nu and alpha of the generalized Gaussian that has the values' moments.

  The moments are the means of |x| and x^2, in float64. Of a tensor of more than
  2**18 values, so many are sampled.

  Args:
    values: finite numbers, of at least one axis; the first one is the rows.

  Returns:
    nu, clamped to NU_RANGE, and alpha, in the unit of the values, both to three
    digits; None and None if all values are zero or there are none.
  """
  flat = values.reshape(-1)[sampling.strata(values.size, _SAMPLE)]
  flat = flat.astype(np.float64)
  scale = float(np.abs(flat).max(initial=0.0))
  if scale == 0:
    return None, None
  flat = np.abs(flat / scale)
  ratio = math.log(np.square(flat).mean() / flat.mean() ** 2)

  def excess(nu):
    a, b, c = (math.lgamma(k / nu) for k in (1, 2, 3))
    return a + c - 2 * b - ratio

  low, high = NU_RANGE
  for _ in range(40):  # The ratio of the moments falls as nu grows.
    middle = (low + high) / 2
    low, high = (middle, high) if excess(middle) > 0 else (low, middle)
  gammas = math.lgamma(1 / low) - math.lgamma(2 / low)
  alpha = scale * float(flat.mean()) * math.exp(gammas)
  alpha = min(max(alpha, _ALPHA_LIMITS[0]), _ALPHA_LIMITS[1])
  return float(f"{low:.3g}"), float(f"{alpha:.3g}")
