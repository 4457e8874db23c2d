r"""The exact code length of a quantized weight, continued between the levels.

A weight of u steps costs, in bits,

.. math:: -\log_2 (F(u + 1/2) - F(u - 1/2))

with F the generalized Gaussian's distribution function: at the integers it is
what an ideal code of the quantized tensor pays. Unlike the price at a point of
the density it is smooth at zero, where its gradient vanishes, and its gradient
is bounded for every nu.

The gradient is interpolated in a table per tensor, which takes no incomplete
gamma function per weight.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from backslash_jax import ggd

# Steps that are added to a tensor's mean magnitude before its scale is taken:
# it bounds what the first weight of an empty tensor costs.
EPSILON = 1 / 16
_REACH = 8  # Steps, beyond which the density hardly varies within a bin.
_FINE = 32  # Entries of the table per step.


def value(
  x: jax.Array, nu: ArrayLike, alpha: ArrayLike, step: float
) -> jax.Array:
  """Sum of the code lengths of the elements of a tensor, bits, a scalar.

  Args:
    x: parameters, any shape.
    nu: shape.
    alpha: scale, in units of x.
    step: distance of the quantization levels.
  """
  u = jnp.abs(x) / step
  mass = _mass(u, nu, jnp.asarray(alpha) / step)
  return -jnp.sum(jnp.log2(mass))


def gradient(
  x: jax.Array, nu: ArrayLike, alpha: ArrayLike, step: float
) -> jax.Array:
  """Gradient of `value`, bits per unit of x, float32 of the shape of x.

  To 2% of its largest value; 0 where x is 0. The arguments are those of
  `value`.
  """
  nu, alpha = jnp.float32(nu), jnp.asarray(alpha, jnp.float32) / step
  table = _slope(jnp.arange(_REACH * _FINE + 1) / _FINE, nu, alpha)
  size = jnp.abs(x.astype(jnp.float32)) / step
  place = jnp.minimum(size, _REACH) * _FINE
  left = jnp.minimum(jnp.floor(place), _REACH * _FINE - 1).astype(jnp.int32)
  low, high = table[left], table[left + 1]
  near = low + (place - left) * (high - low)
  far = _point_slope(jnp.maximum(size, 1.0), nu, alpha)
  pull = jnp.where(size < _REACH, near, far) / step
  return jnp.where(jnp.isnan(x), jnp.nan, jnp.sign(x) * pull)


def _slope(u, nu, alpha):
  """d/du of the code length of u >= 0 steps, float32 like u."""
  edges = jnp.abs(jnp.stack([u - 0.5, u + 0.5]))
  density = jnp.exp(ggd.log_prob(edges, nu, alpha))
  mass = _mass(u, nu, alpha)
  slope = (density[0] - density[1]) / jnp.maximum(mass, 1e-30) / math.log(2.0)
  # Far out in the tail all of a bin's mass lies at its near edge.
  hazard = _point_slope(jnp.maximum(u - 0.5, 0.5), nu, alpha)
  return jnp.where(mass > 1e-30, slope, hazard)


def _mass(u, nu, alpha):
  """Probability of the bin around u >= 0 steps."""
  # Both from the tail that is small: 1 - P(X > ...) would lose digits.
  below = ggd.cdf(-(u - 0.5), nu, alpha)
  return below - ggd.cdf(-(u + 0.5), nu, alpha)


def _point_slope(u, nu, alpha):
  """The same of -log2 of the density at u > 0."""
  return nu / alpha * (u / alpha) ** (nu - 1.0) / math.log(2.0)
