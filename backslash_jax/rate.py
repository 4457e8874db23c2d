"""Rates: estimated code length of the parameters, and its gradient.

Each rate is the mean over the N parameters of a cost per element,

    dggr  (|x| + eps)^nu                                 (dimensionless)
    bits  -log2( step f(|x| + eps) ),  f of (nu, alpha)  (bits per parameter)

with nu and alpha held constant in the gradient. Epsilon keeps the gradient
finite at zero for nu < 1. To add a rate, construct a `Rate`.

Source: Wu, Wen & Han, ICML 2025, arXiv 2504.16968, for dggr.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from backslash_jax import ggd


class Rate(NamedTuple):
  """A cost per parameter.

  Attributes:
    name: name in messages and configs.
    value: (x, nu, alpha, epsilon, step) -> the cost summed over the elements of
      a tensor, float32 scalar.
    gradient: (x, nu, alpha, epsilon) -> the gradient of `value`, float32 with
      the shape of x; 0 where x is 0, nan where x is nan. nu and alpha are
      scalars. If nu is the Python number 1 or 2, no power is computed.
    is_learned: whether the gradient needs an estimate even with a fixed shape.
      True for "bits", which needs alpha.
  """

  name: str
  value: Callable[..., jax.Array]
  gradient: Callable[..., jax.Array]
  is_learned: bool


def scale(nu: ArrayLike, mean_abs: ArrayLike, epsilon: float) -> jax.Array:
  """alpha of |x| + epsilon, the magnitudes that the rate uses.

  Epsilon bounds the cost of a tensor that is almost all zeros, just as the code
  length of its integers is bounded.

  Args:
    nu: shape of the generalized Gaussian.
    mean_abs: mean of |x|.
    epsilon: added to every magnitude.
  """
  floor = float(jnp.finfo(jnp.float32).tiny)
  return ggd.scale(nu, jnp.maximum(mean_abs + epsilon, floor))


def direction(
  x: jax.Array,
  nu: ArrayLike,
  epsilon: float,
  alpha: ArrayLike | None = None,
) -> jax.Array:
  """sign(x) ((|x| + eps) / alpha)^(nu - 1), float32; 0 where x is 0.

  If alpha is None, the magnitude is not divided.
  """
  x = x.astype(jnp.float32)
  inverse = None if alpha is None else 1.0 / jnp.asarray(alpha, jnp.float32)
  if isinstance(nu, int | float):
    if nu == 1:
      return jnp.sign(x)
    if nu == 2:
      size = x + epsilon * jnp.sign(x)
      return size if inverse is None else size * inverse
  exponent = jnp.asarray(nu, jnp.float32) - 1.0
  # Leaves of one shape are traced and lowered once.
  return jax.jit(_signed_power)(x, exponent, jnp.float32(epsilon), inverse)


@jax.custom_jvp
def _signed_power(x, exponent, epsilon, inverse):
  """sign(x) ((|x| + epsilon) inverse)^exponent; x where x is 0 or nan."""
  # Bit operations: XLA on CPU would share `abs` with the moments and
  # materialize it.
  bits = _bits(x)
  size = _float(bits & 0x7FFFFFFF)
  base = size + epsilon
  if inverse is not None:
    base *= inverse
  power = _power(base, exponent)
  sign = bits & np.int32(-(2**31))
  return jnp.where(size > 0, _float(_bits(power) | sign), x)


@_signed_power.defjvp
def _signed_power_jvp(primals, tangents):
  """The analytic derivative: JAX cannot differentiate bit operations."""
  x, exponent, epsilon, inverse = primals
  value = _signed_power(*primals)
  size = jnp.abs(x) + epsilon
  base = size if inverse is None else size * inverse
  tangent = jnp.sign(x) * tangents[0] + tangents[2]
  tangent = value * exponent / size * tangent
  tangent += value * jnp.log(base) * tangents[1]
  if inverse is not None:
    tangent += value * exponent / inverse * tangents[3]
  return value, jnp.where(x == 0, 0.0, tangent)


def _dggr_value(x, nu, alpha, epsilon, step):
  del alpha, step
  size = jnp.abs(x.astype(jnp.float32)) + epsilon
  return jnp.sum(size**nu)


def _dggr_gradient(x, nu, alpha, epsilon):
  del alpha
  return nu * direction(x, nu, epsilon)


def _bits_value(x, nu, alpha, epsilon, step):
  size = jnp.abs(x.astype(jnp.float32)) + epsilon
  nats = -ggd.log_prob(size, nu, alpha) - math.log(step)
  return jnp.sum(nats) / math.log(2.0)


def _bits_gradient(x, nu, alpha, epsilon):
  # Divide by alpha before the power: a power of alpha alone could overflow.
  return nu / (alpha * math.log(2.0)) * direction(x, nu, epsilon, alpha)


RATES = {
  rate.name: rate
  for rate in (
    Rate("dggr", _dggr_value, _dggr_gradient, is_learned=False),
    Rate("bits", _bits_value, _bits_gradient, is_learned=True),
  )
}


def find(rate: "str | Rate") -> Rate:
  """The rate with this name; a `Rate` is returned unchanged.

  Raises:
    ValueError: if no rate has this name.
  """
  if isinstance(rate, Rate):
    return rate
  if rate not in RATES:
    raise ValueError(
      f"rate must be one of {', '.join(RATES)}, or a rate.Rate; found {rate!r}"
    )
  return RATES[rate]


# log2(m) - (m - 1) - 127 on [1, 2] and 2^r on [-1/2, 1/2]: minimax polynomials
# with errors of 8.8e-5 and, relative to the value, 7.5e-5.
_LOG2 = (-128.512855, 3.07009077, -2.12067509, 0.645142376, -0.0816158056)
_EXP2 = (0.999928057, 0.693260968, 0.242611125, 0.0551716685)
_SHIFTER = 1.5 * 2.0**23  # Added to a small integer, it puts it into low bits.


def _power(base, exponent):
  """base^exponent for finite base > 0, float32; within [2^-120, 2^120].

  Exact to rounding, except on a CPU, see `_fast_power`.
  """
  return jax.lax.platform_dependent(
    base, exponent, cpu=_fast_power, default=_exact_power
  )


def _exact_power(base, exponent):
  # nu times the power must be finite: 0 times infinity is nan.
  return jnp.clip(base**exponent, 2.0**-120, 2.0**120)


def _fast_power(base, exponent):
  """`_exact_power` with a relative error of at most 2e-4, and 6e-4 for nu = 8.

  XLA on CPU has no vectorized power, and it stores the results of exp and log
  because it considers them expensive. It fuses these operations into Adam's
  update and computes them twice, once per moment, so they are few: polynomials
  just good enough for a gradient, and neither clamps nor conversions to
  integers, for which XLA adds checks.
  """
  bits = _bits(base)
  mantissa = _float((bits & 0x7FFFFF) | 0x3F800000)
  # The bits, read as an integer, are linear in x between powers of two.
  linear = bits.astype(jnp.float32) * jnp.float32(2.0**-23)
  y = exponent * (linear + _polynomial(_LOG2, mantissa))
  y = jnp.where(y > -120.0, y, -120.0)
  y = jnp.where(y < 120.0, y, 120.0)
  n = jnp.round(y)
  fraction = _polynomial(_EXP2, y - n)
  return _float(_bits(fraction) + (_bits(n + _SHIFTER) << 23))


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
