"""Parameters that are made where they are used, from what lies in memory.

A model takes them in the place of arrays: a block makes its own inside of its
computation, so that only one block's are dense at a time.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import backslash_jax as bs

_BLOCK = 2**21  # Numbers of a block, about.


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["source", "layer"],
  meta_fields=["transposed", "part", "parts", "blocks"],
)
@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter, and how a checkpoint has it.

  Attributes:
    source: the tensor of the checkpoint: an array, or coded or packed weights.
    transposed: whether it has the last two axes the other way around.
    part: which of `parts` equal parts of its last axis this is.
    parts: parameters that the tensor holds side by side.
    blocks: of rows of the tensor, which `by_block` makes one after the other.
    layer: which of the layers that the source has along its first axis; None:
      it is the tensor, or all of its layers.
  """

  source: Any
  transposed: bool = False
  part: int = 0
  parts: int = 1
  blocks: int = 1
  layer: jax.Array | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the parameter."""
    whole = self.source.shape[self.layer is not None :]
    *front, rows, columns = (1, *whole)
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


def block_count(rows: int, columns: int) -> int:
  """Into how many equal blocks a matrix is divided, of about _BLOCK numbers."""
  wanted = -(-rows * columns // _BLOCK)
  return next((n for n in range(wanted, 2 * wanted) if rows % n == 0), 1)


def by_block(parameter: Parameter, function: Callable, *carry: Any) -> Any:
  """Folds a function over the blocks of a parameter, one dense at a time.

  Args:
    parameter: its blocks are of the tensor's rows.
    function: (block as the parameter has it, first row, carry) -> (carry, y).
    carry: what the first block gets.

  Returns:
    The last carry, and the y of all blocks, stacked.
  """
  source, count = parameter.source, parameter.blocks
  if count == 1:
    carry, y = function(parameter.view(bs.decode(source)), 0, *carry)
    return carry, jax.tree.map(lambda x: x[None], y)
  rows = source.shape[0] // count
  if not isinstance(source, bs.Coded | bs.Packed):
    source = source.reshape(count, rows, *source.shape[1:])

  def step(carry, i):
    own = parameter.view(bs.decode(source, at=i))
    return function(own, rows * i, *carry)

  return jax.lax.scan(step, carry, jnp.arange(count))


def layers(params: Any, begin: int, end: int) -> Any:
  """What a scan over stacked parameters slices, in place of them.

  Args:
    params: tree of arrays [depth, ...] and Parameters of as many layers.
    begin: the first layer.
    end: the one after the last.

  Returns:
    The tree of arrays [end - begin, ...]: of a Parameter the numbers of its
    layers, see `in_layer`.
  """
  return jax.tree.map(
    lambda p: jnp.arange(begin, end) if is_parameter(p) else p[begin:end],
    params,
    is_leaf=is_parameter,
  )


def in_layer(params: Any, own: Any) -> Any:
  """The parameters of a layer, given what a scan has sliced of `layers`."""
  return jax.tree.map(
    lambda p, x: dataclasses.replace(p, layer=x) if is_parameter(p) else x,
    params,
    own,
    is_leaf=is_parameter,
  )


def lookup(parameter: Parameter, ids: jax.Array, dtype: DTypeLike) -> jax.Array:
  """The rows of a parameter, of shape [*ids.shape, columns]."""

  def rows(block, first, found):
    own = ids - first
    is_own = (own >= 0) & (own < len(block))
    taken = jnp.take(block, jnp.clip(own, 0, len(block) - 1), axis=0)
    return (jnp.where(is_own[..., None], taken.astype(dtype), found),), None

  empty = jnp.zeros((*ids.shape, parameter.shape[-1]), dtype)
  (found,), _ = by_block(parameter, rows, empty)
  return found


def is_parameter(x: Any) -> bool:
  """Whether x is a Parameter."""
  return isinstance(x, Parameter)


def dense(
  params: Any,
  *,
  skip: str | None = None,
  dtype: DTypeLike | None = None,
  after: jax.Array | None = None,
) -> Any:
  """The same tree of arrays; a tensor that holds several is decoded once.

  Args:
    params: nested dicts of arrays and Parameters.
    skip: regular expression: those in whose names it is found stay.
    dtype: what they will be cast to; None: nothing else.
    after: nothing is decoded or cast before it is computed.
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
      source, layer = x.source, x.layer
      if after is not None and layer is not None:
        layer += _never(after).astype(layer.dtype)
      elif after is not None:
        source = _after(source, after, dtype)
      decoded[id(x.source)] = bs.decode(source, at=layer)
    return x.view(decoded[id(x.source)])

  return structure.unflatten([leaf(path, x) for path, x in leaves])


def _after(source: Any, x: jax.Array, dtype: DTypeLike | None) -> Any:
  """The source, for the compiler dependent on x.

  It could otherwise make the arrays of all layers first, and hold them.
  """
  never = _never(x)
  if isinstance(source, bs.Coded | bs.Packed):
    field = "states" if isinstance(source, bs.Coded) else "lowest"
    value = getattr(source, field)
    value += never.astype(value.dtype)
    return dataclasses.replace(source, **{field: value})
  if dtype is None or source.dtype == dtype:
    return source
  return jnp.where(never, jnp.zeros((), source.dtype), source)


def _never(x: jax.Array) -> jax.Array:
  """False, unless the first number of x is NaN, and then nothing is lost."""
  return jnp.isnan(x.reshape(-1)[0])
