"""How the weight of the rate is chosen while training runs.

A controller is asked once per update, inside the jitted step, and keeps what it
needs in the optimizer state. It sees only sums over the model, so that nothing
here depends on how the parameters are sharded.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

SCOPES = ("model", "tensor")

# `target_rate` keeps the balance of the two gradients above this.
MIN_FRACTION = 1e-4


class Signals(NamedTuple):
  """What a controller sees of one update.

  Attributes:
    count: updates so far, int32.
    interval: updates from one measurement of bits to the next; the first
      update has one.
    bits: rate at the coding step, bits per parameter, as last measured.
    rate_norms: norm of the gradient of the rate, per priced leaf [T].
    task_norms: norm of the updates that come in, per priced leaf [T].
  """

  count: jax.Array
  interval: int | jax.Array
  bits: jax.Array
  rate_norms: jax.Array
  task_norms: jax.Array


class Controller(NamedTuple):
  """Chooses lambda.

  Attributes:
    init: () -> state, a pytree of arrays.
    update: (signals, state) -> (lambda, state); lambda is a scalar or, one per
      priced leaf, [T].
    per_tensor: whether lambda is [T].
    needs_norms: whether it looks at the norms; they are zeros otherwise.
  """

  init: Callable[[], Any]
  update: Callable[[Signals, Any], tuple[jax.Array, Any]]
  per_tensor: bool = False
  needs_norms: bool = True


def scheduled(lmbda: float | jax.Array | optax.Schedule) -> Controller:
  """Lambda as a number, or as a function of the update count."""

  def update(signals, state):
    value = lmbda(signals.count) if callable(lmbda) else lmbda
    return jnp.asarray(value, jnp.float32), state

  return Controller(lambda: (), update, needs_norms=False)


def gradient_balance(fraction: float, *, scope: str = "model") -> Controller:
  """|lambda grad R| = fraction |grad D|, in every update.

  A dimensionless weight, which carries over between models, tasks and rates:
  1 lets the rate pull as hard as the task.

  Args:
    fraction: non-negative.
    scope: "model", one lambda from the norms over all priced leaves, or
      "tensor", one per leaf.

  Returns:
    A controller for `backslash`. Where either gradient vanishes, lambda is 0.

  Raises:
    ValueError: for a fraction or scope out of range.
  """
  if not 0 <= fraction < float("inf"):
    raise ValueError(
      f"gradient_balance: fraction must be non-negative and finite, found"
      f" {fraction!r}"
    )
  if scope not in SCOPES:
    raise ValueError(
      f"gradient_balance: scope must be one of {SCOPES}, found {scope!r}"
    )

  def update(signals, state):
    task, rate = signals.task_norms, signals.rate_norms
    if scope == "model":
      task, rate = _norm(task), _norm(rate)
    return fraction * _ratio(task, rate), state

  return Controller(lambda: (), update, per_tensor=scope == "tensor")


class TargetState(NamedTuple):
  """State of `target_rate`.

  Attributes:
    log_fraction: log of |lambda grad R| / |grad D|, which is steered.
    log_unit: running mean of log(|grad D| / |grad R|).
    error: log(bits / target) as last measured.
    speed: running mean of the change of `error` per update.
    unmet: for how many updates on end the target has been out of reach: the
      fraction at its bound and the rate more than 3% off; int32, positive
      where the rate is too high even so, negative where the model needs fewer
      bits than asked for without the rate.
  """

  log_fraction: jax.Array
  log_unit: jax.Array
  error: jax.Array
  speed: jax.Array
  unmet: jax.Array


def target_rate(
  bits: float,
  *,
  initial: float = 0.1,
  gain: float = 30.0,
  limit: float = 30.0,
) -> Controller:
  """Lambda such that the rate at the coding step becomes `bits`.

  Steers the balance of the two gradients, which needs no tuning for the size
  of the model. A proportional-integral controller in velocity form: the log of
  the fraction moves by

    gain (speed + error / horizon),  error = log(rate / bits)

  per update, whenever the rate is measured, and rests when the error closes in
  on zero with the time constant `horizon`. That is an eighth of the updates
  made so far, so that nothing has to be known of the time scale on which the
  parameters move. It grows by e in a quarter of the horizon at the most, so
  that parameters which are slow to answer are not crushed.

  Args:
    bits: the rate to reach, bits per parameter, in (0, 32).
    initial: fraction to begin with.
    gain: how strongly the log of the fraction follows.
    limit: of the fraction: the rate pulls at most so many times as hard as the
      task. What a pretrained model knows is lost at 30, since few steps are
      left to learn it again: fine-tune with 1 or less, and rather miss the
      target.

  Returns:
    A controller for `backslash`. `optax.tree.get(state, "unmet")` says whether
    the target is out of reach.

  Raises:
    ValueError: for bits that no coder reaches or that no parameter has, or a
      limit out of range.
  """
  if not 0 < bits < 32:
    raise ValueError(
      f"target_rate: bits must be in (0, 32), found {bits!r}: no code is"
      " shorter than 0 bits per parameter and no float32 longer than 32"
    )
  if not MIN_FRACTION < limit < float("inf"):
    raise ValueError(
      f"target_rate: limit must be above {MIN_FRACTION:g} and finite, found"
      f" {limit!r}"
    )
  low, high = math.log(MIN_FRACTION), math.log(limit)

  def init():
    zero = jnp.zeros([], jnp.float32)
    return TargetState(
      log_fraction=jnp.full([], min(math.log(initial), high), jnp.float32),
      log_unit=zero,
      error=zero,
      speed=zero,
      unmet=jnp.zeros([], jnp.int32),
    )

  def update(signals, state):
    t = signals.count.astype(jnp.float32) + 1.0
    unit = _ratio(_norm(signals.task_norms), _norm(signals.rate_norms))
    log_unit = jnp.where(unit > 0, jnp.log(unit), state.log_unit)
    log_unit = running_mean(state.log_unit, log_unit, jnp.minimum(t, 100.0))
    steered = steer(t, signals.interval, signals.bits, state)
    is_measured = signals.count % signals.interval == 0
    new = jax.tree.map(
      lambda a, b: jnp.where(is_measured, a, b), steered, state
    )
    new = new._replace(log_unit=log_unit)
    return jnp.exp(new.log_fraction + log_unit), new

  def steer(t, interval, rate, state):
    horizon = jnp.maximum(jnp.maximum(t / 8.0, 50.0), 4.0 * interval)
    error = jnp.log(jnp.maximum(rate, 1e-3) / bits)
    change = jnp.where(t > 1, (error - state.error) / interval, 0.0)
    window = jnp.minimum(t, horizon / 4) / interval
    speed = running_mean(state.speed, change, jnp.maximum(window, 1.0))
    move = gain * (speed + error / horizon)
    move = interval * jnp.minimum(move, 4.0 / horizon)
    log_fraction = jnp.clip(state.log_fraction + move, low, high)
    off = jnp.abs(error) > 0.03
    side = jnp.where(off & (log_fraction >= high) & (error > 0), 1, 0)
    side = jnp.where(off & (log_fraction <= low) & (error < 0), -1, side)
    since = jnp.where(side * state.unmet > 0, state.unmet, 0)
    unmet = (since + side * interval).astype(jnp.int32)
    return TargetState(log_fraction, state.log_unit, error, speed, unmet)

  return Controller(init, update)


def running_mean(mean, x, window):
  """A running mean that begins with the first x."""
  return mean + (x - mean) / window


def _norm(x):
  return jnp.sqrt(jnp.sum(jnp.square(x)))


def _ratio(a, b):
  """a / b, and 0 where b is 0 or the ratio is not finite."""
  ratio = a / jnp.where(b > 0, b, 1.0)
  return jnp.where((b > 0) & jnp.isfinite(ratio), ratio, 0.0)
