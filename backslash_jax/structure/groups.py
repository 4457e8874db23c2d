"""Groups: weights that are removed from a network together, declared as data.

A hidden unit of an MLP consists of a column of one matrix, an entry of its bias
and a row of the next matrix. An attention head consists of slices of four
matrices. A `Group` declares such slices by patterns over the parameter paths:

>>> from backslash_jax.structure.groups import Group, Slice
>>> mlp = Group("mlp", (
...   Slice(r"(.*)/mlp/up/(?:kernel|bias)$", axis=-1),
...   Slice(r"(.*)/mlp/down/kernel$", axis=-2),
... ))

Tensors belong together if the capturing groups of the patterns match the same
text, here the path of the layer.
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
  """An axis of some parameters that is split into units.

  Attributes:
    pattern: regular expression, searched in paths such as "a/b/kernel".
    axis: the axis, counted from the last, which is -1. It is negative, so it
      does not change if layers are stacked in front.
    entries: number of consecutive entries of the axis per unit; default 1.
  """

  pattern: str
  axis: int
  entries: int = 1


@dataclasses.dataclass(frozen=True)
class Group:
  """Slices of several parameters that together form the units.

  Attributes:
    name: name in messages and reports.
    slices: the slices. Two parameters belong together if their patterns
      captured the same text.
    stacked: number of leading axes of every parameter that index layers;
      default 0. Each layer has its own units.
  """

  name: str
  slices: tuple[Slice, ...]
  stacked: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
  """The slice of one parameter that belongs to `Units`."""

  path: str
  shape: tuple[int, ...]
  axis: int
  entries: int


@dataclasses.dataclass(frozen=True)
class Units:
  """The units of one layer, or of stacked layers, in a tree.

  Attributes:
    name: name of the group.
    key: text that the patterns captured; it identifies the layer.
    shape: shape of an array with one value per unit, [..., n]: the stacked
      axes, then the n units of a layer.
    parts: the parameters that the units consist of.
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
    groups: the declared groups.
    params: tree of arrays, or of objects with a shape.

  Returns:
    The units, in the order of the groups and then of the tree.

  Raises:
    ValueError: lists every problem found: a pattern that is not a regular
      expression or matches no parameter; an axis that a parameter does not
      have, or with a length that `entries` does not divide; slices of one unit
      with different numbers of units; a parameter that occurs twice.
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
            f" in group {owners[path]!r}; a parameter can be in one slice only"
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
  """(path, captured text) of the parameters that match a slice's pattern."""
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
  """The part of one parameter; None after adding a problem."""
  where = f"group {group.name!r}: {path} of shape {tuple(shape)}"
  if not -len(shape) + group.stacked <= s.axis < 0:
    problems.append(
      f"{where} has no axis {s.axis} after {group.stacked} stacked axes;"
      " axes are counted from the last, which is -1"
    )
    return None
  if s.entries < 1 or shape[s.axis] % s.entries:
    problems.append(
      f"{where}: axis {s.axis} of {shape[s.axis]} entries cannot be split into"
      f" units of {s.entries}"
    )
    return None
  return Part(path, tuple(shape), s.axis, s.entries)


def _units(group, key, parts, problems):
  """The units that the parts form; None after adding a problem."""
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
      f" numbers of units: {found}; they must be equal"
    )
    return None
  shape = shapes[parts[0]]
  count = math.prod(shape)
  size = sum(math.prod(p.shape) for p in parts) // max(count, 1)
  return Units(group.name, key, shape, tuple(parts), size)


def square_sums(units: Units, leaves: dict[str, jax.Array]) -> jax.Array:
  """Sum of the squares of each unit's weights, float32 of `units.shape`.

  Args:
    units: units from `bind`.
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
  """Root mean square of each unit's weights, float32 of `units.shape`."""
  return jnp.sqrt(square_sums(units, leaves) / units.size)


def spread(units: Units, part: Part, values: jax.Array) -> jax.Array:
  """Expands one value per unit, so it broadcasts against a parameter.

  Args:
    units: units from `bind`.
    part: one of their parts.
    values: array of `units.shape`, any dtype.

  Returns:
    Array with as many dimensions as the parameter. All dimensions except the
    stacked ones and the axis of the units have size 1.
  """
  stacked = len(units.shape) - 1
  shape = [1] * len(part.shape)
  shape[:stacked] = part.shape[:stacked]
  shape[part.axis] = part.shape[part.axis]
  return jnp.repeat(values, part.entries, axis=-1).reshape(shape)


def scale(params: Any, units: Sequence[Units], factors: Sequence[jax.Array]):
  """Multiplies the weights of each unit by its factor.

  Weights outside the units are unchanged. A factor of exactly 0 gives zeros,
  and a factor of exactly 1 leaves the weights unchanged.
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
