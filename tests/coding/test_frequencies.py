"""The integer frequencies are those of the generalized Gaussian, everywhere."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from backslash_jax.coding import expected, frequencies

_GRID = [
  (nu, alpha) for nu in range(-16, 33, 8) for alpha in range(-64, 97, 32)
]


@pytest.mark.parametrize("precision", [10, 12, 14, 15])
@pytest.mark.parametrize("tail", [0, 3, 8])
@pytest.mark.parametrize(("nu", "alpha"), _GRID)
def test_they_fill_the_table(nu, alpha, tail, precision):
  if tail > precision - 3:
    return
  f = frequencies.one_sided(nu, alpha, tail, precision)
  assert f[0] + 2 * f[1:-1].sum() + f[-1] == 1 << precision
  assert f.min() >= 1
  assert f[-1] >= 1 << tail


@pytest.mark.parametrize("nu", [-16, 0, 32])
@pytest.mark.parametrize("alpha", [96, 163, 199])
def test_those_of_the_odd_quantizer_fill_it_too(nu, alpha):
  f = frequencies.one_sided(nu, alpha, 1, odd=True)
  assert f[0] + 2 * f[1:-1].sum() + f[-1] == 1 << frequencies.PRECISION
  assert f.min() >= 1


# Beyond these the tail passes the largest magnitude, and escapes take over.
@pytest.mark.parametrize(
  ("nu", "alpha"), [(n, a) for n, a in _GRID if n >= -8 and a <= 64]
)
def test_they_cost_little_more_than_the_true_probabilities(nu, alpha):
  shape, scale = frequencies.nu_value(nu), frequencies.alpha_value(alpha)
  f = frequencies.one_sided(nu, alpha, 0, 14)
  edges = np.append(0, np.arange(f.size - 1) + 0.5)
  below = stats.gennorm(shape, scale=scale).sf(edges)
  p = np.append(below[:-1] - below[1:], below[-1])
  p[0] *= 2
  p[-1] *= 2
  p[1:-1] *= 2
  q = f / 2.0**14
  q[1:-1] *= 2
  used = p > 1e-12
  divergence = float(p[used] @ np.log2(p[used] / q[used]))
  bits = -float(p[used] @ np.log2(p[used]))
  assert -1e-9 < divergence < 0.004 * bits + 5e-4


@pytest.mark.parametrize(("nu", "alpha"), [(0, 16), (8, 48), (-8, 16)])
def test_masses_agree_with_the_distribution(nu, alpha):
  masses = frequencies._masses(nu, alpha).astype(np.float64)
  p = masses / (masses[0] + 2 * masses[1:].sum())
  shape, scale = frequencies.nu_value(nu), frequencies.alpha_value(alpha)
  survival = stats.gennorm(shape, scale=scale).sf(np.arange(20) - 0.5)
  wanted = survival[:-1] - survival[1:]
  np.testing.assert_allclose(p[1:19], wanted[1:], rtol=3e-3)


@pytest.mark.parametrize(("nu", "alpha"), _GRID)
def test_those_of_the_odd_quantizer_fill_the_table(nu, alpha):
  for tail in (1, 8):
    f = frequencies.one_sided(nu, alpha, tail, odd=True)
    assert f[0] + 2 * f[1:-1].sum() + f[-1] == 1 << 14
    assert f.min() >= 1
    assert f[-1] % 2 == 0
    assert f[-1] >= 1 << tail


@pytest.mark.parametrize(("nu", "alpha"), [(0, 16), (8, 48), (-8, 16)])
def test_masses_of_the_odd_quantizer_agree_with_the_distribution(nu, alpha):
  """Its bins begin at 1/4, 1, 2, 3 and so on."""
  masses = frequencies._odd_masses(nu, alpha).astype(np.float64)
  p = masses / (masses[0] + 2 * masses[1:].sum())
  shape, scale = frequencies.nu_value(nu), frequencies.alpha_value(alpha)
  edges = np.append(0.25, np.arange(1.0, 20.0))
  survival = stats.gennorm(shape, scale=scale).sf(edges)
  wanted = survival[:-1] - survival[1:]
  np.testing.assert_allclose(p[1:19], wanted[:18], rtol=3e-3)
  f = frequencies.one_sided(nu, alpha, 1, odd=True)
  costs = expected.costs(nu, alpha, 1, odd=True)
  np.testing.assert_allclose(costs[:9], 14 - np.log2(f[:9]), atol=0.02)


def test_every_platform_has_the_same_tables_of_the_odd_quantizer():
  digest = hashlib.sha256()
  for nu in range(-32, 33, 6):
    for alpha in range(-320, 177, 14):
      f = frequencies.one_sided(nu, alpha, 1 + alpha % 8, odd=True)
      digest.update(f.astype("<i8").tobytes())
  # Legitimate to update only together with the format's version.
  assert digest.hexdigest() == (
    "de43e8c8ff5cff6f4e1cbae87ce3377d74acb3664f2928cfb3236b3e1f5cb994"
  )


def test_every_platform_has_the_same_tables():
  digest = hashlib.sha256()
  for nu in range(-32, 33, 3):
    for alpha in range(-320, 177, 7):
      f = frequencies.one_sided(nu, alpha, alpha % 9, 14)
      digest.update(f.astype("<i8").tobytes())
  # Legitimate to update only together with the format's version.
  assert digest.hexdigest() == (
    "2605ce840cd4bebfb02947c5a91cf89c827c2d099be3a88c43fcb528d323c4ae"
  )
