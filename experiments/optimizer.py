"""The optax chain of a config, and what its rate term tells."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

import backslash_jax as bs


def schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  """Learning rate of a step: linear warm-up, then half a cosine."""
  optimizer = config.optimizer
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=optimizer.learning_rate,
    warmup_steps=min(optimizer.warmup_steps, config.total_steps - 1),
    decay_steps=config.total_steps,
    end_value=optimizer.learning_rate * optimizer.end_learning_rate,
  )


def create(
  config: ml_collections.ConfigDict, sharding: Any = None
) -> optax.GradientTransformationExtraArgs:
  """AdamW on the clipped gradient, with the rate term where lmbda > 0.

  The clipping comes first, so that it bounds the task's gradient alone. A
  coupled rate goes through Adam's preconditioner together with it, a
  decoupled one does not.

  Args:
    config: its fields `optimizer` and `rate`, and total_steps.
    sharding: of the parameters, a tree of NamedSharding; see `bs.backslash`.
  """
  optimizer, rate = config.optimizer, config.rate
  chain = [
    optax.clip_by_global_norm(optimizer.clip_norm),
    optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2),
    optax.add_decayed_weights(optimizer.weight_decay, mask=bs.matrices),
    optax.scale_by_learning_rate(schedule(config)),
  ]
  if rate.lmbda > 0:
    lmbda = rate.lmbda
    if rate.warmup_steps:
      lmbda = optax.linear_schedule(0.0, rate.lmbda, rate.warmup_steps)
    place = {"coupled": 1, "decoupled": 2}[rate.placement]
    chain.insert(place, _backslash(rate, lmbda, sharding))
  return optax.chain(*chain)


def rate_metrics(
  config: ml_collections.ConfigDict, opt_state: Any, params: Any
) -> dict[str, jax.Array]:
  """nu, bits per parameter and lmbda of an update, float32 scalars.

  The rate term in the chain has them. Where there is none, one of weight
  zero reads the same numbers off the parameters.
  """
  if optax.tree.get(opt_state, "bits") is None:
    meter = _backslash(config.rate, 0.0)
    _, opt_state = meter.update(params, meter.init(params), params)
  return {
    "nu": jnp.mean(optax.tree.get(opt_state, "shape")),
    "bits": optax.tree.get(opt_state, "bits"),
    "lmbda": optax.tree.get(opt_state, "lmbda"),
  }


def _backslash(rate, lmbda, sharding=None):
  return bs.backslash(
    lmbda,
    rate=rate.rate,
    shape=rate.shape,
    scope=rate.scope,
    epsilon=rate.epsilon,
    step=rate.step,
    mask={"matrices": bs.matrices, "all": None}[rate.mask],
    update_every=rate.update_every,
    sharding=sharding,
  )
