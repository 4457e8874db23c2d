"""How the weight of the rate is chosen while training runs.

A controller is called once per update, inside the jitted step, and keeps its
state in the optimizer state. It sees only sums over the model, so nothing here
depends on how the parameters are sharded.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# `target_rate` keeps the ratio of the two gradients above this.
MIN_FRACTION = 1e-4
# How strongly `target_rate` follows the error.
_GAIN = 30.0
# Bits within this of the target, in relative terms, meet it.
_TOLERANCE = 0.03


class Signals(NamedTuple):
  """What a controller sees of one update.

  Attributes:
    count: updates so far, int32.
    interval: updates from one measurement of bits to the next.
    bits: entropy at the steps in force, bits per parameter, as last measured.
    is_measured: whether bits was measured in this update, bool.
    is_first: whether it was the first measurement with these steps, so that it
      cannot be compared with the one before, bool.
    rate_norms: norm of the gradient of the rate, per selected leaf [T].
    task_norms: norm of the incoming updates, per selected leaf [T].
  """

  count: jax.Array
  interval: int | jax.Array
  bits: jax.Array
  is_measured: jax.Array
  is_first: jax.Array
  rate_norms: jax.Array
  task_norms: jax.Array


class Controller(NamedTuple):
  """Chooses lambda.

  Attributes:
    init: () -> state, a pytree of arrays.
    update: (signals, state) -> (lambda, state), lambda a float32 scalar.
    needs_norms: whether it reads the norms; they are zeros otherwise.
  """

  init: Callable[[], Any]
  update: Callable[[Signals, Any], tuple[jax.Array, Any]]
  needs_norms: bool = True


def scheduled(lmbda: float | jax.Array | optax.Schedule) -> Controller:
  """Lambda as a number, or as a function of the update count."""

  def update(signals, state):
    value = lmbda(signals.count) if callable(lmbda) else lmbda
    return jnp.asarray(value, jnp.float32), state

  return Controller(lambda: (), update, needs_norms=False)


def gradient_balance(fraction: float | jax.Array) -> Controller:
  """|lambda grad R| = fraction |grad D|, in every update.

  A dimensionless weight, which carries over between models, tasks and rates:
  with 1 the gradient of the rate has the norm of the task's.

  Args:
    fraction: non-negative.

  Returns:
    A controller for `backslash`. Where either gradient vanishes, lambda is 0.

  Raises:
    ValueError: for a fraction out of range.
  """
  if not isinstance(fraction, jax.Array) and not 0 <= fraction < math.inf:
    raise ValueError(
      f"gradient_balance: fraction must be non-negative and finite, found"
      f" {fraction!r}"
    )

  def update(signals, state):
    ratio = _ratio(_norm(signals.task_norms), _norm(signals.rate_norms))
    return fraction * ratio, state

  return Controller(lambda: (), update)


class TargetState(NamedTuple):
  """State of `target_rate`; read a field with `optax.tree.get(state, name)`.

  Attributes:
    log_fraction: log of |lambda grad R| / |grad D|, which is steered, float32.
    log_unit: running mean of log(|grad D| / |grad R|), float32.
    log_error: log(bits / target) as last measured, float32.
    log_error_speed: running mean of its change per update, float32.
    unmet: for how many updates on end bits has been more than 3% off the
      target, int32: positive while it is above, negative while it is below, 0
      when the target is met. A training that ends with another value than 0
      has missed its target.
  """

  log_fraction: jax.Array
  log_unit: jax.Array
  log_error: jax.Array
  log_error_speed: jax.Array
  unmet: jax.Array


def target_rate(
  bits: float | jax.Array,
  *,
  initial: float | jax.Array = 0.1,
  limit: float | jax.Array = 30.0,
) -> Controller:
  """Lambda such that the bits per parameter at the steps in force reach `bits`.

  Steers the ratio of the two gradients, which needs no tuning for the size of
  the model. A proportional-integral controller in velocity form: the log of the
  ratio moves by

    gain (speed + error / horizon),  error = log(measured / bits)

  per update, whenever the bits are measured. It rests when the error approaches
  zero with the time constant `horizon`, an eighth of the updates made so far:
  the time scale on which the parameters move need not be known. The ratio grows
  by a factor of e in no less than a quarter of the horizon, so parameters that
  respond slowly are not driven to zero.

  Args:
    bits: the target, bits per parameter, in (0, 32).
    initial: the ratio to begin with, positive.
    limit: the largest ratio. A pretrained model loses what it knows at 30,
      since few updates are left to learn it again: fine-tune with 1 or less,
      and accept that the target may be missed.

  Returns:
    A controller for `backslash`. `optax.tree.get(state, "unmet")` says whether
    the target was met, see `TargetState`.

  Raises:
    ValueError: for an argument out of its range.
  """
  _check("bits", bits, "in (0, 32)", lambda v: 0 < v < 32)
  _check("initial", initial, "positive", lambda v: 0 < v < math.inf)
  _check(
    "limit",
    limit,
    f"above {MIN_FRACTION:g} and finite",
    lambda v: MIN_FRACTION < v < math.inf,
  )
  low, high = math.log(MIN_FRACTION), jnp.log(jnp.float32(limit))

  def init():
    return TargetState(
      log_fraction=jnp.minimum(jnp.log(jnp.float32(initial)), high),
      log_unit=jnp.zeros([], jnp.float32),
      log_error=jnp.zeros([], jnp.float32),
      log_error_speed=jnp.zeros([], jnp.float32),
      unmet=jnp.zeros([], jnp.int32),
    )

  def update(signals, state):
    t = signals.count.astype(jnp.float32) + 1.0
    unit = _ratio(_norm(signals.task_norms), _norm(signals.rate_norms))
    log_unit = jnp.where(unit > 0, jnp.log(unit), state.log_unit)
    log_unit = running_mean(state.log_unit, log_unit, jnp.minimum(t, 100.0))
    steered = steer(t, signals, state)
    new = jax.tree.map(
      lambda a, b: jnp.where(signals.is_measured, a, b), steered, state
    )
    new = new._replace(log_unit=log_unit)
    return jnp.exp(new.log_fraction + log_unit), new

  def steer(t, signals, state):
    interval = signals.interval
    horizon = jnp.maximum(jnp.maximum(t / 8.0, 50.0), 4.0 * interval)
    error = jnp.log(jnp.maximum(signals.bits, 1e-3) / jnp.float32(bits))
    change = (error - state.log_error) / interval
    change = jnp.where(signals.is_first, 0.0, change)
    window = jnp.minimum(t, horizon / 4) / interval
    speed = running_mean(
      state.log_error_speed, change, jnp.maximum(window, 1.0)
    )
    move = _GAIN * (speed + error / horizon)
    move = interval * jnp.minimum(move, 4.0 / horizon)
    log_fraction = jnp.clip(state.log_fraction + move, low, high)
    is_off = jnp.abs(error) > math.log1p(_TOLERANCE)
    side = jnp.where(is_off, jnp.sign(error), 0.0).astype(jnp.int32)
    since = jnp.where(side * state.unmet > 0, state.unmet, 0)
    unmet = (since + side * interval).astype(jnp.int32)
    return TargetState(log_fraction, state.log_unit, error, speed, unmet)

  return Controller(init, update)


def running_mean(mean, x, window):
  """A running mean that begins with the first x."""
  return mean + (x - mean) / window


def _check(name, found, wanted, is_good):
  """Refuses an argument out of range; arrays, which may be traced, pass."""
  if not isinstance(found, jax.Array) and not is_good(found):
    raise ValueError(f"target_rate: {name} must be {wanted}, found {found!r}")


def _norm(x):
  return jnp.sqrt(jnp.sum(jnp.square(x)))


def _ratio(a, b):
  """a / b, and 0 where b is 0 or the ratio is not finite."""
  ratio = a / jnp.where(b > 0, b, 1.0)
  return jnp.where((b > 0) & jnp.isfinite(ratio), ratio, 0.0)
