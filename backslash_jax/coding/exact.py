"""Chunks of arrays that are stored bit for bit.

The bytes of each array are sorted by significance. A float first rotates to the
left by one bit, so that its highest byte has the exponent and no sign: few
values, most of them rare. Each such plane of bytes is coded by rANS under a
table of its own where that saves bytes. Where sequences of bytes repeat,
DEFLATE may be smaller for the whole chunk. See docs/format.md.
"""

import struct
import sys
import zlib

import numpy as np

from backslash_jax import tree
from backslash_jax.coding import exp_golomb, fit, models, rans
from backslash_jax.coding.models import Table
from backslash_jax.coding.piece import Piece

_STORED, _DEFLATED, _PLANES = b"\0", b"\1", b"\2"  # The first byte of a chunk.
_SIZES = struct.Struct("<III")  # Bytes of the gaps, the counts and the stream.
_LANE_BITS = 2500  # So many lanes that NumPy decodes them fast.
_WORTH = 1 / 64  # A plane is coded if that saves this part of it.
_SAMPLE = 1 << 14  # Bytes of a chunk that DEFLATE is tried on.


def encode(arrays: list[np.ndarray]) -> tuple[bytes, list[float]]:
  """Encodes arrays of any shapes and dtypes into one chunk.

  Returns:
    The chunk, and its part of each array in bits.
  """
  split = [_planes(array) for array in arrays]
  planes = [plane for own in split for plane in own]
  tables = [_table(plane)[0] for plane in planes]
  packed, bits = _encode_planes(planes, tables)
  packed = _PLANES + packed
  size = sum(plane.size for plane in planes)
  part = max(_SAMPLE // max(len(planes), 1), 1)
  sample = b"".join(plane[:part].tobytes() for plane in planes)
  if len(_deflate(sample)) * size < len(packed) * len(sample):
    plain = b"".join(map(_octets, arrays))
    other = min(_DEFLATED + _deflate(plain), _STORED + plain, key=len)
    if len(other) < len(packed):
      return other, [8 * len(other) / size * array.nbytes for array in arrays]
  ends = np.cumsum([len(own) for own in split])
  return packed, [float(own.sum()) for own in np.split(bits, ends[:-1])]


def code_length(array: np.ndarray) -> float:
  """About the bits of an array in a chunk, if no sequences repeat."""
  return sum(_table(plane)[1] for plane in _planes(array))


def decode(data: bytes, pieces: list[tuple[int, np.dtype]]) -> list[np.ndarray]:
  """Decodes a vector for each (size, little-endian dtype) of `pieces`.

  Raises:
    ValueError: if `data` is not a chunk of such arrays.
  """
  if data[:1] == _PLANES:
    return _decode_planes(memoryview(data)[1:], pieces)
  total = sum(size * dtype.itemsize for size, dtype in pieces)
  plain = data[1:]
  if data[:1] == _DEFLATED:
    plain = _inflate(plain, total)
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


def _octets(array: np.ndarray) -> bytes:
  """The lowest byte of every element, then the second byte, and so on."""
  octets = np.frombuffer(_little_endian(array).tobytes(), np.uint8)
  return octets.reshape(-1, array.dtype.itemsize).T.tobytes()


def _deflate(data: bytes) -> bytes:
  deflate = zlib.compressobj(6, zlib.DEFLATED, -15, 9)
  return deflate.compress(data) + deflate.flush()


def _inflate(data: bytes, total: int) -> bytes:
  inflate = zlib.decompressobj(-15)
  try:
    plain = inflate.decompress(data, total + 1)
  except zlib.error as error:
    raise ValueError(str(error)) from None
  if not inflate.eof or inflate.unused_data:
    raise ValueError("compressed bytes of another length")
  return plain


def _unit(dtype: np.dtype) -> tuple[np.dtype, bool]:
  """The unsigned type of the numbers of a dtype, and whether they rotate."""
  parts = 2 if dtype.kind == "c" else 1
  width = dtype.itemsize // parts
  is_float = parts == 2 or tree.is_float(dtype)
  return np.dtype(f"<u{width}"), is_float and width > 1


def _planes(array: np.ndarray) -> list[np.ndarray]:
  """The bytes of the numbers, uint8 [size] each, the lowest first."""
  unit, rotates = _unit(array.dtype)
  words = np.ascontiguousarray(_little_endian(array)).reshape(-1).view(unit)
  if rotates:
    bits = 8 * unit.itemsize
    words = (words << unit.type(1)) | (words >> unit.type(bits - 1))
  octets = words.astype(unit, copy=False).view(np.uint8)
  return list(np.ascontiguousarray(octets.reshape(-1, unit.itemsize).T))


def _numbers(planes: list[np.ndarray], unit: np.dtype, rotates: bool):
  """What `_planes` split into bytes."""
  words = np.stack(planes, -1).reshape(-1).view(unit)
  if rotates:
    bits = 8 * unit.itemsize
    words = (words >> unit.type(1)) | (words << unit.type(bits - 1))
  return words.astype(unit, copy=False)


def _table(plane: np.ndarray) -> tuple[Table | None, float]:
  """The table that codes a plane, if it had better be coded, and the bits."""
  if not plane.size:
    return None, 0.0
  counts = np.bincount(plane)
  low = int(counts.argmax() if counts.max() == plane.size else 0)
  if counts[low] == plane.size:
    return Table(low, (models.TOTAL,)), 0.0
  quantized = fit.quantize_counts(counts)
  used = quantized > 0
  bits = counts[used] @ np.log2(models.TOTAL / quantized[used])
  bits += 12 * np.count_nonzero(used)
  if bits > 8 * plane.size * (1 - _WORTH):
    return None, 8.0 * plane.size
  return Table(0, tuple(quantized.tolist())), float(bits)


def _encode_planes(
  planes: list[np.ndarray], tables: list[Table | None]
) -> tuple[bytes, np.ndarray]:
  """The planes under their tables, and the bits of each, float64."""
  coded = [(p, t) for p, t in zip(planes, tables, strict=True) if t is not None]
  values = [np.flatnonzero(table.counts) + table.lowest for _, table in coded]
  sizes = np.zeros(len(planes), "<u2")
  sizes[[t is not None for t in tables]] = [own.size for own in values]
  gaps = [np.diff(own, prepend=-1) - 1 for own in values]
  counts = [
    np.array(table.counts)[own - table.lowest]
    for (_, table), own in zip(coded, values, strict=True)
    if own.size > 1
  ]
  gaps, counts = _integers_code(gaps), _integers_code(counts)
  stream, lengths = rans.encode_pieces(
    [(plane[:, None].astype(np.int32), table) for plane, table in coded],
    lane_bits=_LANE_BITS,
  )
  raw = [p.tobytes() for p, t in zip(planes, tables, strict=True) if t is None]
  bits = np.array([8.0 * plane.size for plane in planes])
  bits[[t is not None for t in tables]] = lengths
  head = _SIZES.pack(len(gaps), len(counts), len(stream)) + sizes.tobytes()
  return b"".join([head, gaps, counts, stream, *raw]), bits


def _integers_code(parts: list[np.ndarray]) -> bytes:
  """The exp-Golomb code of non-negative integers, with its order."""
  values = np.concatenate([np.empty(0, np.int64), *parts]).astype(np.uint64)
  return exp_golomb.encode_escapes(exp_golomb.unzigzag(values))[0]


def _decode_planes(data: memoryview, pieces) -> list[np.ndarray]:
  units = [_unit(dtype) for _, dtype in pieces]
  sizes = [
    size * dtype.itemsize // unit.itemsize
    for (size, dtype), (unit, _) in zip(pieces, units, strict=True)
    for _ in range(unit.itemsize)
  ]
  start = _SIZES.size + 2 * len(sizes)
  if len(data) < start:
    raise ValueError("the sizes of the tables are cut off")
  gaps, counts, stream = _SIZES.unpack_from(data)
  used = np.frombuffer(data[_SIZES.size : start], "<u2").astype(np.int64)
  data = data[start:]
  tables = _tables(used, data[:gaps], data[gaps:][:counts])
  data = data[gaps + counts :]
  coded = [
    Piece((size, 1), table)
    for size, table in zip(sizes, tables, strict=True)
    if table is not None
  ]
  found = iter(rans.decode_pieces(data[:stream], coded))
  data = data[stream:]
  planes = []
  for size, table in zip(sizes, tables, strict=True):
    if table is None:
      planes.append(np.frombuffer(data[:size], np.uint8))
      data = data[size:]
    else:
      planes.append(next(found).astype(np.uint8))
  if len(data) or [plane.size for plane in planes] != sizes:
    raise ValueError("bytes are missing or left over")
  out = []
  for (_, dtype), (unit, rotates) in zip(pieces, units, strict=True):
    own, planes = planes[: unit.itemsize], planes[unit.itemsize :]
    out.append(_numbers(own, unit, rotates).view(dtype))
  return out


def _tables(
  used: np.ndarray, gaps: memoryview, counts: memoryview
) -> list[Table | None]:
  """The table of each plane; ValueError if one is impossible."""
  steps = exp_golomb.decode_escapes(gaps, int(used.sum()))
  steps = exp_golomb.zigzag(steps).astype(np.int64) + 1
  shares = exp_golomb.decode_escapes(counts, int(used[used > 1].sum()))
  shares = exp_golomb.zigzag(shares).astype(np.int64)
  tables: list[Table | None] = []
  for size in used.tolist():
    values, steps = np.cumsum(steps[:size]) - 1, steps[size:]
    if not size:
      tables.append(None)
      continue
    if values[-1] > 255 or size > 256:
      raise ValueError("a table of more than bytes")
    if size == 1:
      tables.append(Table(int(values[0]), (models.TOTAL,)))
      continue
    own, shares = shares[:size], shares[size:]
    frequencies = np.zeros(int(values[-1] - values[0]) + 1, np.int64)
    frequencies[values - values[0]] = own
    table = Table(int(values[0]), tuple(frequencies.tolist()))
    models.check(table)
    tables.append(table)
  return tables


def _little_endian(array: np.ndarray) -> np.ndarray:
  if sys.byteorder == "little" and array.dtype.isnative:
    return array
  unit = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
  order = ">" if (sys.byteorder == "big") == array.dtype.isnative else "<"
  return np.ascontiguousarray(array).view(f"{order}u{unit}").astype(f"<u{unit}")
