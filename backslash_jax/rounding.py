"""Quantization in the forward pass, to train on the loss of the saved model."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from backslash_jax import quantize, tree

# Whether this process has called `round_through`. If not, `backslash` warns
# when it fits steps.
_has_rounded = False


def round_through(
  params: Any,
  step: float | jax.Array | Mapping[str, float | jax.Array],
  mask: tree.Mask = tree.matrices,
) -> Any:
  """Rounds to multiples of `step`; the gradient passes straight through.

  Use it in the loss, `loss(bs.round_through(params, 2**-5), batch)`. Training
  then minimizes the loss of the quantized model.

  Args:
    params: pytree of arrays.
    step: quantization step, in the units of the parameters: a number, or a
      mapping from names to steps, as `bs.steps` returns and `bs.save` accepts.
      An array with the value 0 means "not chosen yet"; that leaf is not
      rounded.
    mask: selects the leaves to round, see `bs.matrices`. With steps by name,
      the default selects the named leaves.

  Returns:
    The same tree. Rounded leaves keep their shape and dtype.

  Raises:
    ValueError: if a step is not positive and finite, if a selected leaf has no
      step, or if a step names no floating leaf.

  Source: straight-through estimator, Bengio et al., arXiv 1308.3432.
  """
  global _has_rounded
  _has_rounded = True
  steps = quantize.steps_by_name(params, step, mask)

  def leaf(name, x):
    return _through(x, steps[name]) if name in steps else x

  return tree.map_named(leaf, params)


def has_rounded() -> bool:
  """Whether `round_through` has been called in this process."""
  return _has_rounded


def _through(x, step):
  exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if isinstance(step, jax.Array):
    step = step.astype(exact.dtype)
    levels = jnp.round(exact / jnp.where(step > 0, step, 1.0))
    rounded = jnp.where(step > 0, step * levels, exact)
  else:
    step = float(step)
    rounded = step * jnp.round(exact / step)
  # x - x is exactly zero, so the value is exactly the rounded one.
  return jax.lax.stop_gradient(rounded.astype(x.dtype)) + (
    x - jax.lax.stop_gradient(x)
  )
