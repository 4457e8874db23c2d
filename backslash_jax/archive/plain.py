"""Plain safetensors files: memory-mapped for reading, streamed for writing.

Reading copies nothing and writing takes one tensor at a time, so a model may be
larger than memory. The header is parsed here, without the package safetensors,
because its NumPy interface (0.8) does not read float8, and because it writes
only models that are in memory as a whole.
"""

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping

import numpy as np

from backslash_jax.archive import atomic, container, index

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
  "F8_E4M3FNUZ": "float8_e4m3fnuz",
  "F8_E5M2FNUZ": "float8_e5m2fnuz",
  "F8_E8M0": "float8_e8m0fnu",
  "F4": "float4_e2m1fn",
  "F16": "float16",
  "BF16": "bfloat16",
  "F32": "float32",
  "F64": "float64",
  "C64": "complex64",
}
_CODES = {name: code for code, name in _NAMES.items()}
METADATA = {"format": "pt"}  # What transformers wants to see.
_PACKED = "float4_e2m1fn"  # Two in a byte, the first one in the low bits.
_LARGEST_HEADER = 100_000_000  # Bytes, as in the package safetensors.


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Maps the tensors of a safetensors file.

  Args:
    path: the file.

  Returns:
    Read-only arrays by name; bfloat16, float8 and float4 are dtypes of
    ml_dtypes. float4 is not mapped but unpacked, to a byte per value.

  Raises:
    ValueError: if the file is not a safetensors file; it says why.
  """
  header, base = _header(path)
  header.pop("__metadata__", None)
  try:
    octets = None
    if os.path.getsize(path) > base:
      octets = np.memmap(path, np.uint8, "r")[base:]
    size = 0 if octets is None else octets.size
    found = {name: _view(octets, entry) for name, entry in header.items()}
    spans = sorted(entry["data_offsets"] for entry in header.values())
    stops = [0, *(stop for _, stop in spans)]
    if [start for start, _ in spans] + [size] != stops:
      raise ValueError(
        "the tensors overlap, or leave bytes between or after them"
      )
  except (ValueError, TypeError, LookupError) as error:
    raise ValueError(f"{path}: a bad safetensors header: {error}") from None
  return found


def metadata(path: str | os.PathLike) -> dict[str, str]:
  """The free entries in the header of a safetensors file; errors as `read`."""
  return _header(path)[0].get("__metadata__", {})


def _header(path: str | os.PathLike) -> tuple[dict, int]:
  """The header of a file, and where the tensors begin."""
  check_regular(path)
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
      raise ValueError(f"{path}: not a safetensors file")
    text = file.read(length)
  try:
    header = json.loads(
      text.decode(),
      object_pairs_hook=_without_duplicates,
      parse_constant=_no_constant,
    )
    if not isinstance(header, dict):
      raise ValueError("it is not an object")
    json.dumps(header, ensure_ascii=False).encode()  # No lone surrogates.
    free = header.get("__metadata__", {})
    if not isinstance(free, dict) or not all(
      isinstance(value, str) for value in free.values()
    ):
      raise ValueError("__metadata__ is not an object of strings")
  except (ValueError, TypeError, RecursionError) as error:
    raise ValueError(f"{path}: a bad safetensors header: {error}") from None
  return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("it has a key twice")
  return found


def _no_constant(text: str):
  raise ValueError(f"{text} is not JSON")


def check_regular(path: str | os.PathLike) -> None:
  """ValueError for pipes, sockets and devices, which cannot be read twice."""
  mode = os.stat(path).st_mode
  if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # `open` names those.
    raise ValueError(f"{os.fsdecode(path)}: not a regular file")


def is_coded(path: str | os.PathLike) -> bool:
  """Whether a file is a coded model file, going by its header.

  Raises:
    ValueError: if it is not a regular file.
  """
  check_regular(path)
  with open(path, "rb") as file:
    head = file.read(container.HEADER_SIZE)
  return head[8:].startswith(b'{"__metadata__":{"backslash_jax":')


def write(
  path: str | os.PathLike,
  shapes: Mapping[str, tuple[str, tuple[int, ...]]],
  tensors: Iterable[tuple[str, np.ndarray]],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a safetensors file, whole or not at all.

  Args:
    path: the file; an existing one is replaced.
    shapes: NumPy's name of the dtype and the shape of each tensor, by name.
    tensors: (name, tensor) pairs, each name once, in any order.
    metadata: free text by name; METADATA if there is none.

  Raises:
    ValueError: if safetensors has no such dtype or name, or the tensors are
      not those of `shapes`.
    OSError: as atomic.replacing.
  """
  entries: dict[str, dict] = {"__metadata__": dict(metadata or METADATA)}
  offset = 0
  for name, (dtype, shape) in shapes.items():
    if name in entries:
      raise ValueError(f"tensor {name!r}: safetensors reserves this name")
    if dtype not in _CODES:
      raise ValueError(f"tensor {name!r}: safetensors has no dtype {dtype}")
    stop = offset + _size(name, index.dtype_of(dtype), shape)
    entries[name] = {
      "dtype": _CODES[dtype],
      "shape": list(shape),
      "data_offsets": [offset, stop],
    }
    offset = stop
  header = json.dumps(entries, separators=(",", ":")).encode()
  header += b" " * (-len(header) % 8)
  missing = set(shapes)
  with atomic.replacing(path) as file:
    file.write(len(header).to_bytes(8, "little") + header)
    for name, tensor in tensors:
      if name not in missing:
        raise ValueError(f"tensor {name!r} is unknown or comes twice")
      missing.remove(name)
      found = (tensor.dtype.name, tensor.shape)
      if found != (shapes[name][0], tuple(shapes[name][1])):
        raise ValueError(f"tensor {name!r} is {found}, not {shapes[name]}")
      file.seek(8 + len(header) + entries[name]["data_offsets"][0])
      octets = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
      if found[0] == _PACKED:
        octets = (octets[::2] & 15) | (octets[1::2] << 4)
      file.write(octets.data)
      del tensor, octets  # Frees the memory before the next tensor is made.
    if missing:
      raise ValueError(f"tensor {min(missing)!r} is missing")


def _size(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> int:
  """Bytes of a tensor; ValueError if they are not whole."""
  size = math.prod(shape)
  if dtype.name != _PACKED:
    return size * dtype.itemsize
  if size % 2:
    raise ValueError(f"tensor {name!r}: an odd number of {dtype.name}")
  return size // 2


def _view(octets: np.ndarray | None, entry: dict) -> np.ndarray:
  """One tensor of a header; ValueError if its fields are impossible."""
  name, shape, offsets = (
    entry[field] for field in ("dtype", "shape", "data_offsets")
  )
  if not isinstance(name, str) or name not in _NAMES:
    raise ValueError(f"unknown dtype {name!r}")
  dtype = index.dtype_of(_NAMES[name])
  if len(shape) > index.MAX_DIMENSIONS or not all(
    type(n) is int and n >= 0 for n in (*shape, *offsets)
  ):
    raise ValueError("a shape or an offset that is not an integer")
  start, stop = offsets
  if stop - start != _size(name, dtype, shape):
    raise ValueError("offsets that do not fit a tensor's shape")
  if stop == start:
    return np.empty(shape, dtype)
  if octets is None or stop > octets.size:
    raise ValueError("a tensor lies beyond the end of the file")
  part = octets[start:stop]
  if dtype.name == _PACKED:
    part = np.stack([part & 15, part >> 4], -1).reshape(-1)
  return part.view(dtype).reshape(shape)
