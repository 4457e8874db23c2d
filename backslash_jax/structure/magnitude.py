"""Which weights are the smallest: of a tensor, a model, a block, by group."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from backslash_jax import rounding
from backslash_jax.structure import groups as grouping

SCOPES = ("tensor", "model")


def check(
  scope: str, block: int | None, groups: Sequence[grouping.Group] | None
) -> None:
  """Raises ValueError for arguments that `kept` does not take."""
  if scope not in SCOPES:
    raise ValueError(f"scope must be one of {SCOPES}, found {scope!r}")
  if block is not None and (not isinstance(block, int) or block < 2):
    raise ValueError(
      f"block must be None or an integer of at least 2, found {block!r}"
    )
  if block is not None and groups is not None:
    raise ValueError(
      f"block is {block} and groups are given: weights are removed by blocks"
      " or by groups, not both"
    )


def kept(
  params: Any,
  fraction: float | jax.Array,
  *,
  scope: str = "tensor",
  block: int | None = None,
  groups: Sequence[grouping.Group] | None = None,
  mask: rounding.Mask | None = None,
) -> Any:
  """Where the weights are that stay when the smallest are removed.

  Args:
    params: tree of arrays.
    fraction: of the weights to remove, in [0, 1); may be traced.
    scope: "tensor" removes it of each tensor, "model" of all of them together.
      With groups, it is each layer's units, or all of them together.
    block: removes it of each `block` consecutive weights of a unit's inputs
      (axis -2, for kernels [inputs, outputs]): a fraction of 0.5 and a block
      of 4 leave 2 of 4. scope has no meaning then.
    groups: removes whole units, those with the smallest root mean square,
      until the next one would be more than the fraction of the parameters
      that are compared. Each layer keeps its largest unit. The mask has no
      meaning then.
    mask: tree of bool, or a callable that makes one of params: the leaves to
      prune; None means `bs.matrices`.

  Returns:
    A tree of bool like params.

  Raises:
    ValueError: for arguments out of range, axes that a block does not divide,
      and see `groups.bind`.
  """
  check(scope, block, groups)
  if groups is not None:
    return _kept_units(params, fraction, grouping.bind(groups, params), scope)
  selected = rounding.selected_leaves(params, mask)
  if block is not None:

    def leaf(path, x, m):
      return _largest_of_blocks(path, x, fraction, block) if m else _all(x)

    return jax.tree.map_with_path(leaf, params, selected)
  if scope == "tensor":
    return jax.tree.map(
      lambda x, m: _largest(x, fraction) if m else _all(x), params, selected
    )
  pairs = zip(jax.tree.leaves(params), jax.tree.leaves(selected), strict=True)
  sizes = [jnp.abs(x).astype(jnp.float32).ravel() for x, m in pairs if m]
  if not sizes:
    return jax.tree.map(_all, params)
  threshold = _threshold(jnp.concatenate(sizes), fraction)
  return jax.tree.map(
    lambda x, m: jnp.abs(x).astype(jnp.float32) > threshold if m else _all(x),
    params,
    selected,
  )


def prune(params: Any, fraction: float, **options: Any) -> Any:
  """Zeros the smallest weights; the options are those of `kept`.

  Raises:
    ValueError: for a fraction that is not in [0, 1), and see `kept`.
  """
  if not 0 <= fraction < 1:
    raise ValueError(f"fraction must be in [0, 1), found {fraction!r}")
  return jax.tree.map(
    lambda x, k: jnp.where(k, x, jnp.zeros_like(x)),
    params,
    kept(params, fraction, **options),
  )


def _all(x):
  return jnp.ones(x.shape, bool)


def _count(fraction, size):
  """How many of so many are removed, int32."""
  # A float32 product may miss a whole number by its last digit.
  return jnp.floor(fraction * float(size) + 1e-4).astype(jnp.int32)


def _threshold(sizes, fraction):
  """What those to remove of the last axis are no larger than; -1 if none."""
  count = _count(fraction, sizes.shape[-1])
  ordered = jnp.sort(sizes, axis=-1)
  last = jnp.take(ordered, jnp.maximum(count - 1, 0), axis=-1)
  return jnp.where(count > 0, last, -1.0)


def _largest(x, fraction):
  """Where x is larger than its smallest elements, this fraction of them."""
  size = jnp.abs(x)
  return size > _threshold(size.ravel(), fraction)


def _largest_of_blocks(path, x, fraction, block):
  """The same of each block of the next to last axis; of ties, the first."""
  if x.shape[-2] % block:
    raise ValueError(
      f"{grouping.path_name(path)} of shape {x.shape}: its axis -2 of"
      f" {x.shape[-2]} entries does not divide into blocks of {block}; leave"
      " it out with mask"
    )
  blocks = x.shape[:-2] + (x.shape[-2] // block, block, x.shape[-1])
  size = jnp.abs(x).reshape(blocks)
  count = _count(fraction, block)
  rank = jnp.argsort(jnp.argsort(size, axis=-2), axis=-2)
  return (rank >= count).reshape(x.shape)


def _kept_units(params, fraction, units, scope):
  """Where the weights of the largest units are, and what is in no group."""
  leaves = grouping.flatten(params)
  sizes = [grouping.magnitudes(u, leaves) for u in units]
  if scope == "model":
    thresholds = [_threshold_of_units(sizes, units, fraction)] * len(units)
  else:
    thresholds = [_threshold(s, fraction)[..., None] for s in sizes]
  by_path = {}
  for u, s, threshold in zip(units, sizes, thresholds, strict=True):
    stays = (s > threshold) | (s == jnp.max(s, axis=-1, keepdims=True))
    for part in u.parts:
      by_path[part.path] = grouping.spread(u, part, stays)

  def leaf(path, x):
    stays = by_path.get(grouping.path_name(path))
    return _all(x) if stays is None else jnp.broadcast_to(stays, x.shape)

  return jax.tree.map_with_path(leaf, params)


def _threshold_of_units(sizes, units, fraction):
  """The same of all units together; each counts as its parameters."""
  flat = jnp.concatenate([s.ravel() for s in sizes])
  weights = jnp.concatenate(
    [
      jnp.full(s.size, u.size, jnp.float32)
      for s, u in zip(sizes, units, strict=True)
    ]
  )
  order = jnp.argsort(flat)
  removed = jnp.cumsum(weights[order])
  goes = removed <= fraction * jnp.sum(weights)
  return jnp.max(jnp.where(goes, flat[order], -1.0))
