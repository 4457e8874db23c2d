"""What a rate charges the selected leaves, with the moments it depends on."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from backslash_jax import arguments, ggd, moments, quantize
from backslash_jax import rate as rates

SCOPES = ("model", "tensor")


class Price(NamedTuple):
  """The arguments of `backslash` that define the rate, validated by `make`.

  Attributes:
    rate: the price of a parameter.
    shape: fixed nu, or None to estimate it.
    scope: one of SCOPES: one nu for the model or one for each leaf.
    epsilon: added to every magnitude.
  """

  rate: rates.Rate
  shape: Any
  scope: str
  epsilon: Any

  @property
  def is_estimated(self) -> bool:
    """Whether the gradient depends on the moments."""
    return self.shape is None or self.rate.is_learned

  def initial_shape(self, count: int) -> jax.Array:
    """nu before anything is estimated: a scalar, or [T] for T leaves."""
    shape = [] if self.scope == "model" else [count]
    return jnp.full(shape, 2.0, jnp.float32)

  def estimate(
    self, params: Any, sharding: Any, implementation: str | None
  ) -> tuple[jax.Array, jax.Array]:
    """nu, and alpha of |x| + epsilon for each of the T leaves, [T].

    Args:
      params: tree with the selected leaves alone.
      sharding: as in `moments.tree_moments`.
      implementation: as in `moments.tree_moments`.
    """
    per_tensor = moments.tree_moments(
      params, sharding, implementation=implementation
    )
    total = jax.tree.map(jnp.sum, per_tensor)
    joined = jax.tree.map(lambda t, s: jnp.append(t, s), per_tensor, total)
    nu = moments.shape_parameter(joined)
    tensor_nu, model_nu = nu[:-1], nu[-1]
    estimated = model_nu if self.scope == "model" else tensor_nu
    charged = estimated if self.shape is None else jnp.float32(self.shape)
    charged = jnp.broadcast_to(charged, tensor_nu.shape)
    mean_abs = per_tensor.abs_sum / jnp.maximum(per_tensor.count, 1.0)
    return estimated, rates.scale(charged, mean_abs, self.epsilon)

  def gradients(
    self, leaves: list[jax.Array], nu: jax.Array, alpha: jax.Array
  ) -> list[jax.Array]:
    """The gradient of the mean price at each of the T leaves, float32.

    Args:
      leaves: the selected leaves.
      nu: as `estimate` returns it.
      alpha: as `estimate` returns it.
    """
    # A float, because JAX rejects Python integers of 2^31 and more.
    total = float(max(sum(x.size for x in leaves), 1))
    # Keep a fixed shape a Python number: 1 and 2 then need no power.
    shapes = [nu if self.shape is None else self.shape] * len(leaves)
    if self.shape is None and self.scope == "tensor":
      shapes = list(nu)
    # XLA on CPU does not replace a division by a multiplication.
    share = 1.0 / total
    return [
      self.rate.gradient(x, s, a, self.epsilon) * share
      for x, s, a in zip(leaves, shapes, alpha, strict=True)
    ]


def make(
  rate: str | rates.Rate, shape: Any, scope: str, epsilon: Any, step: Any
) -> Price:
  """The price that the arguments of `backslash` define.

  Raises:
    ValueError: if an argument is out of range. JAX arrays, which may be traced,
      are not checked.
  """
  try:
    rate = rates.find(rate)
    quantize.check_step(step)
  except ValueError as error:
    raise ValueError(f"backslash: {error}") from None
  if scope not in SCOPES:
    raise ValueError(
      f"backslash: scope must be one of {', '.join(SCOPES)}, found {scope!r}"
    )
  _check(
    "shape",
    shape,
    f"None or in [{ggd.MIN_SHAPE}, {ggd.MAX_SHAPE}]",
    lambda v: ggd.MIN_SHAPE <= v <= ggd.MAX_SHAPE,
  )
  _check(
    "epsilon",
    epsilon,
    "None or non-negative and finite",
    lambda v: 0 <= v < math.inf,
  )
  epsilon = step / 2 if epsilon is None else epsilon
  return Price(rate, number(shape), scope, number(epsilon))


def number(value: Any) -> Any:
  """A Python number; None and JAX arrays (maybe traced) are unchanged."""
  if value is None or isinstance(value, jax.Array):
    return value
  return float(value)


def _check(name: str, found: Any, wanted: str, is_good: Callable[[Any], bool]):
  if found is not None:
    arguments.check("backslash", name, found, wanted, is_good)
