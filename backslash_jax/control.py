"""Controllers, which choose the weight of the rate (lambda) during training.

A controller is called once per update, inside the jitted update function, and
keeps its state in the optimizer state. It sees only sums over whole leaves, so
it does not depend on how the parameters are sharded.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from backslash_jax import arguments

# `target_rate` keeps the ratio of the two gradients above this.
MIN_FRACTION = 1e-4
# Gain of `target_rate`.
_GAIN = 30.0
# While the parameters move ever faster, the horizon of `target_rate` is at
# least the number of updates in which they move by so many times their norm.
_TRAVEL = 2.0
# How much faster than on average so far they move then, from and to.
_FASTER = 1.2, 1.7
# Largest relative error of the bits at which the target counts as met.
_TOLERANCE = 0.03


class Signals(NamedTuple):
  """The inputs of a controller in one update.

  Attributes:
    count: updates so far, int32.
    interval: updates between measurements of bits.
    bits: latest measured entropy at the current quantization steps, bits per
      parameter.
    is_measured: whether bits was measured in this update, bool.
    is_first: whether this is the first measurement with the current steps,
      bool. It cannot be compared with the previous one.
    rate_norms: norm of the rate's gradient, per selected leaf [T].
    task_norms: norm of the incoming updates, per selected leaf [T].
    places: projection on a fixed direction and squared norm of each selected
      leaf, [T, 2]; see `motion`. Zeros if bits was not measured.
  """

  count: jax.Array
  interval: int | jax.Array
  bits: jax.Array
  is_measured: jax.Array
  is_first: jax.Array
  rate_norms: jax.Array
  task_norms: jax.Array
  places: jax.Array


class Controller(NamedTuple):
  """Chooses lambda.

  Attributes:
    init: (number T of selected leaves) -> state, a pytree of arrays.
    update: (signals, state) -> (lambda, new state); lambda is a float32 scalar.
    needs_norms: whether it reads the norms, which are zeros otherwise.
    needs_places: whether it reads the places, which are zeros otherwise.
  """

  init: Callable[[int], Any]
  update: Callable[[Signals, Any], tuple[jax.Array, Any]]
  needs_norms: bool = True
  needs_places: bool = False


def scheduled(lmbda: float | jax.Array | optax.Schedule) -> Controller:
  """A constant lambda, or a function of the update count."""

  def update(signals, state):
    value = lmbda(signals.count) if callable(lmbda) else lmbda
    return jnp.asarray(value, jnp.float32), state

  return Controller(lambda count: (), update, needs_norms=False)


def gradient_balance(fraction: float | jax.Array) -> Controller:
  """Sets |lambda grad R| = fraction |grad D| in every update.

  The fraction is dimensionless, so one value suits different models, tasks and
  rates. With 1, the rate's gradient has the same norm as the task's.

  Args:
    fraction: ratio of the two norms, non-negative and finite.

  Returns:
    A controller for `backslash`. If either gradient is zero, lambda is 0.

  Raises:
    ValueError: if fraction is out of range.
  """
  arguments.check(
    "gradient_balance",
    "fraction",
    fraction,
    "non-negative and finite",
    lambda v: 0 <= v < math.inf,
  )

  def update(signals, state):
    ratio = _ratio(_norm(signals.task_norms), _norm(signals.rate_norms))
    return fraction * ratio, state

  return Controller(lambda count: (), update)


class TargetState(NamedTuple):
  """State of `target_rate`; read a field with `optax.tree.get(state, name)`.

  Attributes:
    log_fraction: log of |lambda grad R| / |grad D|, the controlled variable,
      float32.
    log_unit: running mean of log(|grad D| / |grad R|), float32.
    log_error: latest measured log(bits / target), float32.
    log_error_speed: running mean of the change of log_error per update,
      float32.
    projection: latest measured projection of each selected leaf, float32 [T];
      see `motion`.
    mobility: relative movement of the parameters per update, recently, float32.
    mean_mobility: the same, averaged over all updates so far, float32.
    unmet: number of consecutive updates for which bits has been more than 3%
      above (positive) or below (negative) the target, int32; 0 if the target is
      met. If it is not 0 at the end, training has missed the target.
  """

  log_fraction: jax.Array
  log_unit: jax.Array
  log_error: jax.Array
  log_error_speed: jax.Array
  projection: jax.Array
  mobility: jax.Array
  mean_mobility: jax.Array
  unmet: jax.Array


def target_rate(
  bits: float | jax.Array,
  *,
  initial: float | jax.Array = 0.1,
  limit: float | jax.Array = 30.0,
) -> Controller:
  """Adjusts lambda until the selected leaves take `bits` bits per parameter.

  The bits are measured at the current quantization steps. The controlled
  variable is the ratio |lambda grad R| / |grad D|, which needs no tuning for
  the size of the model. The controller is a proportional-integral controller in
  velocity form. Whenever the bits are measured, the log of the ratio changes by

      gain (speed + error / horizon),  error = log(measured / bits)

  per update since the last measurement, where speed is the change of the error
  per update. The ratio stays constant when the error decays to zero with the
  time constant `horizon`.

  The horizon is an eighth of the updates so far. While the parameters move ever
  faster, as in the warm-up of a learning rate, it is at least the number of
  updates in which they move by twice their norm: the bits cannot respond yet,
  and the ratio would grow all the same. The ratio takes at least a quarter of
  the horizon to grow by a factor of e.

  Args:
    bits: the target, bits per parameter, in (0, 32).
    initial: initial ratio, positive; default 0.1.
    limit: largest ratio; default 30. At 30, a pretrained model forgets what it
      has learned, and fine-tuning is too short to learn it again. Fine-tune
      with 1 or less; the target may then be missed.

  Returns:
    A controller for `backslash`. `optax.tree.get(state, "unmet")` tells whether
    the target was met, see `TargetState`.

  Raises:
    ValueError: if an argument is out of range.
  """
  check = functools.partial(arguments.check, "target_rate")
  check("bits", bits, "in (0, 32)", lambda v: 0 < v < 32)
  check("initial", initial, "positive", lambda v: 0 < v < math.inf)
  check(
    "limit",
    limit,
    f"above {MIN_FRACTION:g} and finite",
    lambda v: MIN_FRACTION < v < math.inf,
  )
  low, high = math.log(MIN_FRACTION), jnp.log(jnp.float32(limit))

  def init(count):
    return TargetState(
      log_fraction=jnp.minimum(jnp.log(jnp.float32(initial)), high),
      log_unit=jnp.zeros([], jnp.float32),
      log_error=jnp.zeros([], jnp.float32),
      log_error_speed=jnp.zeros([], jnp.float32),
      projection=jnp.zeros([count], jnp.float32),
      mobility=jnp.zeros([], jnp.float32),
      mean_mobility=jnp.zeros([], jnp.float32),
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
    mobility, mean_mobility = _mobility(t, signals, state)
    horizon = jnp.maximum(jnp.maximum(t / 8.0, 50.0), 4.0 * interval)
    slow = _warm_up(t / interval, mobility, mean_mobility)
    horizon = jnp.maximum(horizon, slow)
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
    unmet = jnp.clip(since + side * interval, -t, t).astype(jnp.int32)
    return TargetState(
      log_fraction=log_fraction,
      log_unit=state.log_unit,
      log_error=error,
      log_error_speed=speed,
      projection=signals.places[:, 0],
      mobility=mobility,
      mean_mobility=mean_mobility,
      unmet=unmet,
    )

  return Controller(init, update, needs_places=True)


def motion(x: jax.Array) -> jax.Array:
  """The projection of a tensor on a fixed direction, and its squared norm.

  The entries of the direction are 1 or -1, hashed from the indices. On average,
  the squared change of the projection equals the squared norm of the tensor's
  change. The movement of the parameters can thus be estimated without a copy of
  their previous values.

  Returns:
    float32 [2].
  """
  x = x.astype(jnp.float32)
  signs = jnp.ones([1] * x.ndim, jnp.float32)
  for axis in range(x.ndim):
    i = jax.lax.broadcasted_iota(
      jnp.uint32, [n if a == axis else 1 for a, n in enumerate(x.shape)], axis
    )
    # The finalizer of MurmurHash3.
    i = (i + jnp.uint32(1 + axis)) * jnp.uint32(0x9E3779B9)
    i = (i ^ (i >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    i = (i ^ (i >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    i = (i ^ (i >> jnp.uint32(16))) & jnp.uint32(1)
    signs = signs * (1.0 - 2.0 * i.astype(jnp.float32))
  return jnp.stack([jnp.sum(x * signs), jnp.sum(jnp.square(x))])


def _mobility(t, signals, state):
  """The relative movement per update, recently and on average so far."""
  moved = jnp.sum(jnp.square(signals.places[:, 0] - state.projection))
  size = jnp.sum(signals.places[:, 1])
  found = jnp.sqrt(moved / jnp.where(size > 0, size, 1.0)) / signals.interval
  is_known = (signals.count > 0) & (size > 0) & jnp.isfinite(found)
  count = jnp.maximum((t - 1.0) / signals.interval, 1.0)
  recent = running_mean(state.mobility, found, jnp.minimum(count, 4.0))
  mean = running_mean(state.mean_mobility, found, count)
  return (
    jnp.where(is_known, recent, state.mobility),
    jnp.where(is_known, mean, state.mean_mobility),
  )


def _warm_up(measured, recent, mean):
  """The least time constant while the parameters move ever faster; or 0.

  In a linear warm-up of the learning rate they move twice as fast as on average
  so far. If they have not moved at all, the bits cannot respond.
  """
  is_moving = (recent > 0) & (mean > 0)
  low, high = _FASTER
  ratio = recent / jnp.where(is_moving, mean, 1.0)
  share = jnp.clip((ratio - low) / (high - low), 0.0, 1.0)
  # The first measurements do not tell a warm-up from a constant speed.
  share = jnp.where(measured < 8, 1.0, share)
  updates = _TRAVEL / jnp.where(is_moving, recent, 1.0)
  return jnp.where(is_moving, share * updates, 1e9)


def running_mean(mean, x, window):
  """Running mean; with a window of 1 it is x."""
  return mean + (x - mean) / window


def _norm(x):
  return jnp.sqrt(jnp.sum(jnp.square(x)))


def _ratio(a, b):
  """a / b; 0 where b is 0 or the ratio is not finite."""
  ratio = a / jnp.where(b > 0, b, 1.0)
  return jnp.where((b > 0) & jnp.isfinite(ratio), ratio, 0.0)
