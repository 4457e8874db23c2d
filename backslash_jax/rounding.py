"""The quantizer in the forward pass: the loss of the model that is shipped."""

from collections.abc import Callable, Mapping
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


def round_through(
  params: Any,
  step: float | jax.Array | Mapping[str, float | jax.Array],
  mask: Mask | None = None,
) -> Any:
  """Rounds to multiples of `step`; the gradient passes straight through.

  Used in the loss, `loss(bs.round_through(params, 2**-5), batch)`, so that
  the distortion that training minimizes is that of the quantized model.

  Args:
    params: pytree of arrays.
    step: distance between levels in the units of the parameters: one, or one
      for each leaf to round, by its name, its keys joined by "/", as `save`
      takes them. Where a traced one is 0, the leaf is left as it is.
    mask: tree of bool, or a callable that makes one of params: the leaves to
      round; None means `matrices`, or the leaves that are named.

  Returns:
    The same tree; rounded leaves keep shape and dtype.

  Raises:
    ValueError: if a step is not positive and finite; if a leaf to round has
      none, or no leaf has the name of one.

  Source: straight-through estimator, Bengio et al., arXiv 1308.3432.
  """
  if isinstance(step, Mapping):
    return _round_by_name(params, step, mask)
  _check_step(step)
  selected = selected_leaves(params, mask)
  return jax.tree.map(
    lambda x, m: _through(x, step) if m else x, params, selected
  )


def names(params: Any) -> list[str]:
  """The names of the leaves in their order: their keys joined by "/"."""

  def name(path):
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
      path = path[:-1]  # Of a variable of nnx, which pure trees do without.
    return jax.tree_util.keystr(path, simple=True, separator="/")

  return [name(path) for path, _ in jax.tree.leaves_with_path(params)]


def _round_by_name(params, steps, mask):
  leaves, treedef = jax.tree.flatten(params)
  own = names(params)
  if unknown := sorted(steps.keys() - set(own)):
    raise ValueError(f"step names {unknown[0]!r}, which is not in params")
  if mask is None:
    chosen = [name in steps for name in own]
  else:
    chosen = jax.tree.leaves(selected_leaves(params, mask))
  rounded = []
  for x, name, is_chosen in zip(leaves, own, chosen, strict=True):
    if is_chosen and name not in steps:
      raise ValueError(f"step has none for {name!r}: name it, or mask it out")
    if is_chosen:
      _check_step(steps[name])
      x = _through(x, steps[name])
    rounded.append(x)
  return treedef.unflatten(rounded)


def _through(x, step):
  exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if isinstance(step, int | float):
    rounded = step * jnp.round(exact / step)
  else:
    step = jnp.asarray(step)  # It may be a variable of nnx.
    levels = jnp.round(exact / jnp.where(step > 0, step, 1.0))
    rounded = jnp.where(step > 0, step * levels, exact)
  # x - x is exactly zero, so the value is the level to the last bit.
  return jax.lax.stop_gradient(rounded.astype(x.dtype)) + (
    x - jax.lax.stop_gradient(x)
  )


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
