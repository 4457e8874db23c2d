"""The decoupled rate as a proximal step, which ends at zero."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class ProximalState(NamedTuple):
  """State of `proximal`.

  Attributes:
    count: updates so far, int32.
    rate: state of the rate's transformation.
  """

  count: jax.Array
  rate: optax.OptState


def proximal(
  rate: optax.GradientTransformation,
  learning_rate: float | optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Lets the rate pull no weight past zero.

  First the task makes its step, then the rate pulls what came of it towards
  zero, and at most to zero, where a gradient step would carry a small weight
  over to the other side. With the rate L1 that is soft thresholding.

  >>> import backslash_jax as bs, optax
  >>> from backslash_jax import proximal
  >>> tx = optax.chain(
  ...   optax.scale_by_adam(),
  ...   proximal.proximal(bs.backslash(1e3), 3e-5),
  ...   optax.scale_by_learning_rate(3e-5),
  ... )

  Args:
    rate: `bs.backslash`, or another that adds to the updates what has the
      sign of the weights.
    learning_rate: what multiplies the updates later in the chain.

  Returns:
    A transformation in the place that `rate` has when decoupled. Its update
    needs params.

  Source: Parikh & Boyd, Proximal Algorithms, 2014, section 4.2.
  """
  rate = optax.with_extra_args_support(rate)

  def init(params):
    return ProximalState(jnp.zeros([], jnp.int32), rate.init(params))

  def update(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError("proximal needs params: tx.update(grads, state, params)")
    eta = (
      learning_rate(state.count) if callable(learning_rate) else learning_rate
    )
    eta = jnp.asarray(eta, jnp.float32)
    moved = jax.tree.map(
      lambda x, u: (x - eta * u).astype(x.dtype), params, updates
    )
    pulled, rate_state = rate.update(updates, state.rate, moved, **extra_args)

    def stop_at_zero(u, p, x):
      # Where the learning rate is 0 nothing moves.
      bound = jnp.abs(x) / jnp.maximum(eta, jnp.finfo(jnp.float32).tiny)
      return (u + jnp.clip(p - u, -bound, bound)).astype(u.dtype)

    updates = jax.tree.map(stop_at_zero, updates, pulled, moved)
    count = jnp.asarray(optax.safe_increment(state.count))
    return updates, ProximalState(count, rate_state)

  return optax.GradientTransformationExtraArgs(init, update)
