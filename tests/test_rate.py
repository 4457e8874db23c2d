import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backslash_jax as bs
from backslash_jax import rate as rates

X = jax.random.normal(jax.random.key(0), (37, 5)) * 0.05


@pytest.mark.parametrize("rate", rates.RATES)
@pytest.mark.parametrize("nu", [0.5, 1, 2.0, np.float32(0.3), np.float32(1.4)])
def test_gradient_is_that_of_the_value_with_the_fit_held(rate, nu):
  epsilon = 0.01
  alpha = rates.scale(nu, jnp.mean(jnp.abs(X)), epsilon)

  def value(x):
    return rates.RATES[rate].value(x, nu, alpha, epsilon, 0.02)

  expected = jax.jit(jax.grad(value))(X)
  got = rates.RATES[rate].gradient(X, nu, alpha, epsilon)
  np.testing.assert_allclose(got, expected, rtol=2e-4)


@pytest.mark.parametrize("nu", [0.5, 1, 2, 0.7])
def test_zero_stays_zero_and_the_price_is_finite_there(nu):
  zeros = jnp.zeros(3, jnp.bfloat16)
  np.testing.assert_array_equal(rates.direction(zeros, nu, 2**-9), 0.0)
  alpha = rates.scale(nu, 0.0, 2**-9)
  gradient = rates.RATES["bits"].gradient(jnp.ones(3), nu, alpha, 2**-9)
  assert np.all(np.isfinite(gradient))


def test_bits_are_what_the_generalized_gaussian_code_costs():
  # At a high rate the code length is the differential entropy - log2(step).
  nu, alpha, step = 0.8, 0.05, 2**-12
  x = bs.ggd.sample(jax.random.key(1), nu, alpha, (100_000,))
  m = bs.moments.moments(x)
  scale = rates.scale(nu, m.abs_sum / m.count, step / 2)
  bits = rates.RATES["bits"].value(x, nu, scale, step / 2, step)
  entropy = bs.ggd.discrete_entropy(nu, alpha, step)
  np.testing.assert_allclose(bits / x.size, entropy, rtol=5e-3)


def test_bits_do_not_change_with_the_units():
  def gradient(unit):
    alpha = rates.scale(0.7, jnp.mean(jnp.abs(X)) * unit, 0.01 * unit)
    return rates.RATES["bits"].gradient(X * unit, 0.7, alpha, 0.01 * unit)

  np.testing.assert_allclose(gradient(1.0), 8 * gradient(8.0), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-24, 1.0, 1e15])
@pytest.mark.parametrize("nu", [0.1, 0.7, 8.0])
def test_bits_are_finite_at_any_scale(size, nu):
  alpha = rates.scale(nu, jnp.mean(jnp.abs(X)) * size, 0.0)
  gradient = rates.RATES["bits"].gradient(X * size, nu, alpha, 0.0)
  assert np.all(np.isfinite(gradient))
  assert np.any(gradient)


@pytest.mark.parametrize("nu", [0.4, 1, 2, 3.0])
@pytest.mark.parametrize("alpha", [None, 0.3])
def test_direction_has_the_derivative_of_its_formula(nu, alpha):
  def formula(x):
    return jnp.sign(x) * ((jnp.abs(x) + 0.01) / (alpha or 1.0)) ** (nu - 1)

  def found(x):
    return rates.direction(x, nu, 0.01, alpha)

  x = jnp.abs(X) + 0.01
  got = jax.vmap(jax.grad(found))(x.ravel())
  expected = jax.vmap(jax.grad(formula))(x.ravel())
  np.testing.assert_allclose(got, expected, rtol=3e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("nu", "error"), [(0.1, 2e-4), (2.0, 2e-4), (8.0, 6e-4)]
)
def test_power_on_a_cpu_has_the_stated_error_and_no_bias(nu, error):
  x = np.geomspace(2.0**-16, 2.0**16, 100_001, dtype=np.float32)
  expected = x.astype(np.float64) ** (np.float64(np.float32(nu)) - 1.0)
  got = jax.jit(rates.direction)(x, jnp.float32(nu), 0.0)
  relative = got / expected - 1.0
  assert np.max(np.abs(relative)) < error
  assert np.abs(np.mean(relative)) < error / 10


def test_power_on_an_accelerator_is_exact():
  def lowered(platform):
    traced = jax.jit(rates.direction).trace(X, jnp.float32(0.7), 0.01)
    return traced.lower(lowering_platforms=(platform,)).as_text()

  assert "stablehlo.power" in lowered("tpu")
  assert "stablehlo.power" not in lowered("cpu")
  np.testing.assert_allclose(
    rates._exact_power(np.float32([1e-3, 0.5, 40.0]), np.float32(-0.3)),
    np.array([1e-3, 0.5, 40.0]) ** -0.3,
    rtol=1e-6,
  )
