"""How coarse the levels may be, chosen after training."""

import math
from collections.abc import Callable

import numpy as np

from backslash_jax import tree
from backslash_jax.quantize import levels
from backslash_jax.quantize.step import check_step

# Sensitivities are compared within this ratio to their geometric mean.
MAX_RATIO = 256.0


def absmax_steps(
  params, count: int = 127, *, mask: tree.Mask = tree.matrices
) -> dict[str, float]:
  """A step per tensor: its largest magnitude divided by `count`."""
  largest = {
    name: float(np.abs(np.asarray(x)).max(initial=0))
    for name, x in tree.selected(params, mask).items()
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
    quantized = levels.apply(params, 2.0**octave, mu=mu, mask=mask)
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
