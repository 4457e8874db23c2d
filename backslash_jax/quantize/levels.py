"""Uniform quantizers, which map a trained tensor to integer levels.

`quantize` rounds to the nearest level. `rate_distortion` also considers the
bits that a level takes.
"""

import math
from collections.abc import Collection, Mapping

import numpy as np

from backslash_jax import tree
from backslash_jax.coding import fit
from backslash_jax.quantize.step import check_step, steps_by_name

_BLOCK = 1 << 16  # Elements converted at once, to stay in cache.


def quantize(x: np.ndarray, step: float) -> np.ndarray:
  """The int32 multiples of `step` nearest to `x`, ties to even.

  Where the nearest multiple is beyond the range of x's dtype, the one before is
  taken: 65504 in float16 at step 1000 becomes 65000, not infinity.

  Raises:
    ValueError: if a value is not finite or its multiple is outside int32.
  """
  check_step(step)
  x = np.asarray(x)
  wide, scale, operation = np.float64, step, np.divide
  mantissa, _ = np.frexp(step)
  if mantissa == 0.5 and 2.0**-126 <= step <= 2.0**126:
    scale, operation = 1 / step, np.multiply  # By a power of two: exact.
    wide = np.float64 if x.dtype.itemsize > 4 else np.float32
  limit = _limit(x.dtype, step)
  values, found = x.reshape(-1), np.empty(x.size, np.int32)
  for start in range(0, x.size, _BLOCK):
    block = slice(start, start + _BLOCK)
    with np.errstate(over="ignore"):
      levels = operation(values[block], scale, dtype=wide)
    np.rint(levels, out=levels)
    largest = max(levels.max(), -levels.min())
    if limit is not None and limit < largest < math.inf:
      np.clip(levels, -limit, limit, out=levels)
      largest = limit
    if not largest < 2**31:
      _raise(x, step)
    found[block] = levels
  return found.reshape(x.shape)


def _limit(dtype: np.dtype, step: float) -> int | None:
  """The largest level that dequantizes to a finite number; None if all do."""
  if not tree.is_float(dtype):
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
  """symbols * step in float64, rounded to `dtype`.

  Dtypes narrower than float32 are rounded through float32. The result is the
  same on every platform, because IEEE 754 defines each of these roundings.
  """
  with np.errstate(over="ignore"):
    narrow = np.float32(step)
    # As Python's floats: NumPy would compare them in float32.
    is_exact = float(narrow) == float(step) and _short(symbols)
    if is_exact and np.dtype(dtype) == narrow.dtype:
      # Float64 would hold these products exactly, so float32 rounds them alike.
      return np.multiply(symbols, narrow, dtype=np.float32)
    values = np.multiply(symbols, step, dtype=np.float64)
    if np.dtype(dtype).itemsize < 4:
      values = values.astype(np.float32)
    return values.astype(dtype)


def _short(symbols: np.ndarray) -> bool:
  """Whether the symbols are integers that float32 holds exactly."""
  if symbols.dtype.kind not in "iu":
    return False
  if symbols.dtype.itemsize <= 2 or not symbols.size:
    return True
  return max(int(symbols.max()), -int(symbols.min())) <= 2**24


def rate_distortion(
  x: np.ndarray,
  step: float,
  mu: float,
  *,
  sensitivity: np.ndarray | None = None,
) -> np.ndarray:
  """int32 levels that minimize squared error / step^2 + mu * bits.

  Each value takes the nearest level or the adjacent level toward zero. The bits
  come from the model that the archive's rANS coder would use. The model is
  fitted to the levels twice.

  Args:
    x: array of any shape; its last axis is the columns of the model.
    step: quantization step, in the units of x.
    mu: extra squared error, in step^2, accepted per bit saved. 0 rounds to
      nearest; 0.1 is a usual value.
    sensitivity: weights of the squared errors, with the shape of x and mean 1,
      for example squared gradients. None (default) gives all errors the same
      weight.

  Raises:
    ValueError: as `quantize`; also if mu is negative or not finite, or if the
      shape of sensitivity is not that of x.
  """
  if not 0 <= mu < math.inf:
    raise ValueError(f"mu is {mu}: it must be finite and not negative")
  x = np.asarray(x)
  if sensitivity is not None and np.shape(sensitivity) != x.shape:
    raise ValueError(
      f"the sensitivity has shape {np.shape(sensitivity)}, the tensor {x.shape}"
    )
  nearest = quantize(x, step)
  if mu == 0 or x.size == 0:
    return nearest
  columns = x.shape[-1] if x.ndim > 1 else 1
  weights = None if sensitivity is None else np.reshape(sensitivity, -1)
  values, nearest = np.reshape(x, -1), nearest.reshape(-1, columns)
  levels = nearest
  for _ in range(2):
    model, _ = fit.quantized_ggd(levels)
    bits = fit.costs(levels, model)
    levels = _spared(values, weights, nearest, step, mu, bits, model.shift)
  return levels.reshape(x.shape)


def _spared(values, weights, nearest, step, mu, bits, shift) -> np.ndarray:
  """`nearest`, or the level toward zero where its bits are worth the error.

  Args:
    values, weights: of the elements of the matrix, in its order.
    nearest: int32 [R, C].
    step, mu: see `rate_distortion`.
    bits: `fit.costs` of the matrix.
    shift: of its model.
  """
  found = nearest.copy()
  flat = found.reshape(-1)
  row_class, column_class, table = bits
  rows, columns = nearest.shape
  several = max(_BLOCK // columns, 1)
  for start in range(0, rows, several):
    block = slice(start, start + several)
    own = slice(start * columns, (start + several) * columns)
    # Only what was rounded away from zero has another candidate.
    scaled = np.abs(np.divide(values[own], step, dtype=np.float64))
    size = np.abs(flat[own])
    (places,) = np.nonzero(size > scaled)
    scaled, near = scaled[places], flat[own][places]
    lower = near - np.sign(near)
    loss = 2 * (scaled - size[places]) + 1
    if weights is not None:
      loss *= weights[own][places]
    classes = (row_class[block, None] + column_class).reshape(-1)[places]
    gain = table[classes, fit.table_keys(near, shift)]
    gain -= table[classes, fit.table_keys(lower, shift)]
    flat[places + own.start] = np.where(loss < mu * gain, lower, near)
  return found


def apply(
  params,
  step: float | Mapping[str, float],
  *,
  mu: float = 0.0,
  sensitivity=None,
  mask: tree.Mask = tree.matrices,
):
  """`params` with the values that loading a file with this step would return.

  Saving the result with the same step adds no further error as long as its
  dtype can represent the multiples of the step: float32 can up to 2**24 steps,
  bfloat16 up to 256.

  Args:
    params: as for `bs.save`.
    step: one step for all selected leaves, or a mapping from names to steps, in
      the units of the parameters.
    mu: see `rate_distortion`; 0 (default) rounds to nearest.
    sensitivity: tree like `params` with weights for the squared errors. They
      are normalized to mean 1 over all selected leaves.
    mask: selects the leaves that are quantized, see `bs.matrices`.

  Returns:
    The same tree. Quantized leaves are NumPy arrays of their original dtype.

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
  """The sensitivities of the chosen tensors, normalized to mean 1."""
  if sensitivity is None:
    return {}
  given = by_name(chosen, sensitivity)
  found = {name: np.asarray(given[name], np.float64) for name in chosen}
  total = sum(float(x.sum()) for x in found.values())
  count = sum(x.size for x in found.values())
  if not 0 < total < math.inf:
    raise ValueError(
      "the sensitivity must be finite, not negative and not zero everywhere"
    )
  return {name: x * (count / total) for name, x in found.items()}


def by_name(chosen: Collection[str], sensitivity) -> dict[str, np.ndarray]:
  """The sensitivity of each tensor by name.

  Raises:
    ValueError: if a chosen tensor has none.
  """
  given = dict(tree.named_leaves(sensitivity))
  if missing := sorted(set(chosen) - given.keys()):
    raise ValueError(f"the sensitivity has no tensor {missing[0]!r}")
  return given


def _raise(x: np.ndarray, step: float):
  """Raises ValueError that says why a tensor has no int32 levels."""
  bad = np.count_nonzero(~np.isfinite(x))
  if bad:
    raise ValueError(f"{bad} of {x.size} values are NaN or infinite")
  worst = x.flat[int(np.argmax(np.abs(x)))]
  raise ValueError(
    f"the value {float(worst):g} is more than 2**31 - 1 steps of {step}: "
    "take a larger step or leave this tensor out"
  )
