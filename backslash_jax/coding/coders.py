"""The coders by name: fitting, coding several pieces as one chunk, and JSON."""

import math
import struct
import sys
import zlib
from typing import Any

import numpy as np

from backslash_jax.coding import exp_golomb, huffman, models, rans
from backslash_jax.coding.piece import Piece

NAMES = ("rans", "huffman", "exp_golomb", "exp_golomb_ranked")
_SIZE = struct.Struct("<I")


def fit(coder: str, symbols: np.ndarray, *, sample: bool = False):
  """The coder's best model of int32 `symbols`.

  With `sample` the model will meet other symbols too.
  """
  match coder:
    case "rans":
      return rans.fit(symbols, sample=sample)
    case "huffman":
      return huffman.fit(symbols)
    case _:
      return exp_golomb.fit(symbols, ranked=coder == "exp_golomb_ranked")


def encode(coder: str, pieces: list) -> tuple[bytes, list[float]]:
  """A chunk of (matrix of symbols, model) pairs, and the bits of each."""
  if coder == "rans":
    return rans.encode_pieces(pieces)
  module = huffman if coder == "huffman" else exp_golomb
  out, lengths = [], []
  for symbols, model in pieces:
    data = module.encode(symbols.ravel(), model)
    out += [_SIZE.pack(len(data)), data]
    lengths.append(float(module.code_length(symbols.ravel(), model)))
  return b"".join(out), lengths


def decode(coder: str, data: bytes, pieces: list[Piece]) -> list[np.ndarray]:
  """The symbols of each piece, in vectors; ValueError if `data` is bad."""
  if coder == "rans":
    return rans.decode_pieces(data, pieces)
  module = huffman if coder == "huffman" else exp_golomb
  view, out = memoryview(data), []
  for shape, model in pieces:
    if len(view) < _SIZE.size:
      raise ValueError("a piece is cut off")
    stop = _SIZE.size + _SIZE.unpack_from(view)[0]
    if stop > len(view):
      raise ValueError("a piece is cut off")
    body: Any = model
    out.append(module.decode(view[_SIZE.size : stop], body, math.prod(shape)))
    view = view[stop:]
  if len(view):
    raise ValueError("bytes are left over")
  return out


def to_json(coder: str, model: Any) -> list:
  """A model as numbers and lists."""
  if isinstance(model, models.Table):
    return [model.lowest, list(model.counts)]
  if coder == "rans":
    return list(model)
  if coder == "huffman":
    return [model.lowest, list(model.lengths), model.escape]
  return [model.order, None if model.ranks is None else model.ranks.tolist()]


def from_json(coder: str, fields: Any) -> Any:
  """The model; ValueError or TypeError if there is none."""
  if coder == "rans":
    if len(fields) == 2:
      return models.check(models.Table(_int(fields[0]), _ints(fields[1])))
    nu, alpha, tail, shift, *rest = fields
    rows, columns = (None if f is None else _int(f) for f in rest)
    nu, alpha, tail, shift = _ints((nu, alpha, tail, shift))
    return models.check(models.Gaussian(nu, alpha, tail, shift, rows, columns))
  if coder == "huffman":
    lowest, lengths, escape = fields
    model = huffman.Model(_int(lowest), _ints(lengths), escape is True)
    return huffman.check(model)
  order, ranks = fields
  if not 0 <= _int(order) < exp_golomb.MAX_ORDER or (
    (ranks is None) != (coder == "exp_golomb")
  ):
    raise ValueError("an order or a table of ranks out of place")
  ranks = None if ranks is None else np.array(_ints(ranks), np.int32)
  return exp_golomb.Model(order, ranks)


def encode_exact(arrays: list[np.ndarray]) -> bytes:
  """A chunk of arrays kept bit for bit.

  The bytes of each array are sorted by significance, so that its exponents come
  together, and compressed if that makes them fewer; the first byte tells.
  """
  planes = []
  for array in arrays:
    octets = np.frombuffer(_little_endian(array).tobytes(), np.uint8)
    planes.append(octets.reshape(-1, array.dtype.itemsize).T.tobytes())
  plain = b"".join(planes)
  deflate = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
  packed = deflate.compress(plain) + deflate.flush()
  if len(packed) < len(plain):
    return b"\1" + packed
  return b"\0" + plain


def decode_exact(data: bytes, pieces: list) -> list[np.ndarray]:
  """The arrays of (size, dtype) pairs; ValueError if `data` is bad."""
  total = sum(size * dtype.itemsize for size, dtype in pieces)
  plain = data[1:]
  if data[:1] == b"\1":
    inflate = zlib.decompressobj(-15)
    try:
      plain = inflate.decompress(plain, total + 1)
    except zlib.error as error:
      raise ValueError(str(error)) from None
    if not inflate.eof or inflate.unused_data:
      raise ValueError("compressed bytes of another length")
  elif data[:1] != b"\0":
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


def _int(value) -> int:
  if type(value) is not int:
    raise TypeError(f"{value!r} is not an integer")
  return value


def _ints(values) -> tuple[int, ...]:
  return tuple(_int(value) for value in values)
