"""Quantization steps that are chosen while training runs.

A file need not have one step for all of its tensors. `fit_steps` gives each the
one that its sensitivity asks for, such that all together take the bits asked
for; from then on the loss is to see the model rounded to them:

>>> import backslash_jax as bs, optax
>>> tx = optax.chain(bs.fit_steps(1.5, begin=500), optax.adamw(3e-3))

  def loss_fn(params, opt_state, batch):
    steps = optax.tree.get(opt_state, "steps")
    return loss(bs.round_through(params, steps), batch)

  bs.save(path, params, step=optax.tree.get(opt_state, "steps"))
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from backslash_jax import control, meter, quantize, rounding, transform
from backslash_jax.moments import Sharding, tree_moments

# Gradients of so many updates, about, are averaged; those of four times as many
# before the steps are chosen are looked at.
_WINDOW = 100
# What is fitted is found to this many halvings of 64 octaves.
_HALVINGS = 24


class FitStepsState(NamedTuple):
  """State of `fit_steps`.

  Attributes:
    count: updates so far, int32.
    sensitivity: of each of the T selected leaves, the running mean of its
      squared updates, weighted with the squared weights; float32 [T].
    steps: by the leaf's name, as `round_through` and `save` take them, float32
      scalars; 0 before they are chosen.
  """

  count: jax.Array
  sensitivity: jax.Array
  steps: dict[str, jax.Array]


def fit_steps(
  bits: float | jax.Array,
  *,
  begin: int | jax.Array,
  mask: rounding.Mask | None = rounding.matrices,
  sharding: Sharding | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Chooses a quantization step for each leaf, once, in the update `begin`.

  The steps are those of `quantize.allocate`, with the common factor
  by which the leaves take `bits` when they are chosen. The sensitivity of a
  leaf is the mean of the squared updates that come in, weighted with the
  squared weights: those near zero, of which a rate makes many, are coded as
  zero at any step, and suffer and cost nothing. The steps stay as they are, so
  that the weights, which the loss sees rounded, settle on the levels. In the
  end they take a few percent more or less, and with a rate less. The updates
  pass as they are.

  Stands first in a chain, or after clipping, where the updates are gradients of
  the loss.

  Args:
    bits: of the selected leaves, per parameter, in (0, 32).
    begin: updates that are made before the steps are chosen: two thirds of all
      in docs/frontier.md. Earlier, rounding disturbs what is still learned.
    mask: the leaves that are quantized, as in `bs.backslash`.
    sharding: as in `bs.backslash`.

  Returns:
    A transformation; `optax.tree.get(state, "steps")` has the steps. Its
    update raises ValueError without params.

  Raises:
    ValueError: for an argument out of its range.

  Source: docs/frontier.md has what it gains.
  """
  # Arrays, which may be traced, pass.
  if not isinstance(bits, jax.Array) and not 0 < bits < 32:
    raise ValueError(f"fit_steps: bits must be in (0, 32), found {bits!r}")
  if not isinstance(begin, jax.Array) and begin < 1:
    raise ValueError(f"fit_steps: begin must be at least 1, found {begin!r}")

  def init(params):
    names = transform.floating(params, rounding.names(params))
    return FitStepsState(
      count=jnp.zeros([], jnp.int32),
      sensitivity=jnp.zeros([len(names)], jnp.float32),
      steps={name: jnp.zeros([], jnp.float32) for name in names},
    )

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
        "fit_steps needs params: tx.update(grads, state, params)"
      )
    count = jnp.asarray(optax.safe_increment(state.count))
    names = transform.floating(params, rounding.names(params))
    if not names:
      return updates, state._replace(count=count)
    since = count - jnp.maximum(begin - 4 * _WINDOW, 0)
    sensitivity = jax.lax.cond(
      (since > 0) & (count <= begin),
      lambda: control.running_mean(
        state.sensitivity,
        _squares(updates, params),
        jnp.minimum(since, _WINDOW),
      ),
      lambda: state.sensitivity,
    )
    old = jnp.stack([state.steps[name] for name in names])
    steps = jax.lax.cond(
      count == begin,
      lambda: _fit(params, bits, sensitivity, sharding),
      lambda: old,
    )
    by_name = dict(zip(names, steps, strict=True))
    return updates, FitStepsState(count, sensitivity, by_name)

  tx = optax.GradientTransformationExtraArgs(init, update)
  return tx if mask is None else optax.masked(tx, mask)


def _fit(params, bits, sensitivity, sharding):
  """The steps with which params take `bits`, float32 [T]."""
  sums = tree_moments(params, sharding)
  scale = jnp.sqrt(sums.square_sum / jnp.maximum(sums.count, 1.0))
  unit = jnp.where(jnp.any(scale > 0), jnp.max(scale), 1.0)

  def steps(octave):
    return quantize.allocate(unit * 2.0**octave, sensitivity, sums.count)

  def halve(_, bounds):
    fine, coarse = bounds
    middle = (fine + coarse) / 2
    found = meter.bits_per_parameter(params, steps(middle), sharding)
    is_coarse = found < bits
    return (
      jnp.where(is_coarse, fine, middle),
      jnp.where(is_coarse, middle, coarse),
    )

  bounds = jnp.float32(-32.0), jnp.float32(32.0)
  _, coarse = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
  return steps(coarse)


def _squares(updates, params):
  """Of each leaf the weighted mean of its squared updates, float32 [T]."""
  pairs = zip(
    transform.floating(params, updates),
    transform.floating(params),
    strict=True,
  )
  return jnp.stack([_weighted_square(u, x) for u, x in pairs])


def _weighted_square(u, x):
  """Mean of u^2, weighted with x^2; 0 where x is zero everywhere."""
  squares = jnp.square(x.astype(jnp.float32))
  total = jnp.sum(squares)
  weighted = jnp.sum(jnp.square(u.astype(jnp.float32)) * squares)
  return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 0.0)
