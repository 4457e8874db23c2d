"""The tensors of a coded model file, and which chunk holds which of them."""

import collections
import math
from typing import NamedTuple

import numpy as np

from backslash_jax.coding import models

CHUNK = 1 << 21  # Symbols of a chunk, or bytes of one of exact tensors.
EXACT = "exact"
MAX_DIMENSIONS = 64
_NATIVE = (
  *("bool", "int8", "int16", "int32", "int64"),
  *("uint8", "uint16", "uint32", "uint64"),
  *("float16", "float32", "float64", "complex64", "complex128"),
)


class Repeats(NamedTuple):
  """The rows of a matrix that are equal to an earlier row, and not stored.

  Attributes:
    rows: int64 [n], ascending.
    sources: int64 [n], the number of the equal row among the stored rows.
  """

  rows: np.ndarray
  sources: np.ndarray

  def stored(self, count: int) -> np.ndarray:
    """Which of `count` rows are stored, int64."""
    return np.delete(np.arange(count), self.rows)

  def places(self, count: int) -> np.ndarray:
    """For each of `count` rows, its number among the stored rows, int64."""
    is_stored = np.ones(count, bool)
    is_stored[self.rows] = False
    places = np.cumsum(is_stored) - 1
    places[self.rows] = self.sources
    return places


class Entry(NamedTuple):
  """A tensor of the index.

  Attributes:
    name: its keys in the tree, joined by "/".
    dtype: little-endian.
    shape: as saved.
    step: the quantization step; None if the tensor is stored exactly.
    coder: one of coders.NAMES, or EXACT.
    model: the coder's model; None if exact.
    bits: the code length.
    reported_nu: shape of the generalized Gaussian that fits the values; None if
      exact or all zero. Not the `nu_index` of the model that codes the symbols.
    reported_alpha: its scale, in the unit of the values; None alike.
    axes: how many leading axes are the rows of the matrix; None for all but the
      last.
    same: the number of an earlier tensor that this one is equal to. It is in no
      chunk. None for all others.
    repeats: the rows of the matrix that are not stored; None if all are.
    base: the digest of the tensor of the base that this one is stored as the
      difference from, see `bases`; None if it is stored as it is.
  """

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  step: float | None
  coder: str
  model: object = None
  bits: int = 0
  reported_nu: float | None = None
  reported_alpha: float | None = None
  axes: int | None = None
  same: int | None = None
  repeats: Repeats | None = None
  base: str | None = None

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize

  @property
  def unit(self) -> float | None:
    """What the decoded integers are multiples of; None if exact."""
    if isinstance(self.model, models.Trellis) and self.step is not None:
      return self.step / 2
    return self.step

  @property
  def stored_dtype(self) -> np.dtype:
    """The dtype of the values that the chunks hold."""
    if self.base is None or self.step is None:
      return self.dtype
    return np.dtype("<f8" if self.dtype.itemsize > 4 else "<f4")

  @property
  def matrix(self) -> tuple[int, int]:
    """Rows and columns of the tensor seen as a matrix."""
    return matrix_shape(self.shape, self.axes)

  @property
  def stored(self) -> tuple[int, int]:
    """Rows and columns of the matrix that the chunks hold."""
    rows, columns = self.matrix
    if self.same is not None:
      return 0, columns
    if self.repeats is not None:
      rows -= self.repeats.rows.size
    return rows, columns


class Part(NamedTuple):
  """Stored rows `start` to `stop` - 1 of tensor number `tensor`."""

  tensor: int
  start: int
  stop: int


def matrix_shape(
  shape: tuple[int, ...], axes: int | None = None
) -> tuple[int, int]:
  """(rows, columns): the first `axes` axes are the rows, the rest the columns.

  By default the columns are the last axis. It is one column for fewer than two
  axes, for no elements, and where a row would not fit into a chunk.
  """
  size = math.prod(shape)
  if len(shape) < 2 or size == 0:
    return size, 1
  columns = math.prod(shape[len(shape) - 1 if axes is None else axes :])
  return (size // columns, columns) if columns <= CHUNK else (size, 1)


def plan(entries: list[Entry]) -> list[list[Part]]:
  """The parts of each chunk, in the order of the file.

  A tensor that does not fit into a chunk is cut between rows into chunks of its
  own. Smaller tensors share a chunk until the next one does not fit; quantized
  and exact tensors do not mix. A tensor that is equal to another is in none.
  """
  chunks: list[list[Part]] = []
  waiting: dict[bool, list[Part]] = {False: [], True: []}
  filled = {False: 0, True: 0}
  for i, entry in enumerate(entries):
    rows, columns = entry.stored
    exact = entry.step is None
    weight = columns * (entry.dtype.itemsize if exact else 1)
    if rows == 0:
      continue
    if rows * weight > CHUNK:
      stride = -(-rows // -(-rows * weight // CHUNK))
      chunks += [
        [Part(i, start, min(start + stride, rows))]
        for start in range(0, rows, stride)
      ]
      continue
    if filled[exact] + rows * weight > CHUNK:
      chunks.append(waiting[exact])
      waiting[exact], filled[exact] = [], 0
    waiting[exact].append(Part(i, 0, rows))
    filled[exact] += rows * weight
  return chunks + [parts for parts in waiting.values() if parts]


def parameters(entries: list[Entry], parts: list[Part]) -> int:
  """The number of parameters that come out of the parts of a chunk."""
  users = collections.Counter(entry.same for entry in entries)
  total = 0
  for i, start, stop in parts:
    rows = entries[i].stored[0]
    size = entries[i].size
    total += (stop * size // rows - start * size // rows) * (1 + users[i])
  return total


def dtype_of(name: str) -> np.dtype:
  """The little-endian dtype of a name, one of NumPy's or ml_dtypes'.

  Raises:
    ValueError: if it is not the name of a type of numbers.
  """
  if name in _NATIVE:
    return np.dtype(name).newbyteorder("<")
  try:
    import ml_dtypes
  except ImportError:
    raise ValueError(
      f"dtype {name!r} is not NumPy's: install ml_dtypes"
    ) from None
  kind = getattr(ml_dtypes, name, None)
  if not (isinstance(kind, type) and issubclass(kind, np.generic)):
    raise ValueError(f"{name!r} is not a type of numbers")
  return np.dtype(kind)
