"""The optax chain of a config, and the metrics of its rate term."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

import backslash_jax as bs
from backslash_jax import control, structure
from experiments.models import units


def schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  """Learning rate of an update: linear warm-up, then half a cosine."""
  optimizer, warmup = config.optimizer, config.optimizer.warmup_updates
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=optimizer.learning_rate,
    warmup_steps=config.total_updates // 20 if warmup is None else warmup,
    decay_steps=config.total_updates,
    end_value=optimizer.learning_rate * optimizer.end_learning_rate,
  )


def create(
  config: ml_collections.ConfigDict, sharding: Any = None
) -> optax.GradientTransformationExtraArgs:
  """AdamW or SGD on the clipped gradient, with rate term and pruning, if any.

  The clipping comes first, so that it bounds the gradient of the task alone. A
  coupled rate goes through Adam's preconditioner, a decoupled one does not,
  and the learning rate does not scale an unscaled one.

  Args:
    config: of the experiment.
    sharding: of the parameters, a tree of NamedSharding; see `bs.backslash`.
  """
  optimizer, rate, prune = config.optimizer, config.rate, config.prune
  rate_term = _rate_term(config, sharding)

  def rate_at(placement):
    return rate_term if rate.placement == placement else []

  chain = [
    optax.clip_by_global_norm(optimizer.clip_norm),
    *rate_at("coupled"),
    _preconditioner(optimizer),
    *rate_at("decoupled"),
    optax.add_decayed_weights(optimizer.weight_decay, mask=bs.matrices),
    optax.scale_by_learning_rate(schedule(config)),
  ]
  if unscaled := rate_at("unscaled"):
    # The updates are no gradients any more: they have the opposite sign.
    chain += [optax.scale(-1.0), *unscaled, optax.scale(-1.0)]
  if rate.keep_zeros:
    chain.append(structure.keep_zeros(rate.step, rate.stop_update))
  if prune.sparsity > 0:
    chain.append(_pruning(prune, prune.sparsity, prune.every))
  if "structure" not in config:
    return optax.chain(*chain)
  chain += _structure(config)
  return structure.clear_moments(optax.chain(*chain))


def _rate_term(config, sharding):
  """The rate term and the choice of steps, in a list; [] without either."""
  lmbda, bits = _controller(config.rate), config.round_bits
  if lmbda is None and bits is None:
    return []
  step = config.rate.step
  if bits is not None:
    begin = max(config.round_begin_update, 1)
    step = bs.fit_steps(bits, begin=begin, step=step)
  return [_backslash(config.rate, lmbda or 0.0, step, sharding)]


def _preconditioner(optimizer):
  """The transformation of the gradient that `optimizer.name` names."""
  if optimizer.name == "sgd":
    return optax.trace(decay=optimizer.b1)
  return optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2)


def _structure(config):
  """The rate and the pruning of whole units."""
  own, chain = config.structure, []
  if own.lmbda > 0:
    weight = optax.linear_schedule(0.0, own.lmbda, max(own.warmup_updates, 1))
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
  return chain


def _pruning(fields, sparsity, every, **options):
  """Gradual pruning, over the updates that `prune` or `structure` names."""
  return structure.gradual_pruning(
    sparsity,
    fields.end_update,
    begin=fields.begin_update,
    every=every,
    **options,
  )


def rate_metrics(
  config: ml_collections.ConfigDict,
  opt_state: Any,
  params: Any,
  update: jax.Array | int,
  placed: Any = None,
) -> dict[str, jax.Array]:
  """nu, bits per parameter and lmbda of an update, float32 scalars.

  They are read from the state of the rate term. A chain without one measures
  nu and bits of the parameters, at the updates that are logged; they are nan
  at the others. A target adds "unmet", see `bs.target_rate`.
  `placed` are the shardings of params; None is one device.
  """
  if optax.tree.get(opt_state, "bits") is None:
    meter = _backslash(config.rate, 0.0, config.rate.step, placed)
    state = meter.init(params)
    unknown = jnp.full([], jnp.nan), jnp.full([], jnp.nan)
    is_logged = (update == 1) | (update % config.log_every == 0)

    def measure():
      _, measured = meter.update(params, state, params)
      shape, bits = (
        optax.tree.get(measured, name) for name in ("rate_shape", "bits")
      )
      return jnp.mean(shape), bits

    nu, bits = jax.lax.cond(
      is_logged | (update == config.total_updates), measure, lambda: unknown
    )
    values = {"nu": nu, "bits": bits, "lmbda": jnp.zeros([])}
  else:
    values = {
      "nu": jnp.mean(optax.tree.get(opt_state, "rate_shape")),
      "bits": optax.tree.get(opt_state, "bits"),
      "lmbda": optax.tree.get(opt_state, "lmbda"),
    }
  if config.rate.target is not None:
    unmet = optax.tree.get(opt_state, "unmet")
    values["unmet"] = unmet.astype(jnp.float32)
  return values | _group_metrics(opt_state)


def _group_metrics(opt_state):
  """nu of the rate of whole units, and the fraction of them that is zero."""
  names = ("group_shape", "group_zeros")
  found = {name: optax.tree.get(opt_state, name) for name in names}
  return {name: value for name, value in found.items() if value is not None}


def _controller(rate):
  """The controller of lmbda, or None for normal training."""
  if rate.target is not None:
    limit = {} if rate.limit is None else {"limit": rate.limit}
    controller = bs.target_rate(rate.target, **limit)
  elif rate.balance is not None:
    controller = bs.gradient_balance(rate.balance)
  elif rate.lmbda > 0:
    controller = control.scheduled(rate.lmbda)
  else:
    return None
  if rate.stop_update is None:
    return controller

  def update(signals, state):
    lmbda, state = controller.update(signals, state)
    return jnp.where(signals.count < rate.stop_update, lmbda, 0.0), state

  return controller._replace(update=update)


def _backslash(rate, lmbda, step, sharding=None):
  return bs.backslash(
    lmbda,
    rate=rate.rate,
    shape=rate.shape,
    scope=rate.scope,
    epsilon=rate.epsilon,
    step=step,
    mask={"matrices": bs.matrices, "all": None}[rate.mask],
    update_every=rate.update_every,
    sharding=sharding,
  )
