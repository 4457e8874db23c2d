"""Choosing the quantization steps after training."""

import math
from collections.abc import Callable

import numpy as np

from backslash_jax import tree
from backslash_jax.quantize import levels
from backslash_jax.quantize.step import check_step

# Sensitivities are clipped to within this ratio of their geometric mean.
MAX_RATIO = 256.0


def absmax_steps(
  params, count: int = 127, *, mask: tree.Mask = tree.matrices
) -> dict[str, float]:
  """A step per tensor: its largest magnitude divided by `count`.

  Args:
    params: tree of arrays.
    count: number of levels on each side of zero; default 127, as in int8.
    mask: selects the leaves that get a step, see `bs.matrices`.

  Returns:
    name -> step, as `bs.save` accepts. An all-zero tensor gets 1 / count.
  """
  largest = {
    name: _largest(x) for name, x in tree.selected(params, mask).items()
  }
  return {name: (size or 1.0) / count for name, size in largest.items()}


def sensitive_steps(
  params,
  step: float,
  sensitivity,
  *,
  limit: float = 2.0,
  mask: tree.Mask = tree.matrices,
) -> dict[str, float]:
  """A step per tensor, finer where an error raises the loss more.

  The steps come from `allocate`, which assumes small errors. `limit` prevents
  steps so large that all values of a tensor round to zero.

  Args:
    params: as for `bs.save`.
    step: geometric mean of the steps before `limit`, weighted by the number of
      parameters. The rate is about the same as with this step for all tensors.
    sensitivity: tree like `params` with the squared gradients of each tensor,
      or their mean as a scalar.
    limit: largest step of a tensor, as a multiple of its root mean square;
      default 2.
    mask: selects the leaves that get a step, see `bs.matrices`.

  Returns:
    name -> step, as `bs.save` accepts.

  Raises:
    ValueError: if a tensor has no sensitivity, if one is negative or not
      finite, if all are zero, or if `limit` is not positive.
  """
  check_step(step)
  if not limit > 0:
    raise ValueError(f"limit is {limit}: it must be positive")
  tensors = tree.selected(params, mask)
  given = levels.by_name(tensors.keys(), sensitivity)
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
  sizes = np.array([float(x.size) for x in tensors.values()])
  scales = np.array([_rms(x) for x in tensors.values()])
  found = np.minimum(
    allocate(step, np.array(list(means.values())), sizes),
    np.where(scales > 0, limit * scales, np.inf),
  )
  return dict(zip(tensors, found.tolist(), strict=True))


def _largest(x) -> float:
  """The largest magnitude in x, an array of any kind; 0 if it is empty."""
  # A JAX array is reduced where it is: it may not fit on the host.
  x, xp = _namespace(x)
  return float(xp.max(xp.abs(x))) if x.size else 0.0


def _rms(x) -> float:
  """The root mean square of x, an array of any kind; 0 if it is empty."""
  x, xp = _namespace(x)
  if not x.size:
    return 0.0
  if xp is np:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))
  scale = _largest(x) or 1.0  # The squares neither overflow nor vanish.
  x = x.astype(xp.promote_types(x.dtype, xp.float32)) / scale
  return scale * float(xp.sqrt(xp.mean(xp.square(x))))


def _namespace(x):
  """The array, and the module with its functions: jax.numpy or numpy."""
  if not hasattr(x, "__array_namespace__"):
    x = np.asarray(x)
  return x, x.__array_namespace__()


def allocate(step, sensitivity, size):
  """Steps of T tensors, proportional to step / sqrt(sensitivity).

  At a given rate, and to second order in the errors, the loss is least with

      step_t^2 proportional to 1 / h_t

  where h_t is the mean of the loss's diagonal second derivatives in tensor t.
  Squared gradients approximate them.

  Args:
    step: geometric mean of the steps, weighted by the number of parameters. The
      rate is about the same as with this step for all tensors.
    sensitivity: h_t up to a common factor, non-negative, [T], a NumPy or JAX
      array. Ratios to the geometric mean are clipped to MAX_RATIO.
    size: number of parameters of each tensor, floating, [T].

  Returns:
    The steps, [T].

  Source: Choi, El-Khamy & Lee, Towards the limit of network quantization, ICLR
  2017, for h; Gish & Pierce, 1968, for the rate of a fine uniform quantizer.
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
  """The coarsest step at which the metric falls by at most `tolerance`.

  Bisects log2(step), so the metric should fall as the step grows. If it is not
  monotonic, the returned step may not be the coarsest, but it was evaluated and
  is within the tolerance.

  Args:
    params: the trained parameters.
    evaluate: parameters -> metric; higher is better.
    tolerance: largest accepted drop of the metric below that of the
      unquantized `params`, in the units of the metric.
    finest: lower bound of the search, in the units of the parameters; must be
      within the tolerance.
    coarsest: upper bound of the search.
    resolution: width in octaves at which the bisection stops.
    mu: see `rate_distortion`; 0 (default) rounds to nearest.
    mask: selects the leaves that are quantized, see `bs.matrices`.

  Returns:
    The step, in the units of the parameters.

  Raises:
    ValueError: if `finest` is not within the tolerance.
  """
  wanted = evaluate(params) - tolerance

  def within(octave: float) -> bool:
    quantized = levels.apply(params, 2.0**octave, mu=mu, mask=mask)
    return evaluate(quantized) >= wanted

  good, bad = math.log2(finest), math.log2(coarsest)
  if within(bad):
    return float(coarsest)
  if not within(good):
    raise ValueError(
      f"a step of {finest} already costs more than {tolerance} of the metric: "
      "give a finer one as finest, or a larger tolerance"
    )
  while bad - good > resolution:
    middle = (good + bad) / 2
    good, bad = (middle, bad) if within(middle) else (good, middle)
  return 2.0**good
