r"""The price of a parameter: value and gradient.

Both rates are a mean over the N parameters of a price per element,

  dggr   (|x| + eps)^nu                                  (dimensionless)
  bits   -log2( step f(|x| + eps) ),  f of (nu, alpha)   (bits per parameter)

with nu and alpha held constant in the gradient, which is therefore in both
cases a coefficient per tensor times sign(x) (|x| + eps)^(nu - 1). The epsilon
keeps it finite at zero for nu < 1.

Source: Wu, Wen & Han, ICML 2025, arXiv 2504.16968, for dggr.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from backslash_jax import ggd

RATES = ("dggr", "bits")


def value(
  x: jax.Array,
  rate: str,
  nu: ArrayLike,
  alpha: ArrayLike,
  *,
  epsilon: float,
  step: float,
) -> jax.Array:
  """Sum of the prices of the elements of one tensor, float32 scalar.

  Divide by the number of parameters of the model for its mean.

  Args:
    x: parameters, any shape.
    rate: "dggr" or "bits".
    nu: shape.
    alpha: scale, as `price_scale` gives it; only "bits" looks at it.
    epsilon: added to every magnitude.
    step: distance between quantization levels; only "bits" looks at it.
  """
  size = jnp.abs(x.astype(jnp.float32)) + epsilon
  if rate == "dggr":
    return jnp.sum(size**nu)
  nats = -ggd.log_prob(size, nu, alpha) - math.log(step)
  return jnp.sum(nats) / math.log(2.0)


def price_scale(
  nu: ArrayLike, mean_abs: ArrayLike, epsilon: float
) -> jax.Array:
  """alpha of the magnitudes that are priced, |x| + epsilon.

  The epsilon in it is what bounds the price of a tensor that is almost all
  zeros, as the code length of its integers is bounded.
  """
  floor = float(jnp.finfo(jnp.float32).tiny)
  return ggd.scale(nu, jnp.maximum(mean_abs + epsilon, floor))


def coefficient(rate: str, nu: ArrayLike, alpha: ArrayLike) -> jax.Array:
  """What `direction` is multiplied with: nu, or nu alpha^-nu / ln 2."""
  nu = jnp.asarray(nu, jnp.float32)
  if rate == "dggr":
    return nu
  return nu * jnp.asarray(alpha) ** -nu / math.log(2.0)


def direction(x: jax.Array, nu: ArrayLike, epsilon: float) -> jax.Array:
  """sign(x) (|x| + eps)^(nu - 1) in float32; 0 where x is 0, nan where nan."""
  x = x.astype(jnp.float32)
  if isinstance(nu, int | float):
    if nu == 1:
      return jnp.sign(x)
    if nu == 2:
      return x + epsilon * jnp.sign(x)
  # By bits: what needs abs XLA on CPU would find shared with the moments, and
  # store.
  bits = _bits(x)
  size_bits = bits & 0x7FFFFFFF
  size = _float(size_bits)
  power = _power(size + epsilon, nu - 1.0)
  return jnp.where(size > 0, _float(_bits(power) | (bits ^ size_bits)), x)


# log2(m) - (m - 1) on [1, 2] and 2^r on [-1/2, 1/2]: the polynomials of least
# greatest error, 1.9e-6 and, of the value, 2.6e-6.
_LOG2 = (-2.04004015, 5.11296262, -5.34198831, 3.28652795, -1.26691784)
_LOG2 += (0.275148656, -0.0256910761)
_EXP2 = (0.999999261, 0.693121815, 0.240247448, 0.0559178603, 0.0095701017)


def _power(base, exponent):
  """base^exponent for finite base > 0, float32.

  To 1e-5 of the value for an exponent in [-1, 1], and of the order of that
  times the exponent beyond. XLA on CPU has no vectorized power, and takes exp
  and log for so expensive that it stores what they give; this it fuses with
  what Adam does, and computes twice, in both averages: so it has to be short.
  """
  bits = _bits(base)
  mantissa = _float((bits & 0x7FFFFF) | 0x3F800000)
  # The number of the bits itself is linear between the powers of two.
  linear = bits.astype(jnp.float32) * 2.0**-23 - 127.0
  y = exponent * (linear + _polynomial(_LOG2, mantissa))
  y = jnp.clip(y, -126.0, 126.0)
  n = jnp.round(y)
  fraction = _polynomial(_EXP2, y - n)
  return _float(_bits(fraction) + (n.astype(jnp.int32) << 23))


def _bits(x):
  return jax.lax.bitcast_convert_type(x, jnp.int32)


def _float(bits):
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _polynomial(coefficients, x):
  """Horner's scheme, lowest coefficient first."""
  result = jnp.full_like(x, coefficients[-1])
  for c in coefficients[-2::-1]:
    result = result * x + c
  return result
