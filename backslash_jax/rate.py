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
  """sign(x) (|x| + eps)^(nu - 1) in float32; 0 where x is 0."""
  x = x.astype(jnp.float32)
  # The paper's fixed shapes need no power.
  if isinstance(nu, int | float):
    if nu == 1:
      return jnp.sign(x)
    if nu == 2:
      return x + epsilon * jnp.sign(x)
    if nu == 0.5:
      return jnp.sign(x) * jax.lax.rsqrt(jnp.abs(x) + epsilon)
  # Not abs, which XLA on CPU would find shared with the moments and store.
  power = _power(jnp.maximum(x, -x) + epsilon, nu - 1.0)
  return jnp.where(x > 0, power, jnp.where(x < 0, -power, x))


# log2(1 + f) / f on [sqrt(1/2) - 1, sqrt(2) - 1] and 2^r on [-1/2, 1/2]: the
# polynomials through the Chebyshev nodes, good to 6e-7 and 1e-7.
_LOG2 = (1.44269652, -0.721360179, 0.480613125, -0.359524455, 0.296119557)
_LOG2 += (-0.267963871, 0.168186591)
_EXP2 = (1.00000008, 0.693147188, 0.240221075, 0.0555035711, 0.00967603192)
_EXP2 += (0.00133908634,)


def _power(base, exponent):
  """base^exponent for finite base > 0, float32, to 1e-5 of the value.

  XLA on CPU has no vectorized power, and takes exp and log for so expensive
  that it stores what they give; this it fuses with what Adam does.
  """
  bits = jax.lax.bitcast_convert_type(base, jnp.int32)
  whole = (bits - 0x3F3504F3) >> 23  # 0x3F3504F3 is sqrt(1/2).
  f = jax.lax.bitcast_convert_type(bits - (whole << 23), jnp.float32) - 1.0
  log2 = whole.astype(jnp.float32) + f * _polynomial(_LOG2, f)
  y = jnp.clip(exponent * log2, -126.0, 126.0)
  n = jnp.round(y)
  scale = (n.astype(jnp.int32) + 127) << 23
  two_to_n = jax.lax.bitcast_convert_type(scale, jnp.float32)
  return two_to_n * _polynomial(_EXP2, y - n)


def _polynomial(coefficients, x):
  """Horner's scheme, lowest coefficient first."""
  result = jnp.full_like(x, coefficients[-1])
  for c in coefficients[-2::-1]:
    result = result * x + c
  return result
