"""Names of leaves, and the selection of leaves by a mask.

The name of a leaf is its keys joined by "/", for example
"encoder/layer_0/kernel". Every function that works on a subset of the leaves
takes a `mask`, one of:

- `matrices` (default): the weight matrices;
- None: every floating leaf;
- glob patterns of names, one or a sequence: "*/kernel", ["embed*", "head/*"];
- a tree of bool with the structure of the parameters, or a prefix of it;
- a callable that takes the parameters and returns any of the above.

This module does not need JAX. If JAX has been imported, trees are JAX pytrees.
Otherwise they are nested dicts, lists and tuples.
"""

import fnmatch
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Mask = Any | Callable[[Any], Any] | str | Iterable[str] | None

# Last keys of leaves that are not weight matrices although they can have two
# axes: biases and scales of attention heads or stacked layers, and quantization
# scales.
_VECTORS = re.compile(r"(?:.*_)?(?:bias(?:es)?|scales?)(?:_.*)?|beta|gamma")


class _Default:
  """Stands for `matrices` as the default of an optax factory.

  `optax.inject_hyperparams` would treat a callable default as a schedule.
  """

  def __repr__(self):
    return "bs.matrices"


DEFAULT = _Default()


def name_of(path: Iterable[Any]) -> str:
  """The name of a leaf at a path of keys."""
  return "/".join(str(key) for key in path)


def named_leaves(params: Any) -> list[tuple[str, Any]]:
  """(name, leaf) of every leaf, in the order of `jax.tree.leaves`.

  A Flax NNX variable is replaced by its value, and adds nothing to the name.
  """
  return [(name_of(path), leaf) for path, leaf in _leaves(params)]


def names(params: Any) -> list[str]:
  """The name of every leaf, in the order of `jax.tree.leaves`."""
  return [name for name, _ in named_leaves(params)]


def map_named(function: Callable[[str, Any], Any], params: Any) -> Any:
  """The same tree with each leaf replaced by function(name, leaf)."""
  values = [function(name, leaf) for name, leaf in named_leaves(params)]
  return _unflatten(params, values)


def matrices(params: Any) -> Any:
  """The default mask: floating weights with two or more axes.

  It excludes biases and scales, whatever their number of axes. In Flax, for
  example, an attention bias has the axes [heads, head_dim], and the bias of
  stacked layers has an axis for the layers. They are recognized by the last
  part of their name, for example "bias", "scale", "query_bias",
  "weight_scale_inv", "beta" or "gamma".

  Args:
    params: tree of arrays, or of objects with a shape and a dtype.

  Returns:
    Tree of bool with the structure of params.
  """

  def is_matrix(name, x):
    last = re.split(r"[/.]", name)[-1]
    return is_float(x) and len(x.shape) >= 2 and not _VECTORS.fullmatch(last)

  return map_named(is_matrix, params)


def select(params: Any, mask: Mask = matrices) -> Any:
  """Applies a mask to params; returns a tree of bool.

  Args:
    params: tree of arrays.
    mask: see the module docstring.

  Raises:
    ValueError: if a pattern matches no floating leaf, a tree of bool has
      another structure than params, or a selected leaf is not floating.
  """
  flags = iter(_flags(params, mask))
  return _unflatten(params, [next(flags) for _ in _leaves(params)])


def selected(params: Any, mask: Mask = matrices) -> dict[str, Any]:
  """The selected leaves by name, in the order of `jax.tree.leaves`.

  Args:
    params: tree of arrays.
    mask: see the module docstring.

  Raises:
    ValueError: as `select`; also if params has floating leaves but the mask
      selects none, or if two selected leaves have the same name.
  """
  leaves = named_leaves(params)
  flags = _flags(params, mask)
  found = [pair for pair, flag in zip(leaves, flags, strict=True) if flag]
  floating = [name for name, x in leaves if is_float(x)]
  if floating and not found:
    raise ValueError(
      f"mask selects none of {_some(floating)}; mask=None selects all floating"
      " leaves"
    )
  by_name = dict(found)
  if len(by_name) < len(found):
    every = [name for name, _ in found]
    twice = next(name for name in every if every.count(name) > 1)
    raise ValueError(f"two leaves are named {twice!r}: rename one of them")
  return by_name


def keep(params: Any, mask: Mask = matrices) -> Any:
  """params with every leaf that is not selected replaced by None."""
  flags = _flags(params, mask)
  leaves = [leaf for _, leaf in _leaves(params)]
  return _unflatten(
    params,
    [x if flag else None for x, flag in zip(leaves, flags, strict=True)],
  )


def is_float(x: Any) -> bool:
  """Whether an array, or a dtype, is real floating, as bfloat16 and float8."""
  dtype = None  # Modules also hold functions, names and types.
  if isinstance(x, np.dtype):
    dtype = x
  elif hasattr(x, "shape"):
    dtype = getattr(x, "dtype", None)
  # By name, because NumPy does not know the dtype of jax.random keys.
  return "float" in str(getattr(dtype, "name", dtype))


def _flags(params, mask) -> list[bool]:
  """Whether each leaf is selected; validates the mask."""
  leaves = named_leaves(params)
  if mask is DEFAULT:
    mask = matrices
  if mask is None:
    return [is_float(x) for _, x in leaves]
  if isinstance(mask, str):
    mask = [mask]
  if _is_patterns(mask):
    return _matches(leaves, list(mask))
  if not _is_tree_of_bool(mask):
    if not callable(mask):
      raise ValueError(
        f"mask is {mask!r}: wanted bs.matrices, None, glob patterns of names, a"
        " tree of bool, or a callable that returns one of these for params"
      )
    return _flags(params, mask(params))
  flags = _broadcast(mask, params)
  for (name, x), flag in zip(leaves, flags, strict=True):
    if flag and not is_float(x):
      raise ValueError(
        f"mask selects {name!r} of dtype {getattr(x, 'dtype', type(x))}: only"
        " floating leaves can be selected; mask=None selects all of them"
      )
  return flags


def _matches(leaves, patterns: list[str]) -> list[bool]:
  """Which floating leaves match one of the patterns."""
  floating = [name for name, x in leaves if is_float(x)]
  chosen: set[str] = set()
  for pattern in patterns:
    found = [pattern] if pattern in floating else None
    found = found or fnmatch.filter(floating, pattern)
    if not found:
      raise ValueError(
        f"mask: no floating leaf matches {pattern!r}; there are"
        f" {_some(floating)}"
      )
    chosen.update(found)
  return [name in chosen and is_float(x) for name, x in leaves]


def _is_patterns(mask) -> bool:
  return isinstance(mask, (list, tuple, set, frozenset)) and all(
    isinstance(item, str) for item in mask
  )


def _is_bool(x) -> bool:
  return isinstance(x, (bool, np.bool_)) or (
    getattr(x, "dtype", None) == np.bool_ and not getattr(x, "shape", None)
  )


def _is_tree_of_bool(mask) -> bool:
  leaves = [leaf for _, leaf in _leaves(mask)]
  # An Equinox module is both callable and a tree: decide by its leaves.
  return all(map(_is_bool, leaves)) and not (not leaves and callable(mask))


def _broadcast(mask, params) -> list[bool]:
  """The flags of a tree of bool that is params' structure or a prefix."""
  try:
    if jax := sys.modules.get("jax"):
      spread = jax.tree.map(
        lambda flag, part: jax.tree.map(lambda _: bool(flag), part),
        mask,
        params,
      )
      return jax.tree.leaves(spread)
    return _spread(mask, params)
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      "mask is a tree of bool with another structure than params"
    ) from error


def _spread(mask, params) -> list[bool]:
  if _is_bool(mask):
    return [bool(mask) for _ in _plain_leaves(params, ())]
  pairs, others = dict(_children(mask) or ()), dict(_children(params) or ())
  if pairs.keys() != others.keys():
    raise ValueError
  return [flag for key in others for flag in _spread(pairs[key], others[key])]


def _some(found: list[str]) -> str:
  shown = ", ".join(repr(name) for name in found[:4])
  return shown + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def _leaves(params) -> list[tuple[tuple[Any, ...], Any]]:
  """(keys, leaf) of every leaf."""
  jax = sys.modules.get("jax")
  if jax is None:
    return _plain_leaves(params, ())
  found = []
  for path, node in jax.tree.leaves_with_path(params, is_leaf=_is_variable):
    keys = tuple(map(_key, path))
    if _is_variable(node):
      found += [
        (keys + tuple(map(_key, inner[1:])), leaf)
        for inner, leaf in jax.tree.leaves_with_path(node)
      ]
    else:
      found.append((keys, node))
  return found


def _is_variable(node) -> bool:
  nnx = sys.modules.get("flax.nnx")
  return nnx is not None and isinstance(node, nnx.Variable)


def value_of(x: Any) -> Any:
  """The value of a Flax NNX variable; other values are unchanged."""
  return x[...] if _is_variable(x) else x


def _key(entry):
  """The key, index or name in an entry of a JAX key path."""
  for field in ("key", "idx", "name"):
    if hasattr(entry, field):
      return getattr(entry, field)
  return entry


def _plain_leaves(node, path):
  if node is None:
    return []
  children = _children(node)
  if children is None:
    return [(path, node)]
  return [
    leaf
    for key, child in children
    for leaf in _plain_leaves(child, (*path, key))
  ]


def _children(node):
  """(key, child) pairs of a container, ordered as in JAX; None for a leaf."""
  if isinstance(node, Mapping):
    return [(key, node[key]) for key in sorted(node)]
  if isinstance(node, (list, tuple)):
    return list(enumerate(node))
  return None


def _unflatten(params, values: list) -> Any:
  """A tree with the structure of params and the given leaves."""
  if jax := sys.modules.get("jax"):
    return jax.tree.unflatten(jax.tree.structure(params), values)
  return _rebuild(params, iter(values))


def _rebuild(node, values):
  if node is None:
    return None
  if isinstance(node, Mapping):
    made = {key: _rebuild(node[key], values) for key in sorted(node)}
    return {key: made[key] for key in node}
  if isinstance(node, (list, tuple)):
    made = [_rebuild(child, values) for child in node]
    return made if isinstance(node, list) else tuple(made)
  return next(values)
