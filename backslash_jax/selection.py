"""Which tensors of a tree are quantized."""

import fnmatch
from typing import Any

import numpy as np

from backslash_jax import tree


def selected(params, leaves: list[tuple[str, Any]], select) -> set[str]:
  """The names of the tensors to quantize.

  Args:
    params: the tree.
    leaves: its (name, array) pairs, from tree.describe.
    select: None for the floating tensors of two or more dimensions, a tree of
      bools or a callable from `params` to one, or name patterns as of a shell.

  Raises:
    ValueError: if `select` is for another tree or takes what is not floating.
  """
  floating = {n for n, leaf in leaves if is_floating(leaf.dtype)}
  if select is None:
    return {n for n, leaf in leaves if len(leaf.shape) >= 2 and n in floating}
  if isinstance(select, str):
    select = [select]
  if isinstance(select, (list, tuple)) and all(
    isinstance(item, str) for item in select
  ):
    return {n for p in select for n in fnmatch.filter(floating, p)}
  chosen = select(params) if callable(select) else select
  flags = tree.describe(tree.map(np.bool_, chosen))[1]
  if [n for n, _ in flags] != [n for n, _ in leaves]:
    raise ValueError("select is a tree of bools with another structure")
  names = {n for n, flag in flags if flag}
  if names - floating:
    raise ValueError(
      f"select takes {min(names - floating)!r}: only floating tensors can be "
      "quantized"
    )
  return names


def is_floating(dtype) -> bool:
  """Whether a dtype is of real floating numbers, bfloat16 and float8 too."""
  return "float" in np.dtype(dtype).name
