"""The optax chain of a config, and what its rate term tells."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

import backslash_jax as bs
from backslash_jax import control, proximal, structure
from experiments.models import units


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
  """AdamW or SGD on the clipped gradient, with rate term and pruning, if any.

  The clipping comes first, so that it bounds the task's gradient alone. A
  coupled rate goes through Adam's preconditioner together with it, a
  decoupled one does not.

  Args:
    config: its fields `optimizer`, `rate`, `prune`, `round_bits` and
      `round_start`, and total_steps.
    sharding: of the parameters, a tree of NamedSharding; see `bs.backslash`.
  """
  optimizer, rate, prune = config.optimizer, config.rate, config.prune
  chain = [
    optax.clip_by_global_norm(optimizer.clip_norm),
    _preconditioner(optimizer),
    optax.add_decayed_weights(optimizer.weight_decay, mask=bs.matrices),
    optax.scale_by_learning_rate(schedule(config)),
  ]
  if config.round_bits is not None:
    begin = max(config.round_start, 1)
    fit = bs.fit_steps(config.round_bits, begin=begin, sharding=sharding)
    chain.insert(1, fit)
  controller = _controller(rate)
  if controller is not None:
    tx = _backslash(rate, controller, sharding)
    if rate.placement == "coupled":
      chain.insert(-3, tx)
    elif rate.placement == "decoupled":
      chain.insert(-2, tx)
    elif rate.placement == "proximal":
      chain.insert(-1, proximal.proximal(tx, schedule(config)))
    else:  # What is added there is no gradient any more but a step.
      chain += [optax.scale(-1.0), tx, optax.scale(-1.0)]
  if rate.keep_zeros:
    chain.append(structure.keep_zeros(rate.step, rate.stop_step))
  if prune.sparsity > 0:
    chain.append(_pruning(prune, prune.sparsity, prune.every))
  if "structure" in config:
    return _structured(config, chain)
  return optax.chain(*chain)


def _preconditioner(optimizer):
  """What makes a step of the gradient, by `optimizer.name`."""
  if optimizer.name == "sgd":
    return optax.trace(decay=optimizer.b1)
  return optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2)


def _structured(config, chain):
  """The chain with the rate and the pruning of whole units at its end."""
  own = config.structure
  if own.lmbda > 0:
    weight = optax.linear_schedule(0.0, own.lmbda, max(own.warmup_steps, 1))
    chain.append(
      structure.group_rate(
        weight,
        units.declare(config.model, own.groups),
        schedule(config),
        shape=own.shape,
        step=config.rate.step,
      )
    )
  for name, fraction in own.pruned.items():
    if fraction > 0:
      own_units = units.declare(config.model, [name])
      chain.append(
        _pruning(own, fraction, config.prune.every, groups=own_units)
      )
  return structure.clear_moments(optax.chain(*chain))


def _pruning(fields, sparsity, every, **options):
  """The gradual pruning in the time that `prune` or `structure` says."""
  return structure.gradual_pruning(
    sparsity, fields.end_step, begin=fields.begin_step, every=every, **options
  )


def rate_metrics(
  config: ml_collections.ConfigDict,
  opt_state: Any,
  params: Any,
  step: jax.Array | int,
) -> dict[str, jax.Array]:
  """nu, bits per parameter and lmbda of an update, float32 scalars.

  The rate term in the chain has them. Where there is none, one of weight
  zero reads the same numbers off the parameters, in the steps that are logged;
  nu and bits are nan in the others. A target has "unmet" as well, see
  `bs.target_rate`.
  """
  if optax.tree.get(opt_state, "bits") is None:
    meter = _backslash(config.rate, 0.0)
    state = meter.init(params)
    shape = optax.tree.get(state, "shape")
    unknown = jnp.full_like(shape, jnp.nan), jnp.full([], jnp.nan)
    is_logged = (step == 1) | (step % config.log_every == 0)

    def measure():
      _, measured = meter.update(params, state, params)
      return tuple(optax.tree.get(measured, k) for k in ("shape", "bits"))

    nu, bits = jax.lax.cond(
      is_logged | (step == config.total_steps), measure, lambda: unknown
    )
    values = {"nu": jnp.mean(nu), "bits": bits, "lmbda": jnp.zeros([])}
    return values | _group_metrics(opt_state)
  values = {
    "nu": jnp.mean(optax.tree.get(opt_state, "shape")),
    "bits": optax.tree.get(opt_state, "bits"),
    "lmbda": optax.tree.get(opt_state, "lmbda"),
  }
  if config.rate.target is not None:
    unmet = optax.tree.get(opt_state, "unmet")
    values["unmet"] = unmet.astype(jnp.float32)
  return values | _group_metrics(opt_state)


def _group_metrics(opt_state):
  """Of a rate of whole units: its nu, and the fraction that is zero."""
  names = ("group_shape", "group_zeros")
  found = {name: optax.tree.get(opt_state, name) for name in names}
  return {name: value for name, value in found.items() if value is not None}


def _controller(rate):
  """What chooses lmbda, or None for normal training."""
  if rate.target is not None:
    limit = {} if rate.balance is None else {"limit": rate.balance}
    controller = bs.target_rate(rate.target, **limit)
  elif rate.balance is not None:
    controller = bs.gradient_balance(rate.balance)
  elif rate.lmbda > 0:
    controller = control.scheduled(rate.lmbda)
  else:
    return None
  if not rate.warmup_steps and rate.stop_step is None:
    return controller

  def update(signals, state):
    lmbda, state = controller.update(signals, state)
    if rate.warmup_steps:
      lmbda *= jnp.minimum(signals.count / rate.warmup_steps, 1.0)
    if rate.stop_step is not None:
      lmbda = jnp.where(signals.count < rate.stop_step, lmbda, 0.0)
    return lmbda, state

  return controller._replace(update=update)


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
