"""The two moments of a tensor that determine its generalized Gaussian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from backslash_jax import ggd
from backslash_jax.moments import reference

IMPLEMENTATIONS = {"xla": reference.sums}


class Moments(NamedTuple):
  """Sufficient statistics; those of a union of tensors are their sums.

  Attributes:
    count: number of elements, float32 scalar.
    abs_sum: sum of |x|, float32 scalar.
    square_sum: sum of x^2, float32 scalar.
  """

  count: jax.Array
  abs_sum: jax.Array
  square_sum: jax.Array


def moments(x: jax.Array, *, implementation: str | None = None) -> Moments:
  """Sum of |x| and of x^2 in one pass, accumulated in float32.

  Args:
    x: floating array of any shape and any floating dtype.
    implementation: "xla"; None takes what is fastest on this platform.

  Raises:
    TypeError: if x is not floating.
    NotImplementedError: if there is no such implementation.
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f"moments of a floating array wanted, found {x.dtype}")
  name = implementation or "xla"
  if name not in IMPLEMENTATIONS:
    raise NotImplementedError(
      f"moments has no implementation {name!r}; there are"
      f" {', '.join(sorted(IMPLEMENTATIONS))}"
    )
  abs_sum, square_sum = IMPLEMENTATIONS[name](x)
  return Moments(jnp.asarray(x.size, jnp.float32), abs_sum, square_sum)


def shape_parameter(m: Moments) -> jax.Array:
  """nu of the generalized Gaussian that has these moments.

  Returns:
    nu in [ggd.MIN_SHAPE, ggd.MAX_SHAPE], float32, of the shape of the sums.
    Where nothing tells the shape, an empty or an all-zero tensor, it is 2;
    moments that are not finite give nan.
  """
  blank = m.abs_sum == 0.0
  mean_abs = jnp.where(blank, 1.0, m.abs_sum) / jnp.maximum(m.count, 1.0)
  mean_square = m.square_sum / jnp.maximum(m.count, 1.0)
  # Divided twice: the square of a small mean underflows.
  nu = ggd.shape_from_ratio(mean_square / mean_abs / mean_abs)
  return jnp.where(blank, 2.0, nu)


def scale_parameter(m: Moments, nu: jax.Array) -> jax.Array:
  """alpha for these moments and this shape; 0 for empty or all-zero tensors."""
  return ggd.scale(nu, m.abs_sum / jnp.maximum(m.count, 1.0))
