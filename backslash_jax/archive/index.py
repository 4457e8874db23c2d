"""The index of a coded model file, and which chunk holds which tensors."""

import math
import reprlib
from typing import NamedTuple

import numpy as np

from backslash_jax import tree
from backslash_jax.archive import nesting, reported
from backslash_jax.coding import coders

CHUNK = 1 << 21  # Symbols of a chunk, or bytes of one of exact tensors.
EXACT = "exact"
_FIELDS = ("dtype", "shape", "step", "coder", "model", "bits", "nu", "alpha")
_CHUNK_FIELDS = ("bytes", "crc32")
_FREE = 1 << 30  # A file may claim so many decoded bytes,
_RATIO = 1 << 12  # and so many more for each of its own bytes.
MAX_DIMENSIONS = 64
_MAX_BYTES = 1 << 63  # Of a tensor, its axes of length 0 counted as 1.
_NATIVE = (
  *("bool", "int8", "int16", "int32", "int64"),
  *("uint8", "uint16", "uint32", "uint64"),
  *("float16", "float32", "float64", "complex64", "complex128"),
)


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

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize

  @property
  def matrix(self) -> tuple[int, int]:
    """Rows and columns of the matrix that the chunks hold."""
    return matrix_shape(self.shape)


class Part(NamedTuple):
  """Rows `start` to `stop` - 1 of the matrix of tensor number `tensor`."""

  tensor: int
  start: int
  stop: int


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
  """(rows, columns): the last axis is the columns, all others are the rows.

  It is one column for fewer than two axes, for no elements, and where a row
  would not fit into a chunk.
  """
  size = math.prod(shape)
  if len(shape) < 2 or size == 0 or shape[-1] > CHUNK:
    return size, 1
  return size // shape[-1], shape[-1]


def plan(entries: list[Entry]) -> list[list[Part]]:
  """The parts of each chunk, in the order of the file.

  A tensor that does not fit into a chunk is cut between rows into chunks of its
  own. Smaller tensors share a chunk until the next one does not fit; quantized
  and exact tensors do not mix.
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
  """The number of parameters in the parts of a chunk."""
  return sum((p.stop - p.start) * entries[p.tensor].matrix[1] for p in parts)


def to_json(structure, entries: list[Entry], chunks: list) -> dict:
  """The index as JSON, one list per field.

  Args:
    structure: of the tree, see nesting.describe.
    entries: in the order of the tree's leaves.
    chunks: [size, checksum] of each chunk.
  """
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
    "nu": [e.reported_nu for e in entries],
    "alpha": [e.reported_alpha for e in entries],
    "bytes": [size for size, _ in chunks],
    "crc32": [checksum for _, checksum in chunks],
  }


def from_json(
  index: object, payload: int, file_size: int
) -> tuple[object, list[Entry], list[tuple[int, int, int]]]:
  """Checks an index and parses it.

  Args:
    index: what the JSON parser returned, possibly forged.
    payload: bytes of the payload.
    file_size: bytes of the file.

  Returns:
    The structure of the tree, the entries, and the (offset, size, checksum) of
    each chunk.

  Raises:
    ValueError: if the index is not what `to_json` returns.
  """
  fields = _checked(index)
  structure = fields["tree"]
  try:
    names = list(nesting.names(structure))
  except (TypeError, RecursionError):
    raise ValueError("the tree is malformed") from None
  columns = [fields[field] for field in _FIELDS]
  entries = [
    _entry(name, *own) for name, *own in zip(names, *columns, strict=True)
  ]
  if len(set(names)) < len(names):
    raise ValueError("two tensors have one name")
  claimed = sum(entry.nbytes for entry in entries)
  if claimed > _FREE + _RATIO * file_size:
    raise ValueError(f"{claimed} bytes of tensors in a file of {file_size}")
  chunks, offset = [], 0
  for size, checksum in zip(fields["bytes"], fields["crc32"], strict=True):
    chunks.append((offset, size, checksum))
    offset += size
  parts = plan(entries)
  if offset != payload or len(chunks) != len(parts):
    raise ValueError("the chunks do not cover the payload")
  if any(len({entries[p.tensor].coder for p in own}) > 1 for own in parts):
    raise ValueError("the tensors of one chunk have different coders")
  return structure, entries, chunks


def _checked(index: object) -> dict:
  """The index, if its fields have the right types, lengths and ranges."""
  if not isinstance(index, dict) or index.keys() != {
    "tree",
    *_FIELDS,
    *_CHUNK_FIELDS,
  }:
    raise ValueError("its fields are not those of the format")
  for group in (_FIELDS, _CHUNK_FIELDS):
    if not all(isinstance(index[field], list) for field in group):
      raise ValueError(f"{', '.join(group)} must be lists")
    if len({len(index[field]) for field in group}) > 1:
      raise ValueError(f"{', '.join(group)} differ in length")
  low, high = reported.NU_RANGE
  wanted = {
    "dtype": lambda x: isinstance(x, str),
    "shape": _is_shape,
    "step": lambda x: x is None or _is_positive(x),
    "coder": lambda x: x == EXACT or x in coders.NAMES,
    "model": lambda x: x is None or isinstance(x, list),
    "bits": lambda x: _is_integer(x, 1 << 63),
    "nu": lambda x: x is None or (_is_positive(x) and low <= x <= high),
    "alpha": lambda x: x is None or _is_positive(x),
    "bytes": lambda x: _is_integer(x, 1 << 53),
    "crc32": lambda x: _is_integer(x, 1 << 32),
  }
  for field, valid in wanted.items():
    for place, value in enumerate(index[field]):
      if not valid(value):
        raise ValueError(f"{field} {place} is {reprlib.repr(value)}")
  return index


def _is_integer(value: object, stop: int) -> bool:
  return type(value) is int and 0 <= value < stop


def _is_positive(value: object) -> bool:
  """Whether a value is a positive finite number, written as a float."""
  return isinstance(value, float) and 0 < value < math.inf


def _is_shape(value: object) -> bool:
  return (
    isinstance(value, list)
    and len(value) <= MAX_DIMENSIONS
    and all(_is_integer(n, _MAX_BYTES) for n in value)
    and math.prod(n for n in value if n) < _MAX_BYTES
  )


def _entry(name, dtype, shape, step, coder, model, bits, nu, alpha) -> Entry:
  """An entry of checked fields; ValueError if they contradict each other."""
  dtype = dtype_of(dtype)
  if math.prod(n for n in shape if n) * dtype.itemsize >= _MAX_BYTES:
    raise ValueError(f"tensor {name!r} has the shape {shape!r}")
  exact = coder == EXACT
  if exact != (step is None) or exact != (model is None):
    raise ValueError(
      f"tensor {name!r} has the coder {coder!r} and the step {step}"
    )
  if (nu is None) != (alpha is None) or (exact and nu is not None):
    raise ValueError(f"tensor {name!r} has nu {nu} and alpha {alpha}")
  if not exact:
    if not tree.is_floating(dtype):
      raise ValueError(f"tensor {name!r}: coder {coder!r}, dtype {dtype.name}")
    try:
      model = coders.from_json(coder, model)
    except ValueError as error:
      raise ValueError(f"tensor {name!r}: {error}") from None
  return Entry(name, dtype, tuple(shape), step, coder, model, bits, nu, alpha)


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
