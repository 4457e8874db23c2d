"""Parameters that are made where they are used, from what lies in memory.

A model takes them in the place of arrays: a block makes its own inside of its
computation, so that only one block's are dense at a time.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

import backslash_jax as bs


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["source"],
  meta_fields=["transposed", "part", "parts"],
)
@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter, and how a checkpoint has it.

  Attributes:
    source: the tensor of the checkpoint: an array, or coded or packed weights.
    transposed: whether it has the last two axes the other way around.
    part: which of `parts` equal parts of its last axis this is.
    parts: parameters that the tensor holds side by side.
  """

  source: Any
  transposed: bool = False
  part: int = 0
  parts: int = 1

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the parameter."""
    *front, rows, columns = (1, *self.source.shape)
    if self.transposed:
      rows, columns = columns, rows
    return (*front, rows, columns // self.parts)[1:]

  @property
  def dtype(self) -> Any:
    """That of the parameter."""
    return self.source.dtype

  @property
  def size(self) -> int:
    """How many numbers it has."""
    return math.prod(self.shape)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, key: Any) -> "Parameter":
    """Itself, as a Variable of Flax gives its value; nothing else."""
    if key is not Ellipsis:
      raise TypeError("a parameter in memory is not an array: see `dense`")
    return self

  def view(self, array: jax.Array) -> jax.Array:
    """The parameter, given the tensor."""
    if self.transposed:
      array = array.swapaxes(-1, -2)
    if self.parts > 1:
      array = jnp.split(array, self.parts, axis=-1)[self.part]
    return array


def is_parameter(x: Any) -> bool:
  """Whether x is a Parameter."""
  return isinstance(x, Parameter)


def dense(params: Any, *, skip: str | None = None) -> Any:
  """The same tree of arrays; a tensor that holds several is decoded once.

  Args:
    params: nested dicts of arrays and Parameters.
    skip: regular expression: those in whose names it is found stay.
  """
  leaves, structure = jax.tree.flatten_with_path(params, is_leaf=is_parameter)
  if not any(is_parameter(x) for _, x in leaves):
    return params
  decoded: dict[int, jax.Array] = {}

  def leaf(path, x):
    name = "/".join(str(getattr(key, "key", key)) for key in path)
    if not is_parameter(x) or (skip and re.search(skip, name)):
      return x
    if id(x.source) not in decoded:
      decoded[id(x.source)] = (
        x.source if isinstance(x.source, jax.Array) else bs.decode(x.source)
      )
    return x.view(decoded[id(x.source)])

  return structure.unflatten([leaf(path, x) for path, x in leaves])
