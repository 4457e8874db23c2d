"""What the index of a coded model file says, and which chunk holds what."""

import math
from typing import NamedTuple

import numpy as np

from backslash_jax import tree
from backslash_jax.archive import nesting
from backslash_jax.coding import coders

CHUNK = 1 << 21  # Symbols of a chunk, or bytes of one of exact tensors.
EXACT = "exact"
_FREE = 1 << 30  # Decoded bytes that any file may claim,
_RATIO = 1 << 12  # and how many for each byte that it has.
_MAX_DIMENSIONS = 64
_NATIVE = (
  *("bool", "int8", "int16", "int32", "int64"),
  *("uint8", "uint16", "uint32", "uint64"),
  *("float16", "float32", "float64", "complex64", "complex128"),
)


class Entry(NamedTuple):
  """A tensor of the index.

  Attributes:
    name: its path in the tree.
    dtype: little-endian.
    shape: as saved.
    step: distance of the levels; None if the tensor is kept exactly.
    coder: one of coders.NAMES, or EXACT.
    model: the coder's; None if exact.
    bits: its code length.
    nu: shape of the generalized Gaussian that fits its values; None if exact.
    alpha: scale of the same, in the tensor's units.
  """

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  step: float | None
  coder: str
  model: object = None
  bits: int = 0
  nu: float | None = None
  alpha: float | None = None

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize

  @property
  def matrix(self) -> tuple[int, int]:
    """Rows and columns as the chunks see them."""
    return matrix_shape(self.shape)


class Part(NamedTuple):
  """Rows `start` to `stop` of the matrix of tensor number `tensor`."""

  tensor: int
  start: int
  stop: int


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
  """All axes but the last as rows, unless one row were more than a chunk."""
  size = math.prod(shape)
  if len(shape) < 2 or size == 0 or shape[-1] > CHUNK:
    return size, 1
  return size // shape[-1], shape[-1]


def plan(entries: list[Entry]) -> list[list[Part]]:
  """Which parts of which tensors each chunk holds, in the file's order.

  A tensor of more than a chunk is cut between rows and has its chunks alone.
  Smaller ones share a chunk while there is room: the quantized and the exact
  ones apart. A chunk is written when the next tensor does not fit.
  """
  chunks: list[list[Part]] = []
  waiting: dict[bool, list[Part]] = {False: [], True: []}
  filled = {False: 0, True: 0}
  for i, entry in enumerate(entries):
    rows, columns = entry.matrix
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
  """How many parameters the parts of a chunk have."""
  return sum((p.stop - p.start) * entries[p.tensor].matrix[1] for p in parts)


def to_json(structure, entries: list[Entry], chunks: list) -> dict:
  """The index as its file has it, one list per field."""
  return {
    "tree": structure,
    "dtype": [e.dtype.name for e in entries],
    "shape": [e.shape for e in entries],
    "step": [e.step for e in entries],
    "coder": [e.coder for e in entries],
    "model": [
      None if e.step is None else coders.to_json(e.coder, e.model)
      for e in entries
    ],
    "bits": [e.bits for e in entries],
    "nu": [e.nu for e in entries],
    "alpha": [e.alpha for e in entries],
    "bytes": [size for size, _ in chunks],
    "crc32": [checksum for _, checksum in chunks],
  }


def from_json(index: dict, payload: int, file_size: int):
  """The structure, entries and (offset, size, checksum) of each chunk.

  Raises:
    ValueError, TypeError or LookupError: whatever is wrong with the index.
  """
  structure = index["tree"]
  columns = [
    index[k]
    for k in ("dtype", "shape", "step", "coder", "model", "bits", "nu", "alpha")
  ]
  entries = [
    _entry(name, *fields)
    for name, *fields in zip(nesting.names(structure), *columns, strict=True)
  ]
  if len({e.name for e in entries}) < len(entries):
    raise ValueError("two tensors have one name")
  claimed = sum(e.size * e.dtype.itemsize for e in entries)
  if claimed > _FREE + _RATIO * file_size:
    raise ValueError(f"{claimed} bytes of tensors in a file of {file_size}")
  chunks, offset = [], 0
  for size, checksum in zip(index["bytes"], index["crc32"], strict=True):
    if type(size) is not int or size < 0 or type(checksum) is not int:
      raise ValueError("a chunk without a size or a checksum")
    chunks.append((offset, size, checksum))
    offset += size
  if offset != payload or len(chunks) != len(plan(entries)):
    raise ValueError("the chunks do not cover the payload")
  return structure, entries, chunks


def _entry(name, dtype, shape, step, coder, model, bits, nu, alpha) -> Entry:
  dtype = dtype_of(dtype)
  if len(shape) > _MAX_DIMENSIONS or not all(
    type(n) is int and 0 <= n < 2**63 for n in shape
  ):
    raise ValueError(f"tensor {name!r} has the shape {shape!r}")
  if step is None:
    if coder != EXACT:
      raise ValueError(f"tensor {name!r} has the coder {coder!r} and no step")
  else:
    if not isinstance(step, float) or not 0 < step < math.inf:
      raise ValueError(f"tensor {name!r} has the step {step!r}")
    if coder not in coders.NAMES or not tree.is_floating(dtype):
      raise ValueError(f"tensor {name!r}: coder {coder!r}, dtype {dtype.name}")
    model = coders.from_json(coder, model)
  if type(bits) is not int or not all(
    x is None or isinstance(x, (int, float)) for x in (nu, alpha)
  ):
    raise ValueError(f"tensor {name!r} has a report that is no number")
  return Entry(name, dtype, tuple(shape), step, coder, model, bits, nu, alpha)


def dtype_of(name: str) -> np.dtype:
  """The little-endian dtype of a name, those of ml_dtypes included.

  Raises:
    ValueError: if it is not the name of a type of numbers.
  """
  if name in _NATIVE:
    return np.dtype(name).newbyteorder("<")
  import ml_dtypes

  kind = getattr(ml_dtypes, str(name), None)
  if not (isinstance(kind, type) and issubclass(kind, np.generic)):
    raise ValueError(f"{name!r} is not a type of numbers")
  return np.dtype(kind)
