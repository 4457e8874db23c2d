"""The optax transformation that adds the gradient of the rate."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from backslash_jax import code_length, control, ggd, meter
from backslash_jax import rate as rates
from backslash_jax.moments import (
  Sharding,
  shape_parameter,
  tree_moments,
)

SCOPES = ("model", "tensor")
RATES = (*rates.RATES, "code_length")


class BackslashState(NamedTuple):
  """State of `backslash`; read a field with `optax.tree.get(state, name)`.

  Attributes:
    count: updates so far, int32.
    lmbda: weight of the rate in the last update, float32; a scalar, or [T]
      from a controller that gives each of the T priced leaves its own.
    shape: nu as the last update estimated it, float32: a scalar for scope
      "model", for scope "tensor" one per priced leaf, in the order of
      `jax.tree.leaves`. Estimated also when a fixed shape is what is paid for.
    scale: alpha per priced leaf at that shape, of the magnitudes plus epsilon.
    bits: entropy of the parameters quantized with `step`, bits per parameter,
      as it was last measured (see `meter`): what the file will weigh.
    control: state of the controller of lmbda.
  """

  count: jax.Array
  lmbda: jax.Array
  shape: jax.Array
  scale: jax.Array
  bits: jax.Array
  control: Any


def backslash(
  lmbda: float | optax.Schedule | control.Controller,
  *,
  rate: str = "dggr",
  shape: float | None = None,
  scope: str = "model",
  epsilon: float | None = None,
  step: float = 2**-8,
  mask: Any | Callable[[Any], Any] | None = None,
  update_every: int = 1,
  measure_every: int = 16,
  implementation: str | None = None,
  sharding: Sharding | None = None,
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
    lmbda: weight of the rate, in units of the loss per unit of rate: a
      non-negative number, a schedule of it, or a controller that chooses it,
      `target_rate` or `gradient_balance`.
    rate: "dggr", the above, or "bits", the code length in bits per parameter
      under each tensor's own scale: lmbda is then in nats of loss for one
      bit per parameter, and does not change when a tensor is rescaled. Or
      "code_length", the same of the quantized weights: exact, and smooth at
      zero, for two look-ups per weight, see `code_length`.
    shape: None estimates nu; a number fixes it: 0.5, 1 and 2 are the paper's
      L0.5, L1 and L2.
    scope: "model", one nu for all parameters (paper), or "tensor", one each.
    epsilon: added to every magnitude; None means step / 2, the half width of
      the zero bin. "code_length" has none.
    step: quantization step of the coded file, for epsilon and state.bits.
    mask: the leaves that are priced: a tree of bool, or a callable that makes
      one of params, as in `optax.masked`. None prices every floating leaf.
    update_every: nu and alpha are estimated every so many updates.
    measure_every: bits are measured every so many updates; so are nu and alpha
      where nobody pays for them, with a fixed shape of rate "dggr".
    implementation: of the moments, see `moments`.
    sharding: how params are sharded under automatic mesh axes, a tree of
      NamedSharding or a callable that makes one of params: the moments are then
      one all-reduce of two floats per tensor, and kernels can be used. Without
      it the compiler partitions the sums; explicit mesh axes need none.

  Returns:
    A transformation whose updates keep their shapes and dtypes. Its update
    raises ValueError without params.

  Raises:
    ValueError: for an argument out of its range.

  Source: Wu, Wen & Han, ICML 2025, arXiv 2504.16968, Algorithm 1.
  """
  _check(
    lmbda,
    rate,
    shape,
    scope,
    epsilon,
    step,
    update_every=update_every,
    measure_every=measure_every,
  )
  if rate == "code_length":
    epsilon = code_length.EPSILON * step  # Of the scale alone.
  epsilon = step / 2 if epsilon is None else epsilon
  if isinstance(lmbda, control.Controller):
    controller = lmbda
  else:
    controller = control.scheduled(lmbda)
  is_paid = shape is None or rate != "dggr"
  estimate_every = update_every if is_paid else measure_every

  def estimate(params):
    """nu and the scale of the price, of params with a floating leaf."""
    per_tensor = tree_moments(params, sharding, implementation=implementation)
    total = jax.tree.map(jnp.sum, per_tensor)
    joined = jax.tree.map(lambda t, s: jnp.append(t, s), per_tensor, total)
    nu = shape_parameter(joined)
    tensor_nu, model_nu = nu[:-1], nu[-1]
    estimated = model_nu if scope == "model" else tensor_nu
    paid = jnp.broadcast_to(
      estimated if shape is None else jnp.float32(shape), tensor_nu.shape
    )
    mean_abs = per_tensor.abs_sum / jnp.maximum(per_tensor.count, 1.0)
    return estimated, rates.price_scale(paid, mean_abs, epsilon)

  def gradients(leaves, nu, alpha):
    """grad R of each leaf, float32."""
    paid = nu if shape is None else shape
    # A float, because JAX takes no integer of 2^31 and more.
    total = float(max(sum(x.size for x in leaves), 1))
    if rate == "code_length":
      shapes = jnp.broadcast_to(jnp.float32(paid), alpha.shape)
      return [
        code_length.gradient(x, s, a, step) / total
        for x, s, a in zip(leaves, shapes, alpha, strict=True)
      ]
    coefficients = rates.coefficient(rate, paid, alpha) / total
    coefficients = jnp.broadcast_to(coefficients, alpha.shape)
    # A static shape stays a Python number, which needs no power.
    if isinstance(paid, int | float) or paid.ndim == 0:
      shapes = [paid] * len(leaves)
    else:
      shapes = list(paid)
    return [
      c * rates.direction(x, s, epsilon)
      for c, x, s in zip(coefficients, leaves, shapes, strict=True)
    ]

  def init_fn(params):
    t = len(floating(params))
    return BackslashState(
      count=jnp.zeros([], jnp.int32),
      lmbda=jnp.zeros([t] if controller.per_tensor else [], jnp.float32),
      shape=jnp.full([] if scope == "model" else [t], 2.0, jnp.float32),
      scale=jnp.ones([t], jnp.float32),
      bits=jnp.zeros([], jnp.float32),
      control=controller.init(),
    )

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
        "backslash needs params: tx.update(grads, state, params)"
      )
    count = jnp.asarray(optax.safe_increment(state.count))
    leaves = floating(params)
    if not leaves:
      return updates, state._replace(count=count)
    nu, alpha = _every(
      estimate_every,
      state.count,
      lambda: estimate(params),
      (state.shape, state.scale),
    )
    bits = _every(
      measure_every,
      state.count,
      lambda: meter.bits_per_parameter(params, step, sharding),
      state.bits,
    )
    rate_gradients = gradients(leaves, nu, alpha)
    norms = jnp.zeros([2, len(leaves)], jnp.float32)
    if controller.needs_norms:
      task_gradients = floating(params, updates)
      norms = jnp.stack([_norms(rate_gradients), _norms(task_gradients)])
    signals = control.Signals(state.count, measure_every, bits, *norms)
    lmbda_, control_state = controller.update(signals, state.control)

    # Neither is ever negative, which the compiler does not know: it measures
    # before it updates, and needs no copy of params that are given away.
    weights = jnp.where((bits < 0) | jnp.any(nu < 0), 0.0, lmbda_)
    weights = iter(jnp.broadcast_to(weights, alpha.shape))
    rate_gradients = iter(rate_gradients)

    def add(g, x):
      if not _is_floating(x):
        return g
      return (g + next(weights) * next(rate_gradients)).astype(g.dtype)

    updates = jax.tree.map(add, updates, params)
    return updates, BackslashState(
      count, lmbda_, nu, alpha, bits, control_state
    )

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return tx if mask is None else optax.masked(tx, mask)


def _every(period, count, compute, kept):
  """compute() in every period-th update, from the first on; else kept."""
  if isinstance(period, int) and period == 1:
    return compute()
  return jax.lax.cond(count % period == 0, compute, lambda: kept)


def _is_floating(x):
  return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def floating(params, values=None):
  """The leaves of `values`, or of `params`, where params has floating ones."""
  values = params if values is None else values
  pairs = zip(jax.tree.leaves(values), jax.tree.leaves(params), strict=True)
  return [v for v, x in pairs if _is_floating(x)]


def _norms(leaves):
  squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves]
  return jnp.sqrt(jnp.stack(squares))


def _check(lmbda, rate, shape, scope, epsilon, step, **periods):
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
    "a non-negative finite number, a schedule or a controller",
    lambda v: callable(v) or isinstance(v, control.Controller) or within(0)(v),
  )
  check("rate", rate, f"one of {RATES}", RATES.__contains__)
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
    "None or non-negative and finite, and None for code_length",
    lambda v: v is None or (rate != "code_length" and within(0)(v)),
  )
  for name, period in periods.items():
    check(
      name,
      period,
      "a positive integer",
      lambda v: isinstance(v, int) and v >= 1,
    )
