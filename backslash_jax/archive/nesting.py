"""Nested containers of tensors as JSON: the structure that a file keeps.

The names of the leaves are those of `tree`. The JSON adds what names leave out:
whether a level is a dict, a list or a tuple, and the types of its keys.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from backslash_jax import tree


def describe(params) -> tuple[object, list[tuple[str, Any]]]:
  """The structure of params as JSON, and its (name, leaf) pairs in order.

  In the JSON a leaf is 0, an absent one null, a dict with string keys an
  object, and any other container a list that opens with its kind.

  Raises:
    TypeError: for a container or a key that a file cannot keep.
    ValueError: if two leaves have one name.
  """
  leaves: list[tuple[str, Any]] = []
  structure = _describe(params, (), leaves)
  names = set()
  for name, _ in leaves:
    if name in names:
      raise ValueError(f"two tensors are named {name!r}: rename one")
    names.add(name)
  return structure, leaves


def names(structure: object) -> Iterator[str]:
  """The leaves' names in order; ValueError if `structure` is malformed."""
  found: list[str] = []
  _build(structure, (), lambda name: found.append(name))
  return iter(found)


def rebuild(structure: object, leaf: Callable[[str], object]):
  """The tree again, with leaf(name) in the place of each leaf, in order."""
  return _build(structure, (), leaf)


def _describe(node, path: tuple, leaves: list):
  if node is None:
    return None
  if isinstance(node, Mapping):
    for key in node:
      if not isinstance(key, str) and type(key) is not int:
        raise TypeError(
          f"{tree.name_of(path)!r} has the key {key!r}: keys are strings or"
          " integers"
        )
    children = [[k, _describe(node[k], path + (k,), leaves)] for k in node]
    if all(isinstance(key, str) for key in node):
      return dict(children)
    return ["dict", *children]
  if type(node) in (list, tuple):
    children = [_describe(c, path + (i,), leaves) for i, c in enumerate(node)]
    return [type(node).__name__, *children]
  if not hasattr(node, "dtype") or not hasattr(node, "shape"):
    raise TypeError(
      f"{tree.name_of(path) or 'the tree'!r} is a {type(node).__name__}: a tree"
      " is made of dicts, lists and tuples of arrays; convert a NamedTuple with"
      " _asdict() and a module to a dict of its arrays"
    )
  leaves.append((tree.name_of(path), node))
  return 0


def _build(node, path: tuple, leaf: Callable):
  if node is None:
    return None
  if node == 0 and type(node) is int:
    return leaf(tree.name_of(path))
  if isinstance(node, dict):
    return {k: _build(child, path + (k,), leaf) for k, child in node.items()}
  if isinstance(node, list) and node:
    kind, *children = node
    if kind == "dict":
      for key, _ in children:
        if type(key) not in (str, int):
          raise ValueError(f"a tree with the key {key!r}")
      return {k: _build(child, path + (k,), leaf) for k, child in children}
    if kind in ("list", "tuple"):
      made = [_build(c, path + (i,), leaf) for i, c in enumerate(children)]
      return made if kind == "list" else tuple(made)
  raise ValueError("a tree that is neither leaf, dict, list nor tuple")
