"""Quantization steps that are chosen during training.

Each tensor of a file can have its own step. `fit_steps` chooses the steps from
the sensitivities of the leaves, so all selected leaves together take the
requested number of bits. From then on, the loss must use the parameters rounded
to these steps:

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

from backslash_jax import arguments, control, meter, moments, quantize, tree

# The sensitivity is a running mean over about this many updates. It is
# accumulated in the last 4 * _WINDOW updates before the steps are chosen.
_WINDOW = 100
# Finer steps would have levels beyond int32, which no file can hold.
MAX_BITS = 16
# Bisection iterations for the common factor of the steps, from 64 octaves.
_HALVINGS = 24


class FitSteps(NamedTuple):
  """The arguments of `fit_steps`."""

  bits: float | jax.Array
  begin: int | jax.Array
  step: float


class FitState(NamedTuple):
  """State of `fit_steps`.

  Attributes:
    sensitivity: running mean of the squared incoming updates, weighted by the
      squared weights, of each of the T selected leaves; float32 [T].
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
  """Chooses a quantization step for each leaf, once, in the update `begin`.

  Pass the result as `step` to `bs.backslash`. The steps are those of
  `quantize.allocate`. Their common factor is chosen so the selected leaves take
  `bits` at that time. The steps do not change afterwards, but the weights do:
  the final model takes a few percent more or fewer bits, and fewer with a rate.

  The sensitivity of a leaf is the mean of the squared incoming updates,
  weighted by the squared weights. Weights near zero therefore count little;
  they round to zero at any step without loss. Non-finite updates are ignored.

  The incoming updates must be gradients of the loss: put `backslash` first in
  the chain, or right after clipping. From `begin` on, the loss must use the
  rounded parameters, see `round_through`. `backslash` warns in the first update
  if `round_through` has not been called.

  Args:
    bits: target for the selected leaves, bits per parameter, in (0, 16].
    begin: update in which the steps are chosen, at least 1; a fraction is
      rounded up. Two thirds of the training is a good choice: the model has
      learned most of the task, and enough updates remain to adapt to rounding.
    step: the quantization step in force until then.

  Returns:
    The value for the argument `step` of `backslash`.

  Raises:
    ValueError: if an argument is out of range.

  Source: measured in docs/frontier.md.
  """
  arguments.check(
    "fit_steps",
    "bits",
    bits,
    f"in (0, {MAX_BITS}]",
    lambda v: 0 < v <= MAX_BITS,
  )
  arguments.check(
    "fit_steps",
    "begin",
    begin,
    "an update, 1 or later",
    lambda v: 1 <= v < 2**31,
  )
  if not isinstance(begin, jax.Array):
    begin = math.ceil(begin)
  quantize.check_step(step)
  return FitSteps(bits, begin, step)


def init(plan: FitSteps, count: int) -> FitState:
  """The initial state for `count` selected leaves."""
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
  """One update of the steps.

  Args:
    plan: the result of `fit_steps`.
    state: the current state.
    old: the current steps, float32 [T]; 0 before they are chosen.
    count: number of this update; the first is 1.
    gradients: incoming updates of the T leaves.
    params: tree that has only these leaves.
    sharding: as in `moments.tree_moments`.

  Returns:
    (steps, new state, whether the steps were chosen in this update).
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

  Pass the result to `round_through` and `save`. It includes every
  `bs.backslash` in the state: in chains, `optax.multi_transform`,
  `optax.MultiSteps`, `nnx.Optimizer`, or a restored checkpoint, with or without
  its original types.

  Args:
    opt_state: the optimizer state, or a part of it.

  Returns:
    name -> step. Outside jit, the steps are Python floats. Inside jit, they are
    float32 scalars, and 0 until `fit_steps` has chosen them; `round_through`
    does not round leaves with a step of 0.

  Raises:
    ValueError: if the state contains no `backslash`; if two transformations
      have different steps for the same leaf; outside jit, if the steps have not
      been chosen yet.
  """
  found: dict[str, Any] = {}
  opt_state = getattr(opt_state, "opt_state", opt_state)  # Of nnx.Optimizer.
  states = list(_states(opt_state))
  if not states:
    raise ValueError(
      "steps: there is no bs.backslash in this optimizer state, so no"
      " quantization step is known; pass the state of a chain that contains it"
    )
  for state in states:
    own = {name: _value(step) for name, step in state("steps").items()}
    if not any(isinstance(step, jax.core.Tracer) for step in own.values()):
      _check_chosen(state, own)
    for name, step in own.items():
      if name in found and found[name] is not step:
        if isinstance(step, jax.core.Tracer) or found[name] != step:
          raise ValueError(
            f"steps: two transformations have a step for {name!r}: give them"
            " masks that do not overlap, or pass the state of one of them"
          )
      found[name] = step
  return found


def _check_chosen(state, own):
  """Raises ValueError if concrete values of fitted steps are still 0."""
  is_eager = getattr(jax.config, "jax_disable_jit")  # noqa: B009
  if is_eager or all(step > 0 for step in own.values()):
    return
  begin = int(_value(state("fit")["fit_begin"]))
  count = int(_value(state("rate_count")))
  raise ValueError(
    f"fit_steps has chosen no steps yet: they are chosen in update {begin}, and"
    f" this state has seen {count}; train further, or set an earlier begin. In"
    " a loop without jit, call bs.steps only after that update"
  )


def _states(node: Any) -> Iterator[Any]:
  """Yields a field reader for each state of `backslash` in a tree."""
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
      return {}  # The parameters had no leaves.
    return value._asdict() if hasattr(value, "_asdict") else value

  return read


def _value(step):
  """A step as a Python float, or as the tracer if it is traced."""
  if isinstance(step, Mapping):  # A variable of NNX, read without its type.
    step = step["value"]
  step = tree.value_of(step)
  if isinstance(step, jax.core.Tracer):
    return step
  return float(np.asarray(step))


def _fit(bits, params, sensitivity, sharding):
  """The steps at which params take `bits` bits per parameter, float32 [T]."""
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
  """Mean of u^2 weighted by x^2; 0 if x is all zeros."""
  squares = jnp.square(x.astype(jnp.float32))
  total = jnp.sum(squares)
  weighted = jnp.sum(jnp.square(u.astype(jnp.float32)) * squares)
  return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 0.0)
