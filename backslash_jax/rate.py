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
  size = jnp.abs(x) + epsilon
  # Through exp and log, which XLA vectorizes; power it does not on CPU.
  return jnp.sign(x) * jnp.exp((nu - 1.0) * jnp.log(size))
