"""The optax transformation that adds the gradient of the rate."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from backslash_jax import ggd
from backslash_jax import rate as rates
from backslash_jax.moments import moments, scale_parameter, shape_parameter

SCOPES = ("model", "tensor")


class BackslashState(NamedTuple):
  """State of `backslash`; read a field with `optax.tree.get(state, name)`.

  Attributes:
    count: updates so far, int32.
    lmbda: weight of the rate in the last update, float32.
    shape: nu as the last update estimated it, float32: a scalar for scope
      "model", for scope "tensor" one per priced leaf, in the order of
      `jax.tree.leaves`. Estimated also when a fixed shape is what is paid for.
    scale: alpha per priced leaf at that shape, of the magnitudes plus epsilon.
    bits: entropy of the parameters quantized with `step`, bits per parameter,
      from each tensor's own generalized Gaussian: what the file will weigh.
  """

  count: jax.Array
  lmbda: jax.Array
  shape: jax.Array
  scale: jax.Array
  bits: jax.Array


def backslash(
  lmbda: float | optax.Schedule,
  *,
  rate: str = "dggr",
  shape: float | None = None,
  scope: str = "model",
  epsilon: float | None = None,
  step: float = 2**-8,
  mask: Any | Callable[[Any], Any] | None = None,
  update_every: int = 1,
  implementation: str | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds the gradient of lmbda * R(params) to the updates.

  The rate of the paper, for all N parameters x_i together,

  .. math:: R = \frac{1}{N} \sum_i (|x_i| + \epsilon)^\nu

  has a shape nu that is estimated anew from the parameters' moments and held
  constant in the gradient. Where the transformation stands in the chain
  decides what it is: before Adam the preconditioner spares the weights that
  the loss is sensitive to, as in the paper's experiments; after Adam it is
  decoupled, as weight decay is in AdamW.

  >>> import backslash_jax as bs, optax
  >>> tx = optax.chain(bs.backslash(1e3), optax.adamw(3e-5))

  Args:
    lmbda: weight of the rate: a non-negative number or a schedule of it. In
      units of the loss per unit of rate.
    rate: "dggr", the above, or "bits", the code length in bits per parameter
      under each tensor's own scale: lmbda is then in nats of loss for one
      bit per parameter, and does not change when a tensor is rescaled.
    shape: None estimates nu; a number fixes it: 0.5, 1 and 2 are the paper's
      L0.5, L1 and L2.
    scope: "model", one nu for all parameters (paper), or "tensor", one each.
    epsilon: added to every magnitude; None means step / 2, the half width of
      the zero bin.
    step: quantization step of the coded file, for epsilon and state.bits.
    mask: the leaves that are priced: a tree of bool, or a callable that makes
      one of params, as in `optax.masked`. None prices every floating leaf.
    update_every: nu, alpha and bits are estimated every so many updates.
    implementation: of the moments, see `moments`.

  Returns:
    A transformation whose updates keep their shapes and dtypes. Its update
    raises ValueError without params.

  Raises:
    ValueError: for an argument out of its range.

  Source: Wu, Wen & Han, ICML 2025, arXiv 2504.16968, Algorithm 1.
  """
  _check(lmbda, rate, shape, scope, epsilon, step, update_every)
  epsilon = step / 2 if epsilon is None else epsilon

  def estimate(leaves):
    """nu, alpha and bits of a non-empty list of floating leaves."""
    m = [moments(x, implementation=implementation) for x in leaves]
    per_tensor = jax.tree.map(lambda *s: jnp.stack(s), *m)
    total = jax.tree.map(jnp.sum, per_tensor)
    joined = jax.tree.map(lambda t, s: jnp.append(t, s), per_tensor, total)
    nu = shape_parameter(joined)
    tensor_nu, model_nu = nu[:-1], nu[-1]
    alpha = scale_parameter(per_tensor, tensor_nu)
    bits = ggd.discrete_entropy(tensor_nu, alpha, step) * per_tensor.count
    estimated = model_nu if scope == "model" else tensor_nu
    paid = jnp.broadcast_to(
      estimated if shape is None else jnp.float32(shape), tensor_nu.shape
    )
    mean_abs = per_tensor.abs_sum / jnp.maximum(per_tensor.count, 1.0)
    price_scale = rates.price_scale(paid, mean_abs, epsilon)
    return estimated, price_scale, jnp.sum(bits) / jnp.maximum(total.count, 1.0)

  def init_fn(params):
    leaves = _priced(params)
    lmbda_ = jnp.zeros([], jnp.float32)
    count = jnp.zeros([], jnp.int32)
    n = () if scope == "model" else (len(leaves),)
    return BackslashState(
      count,
      lmbda_,
      shape=jnp.full(n, 2.0, jnp.float32),
      scale=jnp.ones([len(leaves)], jnp.float32),
      bits=jnp.zeros([], jnp.float32),
    )

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
        "backslash needs params: tx.update(grads, state, params)"
      )
    leaves = _priced(params)
    weight = lmbda(state.count) if callable(lmbda) else lmbda
    weight = jnp.asarray(weight, jnp.float32)
    count = jnp.asarray(optax.safe_increment(state.count))
    if not leaves:
      return updates, state._replace(count=count, lmbda=weight)
    kept = state.shape, state.scale, state.bits
    if isinstance(update_every, int) and update_every == 1:
      kept = estimate(leaves)
    else:
      due = state.count % update_every == 0
      kept = jax.lax.cond(due, lambda: estimate(leaves), lambda: kept)
    nu, alpha, bits = kept

    total = max(sum(x.size for x in leaves), 1)
    paid = nu if shape is None else shape
    coefficient = rates.coefficient(rate, paid, alpha) * (weight / total)
    # A leaf each; a static shape stays a Python number, which needs no power.
    coefficients = iter(jnp.broadcast_to(coefficient, alpha.shape))
    if isinstance(paid, int | float) or paid.ndim == 0:
      shapes = itertools.repeat(paid)
    else:
      shapes = iter(paid)

    def add(g, x):
      if not _is_priced(x):
        return g
      r = next(coefficients) * rates.direction(x, next(shapes), epsilon)
      return (g + r).astype(g.dtype)

    updates = jax.tree.map(add, updates, params)
    return updates, BackslashState(count, weight, nu, alpha, bits)

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return tx if mask is None else optax.masked(tx, mask)


def _is_priced(x):
  return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _priced(params):
  return [x for x in jax.tree.leaves(params) if _is_priced(x)]


def _check(lmbda, rate, shape, scope, epsilon, step, update_every):
  """Refuses arguments out of range; arrays, which may be traced, pass."""

  def check(name, found, wanted, good):
    if not isinstance(found, jax.Array) and not good(found):
      raise ValueError(f"backslash: {name} must be {wanted}, found {found!r}")

  def within(low, high=math.inf):
    return lambda v: (
      isinstance(v, int | float) and low <= v <= high and math.isfinite(v)
    )

  check(
    "lmbda",
    lmbda,
    "a non-negative finite number or a schedule",
    lambda v: callable(v) or within(0)(v),
  )
  check("rate", rate, f"one of {rates.RATES}", rates.RATES.__contains__)
  check("scope", scope, f"one of {SCOPES}", SCOPES.__contains__)
  check("step", step, "positive and finite", lambda v: within(0)(v) and v > 0)
  check(
    "shape",
    shape,
    f"None or in [{ggd.MIN_SHAPE}, {ggd.MAX_SHAPE}]",
    lambda v: v is None or within(ggd.MIN_SHAPE, ggd.MAX_SHAPE)(v),
  )
  check(
    "epsilon",
    epsilon,
    "None or non-negative and finite",
    lambda v: v is None or within(0)(v),
  )
  check(
    "update_every",
    update_every,
    "a positive integer",
    lambda v: isinstance(v, int) and v >= 1,
  )
