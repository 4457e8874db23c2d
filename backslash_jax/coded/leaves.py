"""Weights that stay coded or packed in device memory, as pytree nodes.

Each node has arrays only as children. A tensor may be divided along its leading
axes into a grid of blocks of one shape, each coded on its own: a stack of
layers, or the shards of devices. The children then have the grid's axes first.
Blocks have different numbers of words, and of values beside them, so these lie
one after the other, without padding, in arrays that all blocks along the first
axis share; `begins` says where those of a block are. Only shards are as long as
the longest, and have an axis of their own.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
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

  # The children that blocks along the first axis share.
  SHARED: ClassVar[tuple[str, ...]] = ("places", "values")

  block: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
  divided: int = dataclasses.field(metadata=_STATIC)
  each: int = dataclasses.field(metadata=_STATIC)
  most: int = dataclasses.field(metadata=_STATIC)
  dtype: Any = dataclasses.field(metadata=_STATIC)

  @property
  def grid(self) -> tuple[int, ...]:
    """The blocks along each of the leading axes that are left."""
    raise NotImplementedError

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the decoded array."""
    values, scale = (getattr(self, name) for name in ("values", "scale"))
    grid = self.grid
    sliced = self.divided - len(grid)
    is_whole = sliced >= 0 and all(n == 1 for n in self.block[:sliced])
    if grid:
      is_whole &= grid[0] % self.each == 0
    if not is_whole or not values.ndim:
      raise ValueError(
        f"{type(self).__name__}: its arrays were sliced or got an axis: take a"
        " layer with bs.decode(x, at=layer), or decode it first"
      )
    table = np.float32 if scale.shape[-1] == 2 else self.dtype
    if values.dtype != self.dtype or scale.dtype != table:
      raise ValueError(
        f"{type(self).__name__}: its arrays were cast: decode it first, and"
        " cast what comes out"
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

  def own(self) -> dict[str, Any]:
    """The children that each block has for itself."""
    return {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(self)
      if not f.metadata.get("static") and f.name not in self.SHARED
    }

  def shared(self) -> dict[str, Any]:
    """The children that blocks along the first axis share, [shards, ..., n]."""
    found = {name: getattr(self, name) for name in self.SHARED}
    if len(self.grid) != 1:
      return found
    shards = self.grid[0] // self.each
    return {k: x.reshape(shards, x.size // shards) for k, x in found.items()}

  def at(self, i: Any) -> Self:
    """The leaf of one layer, or of a block of several rows.

    Args:
      i: its number along the first axis, an integer that may be traced.
    """
    if not self.shape or not self.grid:
      raise ValueError(
        f"{self!r} is not divided into layers: load it with stacked=... or"
        " blocks=..."
      )
    check_number(i, self.grid[0])
    keep = self.block[self.divided - len(self.grid)] != 1
    shards = self.grid[0] // self.each

    def take(x, i, keepdims):
      x = jnp.asarray(x)
      return jax.lax.dynamic_index_in_dim(x, i, keepdims=keepdims)

    left = len(self.grid) - (not keep)
    parts = {name: take(x, i, keep) for name, x in self.own().items()}
    for name, x in self.shared().items():
      row = 0 if shards == 1 else jnp.asarray(i) // self.each
      part = take(x, row, keep and left > 1)
      parts[name] = part if left > 1 else part.reshape(-1)
    return dataclasses.replace(self, **parts, each=1)

  def __repr__(self) -> str:
    return f"{type(self).__name__}({np.dtype(self.dtype).name}{self.shape})"

  def _refuse(self, *args, **kwargs):
    raise TypeError(f"{self!r} is not an array: decode it first, bs.decode(x)")

  if not TYPE_CHECKING:

    def __getattr__(self, name):
      raise AttributeError(
        f"{type(self).__name__} has no {name!r}: it is not an array, decode it"
        " first, bs.decode(x)"
      )

  __jax_array__ = __array__ = __getitem__ = __len__ = __iter__ = _refuse
  __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
  __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __neg__ = _refuse
  __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse
  __pow__ = __rpow__ = __abs__ = __round__ = __float__ = __int__ = _refuse
  __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
  __hash__ = object.__hash__


def check_number(i: Any, count: int) -> None:
  """Checks the number of a layer; what is traced is clipped, as in JAX.

  Raises:
    TypeError: it is no integer.
    IndexError: it is not that of one of `count` layers.
  """
  is_number = isinstance(i, int) and not isinstance(i, bool)
  if isinstance(i, np.ndarray | np.generic | jax.Array):
    is_number = i.shape == () and jnp.issubdtype(i.dtype, jnp.integer)
  if not is_number:
    raise TypeError(f"at is {i!r}: it must be an integer, a layer's number")
  if isinstance(i, int | np.integer) and not -count <= i < count:
    raise IndexError(f"at is {i}, but there are {count} layers")


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

  See `layout` for the words. G are the axes of the grid; S are the same axes,
  the first of the size that it is split over devices, 1 if it is not. If there
  is one axis, [S, n] is flat.

  Attributes:
    words: uint16 [*S, n], those of all lanes.
    places: int32 [*S, n], where in its block a value is not that of its level.
    values: [*S, n], these values.
    begins: int32 [*G, 4], of a block the first word, the words of its shortest
      lane, the first place and the number of places.
    counts: uint8 [*G, lanes], or wider, how many words more each lane has.
    states: uint32 [*G, lanes].
    frequency: uint16 [*G, tables, ids], 2^12 in each table.
    tuples: int8 [*G, tables, ids, rows], the levels that an id stands for.
    row_classes: int8 [*G, height], or [*G, 0] if the rows have none.
    column_classes: int8 [*G, width], likewise.
    scale: what the levels are multiplied by, float32 [*G, 2], or a table of the
      values of the levels from -128 to 127, [*G, 256].
    block: shape of a block.
    divided: how many leading axes of the tensor are divided into blocks.
    each: blocks along the first axis of the grid that a device has.
    segments: steps of the lanes for a row of tuples.
    longest: words of the longest lane.
    most: places of the block that has the most.
    dtype: of the decoded array.
  """

  SHARED = ("words", "places", "values")

  words: Any
  places: Any
  values: Any
  begins: Any
  counts: Any
  states: Any
  frequency: Any
  tuples: Any
  row_classes: Any
  column_classes: Any
  scale: Any
  segments: int = dataclasses.field(metadata=_STATIC)
  longest: int = dataclasses.field(metadata=_STATIC)

  @property
  def grid(self):
    return self.states.shape[:-1]

  def first_words(self) -> jax.Array:
    """Where the words of each lane begin, of one block, int32 [lanes]."""
    counts = self.counts.astype(jnp.int32) + self.begins[1]
    return self.begins[0] + jnp.cumsum(counts) - counts

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
    begins: int32 [*G, 2], of a block the first place and the number of places.
    scale: as of Coded; a table has the values of the levels from `lowest` on.
    block: as of Coded.
    divided: as of Coded.
    each: as of Coded.
    bits: of a level.
    most: as of Coded.
    dtype: of the decoded array.
  """

  octets: Any
  lowest: Any
  places: Any
  values: Any
  begins: Any
  scale: Any
  bits: int = dataclasses.field(metadata=_STATIC)

  @property
  def grid(self):
    return self.octets.shape[:-1]
