"""Magnitude pruning: the smallest weights of a tensor or model, or units."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backslash_jax import tree
from backslash_jax.structure import groups as grouping

SCOPES = ("tensor", "model")


def check(scope: str) -> None:
  """Raises ValueError for an unknown scope."""
  if scope not in SCOPES:
    raise ValueError(f"scope must be one of {SCOPES}, found {scope!r}")


def kept(
  params: Any,
  fraction: float | jax.Array,
  *,
  scope: str = "tensor",
  groups: Sequence[grouping.Group] | None = None,
  mask: tree.Mask = tree.matrices,
) -> Any:
  """Marks the weights that remain when the smallest are removed.

  At most the given fraction is removed. Among weights of equal magnitude, the
  first ones are removed.

  Args:
    params: tree of arrays.
    fraction: fraction of the weights to remove, in [0, 1); may be traced.
    scope: "tensor" (default) removes the fraction from each tensor, "model"
      from all selected leaves together. With groups, "tensor" compares the
      units of a layer, "model" all units.
    groups: if given, removes whole units, those with the smallest root mean
      square. It stops before the removed units exceed the fraction of the
      compared parameters. Each layer keeps its largest unit. The mask is
      ignored.
    mask: selects the leaves to prune, see `bs.matrices`.

  Returns:
    Tree of bool with the structure and shapes of params; True where a weight
    remains.

  Raises:
    ValueError: if `scope` is unknown; also as `groups.bind`.
  """
  check(scope)
  if groups is not None:
    return _kept_units(params, fraction, grouping.bind(groups, params), scope)
  chosen = tree.selected(params, mask)
  sizes = {n: jnp.abs(x).astype(jnp.float32) for n, x in chosen.items()}
  if scope == "tensor":
    goes = {
      name: _smallest(size.ravel(), _count(fraction, size.size))
      for name, size in sizes.items()
    }
  else:
    flat = jnp.concatenate([size.ravel() for size in sizes.values()])
    parts = jnp.split(
      _smallest(flat, _count(fraction, flat.size)),
      np.cumsum([size.size for size in sizes.values()])[:-1],
    )
    goes = dict(zip(sizes, parts, strict=True))

  def leaf(name, x):
    return ~goes[name].reshape(x.shape) if name in goes else _all(x)

  return tree.map_named(leaf, params)


def prune(params: Any, fraction: float, **options: Any) -> Any:
  """Sets the smallest weights to zero; takes the options of `kept`.

  Raises:
    ValueError: if fraction is not in [0, 1); also as `kept`.
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
  """The number of elements to remove, int32."""
  # A float32 product can fall just below a whole number.
  return jnp.floor(fraction * float(size) + 1e-4).astype(jnp.int32)


def _smallest(sizes, count):
  """Marks the `count` smallest along the last axis; of ties, the first."""
  if sizes.shape[-1] == 0:
    return jnp.zeros(sizes.shape, bool)
  last = jnp.take(jnp.sort(sizes, axis=-1), jnp.maximum(count - 1, 0), axis=-1)[
    ..., None
  ]
  below, ties = sizes < last, sizes == last
  room = count - jnp.sum(below, axis=-1, keepdims=True, dtype=jnp.int32)
  goes = below | (ties & (jnp.cumsum(ties, -1, dtype=jnp.int32) <= room))
  return goes & (count > 0)


def _kept_units(params, fraction, units, scope):
  """Marks the weights of the largest units and all weights in no group."""
  leaves = dict(tree.named_leaves(params))
  sizes = [grouping.magnitudes(u, leaves) for u in units]
  if scope == "model":
    goes = _smallest_units(sizes, units, fraction)
  else:
    goes = [_smallest(s, _count(fraction, s.shape[-1])) for s in sizes]
  stays = {}
  for u, s, gone in zip(units, sizes, goes, strict=True):
    largest = jnp.arange(s.shape[-1]) == jnp.argmax(s, -1, keepdims=True)
    for part in u.parts:
      stays[part.path] = grouping.spread(u, part, ~gone | largest)

  def leaf(name, x):
    return jnp.broadcast_to(stays[name], x.shape) if name in stays else _all(x)

  return tree.map_named(leaf, params)


def _smallest_units(sizes, units, fraction):
  """Marks the smallest of all units, weighted by their parameters."""
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
  goes = jnp.zeros(flat.shape, bool).at[order].set(goes)
  parts = jnp.split(goes, np.cumsum([s.size for s in sizes])[:-1])
  return [g.reshape(s.shape) for g, s in zip(parts, sizes, strict=True)]
