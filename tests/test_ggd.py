import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from backslash_jax import ggd

SHAPES = np.concatenate([np.linspace(0.1, 8.0, 41), [0.13, 0.5, 1.0, 2.0]])


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
  with jax.enable_x64(request.param == np.float64):
    yield request.param


def _tolerance(dtype):
  return 1e-9 if dtype == np.float64 else 1e-4


def test_moment_ratio_is_that_of_the_distribution(dtype):
  # scipy has the variance; E|x| is Gamma(2/nu) / Gamma(1/nu).
  nu = SHAPES.astype(dtype)
  expected = [
    stats.gennorm.var(b) * (stats.gengamma.mean(1 / b, b) ** -2)
    for b in nu.astype(np.float64)
  ]
  np.testing.assert_allclose(
    ggd.moment_ratio(nu), expected, rtol=_tolerance(dtype)
  )


@pytest.mark.parametrize("alpha", [0.003, 40.0])
def test_density_cdf_and_entropy_agree_with_scipy(dtype, alpha):
  nu, alpha = SHAPES.astype(dtype), dtype(alpha)
  peer = stats.gennorm(nu.astype(np.float64), scale=float(alpha))
  rtol = _tolerance(dtype)
  u = np.array([-4.0, -1.0, -0.3, 0.0, 0.01, 0.9, 2.0], dtype)
  x = (u * alpha)[:, None] * np.ones_like(nu)
  # The density, not its logarithm, which crosses zero.
  log_prob = jax.jit(ggd.log_prob)(x, *jnp.broadcast_arrays(nu[None], alpha))
  got = np.exp(np.asarray(log_prob, np.float64))
  reference = peer.pdf(x.astype(np.float64))
  np.testing.assert_allclose(got, reference, rtol=4 * rtol, atol=1e-30)
  cdf = jax.jit(ggd.cdf)(x, *jnp.broadcast_arrays(nu[None], alpha))
  reference = peer.cdf(x.astype(np.float64))
  np.testing.assert_allclose(cdf, reference, rtol=rtol, atol=1e-30)
  np.testing.assert_allclose(
    ggd.entropy(nu, alpha), peer.entropy() / np.log(2), rtol=rtol, atol=rtol
  )


def test_scale_matches_the_mean_magnitude(dtype):
  nu = SHAPES.astype(dtype)
  mean_abs = [0.7 * stats.gengamma.mean(1 / b, b) for b in nu.astype(float)]
  got = ggd.scale(nu, np.asarray(mean_abs, dtype))
  np.testing.assert_allclose(got, 0.7, rtol=10 * _tolerance(dtype))


@pytest.mark.optimized  # Near 8, the last bit of the ratio moves nu by 0.004.
def test_shape_from_ratio_inverts_under_jit_and_vmap():
  nu = jnp.linspace(0.1, 8.0, 300)
  inverse = jax.jit(jax.vmap(ggd.shape_from_ratio))
  np.testing.assert_allclose(inverse(ggd.moment_ratio(nu)), nu, atol=1e-3)


def test_shape_from_ratio_clamps_and_passes_nan():
  rho = jnp.array([0.0, 1.0, 4 / 3, 1e9, jnp.inf, jnp.nan])
  got = ggd.shape_from_ratio(rho)
  low, high = ggd.MIN_SHAPE, ggd.MAX_SHAPE
  np.testing.assert_allclose(got[:5], [high, high, high, low, low])
  assert np.isnan(got[5])


def test_discrete_entropy_is_that_of_the_bins():
  compared = 0
  nus, ratios = np.meshgrid(
    [0.13, 0.3, 0.7, 1.0, 1.5, 2.0, 5.0], [0.02, 0.2, 1.0, 7.0, 100.0]
  )
  got = jax.jit(ggd.discrete_entropy)(nus, ratios, np.ones_like(nus))
  for nu, ratio, bits in zip(
    nus.flat, ratios.flat, np.asarray(got).flat, strict=True
  ):
    edges = (np.arange(400_000) + 0.5) / ratio
    outside = 2 * stats.gennorm.sf(edges, nu)
    if outside[-1] > 1e-7:  # The sum would miss too much of the tail.
      continue
    half = (outside[:-1] - outside[1:]) / 2
    p = np.concatenate([[1 - outside[0]], half, half])
    expected = -np.sum(p[p > 0] * np.log2(p[p > 0]))
    np.testing.assert_allclose(bits, expected, rtol=1e-3, atol=1e-5)
    compared += 1
  assert compared > 25


def test_discrete_entropy_tends_to_the_differential_one_and_to_zero():
  nu = jnp.array([0.5, 1.0, 2.0, 1.0, 1.0, 1.0])
  alpha = jnp.array([1.0, 1.0, 1.0, 0.0, 1e-6, jnp.nan])
  step = jnp.array([2**-10] * 3 + [0.1, 1.0, 1.0])
  got = jax.jit(ggd.discrete_entropy)(nu, alpha, step)
  differential = ggd.entropy(nu[:3], alpha[:3]) + 10
  np.testing.assert_allclose(got[:3], differential, rtol=1e-3)
  np.testing.assert_array_equal(got[3:], [0.0, 0.0, np.nan])


def test_samples_follow_the_cdf():
  nus = jnp.array([0.4, 1.0, 2.0, 6.0])
  draw = jax.jit(ggd.sample, static_argnums=(3,))
  x = draw(jax.random.key(3), nus[:, None], 0.2, (4, 20_000))
  assert x.dtype == jnp.float32
  for nu, row in zip(nus, np.asarray(x), strict=True):
    result = stats.kstest(row, stats.gennorm(float(nu), scale=0.2).cdf)
    assert result.pvalue > 1e-3
