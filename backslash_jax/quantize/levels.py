"""Uniform quantizers: which integers stand for a tensor, after training.

`quantize` takes the nearest level, `rate_distortion` the one that is worth its
bits.
"""

import math
from collections.abc import Collection, Mapping

import numpy as np

from backslash_jax import tree
from backslash_jax.coding import fit
from backslash_jax.quantize.step import check_step, steps_by_name


def quantize(x: np.ndarray, step: float) -> np.ndarray:
  """The int32 multiples of `step` nearest to `x`, ties to even.

  Where the nearest multiple is beyond the range of x's dtype, the one before is
  taken: 65504 in float16 at step 1000 becomes 65000, not infinity.

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
  largest = np.abs(levels).max(initial=0.0)
  limit = _limit(x.dtype, step)
  if limit is not None and limit < largest < math.inf:
    np.clip(levels, -limit, limit, out=levels)
    largest = limit
  if not largest < 2**31:
    _raise(x, step)
  return levels.astype(np.int32)


def _limit(dtype: np.dtype, step: float) -> int | None:
  """The largest level that dequantizes to a finite number; None if all do."""
  if not tree.is_floating(dtype):
    return None
  try:
    largest = float(np.finfo(dtype).max)
  except ValueError:
    import ml_dtypes  # It has the dtype.

    largest = float(ml_dtypes.finfo(dtype).max)
  if not largest / step < 2**31:
    return None
  limit = math.floor(largest / step)
  above = dequantize(np.array([limit + 1], np.int64), step, dtype)
  return limit + bool(np.isfinite(above[0]))


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


def _normalized(params, chosen, sensitivity) -> dict[str, np.ndarray]:
  """The sensitivities of the chosen tensors, of mean one over all of them."""
  if sensitivity is None:
    return {}
  given = by_name(chosen, sensitivity)
  found = {name: np.asarray(given[name], np.float64) for name in chosen}
  total = sum(float(x.sum()) for x in found.values())
  count = sum(x.size for x in found.values())
  if not 0 < total < math.inf:
    raise ValueError(
      "the sensitivity must be finite, not negative, not all zero"
    )
  return {name: x * (count / total) for name, x in found.items()}


def by_name(chosen: Collection[str], sensitivity) -> dict[str, np.ndarray]:
  """The sensitivity of each tensor by name.

  Raises:
    ValueError: if it has none for a chosen one.
  """
  given = dict(tree.named_leaves(sensitivity))
  if missing := sorted(set(chosen) - given.keys()):
    raise ValueError(f"the sensitivity has no tensor {missing[0]!r}")
  return given


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
