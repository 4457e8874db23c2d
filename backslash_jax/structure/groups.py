"""Weights that leave a network together, declared as data.

A hidden unit of an MLP is a column of one matrix, an entry of its bias and a
row of the next matrix; an attention head is such slices of four. A `Group`
names them by patterns over the paths of the parameters:

>>> from backslash_jax.structure.groups import Group, Slice
>>> mlp = Group("mlp", (
...   Slice(r"(.*)/mlp/up/(?:kernel|bias)$", axis=-1),
...   Slice(r"(.*)/mlp/down/kernel$", axis=-2),
... ))

What the parentheses of the patterns capture tells which tensors belong
together, here the path of the layer.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from backslash_jax import tree


@dataclasses.dataclass(frozen=True)
class Slice:
  """An axis of some parameters, and how it is cut.

  Attributes:
    pattern: regular expression, searched in paths such as "a/b/kernel".
    axis: negative, so that layers stacked in front do not matter.
    entries: consecutive entries of the axis that are one unit's.
  """

  pattern: str
  axis: int
  entries: int = 1


@dataclasses.dataclass(frozen=True)
class Group:
  """Slices of several parameters that are one unit's.

  Attributes:
    name: for messages and reports.
    slices: that tie their parameters. Two parameters belong together where
      the parentheses of the patterns that found them captured the same text.
    stacked: leading axes of every parameter that count layers; each layer
      has units of its own.
  """

  name: str
  slices: tuple[Slice, ...]
  stacked: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
  """A parameter's share in the units of `Units`: its axis, cut in entries."""

  path: str
  shape: tuple[int, ...]
  axis: int
  entries: int


@dataclasses.dataclass(frozen=True)
class Units:
  """Units of one layer, or of stacked ones, found in a tree.

  Attributes:
    name: the group's.
    key: what the patterns captured, which tells layers apart.
    shape: of an array with a value per unit, [..., n]: the stacked axes,
      then the units of a layer.
    parts: the parameters that they are in.
    size: number of parameters in one unit.
  """

  name: str
  key: tuple[str, ...]
  shape: tuple[int, ...]
  parts: tuple[Part, ...]
  size: int


def bind(groups: Sequence[Group], params: Any) -> tuple[Units, ...]:
  """Finds the units of groups in a tree.

  Args:
    groups: what is declared.
    params: tree of arrays or of their shapes.

  Returns:
    The units, in the order of the groups and then of the tree.

  Raises:
    ValueError: listing every problem: a pattern that matches nothing or is
      no regular expression, an axis that a parameter does not have or that
      its entries do not divide, slices of different lengths, a parameter
      that is in two groups or twice in one.
  """
  leaves = dict(tree.named_leaves(params))
  problems: list[str] = []
  owners: dict[str, str] = {}
  result = []
  for group in groups:
    parts: dict[tuple[str, ...], list[Part]] = {}
    for s in group.slices:
      for path, key in _matches(group, s, leaves, problems):
        if path in owners:
          problems.append(
            f"group {group.name!r}, pattern {s.pattern!r}: {path} is already"
            f" in group {owners[path]!r}; a weight can be in one slice only"
          )
          continue
        owners[path] = group.name
        part = _part(group, s, path, leaves[path].shape, problems)
        if part is not None:
          parts.setdefault(key, []).append(part)
    for key, own in parts.items():
      units = _units(group, key, own, problems)
      if units is not None:
        result.append(units)
  if problems:
    raise ValueError("\n".join(problems))
  return tuple(result)


def _matches(group, s, leaves, problems):
  """(path, captured text) of the parameters that a slice's pattern finds."""
  try:
    found = [(p, m) for p in leaves if (m := re.search(s.pattern, p))]
  except re.error as error:
    problems.append(
      f"group {group.name!r}: pattern {s.pattern!r} is no regular expression:"
      f" {error}"
    )
    return []
  if not found:
    some = ", ".join(list(leaves)[:4])
    problems.append(
      f"group {group.name!r}: pattern {s.pattern!r} matches no parameter;"
      f" there are {some}, ..."
    )
  return [(path, match.groups("")) for path, match in found]


def _part(group, s, path, shape, problems):
  """The part of one parameter, or None with a problem."""
  where = f"group {group.name!r}: {path} of shape {tuple(shape)}"
  if not -len(shape) + group.stacked <= s.axis < 0:
    problems.append(
      f"{where} has no axis {s.axis} behind {group.stacked} stacked ones;"
      " axes are counted from the last, which is -1"
    )
    return None
  if s.entries < 1 or shape[s.axis] % s.entries:
    problems.append(
      f"{where}: its axis {s.axis} of {shape[s.axis]} entries cannot be cut in"
      f" units of {s.entries}"
    )
    return None
  return Part(path, tuple(shape), s.axis, s.entries)


def _units(group, key, parts, problems):
  """The units that parts make together, or None with a problem."""
  shapes = {
    p: (*p.shape[: group.stacked], p.shape[p.axis] // p.entries) for p in parts
  }
  if len(set(shapes.values())) > 1:
    found = ", ".join(
      f"{p.path} of shape {p.shape} has {shapes[p]} along axis {p.axis}"
      for p in parts
    )
    problems.append(
      f"group {group.name!r}: slices that belong together have different"
      f" numbers of units: {found}"
    )
    return None
  shape = shapes[parts[0]]
  count = math.prod(shape)
  size = sum(math.prod(p.shape) for p in parts) // max(count, 1)
  return Units(group.name, key, shape, tuple(parts), size)


def square_sums(units: Units, leaves: dict[str, jax.Array]) -> jax.Array:
  """Sum of the squares of each unit's weights, float32 of `units.shape`.

  Args:
    units: of `bind`.
    leaves: the parameters by name.
  """
  total = jnp.zeros(units.shape, jnp.float32)
  stacked = len(units.shape) - 1
  for part in units.parts:
    x = leaves[part.path].astype(jnp.float32)
    axis = x.ndim + part.axis
    others = [i for i in range(stacked, x.ndim) if i != axis]
    per_entry = jnp.sum(x * x, axis=others)
    total += per_entry.reshape(*units.shape, part.entries).sum(-1)
  return total


def magnitudes(units: Units, leaves: dict[str, jax.Array]) -> jax.Array:
  """Root of the mean square of each unit's weights, float32."""
  return jnp.sqrt(square_sums(units, leaves) / units.size)


def spread(units: Units, part: Part, values: jax.Array) -> jax.Array:
  """Each unit's value at its weights, to be broadcast against a parameter.

  Args:
    units: of `bind`.
    part: one of its parts.
    values: of `units.shape`, any dtype.

  Returns:
    An array with the parameter's number of dimensions, of size 1 in those
    that are neither stacked nor the axis of the units.
  """
  stacked = len(units.shape) - 1
  shape = [1] * len(part.shape)
  shape[:stacked] = part.shape[:stacked]
  shape[part.axis] = part.shape[part.axis]
  return jnp.repeat(values, part.entries, axis=-1).reshape(shape)


def scale(params: Any, units: Sequence[Units], factors: Sequence[jax.Array]):
  """The tree with each unit's weights times its factor; others as they are.

  A factor of exactly 0 gives zeros, and of exactly 1 the weights themselves.
  """
  by_path = {
    part.path: spread(u, part, f)
    for u, f in zip(units, factors, strict=True)
    for part in u.parts
  }

  def leaf(name, x):
    factor = by_path.get(name)
    return x if factor is None else (x * factor).astype(x.dtype)

  return tree.map_named(leaf, params)
