"""The optax transformation that adds the gradient of the rate."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from backslash_jax import (
  arguments,
  control,
  fitting,
  meter,
  moments,
  quantize,
  rounding,
  tree,
)
from backslash_jax import price as prices
from backslash_jax import rate as rates
from backslash_jax.moments import sharded


class BackslashState(NamedTuple):
  """State of `backslash`; read a field with `optax.tree.get(state, name)`.

  No field name occurs in optax's own states, so `get` also works in a chain
  with Adam. If the optimizer contains several of these states, or a parameter
  has the name of a field, select one with `filtering`:

      optax.tree.get(state, "bits", filtering=lambda path, value:
        "embeddings" in jax.tree_util.keystr(path))

  Attributes:
    rate_count: updates so far, int32.
    lmbda: weight of the rate in the last update, float32.
    rate_shape: latest estimate of nu, float32. A scalar for scope "model"; [T]
      for scope "tensor", one per selected leaf in the order of
      `jax.tree.leaves`. It is also estimated if `shape` is fixed.
    rate_scale: alpha of each selected leaf, computed from |x| + epsilon with
      the nu that the rate uses, float32 [T].
    bits: latest measured entropy of the selected leaves, quantized with the
      current steps, bits per parameter, float32; see `meter`.
    steps: name -> quantization step of each selected leaf, float32 scalars; 0
      until `fit_steps` has chosen them. `bs.steps` reads them.
    fit: state of `fit_steps`, see `fitting.FitState`; () without it.
    control: state of the controller of lmbda, see `control`.
  """

  rate_count: jax.Array
  lmbda: jax.Array
  rate_shape: jax.Array
  rate_scale: jax.Array
  bits: jax.Array
  steps: Any
  fit: Any
  control: Any


def backslash(
  lmbda: float | optax.Schedule | control.Controller = 0.0,
  *,
  rate: str | rates.Rate = "dggr",
  shape: float | None = None,
  scope: str = "model",
  epsilon: float | None = None,
  step: float | fitting.FitSteps = quantize.STEP,
  mask: tree.Mask = tree.DEFAULT,
  update_every: int = 4,
  measure_every: int = 16,
  implementation: str | None = None,
  sharding: moments.Sharding | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Adds the gradient of lmbda * R(params) to the updates.

  The default rate is that of the paper, over all N selected parameters x_i:

      R = 1/N sum_i (|x_i| + epsilon)^nu

  The shape nu is estimated from the moments of the parameters in every fourth
  update (`update_every`), and is held constant in the gradient.

  The position in the chain matters. Before Adam, the preconditioner also scales
  the rate's gradient, so weights to which the loss is sensitive shrink less, as
  in the paper's experiments. After Adam, the rate is decoupled, as weight decay
  is in AdamW. `target_rate`, `gradient_balance` and `fit_steps` need the
  gradient of the loss; with any of them, put `backslash` before Adam.

  >>> import backslash_jax as bs, optax
  >>> tx = optax.chain(bs.backslash(1e3), optax.adamw(3e-5))

  Args:
    lmbda: weight of the rate, in units of loss per unit of rate. A non-negative
      number, an optax schedule, or a controller (`target_rate` or
      `gradient_balance`). With the number 0 (default) the updates pass through
      unchanged, but the state is still measured.
    rate: "dggr" (default), the rate above; "bits", the code length in bits per
      parameter under each tensor's own scale; or a `rate.Rate`. With "bits",
      lmbda is in units of loss per bit per parameter, and a suitable value
      does not depend on the scale of the tensors.
    shape: None (default) estimates nu. A number fixes it: 0.5, 1 and 2 are the
      paper's L0.5, L1 and L2.
    scope: "model" (default, as in the paper) estimates one nu for all selected
      leaves, "tensor" one per leaf.
    epsilon: added to every magnitude, in the units of the parameters. None
      (default) uses step / 2, half the width of the zero bin.
    step: quantization step of the coded file, in the units of the parameters. A
      number, or `fit_steps` to choose one per leaf. state.bits is measured with
      it.
    mask: selects the leaves to which the rate, the measurement and the
      quantization apply; see `bs.matrices`, the default. The paper applies the
      rate to all parameters: mask=None.
    update_every: updates between estimates of nu and alpha; default 4. An
      estimate reads all selected parameters. The paper estimates in every
      update: 1.
    measure_every: updates between measurements of bits; default 16. With rate
      "dggr" and a fixed shape, nu and alpha are also estimated at this
      interval, because the gradient does not need them.
    implementation: implementation of the moments, see `moments.moments`.
    sharding: shardings of params under automatic mesh axes: a tree of
      NamedSharding, or a callable that returns one for params. The moments then
      take one all-reduce of two floats per tensor and can use kernels. If None
      (default), the compiler partitions the sums. Explicit mesh axes do not
      need this argument.

  Returns:
    A transformation that keeps the shapes and dtypes of the updates. Its init
    raises ValueError if the mask selects nothing, and its update if params is
    missing.

  Raises:
    ValueError: if an argument is out of range.

  Source: Wu, Wen & Han, ICML 2025, arXiv 2504.16968, Algorithm 1.
  """
  plan = step if isinstance(step, fitting.FitSteps) else None
  price = prices.make(rate, shape, scope, epsilon, plan.step if plan else step)
  _check_lmbda(lmbda)
  arguments.check_count("backslash", "update_every", update_every, 1)
  arguments.check_count("backslash", "measure_every", measure_every, 1)
  base_step = plan.step if plan else prices.number(step)
  # A JAX array may be traced: whether it is 0 is not known.
  is_fixed = isinstance(lmbda, int | float | np.number | np.ndarray)
  is_free = is_fixed and lmbda == 0
  if isinstance(lmbda, control.Controller):
    controller = lmbda
  else:
    controller = control.scheduled(lmbda)
  estimate_every = update_every
  if is_free or not price.is_estimated:
    estimate_every = measure_every

  def init_fn(params):
    names = list(tree.selected(params, mask))
    t = len(names)
    own = 0.0 if plan else base_step
    return BackslashState(
      rate_count=jnp.zeros([], jnp.int32),
      lmbda=jnp.zeros([], jnp.float32),
      rate_shape=price.initial_shape(t),
      rate_scale=jnp.ones([t], jnp.float32),
      bits=jnp.zeros([], jnp.float32),
      # For a tree without leaves, the state holds an array, not an empty dict:
      # `optax.tree.map_params` accepts a leaf as a prefix of any dict.
      steps={name: jnp.full([], own, jnp.float32) for name in names}
      or jnp.zeros([], jnp.float32),
      fit=fitting.init(plan, t) if plan else (),
      control=controller.init(t),
    )

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
        "backslash needs params: tx.update(grads, state, params)"
      )
    count = jnp.asarray(optax.safe_increment(state.rate_count))
    if not jax.tree.leaves(params):
      return updates, state._replace(rate_count=count)
    flags = tree.select(params, mask)
    selected = tree.selected(params, flags)
    if not selected:
      return updates, state._replace(rate_count=count)
    placed = sharding(params) if callable(sharding) else sharding
    kept = tree.keep(params, flags)
    gradients = _at(updates, flags)
    by_name, fit, is_new = state.steps, state.fit, jnp.asarray(False)
    step_in_force = base_step
    if plan:
      _warn_unless_rounded(count, plan.begin)
      old = jnp.stack([by_name[name] for name in selected])
      steps, fit, is_new = fitting.update(
        plan, fit, old, count, gradients, kept, placed
      )
      by_name = dict(zip(selected, steps, strict=True))
      step_in_force = jnp.where(steps > 0, steps, base_step)
    nu, alpha = _every(
      estimate_every,
      state.rate_count,
      lambda: price.estimate(kept, placed, implementation),
      (state.rate_shape, state.rate_scale),
    )
    is_measured = (state.rate_count % measure_every == 0) | is_new
    bits = jax.lax.cond(
      is_measured,
      lambda: meter.bits_per_parameter(kept, step_in_force, placed),
      lambda: state.bits,
    )
    new = state._replace(
      rate_count=count,
      rate_shape=nu,
      rate_scale=alpha,
      bits=bits,
      steps=by_name,
      fit=fit,
    )
    if is_free:
      return updates, new
    pulls = price.gradients(list(selected.values()), nu, alpha)
    norms = jnp.zeros([2, len(pulls)], jnp.float32)
    if controller.needs_norms:
      norms = jnp.stack([_norms(pulls), _norms(gradients)])
    places = jnp.zeros([len(pulls), 2], jnp.float32)
    if controller.needs_places:
      places = jax.lax.cond(
        is_measured, lambda: _places(kept, placed), lambda: places
      )
    signals = control.Signals(
      count=state.rate_count,
      interval=measure_every,
      bits=bits,
      is_measured=is_measured,
      is_first=(state.rate_count == 0) | is_new,
      rate_norms=norms[0],
      task_norms=norms[1],
      places=places,
    )
    weight, control_state = controller.update(signals, state.control)
    new = new._replace(lmbda=weight, control=control_state)
    # Always false; the data dependency keeps XLA from copying donated
    # parameters.
    is_never = (bits < 0) | jnp.any(nu < 0)
    weight = jnp.where(is_never, jnp.float32(0.0), weight)
    return _add(updates, flags, [weight * pull for pull in pulls]), new

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _places(params, sharding):
  """`control.motion` of each leaf, [T, 2]."""
  leaves, shardings = moments.split(params, sharding)
  return sharded.each(leaves, shardings, control.motion)


def _at(updates, flags):
  """The incoming updates of the selected leaves."""
  found = []
  jax.tree.map(
    lambda flag, u: found.append(u) if flag else None, flags, updates
  )
  return found


def _add(updates, flags, terms):
  """The updates plus the terms of the selected leaves, each in its dtype."""
  terms = iter(terms)

  def add(flag, u):
    return (u + next(terms)).astype(u.dtype) if flag else u

  return jax.tree.map(add, flags, updates, is_leaf=lambda x: x is None)


def _warn_unless_rounded(count, begin):
  """Warns if `round_through` has not been called: traced, or from begin on."""
  is_traced = isinstance(count, jax.core.Tracer)
  if not rounding.has_rounded() and (is_traced or count >= begin):
    warnings.warn(
      "backslash fits quantization steps, but this process has not called"
      " bs.round_through: from update `begin` on, the loss must see"
      " bs.round_through(params, bs.steps(opt_state)); otherwise the saved"
      " model can have a higher loss than training shows",
      stacklevel=4,
    )


def _every(period: int, count, compute: Callable, kept):
  """compute() in the first and then every period-th update; else kept."""
  if isinstance(period, int) and period == 1:
    return compute()
  return jax.lax.cond(count % period == 0, compute, lambda: kept)


def _norms(leaves):
  squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves]
  return jnp.sqrt(jnp.stack(squares))


def _check_lmbda(lmbda):
  """Rejects an invalid lmbda; JAX arrays, which may be traced, pass."""
  if callable(lmbda) or isinstance(lmbda, control.Controller):
    return
  arguments.check(
    "backslash",
    "lmbda",
    lmbda,
    "a non-negative finite number, a schedule or a controller",
    lambda v: 0 <= v < math.inf,
  )
