"""The generalized Gaussian distribution, as pure functions.

    f(x) = nu / (2 alpha Gamma(1/nu)) exp(-(|x| / alpha)^nu)

with mean 0, shape `nu` (1 is Laplace, 2 is Gaussian) and scale `alpha`. The
arguments broadcast. All functions are differentiable in `x`, run under `jit`
and `vmap`, and compute in the promoted floating dtype of their arguments (at
least float32). The training rate and the entropy coder use the same formulas.

Source: Sharifi & Leon-Garcia, IEEE Trans. CSVT 5(1), 1995 (moments).
"""

import jax
import jax.numpy as jnp
from jax.scipy import special
from jax.typing import ArrayLike

MIN_SHAPE = 0.1
MAX_SHAPE = 8.0

_LN2 = 0.6931471805599453
# Bins on each side of zero that `discrete_entropy` sums explicitly.
_BINS = 24


def _promote(*args: ArrayLike) -> tuple[jax.Array, ...]:
  dtype = jnp.promote_types(jnp.result_type(*args), jnp.float32)
  return tuple(jnp.asarray(a, dtype) for a in args)


def _at_multiples(fn, r):
  """fn(r), fn(2 r), fn(3 r) in one call, because fn compiles slowly."""
  return fn(jnp.stack([r, 2.0 * r, 3.0 * r]))


def log_moment_ratio(nu: ArrayLike) -> jax.Array:
  """Natural logarithm of `moment_ratio`."""
  (nu,) = _promote(nu)
  first, second, third = _at_multiples(jax.lax.lgamma, 1.0 / nu)
  return first + third - 2.0 * second


def moment_ratio(nu: ArrayLike) -> jax.Array:
  """rho(nu) = E[x^2] / E[|x|]^2, which depends only on the shape.

  It falls monotonically from infinity at nu = 0 to 4/3 at nu = infinity, the
  uniform density. It is 2 for Laplace and pi/2 for a Gaussian.
  """
  return jnp.exp(log_moment_ratio(nu))


def shape_from_ratio(rho: ArrayLike) -> jax.Array:
  """Inverse of `moment_ratio`, clamped to [MIN_SHAPE, MAX_SHAPE].

  Args:
    rho: E[x^2] / E[|x|]^2, any shape.

  Returns:
    nu, same shape; nan where rho is nan.
  """
  (rho,) = _promote(rho)
  return shape_from_log_ratio(jnp.log(rho))


def shape_from_log_ratio(log_rho: ArrayLike) -> jax.Array:
  """Inverse of `log_moment_ratio`, clamped to [MIN_SHAPE, MAX_SHAPE].

  Safeguarded Newton steps on log rho as a function of log nu, a fixed number
  of them: the bracket halves whenever a step would leave it.

  Args:
    log_rho: natural logarithm of E[x^2] / E[|x|]^2, any shape.

  Returns:
    nu, same shape; nan where log_rho is nan.
  """
  (target,) = _promote(log_rho)
  low = jnp.full_like(target, jnp.log(MIN_SHAPE))
  high = jnp.full_like(target, jnp.log(MAX_SHAPE))

  def newton(_, carry):
    low, high, t = carry
    nu = jnp.exp(t)
    excess = log_moment_ratio(nu) - target
    # rho falls with nu, so a ratio that is too large means nu is too small.
    low, high = jnp.where(excess > 0, t, low), jnp.where(excess > 0, high, t)
    r = 1.0 / nu
    digamma = jax.lax.digamma
    slope = -r * (digamma(r) + 3.0 * digamma(3.0 * r) - 4.0 * digamma(2.0 * r))
    step = t - excess / slope
    inside = (step > low) & (step < high)
    return low, high, jnp.where(inside, step, 0.5 * (low + high))

  *_, t = jax.lax.fori_loop(0, 16, newton, (low, high, 0.5 * (low + high)))
  nu = jnp.exp(t)
  nu = jnp.where(target >= log_moment_ratio(MIN_SHAPE), MIN_SHAPE, nu)
  nu = jnp.where(target <= log_moment_ratio(MAX_SHAPE), MAX_SHAPE, nu)
  return jnp.where(jnp.isnan(target), jnp.nan, nu)


def scale(nu: ArrayLike, mean_abs: ArrayLike) -> jax.Array:
  """alpha of the distribution with shape `nu` and E[|x|] = `mean_abs`.

  E[|x|] = alpha Gamma(2/nu) / Gamma(1/nu). The first moment is used because its
  estimate has less variance than the second's under heavy tails.
  """
  nu, mean_abs = _promote(nu, mean_abs)
  r = 1.0 / nu
  return mean_abs * jnp.exp(jax.lax.lgamma(r) - jax.lax.lgamma(2.0 * r))


def _log_peak(nu, alpha):
  """log f(0)."""
  return jnp.log(nu / (2.0 * alpha)) - jax.lax.lgamma(1.0 / nu)


def log_prob(x: ArrayLike, nu: ArrayLike, alpha: ArrayLike) -> jax.Array:
  """log f(x), in nats."""
  x, nu, alpha = _promote(x, nu, alpha)
  return _log_peak(nu, alpha) - (jnp.abs(x) / alpha) ** nu


def cdf(x: ArrayLike, nu: ArrayLike, alpha: ArrayLike) -> jax.Array:
  """P(X <= x), with a small relative error in the lower tail."""
  x, nu, alpha = _promote(x, nu, alpha)
  t = (jnp.abs(x) / alpha) ** nu
  tail = 0.5 * special.gammaincc(*jnp.broadcast_arrays(1.0 / nu, t))
  return jnp.where(x < 0, tail, 1.0 - tail)


def entropy(nu: ArrayLike, alpha: ArrayLike) -> jax.Array:
  """Differential entropy, in bits."""
  nu, alpha = _promote(nu, alpha)
  return (1.0 / nu - _log_peak(nu, alpha)) / _LN2


def discrete_entropy(
  nu: ArrayLike, alpha: ArrayLike, step: ArrayLike
) -> jax.Array:
  """Entropy of round(X / step), in bits; accurate down to zero bits.

  The bins near zero, where the density varies within a bin, are summed
  explicitly. The sum over the other bins is replaced by an integral in closed
  form. For small steps the result tends to `entropy(nu, alpha) - log2(step)`.
  Unlike that formula, it is never negative for large steps.

  Args:
    nu: shape.
    alpha: scale; 0 (every sample is zero) gives 0 bits.
    step: distance between quantization levels, in the units of alpha.

  Returns:
    Bits per sample, of the broadcast shape.
  """
  nu, alpha, step = jnp.broadcast_arrays(*_promote(nu, alpha, step))
  safe = jnp.where(alpha > 0, alpha, 1.0)
  q = jnp.arange(_BINS + 1, dtype=nu.dtype) + 0.5
  edges = jnp.expand_dims(q, range(1, nu.ndim + 1)) * step[None]
  t = (edges / safe[None]) ** nu[None]
  # P(|X| > edge) for each edge, then the integral of (x / alpha)^nu f(x) beyond
  # the last edge.
  r = jnp.broadcast_to(1.0 / nu[None], t.shape)
  upper = special.gammaincc(
    jnp.concatenate([r, r[-1:] + 1.0]), jnp.concatenate([t, t[-1:]])
  )
  outside, heavier = upper[:-1], upper[-1] / nu
  bins = outside[:-1] - outside[1:]  # Both signs together.
  near = special.entr(1.0 - outside[0]) + jnp.sum(special.entr(bins), 0)
  near = near + _LN2 * jnp.sum(bins, 0)  # Two equal halves each.
  # Beyond the last edge: -log(f(x) step) integrated against the density.
  mass = outside[-1]
  far = heavier - mass * (_log_peak(nu, safe) + jnp.log(step))
  # Where the density falls steeply within a bin, the integral can be negative.
  far = jnp.where(mass > 0, jnp.maximum(far, 0.0), 0.0)
  bits = jnp.maximum(near + far, 0.0) / _LN2
  return jnp.where(alpha > 0, bits, jnp.where(alpha == 0, 0.0, jnp.nan))


def sample(
  key: jax.Array,
  nu: ArrayLike,
  alpha: ArrayLike,
  shape: tuple[int, ...] = (),
  dtype=jnp.float32,
) -> jax.Array:
  """Independent samples: (|X| / alpha)^nu is Gamma(1/nu) distributed."""
  key_size, key_sign = jax.random.split(key)
  nu, alpha = jnp.asarray(nu, dtype), jnp.asarray(alpha, dtype)
  # In the log domain, because the gamma variate underflows at large nu.
  log_t = jax.random.loggamma(key_size, 1.0 / nu, shape, dtype)
  sign = jax.random.rademacher(key_sign, shape, dtype)
  return sign * alpha * jnp.exp(log_t / nu)
