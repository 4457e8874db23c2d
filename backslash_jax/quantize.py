"""Uniform quantizers: which integers stand for a tensor, after training.

`quantize` takes the nearest level, `rate_distortion` the one that is worth its
bits. `choose_step` finds how coarse the levels may be.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backslash_jax import tree
from backslash_jax.coding import fit

# The quantization step where none is given: of the meter, the rate's epsilon
# and the recipes. What is from scratch and was trained with it loses nothing
# that matters by rounding; `save` and `compress` are told theirs.
STEP = 2.0**-6
# Sensitivities are compared within this ratio to their geometric mean.
MAX_RATIO = 256.0


def quantize(x: np.ndarray, step: float) -> np.ndarray:
  """The int32 multiples of `step` nearest to `x`, ties to even.

  Raises:
    ValueError: if a value is not finite or its multiple is outside int32.
  """
  check_step(step)
  x = np.asarray(x)
  wide = np.float64 if x.dtype.itemsize > 4 else np.float32
  mantissa, _ = np.frexp(step)
  if mantissa != 0.5 or not 2.0**-126 <= step <= 2.0**126:
    wide = np.float64  # Only a power of two divides exactly in float32.
  with np.errstate(over="ignore"):
    levels = np.divide(x, step, dtype=wide)
  np.rint(levels, out=levels)
  if not np.abs(levels).max(initial=0.0) < 2**31:
    _raise(x, step)
  return levels.astype(np.int32)


def dequantize(symbols: np.ndarray, step: float, dtype) -> np.ndarray:
  """symbols * step in float64, rounded to `dtype` (through float32 if narrow).

  The result is the same on every platform: one exact product, then the
  roundings of IEEE 754.
  """
  values = symbols.astype(np.float64)
  with np.errstate(over="ignore"):
    values *= step
    if np.dtype(dtype).itemsize < 4:
      values = values.astype(np.float32)
    return values.astype(dtype)


def rate_distortion(
  x: np.ndarray,
  step: float,
  mu: float,
  *,
  sensitivity: np.ndarray | None = None,
) -> np.ndarray:
  """int32 levels of least squared error + mu * bits.

  Each value takes the nearest level or the neighbour that is nearer to zero.
  The bits are those of the model that the archive's rANS codes the result with,
  fitted, applied and fitted again.

  Args:
    x: any shape; its last axis is the columns of the model.
    step: distance of the levels.
    mu: what a bit may cost, in squares of the step: 0 is plain rounding, 0.1 a
      usual value.
    sensitivity: weights of the squared errors, of x's shape and of mean one;
      for example squared gradients. None weighs all alike.

  Raises:
    ValueError: as `quantize`; if mu is negative or a shape does not fit.
  """
  if not 0 <= mu < math.inf:
    raise ValueError(f"mu is {mu}: it must be finite and not negative")
  x = np.asarray(x)
  if sensitivity is not None and np.shape(sensitivity) != x.shape:
    raise ValueError(
      f"the sensitivity has shape {np.shape(sensitivity)}, the tensor {x.shape}"
    )
  levels = nearest = quantize(x, step)
  if mu == 0 or x.size == 0:
    return nearest
  scaled = np.asarray(x, np.float64) / step
  lower = np.trunc(scaled).astype(np.int32)  # The neighbour nearer to zero.
  loss = np.square(scaled - lower) - np.square(scaled - nearest)
  if sensitivity is not None:
    loss *= sensitivity
  for _ in range(2):
    model, _ = fit.quantized_ggd(levels)
    gain = fit.code_lengths(nearest, model) - fit.code_lengths(lower, model)
    levels = np.where(loss < mu * gain, lower, nearest)
  return levels


def apply(
  params,
  step: float | Mapping[str, float],
  *,
  mu: float = 0.0,
  sensitivity=None,
  mask: tree.Mask = tree.matrices,
):
  """`params` with the values that a file with this step would give back.

  Saved with the same step they are coded without any further loss, as long as
  their dtype holds every multiple of the step exactly: float32 does up to 2**24
  steps, bfloat16 up to 256.

  Args:
    params: as for `archive.save`.
    step: one, or one for each leaf to quantize, by name.
    mu: see `rate_distortion`; 0 rounds to nearest.
    sensitivity: a tree like `params` of weights for the squared errors; they
      are divided by their mean over all selected tensors.
    mask: the leaves that are quantized, see `bs.matrices`.

  Raises:
    ValueError: as `quantize`, `rate_distortion` and `steps_by_name`.
  """
  steps = steps_by_name(params, step, mask)
  weights = _normalized(params, steps.keys(), sensitivity)

  def leaf(name, x):
    if name not in steps:
      return x
    x = np.asarray(x)
    own = steps[name]
    symbols = rate_distortion(x, own, mu, sensitivity=weights.get(name))
    return dequantize(symbols, own, x.dtype)

  return tree.map_named(leaf, params)


def steps_by_name(
  params, step: float | Mapping[str, float], mask: tree.Mask = tree.matrices
) -> dict[str, float]:
  """The step of every leaf that is quantized, by its name.

  Args:
    params: a tree of arrays.
    step: one step for all, or steps by name. With names, the default mask means
      the leaves that are named.
    mask: the leaves that are quantized, see `bs.matrices`.

  Raises:
    ValueError: a step is not positive and finite, names no floating leaf of
      params, or is missing for a leaf of the mask; the mask selects nothing.
  """
  if not isinstance(step, Mapping):
    check_step(step)
    return dict.fromkeys(tree.selected(params, mask), step)
  leaves = dict(tree.named_leaves(params))
  step = {name: tree.value_of(own) for name, own in step.items()}
  for name in step:
    if name not in leaves or not tree.is_float(leaves[name]):
      what = "is not floating" if name in leaves else "is not in the tree"
      raise ValueError(f"step has a step for {name!r}, which {what}")
    check_step(step[name], name)
  if mask is tree.matrices:
    return {name: step[name] for name in leaves if name in step}
  chosen = tree.selected(params, mask)
  if missing := [name for name in chosen if name not in step]:
    raise ValueError(
      f"tensor {missing[0]!r} has no step: name it in step, or leave it out of"
      " the mask"
    )
  return {name: step[name] for name in chosen}


def absmax_steps(
  params, levels: int = 127, *, mask: tree.Mask = tree.matrices
) -> dict[str, float]:
  """A step per tensor: its largest magnitude divided by `levels`."""
  largest = {
    name: float(np.abs(np.asarray(x)).max(initial=0))
    for name, x in tree.selected(params, mask).items()
  }
  return {name: (size or 1.0) / levels for name, size in largest.items()}


def sensitive_steps(
  params,
  step: float,
  sensitivity,
  *,
  limit: float = 2.0,
  mask: tree.Mask = tree.matrices,
) -> dict[str, float]:
  """A step per tensor, finer where errors cost more loss: see `allocate`.

  `allocate` assumes small errors. `limit` keeps its steps from becoming so
  large that all values of a tensor round to zero.

  Args:
    params: as for `archive.save`.
    step: the geometric mean of the steps before `limit`, every parameter
      counted once; so the rate is about that of this step for all.
    sensitivity: a tree like `params`, of each tensor's squared gradients or of
      their mean, a scalar.
    limit: a step is at most so many root mean squares of its tensor.
    mask: the leaves that get a step, see `bs.matrices`.

  Returns:
    Steps by name, as `archive.save` takes them.

  Raises:
    ValueError: if a tensor has no sensitivity, or one that is not finite or
      negative, or none is positive; if the limit is not positive.
  """
  check_step(step)
  if not limit > 0:
    raise ValueError(f"limit is {limit}: it must be positive")
  tensors = {
    name: np.asarray(x) for name, x in tree.selected(params, mask).items()
  }
  given = _given(tensors.keys(), sensitivity)
  means = {
    n: float(np.mean(np.asarray(given[n]), dtype=np.float64)) for n in tensors
  }
  for name, mean in means.items():
    if not 0 <= mean < math.inf:
      raise ValueError(
        f"the mean sensitivity of {name!r} is {mean:g}: it must be finite and"
        " not negative"
      )
  if not any(means.values()):
    raise ValueError("the sensitivity is zero everywhere")
  squares = [np.square(x, dtype=np.float64) for x in tensors.values()]
  sizes = np.array([float(x.size) for x in squares])
  scales = np.array([np.sqrt(x.mean()) if x.size else 0.0 for x in squares])
  found = np.minimum(
    allocate(step, np.array(list(means.values())), sizes),
    np.where(scales > 0, limit * scales, np.inf),
  )
  return dict(zip(tensors, found.tolist(), strict=True))


def allocate(step, sensitivity, size):
  r"""Steps of T tensors, finer where errors hurt: step / sqrt(sensitivity).

  Of all steps that cost the same rate, to second order those with

  .. math:: step_t^2 \propto 1 / h_t

  cost the least loss, h_t being the mean of the loss's diagonal second
  derivatives in tensor t, for which the squared gradients stand.

  Args:
    step: the geometric mean of the steps, every parameter counted once; so the
      rate is about that of this step for all.
    sensitivity: h_t up to a common factor, not negative, [T], of NumPy or JAX.
      Ratios to the geometric mean are kept within MAX_RATIO.
    size: numbers of parameters of the tensors, floating, [T].

  Returns:
    The steps, [T].

  Source: Choi, El-Khamy & Lee, Towards the limit of network quantization, ICLR
  2017, for h; the rate of a fine uniform quantizer is Gish & Pierce's, 1968.
  """
  xp = sensitivity.__array_namespace__()
  known = sensitivity > 0
  weight = xp.where(known, size, 0.0)
  logs = xp.log(xp.where(known, sensitivity, 1.0))
  unit = xp.exp(xp.sum(weight * logs) / xp.maximum(xp.sum(weight), 1.0))
  ratio = xp.clip(sensitivity / unit, 1 / MAX_RATIO, MAX_RATIO)
  return step / xp.sqrt(ratio)


def choose_step(
  params,
  evaluate: Callable[[object], float],
  tolerance: float,
  *,
  finest: float = 2**-16,
  coarsest: float = 1.0,
  resolution: float = 0.125,
  mu: float = 0.0,
  mask: tree.Mask = tree.matrices,
) -> float:
  """The coarsest step that costs no more than `tolerance` of the metric.

  Bisection over log2(step), so the metric should fall as the step grows; where
  it wavers, the step returned is still one that was evaluated and is within.

  Args:
    params: the trained parameters.
    evaluate: from parameters to a metric, the higher the better.
    tolerance: how far the metric may fall below that of `params` as they are.
    finest: a step that is surely fine enough.
    coarsest: the largest step to consider.
    resolution: where to stop, in octaves.
    mu: of the quantizer, see `rate_distortion`.
    mask: the leaves that are quantized, see `bs.matrices`.

  Raises:
    ValueError: if even `finest` is not within the tolerance.
  """
  wanted = evaluate(params) - tolerance

  def within(octave: float) -> bool:
    quantized = apply(params, 2.0**octave, mu=mu, mask=mask)
    return evaluate(quantized) >= wanted

  good, bad = math.log2(finest), math.log2(coarsest)
  if within(bad):
    return float(coarsest)
  if not within(good):
    raise ValueError(
      f"a step of {finest} already costs more than {tolerance}: "
      "give a finer one or allow more"
    )
  while bad - good > resolution:
    middle = (good + bad) / 2
    good, bad = (middle, bad) if within(middle) else (good, middle)
  return 2.0**good


def _normalized(params, chosen, sensitivity) -> dict[str, np.ndarray]:
  """The sensitivities of the chosen tensors, of mean one over all of them."""
  if sensitivity is None:
    return {}
  given = _given(chosen, sensitivity)
  found = {name: np.asarray(given[name], np.float64) for name in chosen}
  total = sum(float(x.sum()) for x in found.values())
  count = sum(x.size for x in found.values())
  if not 0 < total < math.inf:
    raise ValueError(
      "the sensitivity must be finite, not negative, not all zero"
    )
  return {name: x * (count / total) for name, x in found.items()}


def _given(chosen, sensitivity) -> dict[str, np.ndarray]:
  """The sensitivity by name; it must have every chosen tensor."""
  given = dict(tree.named_leaves(sensitivity))
  if missing := sorted(chosen - given.keys()):
    raise ValueError(f"the sensitivity has no tensor {missing[0]!r}")
  return given


def check_step(step: Any, name: str | None = None) -> None:
  """ValueError unless `step` is a positive finite number.

  Arrays of JAX pass: they may be traced, and 0 for "not chosen yet".
  """
  jax = sys.modules.get("jax")
  if jax and isinstance(step, jax.Array):
    return
  try:
    is_good = bool(np.ndim(step) == 0 and 0 < step < math.inf)
  except TypeError:
    is_good = False
  if not is_good:
    where = "" if name is None else f" of tensor {name!r}"
    raise ValueError(
      f"the step{where} is {step!r}: it must be positive and finite"
    )


def _raise(x: np.ndarray, step: float):
  """Says what is wrong with a tensor that has no int32 levels."""
  bad = np.count_nonzero(~np.isfinite(x))
  if bad:
    raise ValueError(f"{bad} of {x.size} values are NaN or infinite")
  worst = x.flat[int(np.argmax(np.abs(x)))]
  raise ValueError(
    f"the value {float(worst):g} is more than 2**31 - 1 steps of {step}: "
    "take a larger step or leave this tensor out"
  )
