"""Chunks of arrays that are stored bit for bit.

The bytes of each array are sorted by significance, so that the exponents of its
elements are adjacent, and compressed if that makes the chunk smaller.
"""

import sys
import zlib

import numpy as np

_STORED, _DEFLATED = b"\0", b"\1"  # The first byte of a chunk.


def encode(arrays: list[np.ndarray]) -> bytes:
  """Encodes arrays of any shapes and dtypes into one chunk."""
  planes = []
  for array in arrays:
    octets = np.frombuffer(_little_endian(array).tobytes(), np.uint8)
    planes.append(octets.reshape(-1, array.dtype.itemsize).T.tobytes())
  plain = b"".join(planes)
  deflate = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
  packed = deflate.compress(plain) + deflate.flush()
  if len(packed) < len(plain):
    return _DEFLATED + packed
  return _STORED + plain


def decode(data: bytes, pieces: list[tuple[int, np.dtype]]) -> list[np.ndarray]:
  """Decodes a vector for each (size, little-endian dtype) of `pieces`.

  Raises:
    ValueError: if `data` is not a chunk of such arrays.
  """
  total = sum(size * dtype.itemsize for size, dtype in pieces)
  plain = data[1:]
  if data[:1] == _DEFLATED:
    inflate = zlib.decompressobj(-15)
    try:
      plain = inflate.decompress(plain, total + 1)
    except zlib.error as error:
      raise ValueError(str(error)) from None
    if not inflate.eof or inflate.unused_data:
      raise ValueError("compressed bytes of another length")
  elif data[:1] != _STORED:
    raise ValueError("an unknown compression")
  if len(plain) != total:
    raise ValueError(f"{len(plain)} bytes, {total} wanted")
  out, start = [], 0
  for size, dtype in pieces:
    stop = start + size * dtype.itemsize
    octets = np.frombuffer(plain[start:stop], np.uint8)
    octets = np.ascontiguousarray(octets.reshape(dtype.itemsize, size).T)
    out.append(octets.view(dtype).ravel())
    start = stop
  return out


def _little_endian(array: np.ndarray) -> np.ndarray:
  if sys.byteorder == "little" and array.dtype.isnative:
    return array
  unit = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
  order = ">" if (sys.byteorder == "big") == array.dtype.isnative else "<"
  return np.ascontiguousarray(array).view(f"{order}u{unit}").astype(f"<u{unit}")
