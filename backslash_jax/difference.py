"""A fine-tuned model as a change of its base.

The parameters that optax sees are the difference, and the loss sees the base
plus the difference. So the rate, the rounding and the file are those of the
difference, which takes far fewer bits than the weights.

This module does not need JAX: NumPy arrays give NumPy arrays.
"""

import sys
from typing import Any

import numpy as np

from backslash_jax import tree


def delta(params: Any, base: Any = None) -> Any:
  """The difference params - base, the parameters that a fine-tune trains.

      delta = bs.delta(base)  # Zeros, where training starts.
      opt_state = tx.init(delta)
      loss(bs.apply_delta(base, delta), batch)

  Pass `base` to a jitted update as an argument. A value that the function
  closes over would be compiled into the program.

  Args:
    params: pytree of arrays.
    base: tree of arrays that has the leaves of params, by name, or some of
      them. None (default) means params itself: all differences are zero.

  Returns:
    A tree with the structure, shapes and shardings of params. The difference of
    floating leaves is float32, or float64 if one of the two is. A leaf that
    base lacks, such as a new head, is returned unchanged.

  Raises:
    ValueError: if a leaf has another shape in base, or if base has none of the
      leaves.
  """
  if base is None:
    return tree.map_named(lambda _, x: _zeros(x), params)
  found = matched(params, base)

  def leaf(name, x):
    return _widened(x) - _widened(found[name]) if name in found else x

  return tree.map_named(leaf, params)


def apply_delta(base: Any, delta: Any) -> Any:
  """The parameters base + delta.

  Floating leaves are added in float32, or in float64 if the base's dtype is,
  and then cast to the base's dtype, as in the decoder of a coded difference.

  Args:
    base: as for `bs.delta`.
    delta: tree of differences, as `bs.delta` returns it.

  Returns:
    A tree with the structure and shardings of delta and the dtypes of base. A
    leaf that base lacks is that of delta.

  Raises:
    ValueError: as `bs.delta`.
  """
  found = matched(delta, base)

  def leaf(name, x):
    if name not in found:
      return x
    own = found[name]
    return (_widened(own) + x.astype(_wide(own.dtype))).astype(own.dtype)

  return tree.map_named(leaf, delta)


def matched(params: Any, base: Any) -> dict[str, Any]:
  """The leaves of base that params has, by name; ValueError as `delta`."""
  known, leaves = dict(tree.named_leaves(base)), tree.named_leaves(params)
  found = {name: known[name] for name, _ in leaves if name in known}
  if leaves and not found:
    raise ValueError(
      f"the base has no tensor {leaves[0][0]!r}, nor any other of the"
      f" parameters; it has {', '.join(map(repr, list(known)[:3])) or 'none'}"
    )
  for name, x in leaves:
    if name in found and found[name].shape != x.shape:
      raise ValueError(
        f"tensor {name!r} has the shape {tuple(x.shape)}, in the base"
        f" {tuple(found[name].shape)}; leave it out of the base to train it as"
        " it is"
      )
  return found


def _wide(dtype: Any) -> Any:
  """The dtype in which leaves of a dtype are added."""
  if not tree.is_float(dtype):
    return dtype
  return np.promote_types(dtype, np.float32)


def _widened(x: Any) -> Any:
  return x.astype(_wide(x.dtype))


def _zeros(x: Any) -> Any:
  jax = sys.modules.get("jax")
  xp = jax.numpy if jax and isinstance(x, jax.Array) else np
  return xp.zeros_like(x, dtype=_wide(x.dtype))
