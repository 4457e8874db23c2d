"""The exact code length: its gradient, and that it is what a code pays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backslash_jax as bs
from backslash_jax import code_length, ggd

STEP = 0.02
# Off the cusp at half a step, where the slope of the gradient is infinite.
X = STEP * np.concatenate([np.arange(0.03, 12, 0.17), [20.0, 100.0]])
_gradient = jax.jit(code_length.gradient)
_want = jax.jit(jax.grad(code_length.value))
_lengths = jax.jit(jax.vmap(code_length.value, in_axes=(0, None, None, None)))


@pytest.mark.parametrize("nu", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_gradient_is_that_of_the_value(nu, alpha):
  alpha *= STEP
  # Further out the probability is no float32.
  x = jnp.asarray(np.where((X / alpha) ** nu < 50, X, 0.0), jnp.float32)
  got = _gradient(x, nu, alpha, STEP)
  want = _want(x, nu, alpha, STEP)
  np.testing.assert_allclose(got, want, atol=0.02 * float(jnp.max(want)))
  np.testing.assert_array_equal(_gradient(-x, nu, alpha, STEP), -got)


@pytest.mark.parametrize("nu", [0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [1e-6, 1e-2, 1.0, 1e3])
def test_it_is_finite_and_vanishes_at_zero(nu, alpha):
  x = [0.0, 1e-9, 0.25, 0.5, 0.75, 1.0, 7.99, 8.0, 1e4, np.nan]
  pull = _gradient(STEP * jnp.array(x), nu, alpha * STEP, STEP)
  assert np.isfinite(pull[:-1]).all()
  assert pull[0] == 0.0
  assert np.isnan(pull[-1])


@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.3, 4.0])
def test_at_the_levels_it_is_what_an_ideal_code_pays(nu, alpha):
  levels = STEP * jnp.arange(-2000.0, 2001.0)
  lengths = _lengths(levels, nu, alpha * STEP, STEP)
  seen = jnp.isfinite(lengths)
  bits = jnp.sum(jnp.where(seen, 2.0**-lengths * lengths, 0.0))
  want = ggd.discrete_entropy(nu, alpha * STEP, STEP)
  np.testing.assert_allclose(bits, want, rtol=2e-3)


def test_the_transformation_prices_with_it():
  x = jnp.asarray(np.random.default_rng(0).laplace(scale=0.05, size=(64, 64)))
  params = {"a": x, "b": jnp.zeros((8, 8))}
  tx = bs.backslash(3.0, rate="code_length", scope="tensor", step=STEP)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, state = jax.jit(tx.update)(zero, tx.init(params), params)
  want = _want(x, state.shape[0], state.scale[0], STEP)
  scale = 3.0 / (64 * 64 + 64)
  np.testing.assert_allclose(
    updates["a"], scale * want, atol=0.02 * scale * float(jnp.max(want))
  )
  np.testing.assert_array_equal(updates["b"], 0.0)


def test_it_takes_no_epsilon():
  with pytest.raises(ValueError, match="None for code_length"):
    bs.backslash(1.0, rate="code_length", epsilon=0.1)
