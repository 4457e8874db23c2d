"""The quantizer in the forward pass: the loss of the model that is shipped."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Mask = Any | Callable[[Any], Any]


def matrices(params: Any) -> Any:
  """Mask of the floating leaves with two or more dimensions.

  Args:
    params: any pytree of arrays.

  Returns:
    A tree of bool of the same structure, as `optax.masked` takes it.
  """
  return jax.tree.map(
    lambda x: jnp.ndim(x) >= 2 and jnp.issubdtype(x.dtype, jnp.floating), params
  )


def round_through(params: Any, step: float, mask: Mask | None = None) -> Any:
  """Rounds to multiples of `step`; the gradient passes straight through.

  Used in the loss, `loss(bs.round_through(params, 2**-5), batch)`, so that
  the distortion that training minimizes is that of the quantized model.

  Args:
    params: pytree of arrays.
    step: distance between levels, positive, in the units of the parameters.
    mask: tree of bool, or a callable that makes one of params: the leaves to
      round; None means `matrices`.

  Returns:
    The same tree; rounded leaves keep shape and dtype.

  Raises:
    ValueError: if step is not positive and finite.

  Source: straight-through estimator, Bengio et al., arXiv 1308.3432.
  """
  _check_step(step)

  def through(x):
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rounded = (step * jnp.round(exact / step)).astype(x.dtype)
    # x - x is exactly zero, so the value is the level to the last bit.
    return jax.lax.stop_gradient(rounded) + (x - jax.lax.stop_gradient(x))

  selected = selected_leaves(params, mask)
  return jax.tree.map(lambda x, m: through(x) if m else x, params, selected)


def perturb(
  params: Any, key: jax.Array, step: float, mask: Mask | None = None
) -> Any:
  """Adds uniform noise of one step: a differentiable stand-in for rounding.

  Args:
    params: pytree of arrays.
    key: random key; every leaf gets its own noise.
    step: width of the noise, U(-step/2, step/2), in the parameters' units.
    mask: as in `round_through`.

  Returns:
    The same tree; perturbed leaves keep shape and dtype.

  Raises:
    ValueError: if step is not positive and finite.

  Source: Ballé, Laparra & Simoncelli, arXiv 1611.01704.
  """
  _check_step(step)
  treedef = jax.tree.structure(params)
  keys = treedef.unflatten(list(jax.random.split(key, treedef.num_leaves)))

  def noisy(x, k):
    noise = jax.random.uniform(k, x.shape, minval=-0.5, maxval=0.5)
    return (x + step * noise).astype(x.dtype)

  selected = selected_leaves(params, mask)
  return jax.tree.map(
    lambda x, k, m: noisy(x, k) if m else x, params, keys, selected
  )


def _check_step(step):
  if isinstance(step, int | float) and not 0 < step < float("inf"):
    raise ValueError(f"step must be positive and finite, found {step}")


def selected_leaves(params, mask):
  mask = matrices if mask is None else mask
  return mask(params) if callable(mask) else mask
