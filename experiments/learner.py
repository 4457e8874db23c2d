"""The model as a function, and the update of a training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

import backslash_jax as bs
from experiments import (
  finetune,
  finite,
  models,
  optimizer,
  scoring,
  sharding,
)
from experiments.models import functional

Params = dict[str, Any]
Forward = functional.Forward
State = dict[str, Any]  # "params" and "opt_state".
Steps = dict[str, jax.Array]  # Quantization steps by the matrices' names.


def build(
  config: ml_collections.ConfigDict, task: Any
) -> tuple[Forward, Params]:
  """The model as (params, tokens, mask) -> logits, and its initial params."""
  return functional.split(models.build(config.model, task, seed=config.seed))


def build_parts(
  config: ml_collections.ConfigDict, task: Any
) -> tuple[Forward, Params, Params]:
  """As `build`, with what is trained in place of all params, and the base.

  See `finetune.split`.
  """
  model = models.build(config.model, task, seed=config.seed)
  forward, params = functional.split(model)
  new = getattr(model, "new_parameters", ())
  return forward, *finetune.split(config, params, new)


def build_abstract(
  config: ml_collections.ConfigDict, task: Any
) -> tuple[Forward, Params]:
  """As `build`, with shapes in place of the initial params."""
  return functional.split(
    nnx.eval_shape(lambda: models.build(config.model, task, seed=config.seed))
  )


def make_update(
  config: ml_collections.ConfigDict,
  forward: Forward,
  tx: optax.GradientTransformationExtraArgs,
  *,
  mesh: Mesh | None = None,
  measure_rate: bool = True,
) -> Callable[..., tuple[State, dict[str, jax.Array], dict[str, jax.Array]]]:
  """The function (state, batch, update, base={}) -> (state, values, flags).

  `update` is the number of the update, from 1; `base` is that of
  `finetune.split`; `values` are the metrics, float32 scalars; `flags` are of
  `finite.flags`, for parameters, gradients and updates. Without `measure_rate`
  the metrics of the rate are left out.
  The state is on `mesh`, as `sharding` says; None is one device.
  """
  schedule = optimizer.schedule(config)

  def loss_fn(params, opt_state, batch, update, base):
    params = _seen_by_loss(config, params, opt_state, update)
    params = finetune.merge(config.model, base, params)
    totals = scoring.totals(
      forward, params, batch, teacher=base, part=config.model.distill
    )
    weight = totals["weight"]
    return totals["loss"] / weight, totals["accuracy"] / weight

  def update_fn(state, batch, update, base=None):
    params = state["params"]
    with sharding.use(mesh):
      (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        params, state["opt_state"], batch, update, {} if base is None else base
      )
    updates, opt_state = tx.update(grads, state["opt_state"], params)
    values = {
      "loss": loss,
      "accuracy": accuracy,
      "gradient_norm": optax.tree.norm(grads),
      "update_norm": optax.tree.norm(updates),
      "learning_rate": jnp.asarray(schedule(update - 1)),
    }
    if measure_rate:
      several = mesh is not None and mesh.size > 1
      placed = sharding.parameters(params, mesh) if several else None
      values |= optimizer.rate_metrics(
        config, opt_state, params, update, placed
      )
    trees = {"parameters": params, "gradients": grads, "updates": updates}
    flags = finite.flags(values, trees)
    params = optax.apply_updates(params, updates)
    return {"params": params, "opt_state": opt_state}, values, flags

  return update_fn


def fitted_steps(config: ml_collections.ConfigDict, opt_state: Any) -> Steps:
  """The steps that `config.round_bits` asks for, by name; otherwise none."""
  return {} if config.round_bits is None else optax.tree.get(opt_state, "steps")


def _seen_by_loss(config, params, opt_state, update):
  """The parameters as the loss of this update sees them."""
  if config.round_bits is not None:
    return bs.round_through(params, fitted_steps(config, opt_state))
  if config.round_step is not None:
    seen = bs.round_through(params, config.round_step)
  elif config.quantize_bits is not None:
    levels = 2 ** (config.quantize_bits - 1) - 1
    seen = jax.tree.map(
      lambda x, m: _quantized_through(x, levels) if m else x,
      params,
      bs.matrices(params),
    )
  else:
    return params
  if config.round_begin_update:
    begun = update > config.round_begin_update
    return jax.tree.map(lambda a, b: jnp.where(begun, a, b), seen, params)
  return seen


def _quantized_through(x, levels):
  """x rounded to `levels` levels on each side of 0, up to max |x|."""
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
  step = jnp.maximum(largest, jnp.finfo(x.dtype).tiny) / levels
  return bs.round_through(x, step, mask=True)
