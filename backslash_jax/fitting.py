"""Quantization steps that are chosen while training runs.

A file need not have one step for all of its tensors. `fit_steps` gives each
leaf the step that its sensitivity asks for, such that all together take the
bits asked for; from then on the loss is to see the parameters rounded to them:

>>> import backslash_jax as bs, optax
>>> tx = optax.chain(
...   bs.backslash(step=bs.fit_steps(1.5, begin=500)), optax.adamw(3e-3)
... )

  def loss_fn(params, opt_state, batch):
    return loss(bs.round_through(params, bs.steps(opt_state)), batch)

  bs.save(path, params, step=bs.steps(opt_state))
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from backslash_jax import control, meter, moments, quantize, tree

# About so many updates are averaged, and four times as many before the steps
# are chosen are looked at.
_WINDOW = 100
# Finer steps would have levels beyond int32, which no file can hold.
MAX_BITS = 16
# The common factor of the steps is found to this many halvings of 64 octaves.
_HALVINGS = 24


class FitSteps(NamedTuple):
  """What `fit_steps` says; see there."""

  bits: float | jax.Array
  begin: int | jax.Array
  step: float


class FitState(NamedTuple):
  """State of steps that are fitted; see `fit_steps`.

  Attributes:
    sensitivity: of each of the T selected leaves, the running mean of its
      squared updates, weighted with the squared weights; float32 [T].
    fit_begin: the update in which the steps are chosen, int32.
  """

  sensitivity: jax.Array
  fit_begin: jax.Array


def fit_steps(
  bits: float | jax.Array,
  *,
  begin: int | jax.Array,
  step: float = quantize.STEP,
) -> FitSteps:
  """A quantization step for each leaf, chosen once, in the update `begin`.

  Goes to `step` of `bs.backslash`. The steps are those of `quantize.allocate`,
  with the common factor by which the selected leaves take `bits` when they are
  chosen. The sensitivity of a leaf is the mean of the squared updates that come
  in, weighted with the squared weights: weights near zero, of which a rate
  makes many, round to zero at any step and lose nothing by it. Non-finite
  updates are left out. The steps do not change afterwards. In the end the
  leaves take a few percent more or fewer bits, and with a rate fewer.

  The transformation has to see gradients of the loss: it stands first in the
  chain, or after clipping. From `begin` on the loss must see the rounded
  parameters, see `round_through`; `backslash` warns in the first update if
  nothing has been rounded.

  Args:
    bits: bits per parameter of the selected leaves, in (0, 16].
    begin: update in which the steps are chosen, at least 1; a fraction is
      rounded up. Two thirds of the training is a good choice: most of the
      learning is done, and what rounding disturbs is still learned.
    step: the quantization step in force until then.

  Returns:
    What `backslash` takes as its `step`.

  Raises:
    ValueError: for an argument out of its range.

  Source: docs/frontier.md has what it gains.
  """
  # Arrays, which may be traced, pass.
  if not isinstance(bits, jax.Array) and not 0 < bits <= MAX_BITS:
    raise ValueError(
      f"fit_steps: bits must be in (0, {MAX_BITS}], found {bits!r}"
    )
  if not isinstance(begin, jax.Array):
    if not 1 <= begin < 2**31:
      raise ValueError(
        f"fit_steps: begin must be an update, 1 or later, found {begin!r}"
      )
    begin = math.ceil(begin)
  quantize.check_step(step)
  return FitSteps(bits, begin, step)


def init(plan: FitSteps, count: int) -> FitState:
  """The state of steps that are to be fitted to `count` leaves."""
  return FitState(
    sensitivity=jnp.zeros([count], jnp.float32),
    fit_begin=jnp.asarray(plan.begin).astype(jnp.int32),
  )


def update(
  plan: FitSteps,
  state: FitState,
  old: jax.Array,
  count: jax.Array,
  gradients: list[jax.Array],
  params: Any,
  sharding: Any,
) -> tuple[jax.Array, FitState, jax.Array]:
  """The steps after an update, the state, and whether they were chosen in it.

  Args:
    plan: of `fit_steps`.
    state: the state.
    old: the steps so far, float32 [T]; 0 before they are chosen.
    count: of this update, from 1.
    gradients: incoming updates of the T leaves.
    params: tree with these leaves alone.
    sharding: as in `moments.tree_moments`.
  """
  begin = state.fit_begin
  leaves = jax.tree.leaves(params)
  since = count - jnp.maximum(begin - 4 * _WINDOW, 0)

  def observe():
    squares = jnp.stack(
      [_weighted_square(u, x) for u, x in zip(gradients, leaves, strict=True)]
    )
    window = jnp.minimum(since, _WINDOW).astype(jnp.float32)
    mean = control.running_mean(state.sensitivity, squares, window)
    return jnp.where(jnp.isfinite(mean), mean, state.sensitivity)

  sensitivity = jax.lax.cond(
    (since > 0) & (count <= begin), observe, lambda: state.sensitivity
  )
  is_due = (count >= begin) & ~jnp.any(old > 0)
  steps = jax.lax.cond(
    is_due, lambda: _fit(plan.bits, params, sensitivity, sharding), lambda: old
  )
  return steps, FitState(sensitivity, begin), is_due


def steps(opt_state: Any) -> dict[str, Any]:
  """The quantization step of each selected leaf, by its name.

  What `round_through` and `save` take, for every `bs.backslash` in the state:
  in chains, `optax.multi_transform`, `optax.MultiSteps`, `nnx.Optimizer`, or
  restored from a checkpoint, with or without its types.

  Args:
    opt_state: the optimizer state, or a part of it.

  Returns:
    Steps by name. Inside jit float32 scalars, 0 until `fit_steps` has chosen
    them, which `round_through` leaves unrounded; outside jit, numbers.

  Raises:
    ValueError: if there is no `backslash` in the state; if two of them have
      different steps for one leaf; outside jit, if the steps have not been
      chosen yet.
  """
  found: dict[str, Any] = {}
  states = list(_states(opt_state))
  if not states:
    raise ValueError(
      "steps: there is no bs.backslash in this optimizer state, so that no"
      " quantization step is known"
    )
  for state in states:
    own = {name: _value(step) for name, step in state("steps").items()}
    if not any(isinstance(step, jax.core.Tracer) for step in own.values()):
      _check_chosen(state, own)
    for name, step in own.items():
      if name in found and found[name] is not step:
        if isinstance(step, jax.core.Tracer) or found[name] != step:
          raise ValueError(
            f"steps: two transformations have a step for {name!r}: give each"
            " a mask of its own, or read the part of the state that is meant"
          )
      found[name] = step
  return found


def _check_chosen(state, own):
  """Raises ValueError where fitted steps are still 0 in concrete values."""
  is_eager = getattr(jax.config, "jax_disable_jit")  # noqa: B009
  if is_eager or all(step > 0 for step in own.values()):
    return
  begin, count = (
    int(tree.value_of(state("fit")["fit_begin"])),
    int(tree.value_of(state("rate_count"))),
  )
  raise ValueError(
    f"fit_steps has chosen no steps yet: they are chosen in update {begin}, and"
    f" this state has seen {count}; train further, or"
    " begin earlier; a loop without jit asks once they are chosen"
  )


def _states(node: Any) -> Iterator[Any]:
  """For every state of `backslash` in a tree, a function that reads a field."""
  fields = getattr(type(node), "_fields", ())
  if isinstance(node, Mapping):
    children = node
  elif fields:
    children = node._asdict()
  elif isinstance(node, (list, tuple)):
    children = dict(enumerate(node))
  else:
    return
  if {"rate_count", "steps", "lmbda"} <= children.keys():
    yield _reader(children)
    return
  for child in children.values():
    yield from _states(child)


def _reader(children):
  def read(name):
    value = children[name]
    if name == "steps" and not isinstance(value, Mapping):
      return {}  # Of a tree without leaves.
    return value._asdict() if hasattr(value, "_asdict") else value

  return read


def _value(step):
  """A step as an array where it is traced, else as a number."""
  step = tree.value_of(step)
  if isinstance(step, jax.core.Tracer):
    return step
  return float(np.asarray(step))


def _fit(bits, params, sensitivity, sharding):
  """The steps with which params take `bits`, float32 [T]."""
  sums = moments.tree_moments(params, sharding)
  scale = jnp.sqrt(sums.square_sum / jnp.maximum(sums.count, 1.0))
  unit = jnp.where(jnp.any(scale > 0), jnp.max(scale), jnp.float32(1.0))

  def allocated(octave):
    return quantize.allocate(unit * jnp.exp2(octave), sensitivity, sums.count)

  def halve(_, bounds):
    fine, coarse = bounds
    middle = (fine + coarse) / 2
    found = meter.bits_per_parameter(params, allocated(middle), sharding)
    is_coarse = found < bits
    return (
      jnp.where(is_coarse, fine, middle),
      jnp.where(is_coarse, middle, coarse),
    )

  bounds = jnp.float32(-32.0), jnp.float32(32.0)
  _, coarse = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
  return allocated(coarse)


def _weighted_square(u, x):
  """Mean of u^2, weighted with x^2; 0 where x is zero everywhere."""
  squares = jnp.square(x.astype(jnp.float32))
  total = jnp.sum(squares)
  weighted = jnp.sum(jnp.square(u.astype(jnp.float32)) * squares)
  return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 0.0)
