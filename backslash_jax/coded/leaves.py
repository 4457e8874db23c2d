"""Weights that stay coded or packed in device memory, as pytree nodes.

Each node has arrays only as children. Its static part is the same for all
layers of a stack, so `jax.lax.scan` and `jax.vmap` slice it like an array. A
tensor may be divided along its leading axes into a grid of blocks of one shape,
each coded on its own: a stack of layers, or the shards of devices. All children
then have the grid's axes first.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

_STATIC = {"static": True}


def matrix(block: tuple[int, ...]) -> tuple[int, int]:
  """Rows and columns of a block: its last axis is the columns."""
  size = math.prod(block)
  columns = block[-1] if len(block) > 1 and size else 1
  return size // columns, columns


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Leaf:
  """What is common to the nodes: the look of an array, and no arithmetic."""

  block: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
  divided: int = dataclasses.field(metadata=_STATIC)
  dtype: Any = dataclasses.field(metadata=_STATIC)

  @property
  def grid(self) -> tuple[int, ...]:
    """The blocks along each of the leading axes that are left."""
    raise NotImplementedError

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the decoded array."""
    grid = self.grid
    sliced = self.divided - len(grid)
    if sliced < 0 or any(n != 1 for n in self.block[:sliced]):
      raise ValueError(
        f"{type(self).__name__}: an axis was added, or one was sliced that is"
        " not divided into layers; load it with stacked=..., or decode it first"
      )
    block = self.block[sliced:]
    blocks = grid + (1,) * (len(block) - len(grid))
    return tuple(n * b for n, b in zip(blocks, block, strict=True))

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes of the children, which is what it takes in device memory."""
    return sum(x.nbytes for x in jax.tree.leaves(self))

  def __repr__(self) -> str:
    return f"{type(self).__name__}({np.dtype(self.dtype).name}{self.shape})"

  def _refuse(self, *args, **kwargs):
    raise TypeError(f"{self!r} is not an array: decode it first, bs.decode(x)")

  __jax_array__ = __array__ = __getitem__ = __len__ = __iter__ = _refuse
  __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
  __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __neg__ = _refuse
  __pow__ = __rpow__ = __abs__ = _refuse


def _register(cls):
  """Registers a dataclass; the fields with static=True are not children."""
  fields = dataclasses.fields(cls)
  static = [f.name for f in fields if f.metadata.get("static")]
  children = [f.name for f in fields if f.name not in static]
  jax.tree_util.register_dataclass(cls, children, static)
  return cls


@_register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Coded(_Leaf):
  """A tensor as entropy-coded levels; `bs.decode` gives the array.

  See `layout` for the words. G are the axes of the grid.

  Attributes:
    words: uint16 [*G, words], those of all lanes.
    counts: uint16 [*G, lanes], how many words each lane has.
    states: uint32 [*G, lanes].
    frequency: uint16 [*G, tables, ids], 2^12 in each table.
    tuples: int8 [*G, tables, ids, rows], the levels that an id stands for.
    row_classes: int8 [*G, height], or [*G, 0] if the rows have none.
    column_classes: int8 [*G, width], likewise.
    places: int32 [*G, n], where in the block a value is not that of its level.
    values: [*G, n], these values.
    scale: what the levels are multiplied by, float32 [*G, 2], or a table of the
      values of the levels from -128 to 127, [*G, 256].
    block: shape of a block.
    divided: how many leading axes of the tensor are divided into blocks.
    segments: steps of the lanes for a row of tuples.
    longest: words of the longest lane.
    dtype: of the decoded array.
  """

  words: Any
  counts: Any
  states: Any
  frequency: Any
  tuples: Any
  row_classes: Any
  column_classes: Any
  places: Any
  values: Any
  scale: Any
  segments: int = dataclasses.field(metadata=_STATIC)
  longest: int = dataclasses.field(metadata=_STATIC)

  @property
  def grid(self):
    return self.words.shape[:-1]

  @property
  def rows(self) -> int:
    """Rows of a tuple, 1 to 4."""
    return self.tuples.shape[-1]

  @property
  def width(self) -> int:
    """Columns of tuples."""
    if self.segments > 1:
      return self.states.shape[-1] * self.segments
    return matrix(self.block)[1]

  @property
  def steps(self) -> int:
    """Tuples of each lane."""
    lanes = self.states.shape[-1]
    height = -(-matrix(self.block)[0] // self.rows)
    if self.segments > 1:
      return height * self.segments
    return -(-height // (lanes // self.width))


@_register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Packed(_Leaf):
  """A tensor as levels of 2, 4, 8 or 16 bits; `bs.decode` gives the array.

  Attributes:
    octets: the levels minus `lowest` in uint8, or in uint16 for 16 bits
      [*G, n]. Of 8 / bits parts of a block, the first has the low bits.
    lowest: int32 [*G].
    places: as of Coded.
    values: as of Coded.
    scale: as of Coded; a table has the values of the levels from `lowest` on.
    block: as of Coded.
    divided: as of Coded.
    bits: of a level.
    dtype: of the decoded array.
  """

  octets: Any
  lowest: Any
  places: Any
  values: Any
  scale: Any
  bits: int = dataclasses.field(metadata=_STATIC)

  @property
  def grid(self):
    return self.octets.shape[:-1]
