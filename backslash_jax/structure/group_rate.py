r"""A rate for whole units, such as neurons, attention heads and embedding rows.

The magnitude of a unit is the root mean square r of its p weights. The rate is

  R = 1/N sum_units p (r + eps)^nu,     N = sum_units p,

which for units of one weight is the elementwise rate. Its gradient scales all
weights of a unit by the same factor. The proximal operator reduces r by the
distance that a single weight of magnitude r would move, but not below zero.

Sources: Yuan & Lin, J. R. Stat. Soc. B 68, 2006 (group norms); Parikh & Boyd,
Proximal Algorithms, 2014, section 6.5 (proximal operators of group norms).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from backslash_jax import arguments, quantize, tree
from backslash_jax import rate as rates
from backslash_jax.moments import Moments, shape_parameter
from backslash_jax.structure import groups as grouping


class GroupRateState(NamedTuple):
  """State of `group_rate`; read a field with `optax.tree.get(state, name)`.

  Attributes:
    group_count: updates so far, int32.
    group_shape: nu used in the last update, float32.
    group_zeros: fraction of the groups' parameters in units that are zero after
      the last update, float32.
  """

  group_count: jax.Array
  group_shape: jax.Array
  group_zeros: jax.Array


def group_rate(
  lmbda: float | optax.Schedule,
  groups: Sequence[grouping.Group],
  learning_rate: float | optax.Schedule,
  *,
  rate: str | rates.Rate = "dggr",
  shape: float | None = None,
  epsilon: float | None = None,
  step: float = quantize.STEP,
) -> optax.GradientTransformationExtraArgs:
  """Shrinks whole units towards zero; a unit that reaches zero becomes zero.

  Put it last in the chain, because it replaces the final update:

  >>> import backslash_jax as bs, optax
  >>> from backslash_jax import structure
  >>> rows = structure.Group("rows", (structure.Slice("embedding$", axis=-2),))
  >>> tx = optax.chain(
  ...   bs.backslash(1e3), optax.adamw(3e-5),
  ...   structure.group_rate(1e3, [rows], 3e-5),
  ... )

  Args:
    lmbda: weight of the rate, as in `bs.backslash`: a non-negative number or
      an optax schedule.
    groups: the units, see `groups.Group`.
    learning_rate: learning rate of the optimizer before it, a number or a
      schedule.
    rate: "dggr" (default); or "bits", which uses the scale of the magnitudes
      within each layer; or a `rate.Rate`.
    shape: None (default) estimates nu from the moments of the magnitudes, and
      clips it to at most 1: with a larger nu no unit would reach zero. A number
      in (0, 1] fixes it.
    epsilon: added to every magnitude, in the units of the parameters. None
      (default) uses step / 2.
    step: quantization step of the coded file, used only for epsilon.

  Returns:
    A transformation that keeps the shapes and dtypes of the updates. Units that
    it removes are exactly zero. Its update needs params.

  Raises:
    ValueError: if an argument is out of range. The update raises it as
      `groups.bind` does.
  """
  price = rates.find(rate)
  for name, value in (
    ("lmbda", lmbda),
    ("learning_rate", learning_rate),
    ("epsilon", 0.0 if epsilon is None else epsilon),
  ):
    if not callable(value):
      arguments.check(
        "group_rate",
        name,
        value,
        "non-negative and finite",
        lambda v: 0 <= v < math.inf,
      )
  if shape is not None:  # Above 1 no unit would reach zero.
    arguments.check(
      "group_rate", "shape", shape, "None or in (0, 1]", lambda v: 0 < v <= 1
    )
  quantize.check_step(step)
  epsilon = step / 2 if epsilon is None else epsilon

  def pulls(sizes, units):
    """(distance per unit for lmbda = learning rate = 1, nu)."""
    # A unit of p weights counts as p weights of its magnitude.
    sums = [
      u.size * jnp.stack([jnp.float32(s.size), jnp.sum(s), jnp.sum(s * s)])
      for s, u in zip(sizes, units, strict=True)
    ]
    total = Moments(*sum(sums, start=jnp.zeros(3, jnp.float32)))
    nu = jnp.minimum(shape_parameter(total), 1.0)
    nu = nu if shape is None else jnp.float32(shape)
    result = []
    for s in sizes:
      alpha = rates.scale(nu, jnp.mean(s), epsilon)
      result.append(price.gradient(s, nu, alpha, epsilon) / total.count)
    return result, nu

  def init(params):
    del params  # The first update checks that the groups fit params.
    return GroupRateState(
      group_count=jnp.zeros([], jnp.int32),
      group_shape=jnp.ones([], jnp.float32),
      group_zeros=jnp.zeros([], jnp.float32),
    )

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
        "group_rate needs params: tx.update(grads, state, params)"
      )
    units = grouping.bind(groups, params)
    weight, eta = (
      jnp.asarray(v(state.group_count) if callable(v) else v, jnp.float32)
      for v in (lmbda, learning_rate)
    )
    moved = jax.tree.map(lambda x, u: (x + u).astype(x.dtype), params, updates)
    leaves = dict(tree.named_leaves(moved))
    sizes = [grouping.magnitudes(u, leaves) for u in units]
    pulled, nu = pulls(sizes, units)
    factors = []
    for size, pull in zip(sizes, pulled, strict=True):
      left = size - eta * weight * pull
      factors.append(jnp.maximum(left, 0.0) / jnp.where(size > 0, size, 1.0))
    ended = grouping.scale(moved, units, factors)
    owned = {part.path for u in units for part in u.parts}

    is_owned = tree.map_named(lambda name, _: name in owned, params)
    updates = jax.tree.map(
      lambda own, u, x, end: (end - x).astype(u.dtype) if own else u,
      is_owned,
      updates,
      params,
      ended,
    )
    zeros = sum(
      jnp.sum(f == 0) * float(u.size)
      for f, u in zip(factors, units, strict=True)
    )
    # Floats, because JAX rejects Python integers of 2^31 and more.
    total = float(
      sum(f.size * u.size for f, u in zip(factors, units, strict=True))
    )
    count = jnp.asarray(optax.safe_increment(state.group_count))
    return updates, GroupRateState(
      count, jnp.asarray(nu), jnp.float32(zeros / max(total, 1.0))
    )

  return optax.GradientTransformationExtraArgs(init, update)
