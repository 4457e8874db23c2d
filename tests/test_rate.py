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
  alpha = rates.price_scale(nu, jnp.mean(jnp.abs(X)), epsilon)

  def value(x):
    return rates.value(x, rate, nu, alpha, epsilon=epsilon, step=0.02)

  expected = jax.jit(jax.grad(value))(X)
  got = rates.coefficient(rate, nu, alpha) * rates.direction(X, nu, epsilon)
  np.testing.assert_allclose(got, expected, rtol=2e-5)


@pytest.mark.parametrize("nu", [0.5, 1, 2, 0.7])
def test_zero_stays_zero_and_the_price_is_finite_there(nu):
  zeros = jnp.zeros(3, jnp.bfloat16)
  np.testing.assert_array_equal(rates.direction(zeros, nu, 2**-9), 0.0)
  alpha = rates.price_scale(nu, 0.0, 2**-9)
  assert np.isfinite(rates.coefficient("bits", nu, alpha))


def test_bits_are_what_the_generalized_gaussian_code_costs():
  # At a high rate the code length is the differential entropy - log2(step).
  nu, alpha, step = 0.8, 0.05, 2**-12
  x = bs.ggd.sample(jax.random.key(1), nu, alpha, (100_000,))
  m = bs.moments(x)
  scale = rates.price_scale(nu, m.abs_sum / m.count, step / 2)
  bits = rates.value(x, "bits", nu, scale, epsilon=step / 2, step=step)
  entropy = bs.ggd.discrete_entropy(nu, alpha, step)
  np.testing.assert_allclose(bits / x.size, entropy, rtol=5e-3)


def test_bits_do_not_change_with_the_units():
  def gradient(unit):
    alpha = rates.price_scale(0.7, jnp.mean(jnp.abs(X)) * unit, 0.01 * unit)
    direction = rates.direction(X * unit, 0.7, 0.01 * unit)
    return rates.coefficient("bits", 0.7, alpha) * direction

  np.testing.assert_allclose(gradient(1.0), 8 * gradient(8.0), rtol=1e-5)
