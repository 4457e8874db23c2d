"""Plain safetensors files: mapped for reading, streamed for writing.

Tensors come as they lie in the file, without a copy, and go out one by one, so
that a model may be larger than memory. bfloat16 and float8 are ml_dtypes'.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from backslash_jax.archive import index

_NAMES = {
  "BOOL": "bool",
  "U8": "uint8",
  "I8": "int8",
  "U16": "uint16",
  "I16": "int16",
  "U32": "uint32",
  "I32": "int32",
  "U64": "uint64",
  "I64": "int64",
  "F8_E4M3": "float8_e4m3fn",
  "F8_E5M2": "float8_e5m2",
  "F16": "float16",
  "BF16": "bfloat16",
  "F32": "float32",
  "F64": "float64",
  "C64": "complex64",
}
_CODES = {name: code for code, name in _NAMES.items()}
_LARGEST_HEADER = 100_000_000


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The tensors of a safetensors file by name, read-only and memory-mapped.

  Raises:
    ValueError: if the file is not one; it says why.
  """
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
      raise ValueError(f"{path}: not a safetensors file")
    try:
      header = json.loads(file.read(length))
      header.pop("__metadata__", None)
      octets = np.memmap(path, np.uint8, "r") if size > 8 + length else None
      return {
        name: _view(octets, 8 + length, entry) for name, entry in header.items()
      }
    except (ValueError, TypeError, LookupError, AttributeError) as error:
      raise ValueError(f"{path}: a bad safetensors header: {error}") from None


def write(
  path: str | os.PathLike,
  shapes: Mapping[str, tuple[str, tuple[int, ...]]],
  tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
  """Writes a safetensors file, whole or not at all.

  Args:
    path: the file; an existing one is replaced.
    shapes: NumPy's name of the dtype and the shape of each tensor.
    tensors: each tensor once, in any order.

  Raises:
    ValueError: if safetensors has no such dtype.
  """
  entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
  offset = 0
  starts = {}
  for name, (dtype, shape) in shapes.items():
    if dtype not in _CODES:
      raise ValueError(f"tensor {name!r}: safetensors has no dtype {dtype}")
    stop = offset + math.prod(shape) * index.dtype_of(dtype).itemsize
    entries[name] = {
      "dtype": _CODES[dtype],
      "shape": list(shape),
      "data_offsets": [offset, stop],
    }
    starts[name], offset = offset, stop
  header = json.dumps(entries, separators=(",", ":")).encode()
  header += b" " * (-len(header) % 8)
  temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      file.write(len(header).to_bytes(8, "little") + header)
      for name, tensor in tensors:
        file.seek(8 + len(header) + starts[name])
        octets = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        file.write(octets.data)
        del tensor, octets  # Before the next one is made.
      file.truncate(8 + len(header) + offset)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _view(octets: np.ndarray | None, base: int, entry: dict) -> np.ndarray:
  """One tensor of a header, checked against the file's size."""
  if entry["dtype"] not in _NAMES:
    raise ValueError(f"unknown dtype {entry['dtype']!r}")
  dtype = index.dtype_of(_NAMES[entry["dtype"]])
  shape = tuple(int(n) for n in entry["shape"])
  start, stop = entry["data_offsets"]
  if (
    min(shape, default=0) < 0
    or start < 0
    or (stop - start != math.prod(shape) * dtype.itemsize)
  ):
    raise ValueError("offsets that do not fit a tensor's shape")
  if stop == start:
    return np.empty(shape, dtype)
  if octets is None or base + stop > octets.size:
    raise ValueError("a tensor lies beyond the end of the file")
  return octets[base + start : base + stop].view(dtype).reshape(shape)
