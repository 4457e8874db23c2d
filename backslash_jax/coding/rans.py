"""rANS of integers under static models: what the archive's chunks hold.

A chunk codes one or more pieces, each a matrix of integers with a model, in one
stream of interleaved lanes (see `lanes`). Its bytes, all little-endian:

  uint16 lanes, uint32 tail, uint32 words, the states, the words,
  the low bits of each piece whose model shifts,
  and, if there are escapes, an order and their exp-Golomb code.

A chunk without a coded symbol has no bytes at all.
"""

import math
import struct
import sys
from typing import NamedTuple

import numpy as np

from backslash_jax.coding import bits, exp_golomb, lanes, models
from backslash_jax.coding import fit as fitting
from backslash_jax.coding.models import Gaussian, Model, Table

_HEADER = struct.Struct("<HII")
_LANE_BITS = 10_000  # Bits of a chunk for each lane, which costs 11.
_BLOCK = 1 << 14  # Symbols looked up at once, to stay in cache.
_BITS = lanes.PRECISION - np.log2(np.maximum(np.arange(models.TOTAL + 1), 1))

fit = fitting.fit


class Piece(NamedTuple):
  """Rows and columns of a matrix and the model of its integers."""

  shape: tuple[int, int]
  model: Model


def encode(symbols: np.ndarray, model: Model) -> bytes:
  """Codes int32 `symbols`, of any shape, under `model`.

  Raises:
    ValueError: if `model` is a table without one of the symbols.
  """
  return encode_pieces([(matrix(symbols), model)])[0]


def decode(
  data: bytes | memoryview, model: Model, size: int | tuple[int, int]
) -> np.ndarray:
  """The `size` int32 symbols of `data`, in a vector.

  Args:
    data: what `encode` gave.
    model: the same that `encode` had.
    size: how many; rows and columns if the model has classes.

  Raises:
    ValueError: if `data` is not what `encode` gives.
  """
  shape = (size, 1) if isinstance(size, int) else size
  return decode_pieces(data, [Piece(shape, model)])[0]


def code_length(symbols: np.ndarray, model: Model) -> float:
  """Bits of information: what `encode` takes but for its states and header."""
  coded = _prepare(matrix(symbols), model)
  escapes = coded.escapes
  return coded.length + exp_golomb.code_length(escapes, exp_golomb.fit(escapes))


def matrix(symbols: np.ndarray) -> np.ndarray:
  """All axes but the last as rows; a vector is one column."""
  columns = symbols.shape[-1] if symbols.ndim > 1 else 1
  rows = math.prod(symbols.shape[:-1]) if symbols.ndim > 1 else symbols.size
  return symbols.reshape(rows, columns)


def encode_pieces(
  pieces: list[tuple[np.ndarray, Model]],
) -> tuple[bytes, list[float]]:
  """Codes matrices of int32 symbols into one chunk, and each one's bits."""
  coded = [_prepare(symbols, model) for symbols, model in pieces]
  lengths = [part.length for part in coded]
  segments = [segment for part in coded for segment in part.segments]
  if not sum(segment.size for segment in segments):
    return b"", lengths
  count = int(min(max(sum(lengths) / _LANE_BITS, 1), lanes.MAX_LANES))
  tail = _tail(segments, count)
  states, words = lanes.encode(segments, count, tail)
  body = states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
  low = b"".join(part.low for part in coded)
  escapes = np.concatenate([part.escapes for part in coded])
  beyond = b""
  if escapes.size:
    model = exp_golomb.fit(escapes)
    beyond = bytes([model.order]) + exp_golomb.encode(escapes, model)
    lengths = [
      length + exp_golomb.code_length(part.escapes, model)
      for length, part in zip(lengths, coded, strict=True)
    ]
  return _HEADER.pack(count, tail, words.size) + body + low + beyond, lengths


def decode_pieces(
  data: bytes | memoryview, pieces: list[Piece]
) -> list[np.ndarray]:
  """The int32 symbols of each piece, in vectors; ValueError if data is bad."""
  data = memoryview(data)
  total = sum(_coded_size(piece) for piece in pieces)
  if total == 0 and len(data):
    raise ValueError("bytes where nothing is coded")
  decoder, position = _open(data, total)
  found = [_decode_piece(decoder, piece) for piece in pieces]
  decoder.finish()
  low = []
  for shape, model in pieces:
    width = model.shift if isinstance(model, Gaussian) else 0
    size = math.prod(shape) if width else 0
    stop = position + (size * width + 7) // 8
    low.append(bits.unpack(data[position:stop], np.full(size, width)))
    position = stop
  _fill_escapes(found, data[position:])
  return [
    _unshift(part.symbols, fields, piece.model)
    for part, fields, piece in zip(found, low, pieces, strict=True)
  ]


class _Coded(NamedTuple):
  """A piece, ready for the lanes."""

  segments: list[np.ndarray]  # uint32 entries.
  low: bytes
  escapes: np.ndarray
  length: float  # Bits.


_NOTHING = np.empty(0, np.int32)


def _prepare(symbols: np.ndarray, model: Model) -> _Coded:
  """The entries of a matrix of int32 symbols, and what they leave out."""
  if symbols.size == 0:
    return _Coded([], b"", _NOTHING, 0.0)
  if isinstance(model, Gaussian):
    return _prepare_gaussian(symbols, model)
  if symbols.min() < model.lowest or (
    symbols.max() >= model.lowest + len(model.counts)
  ):
    raise ValueError("a symbol that the table lacks")
  if models.is_constant(model):
    return _Coded([], b"", _NOTHING, 0.0)
  entries = models.encoding(model)[symbols.ravel() - model.lowest]
  if not entries.all():
    raise ValueError("a symbol that the table lacks")
  length = np.bincount(entries >> 16) @ _BITS[: int(entries.max() >> 16) + 1]
  return _Coded([entries], b"", _NOTHING, float(length))


def _prepare_gaussian(symbols: np.ndarray, model: Gaussian) -> _Coded:
  low, length, segments = b"", 0.0, []
  if model.shift:
    wide = symbols.astype(np.int64) + (1 << (model.shift - 1))
    fields = wide.ravel() & ((1 << model.shift) - 1)
    low = bits.pack(fields, np.full(fields.size, model.shift))
    length += model.shift * fields.size
    symbols = (wide >> model.shift).astype(np.int32)
  classes = [np.zeros(n, np.int64) for n in symbols.shape]
  if model.rows is not None or model.columns is not None:
    classes = fitting.classes(fitting.magnitudes(symbols, 0), model)
    for grid, side in zip((model.rows, model.columns), classes, strict=True):
      if grid is not None:
        plain = Gaussian(models.CLASS_NU, grid)
        part = _prepare_gaussian(side[:, None].astype(np.int32), plain)
        segments += part.segments
        length += part.length
  entries, escapes, own = _entries(symbols, model, *classes)
  return _Coded([*segments, entries], low, escapes, length + own)


def _entries(symbols, model: Gaussian, row_class, column_class):
  """Entries of the symbols under their classes, escapes' excesses and bits."""
  tables = _class_tables(model, row_class, column_class)
  limits = np.array([-table.lowest for table in tables])
  reach = int(limits.max())
  codes = np.stack([models.encoding(table, reach) for table in tables])
  lengths = _BITS[codes >> 16].astype(np.float32)
  row_class = row_class - row_class.min() - column_class.min()
  loops = lanes.compiled(symbols.size) or sys.modules[__name__]
  return loops.look_up(symbols, codes, lengths, limits, row_class, column_class)


def look_up(symbols, codes, lengths, limits, row_class, column_class):
  """Codes of the symbols of a matrix, row and column classes adding up.

  Args:
    symbols: int32.
    codes: uint32 entry by class and by symbol, from -reach - 1 to reach + 1.
    lengths: float32 bits, alike.
    limits: int64 largest magnitude of each class, before its escape.
    row_class: int64, by row.
    column_class: int64, by column.

  Returns:
    The entries in a vector; by how much symbols exceed their limits, with their
    signs, where they do; the sum of the lengths.
  """
  reach, nearest = (codes.shape[1] - 3) // 2, int(limits.min())
  row_place = (row_class * codes.shape[1] + reach + 1)[:, None]
  column_place = column_class * codes.shape[1]
  codes, lengths = codes.ravel(), lengths.ravel()
  entries = np.empty(symbols.shape, np.uint32)
  escapes, total = [_NOTHING], 0.0
  rows = max(_BLOCK // symbols.shape[1], 1)
  for start in range(0, symbols.shape[0], rows):
    block = symbols[start : start + rows]
    places = block.astype(np.intp)
    if max(-int(places.min()), int(places.max())) > nearest:
      i, j = (np.abs(places) > nearest).nonzero()
      own = limits[row_class[start + i] + column_class[j]]
      excess = np.abs(places[i, j]) - own
      signed = np.sign(places[i, j]) * excess
      escapes.append(signed[excess > 0].astype(np.int32))
      np.clip(places, -reach - 1, reach + 1, out=places)
    places += row_place[start : start + rows]
    places += column_place
    codes.take(places, out=entries[start : start + rows], mode="clip")
    total += float(lengths.take(places, mode="clip").sum())
  return entries.ravel(), np.concatenate(escapes), total


def _class_tables(model: Gaussian, row_class, column_class):
  """The tables of all sums of a row and a column class, from the lowest on."""
  low = int(row_class.min() + column_class.min())
  high = int(row_class.max() + column_class.max())
  return [
    models.gaussian(model.nu, models.point(model, c), model.tail)
    for c in range(low, high + 1)
  ]


def _tail(segments: list[np.ndarray], count: int) -> int:
  """Symbols that the surviving lanes code alone, so as to emit enough words."""
  if lanes.survivors(count) == count:
    return 0
  # Their states may keep 16 bits each, and the sum of bits is rounded.
  wanted, tail = 17.0 * count + 64, 0
  for segment in reversed(segments):
    for stop in range(segment.size, 0, -8 * count):
      block = segment[max(stop - 8 * count, 0) : stop]
      bits = np.cumsum(_BITS[block[::-1] >> 16])
      if bits[-1] >= wanted:
        return tail + int(np.searchsorted(bits, wanted)) + 1
      wanted -= bits[-1]
      tail += block.size
  return tail


def _open(data: memoryview, total: int) -> tuple[lanes.Decoder, int]:
  """The decoder of a chunk's stream, and where the stream ends."""
  if total == 0:
    return lanes.Decoder(_NOTHING.astype(np.uint32), _NOTHING, 0, 0), 0
  if len(data) < _HEADER.size:
    raise ValueError("a chunk without its header")
  count, tail, size = _HEADER.unpack_from(data)
  start = _HEADER.size + 4 * count
  stop = start + 2 * size
  if not 1 <= count <= lanes.MAX_LANES or tail > total or stop > len(data):
    raise ValueError("a chunk's header is impossible")
  states = np.frombuffer(data[_HEADER.size : start], "<u4")
  words = np.frombuffer(data[start:stop], "<u2")
  return lanes.Decoder(states, words, tail, total), stop


def _coded_size(piece: Piece) -> int:
  """How many symbols of a piece are in the stream, its classes included."""
  (rows, columns), model = piece
  if models.is_constant(model) or rows * columns == 0:
    return 0
  size = rows * columns
  if isinstance(model, Gaussian):
    size += rows if model.rows is not None else 0
    size += columns if model.columns is not None else 0
  return size


class _Decoded(NamedTuple):
  """A piece out of the lanes, its escapes' places still empty."""

  symbols: np.ndarray  # int32
  places: np.ndarray
  limits: np.ndarray | int  # What each escape exceeds.


def _decode_piece(decoder: lanes.Decoder, piece: Piece) -> _Decoded:
  (rows, columns), model = piece
  size = rows * columns
  if not _coded_size(piece):
    value = model.lowest if isinstance(model, Table) else 0
    return _Decoded(np.full(size, value, np.int32), _NOTHING, 0)
  if not isinstance(model, Gaussian):
    found = decoder.segment(*models.decoding(model, False), None, size)
    return _Decoded(found.astype(np.int32), _NOTHING, 0)
  classes = []
  for grid, count in ((model.rows, rows), (model.columns, columns)):
    side = np.zeros(count, np.int32)
    if grid is not None:
      table = models.gaussian(models.CLASS_NU, grid)
      side = decoder.segment(*models.decoding(table, True), None, count)
      side = side.astype(np.int32)
      if np.abs(side).max() > models.MAX_CLASS:
        raise ValueError("a class beyond the format's limit")
    classes.append(side)
  made = _class_tables(model, *classes)
  table, symbols = (
    np.concatenate(parts)
    for parts in zip(*(models.decoding(t, True) for t in made), strict=True)
  )
  offsets = None
  if len(made) > 1:
    row_place, column_place = (
      ((side - side.min()) << lanes.PRECISION).astype(np.uint32)
      for side in classes
    )
    offsets = (row_place[:, None] + column_place).ravel()
  found = decoder.segment(table, symbols, offsets, size).astype(np.int32)
  places = (found == models.ESCAPE).nonzero()[0]
  limits = np.array([-table.lowest for table in made])
  own = 0 if offsets is None else offsets[places] >> lanes.PRECISION
  return _Decoded(found, places, limits[own])


def _fill_escapes(pieces: list[_Decoded], data: memoryview) -> None:
  """Puts the symbols that follow the stream where the escapes are."""
  count = sum(piece.places.size for piece in pieces)
  if not count:
    if len(data):
      raise ValueError("bytes are left over")
    return
  if not len(data) or data[0] >= exp_golomb.MAX_ORDER:
    raise ValueError("the escapes have no order")
  excess = exp_golomb.decode(data[1:], exp_golomb.Model(data[0]), count)
  if not excess.all():
    raise ValueError("an escape for a symbol that has a code")
  for found, places, limits in pieces:
    own, excess = excess[: places.size].astype(np.int64), excess[places.size :]
    own += np.sign(own) * limits
    if own.size and np.abs(own).max() > 2**31:
      raise ValueError("a symbol outside int32")
    found[places] = own


def _unshift(symbols: np.ndarray, low: np.ndarray, model: Model) -> np.ndarray:
  """Symbols with their low bits again."""
  if not low.size or isinstance(model, Table):
    return symbols
  wide = (symbols.astype(np.int64) << model.shift) + low.astype(np.int64)
  wide -= 1 << (model.shift - 1)
  if wide.min() < -(2**31) or wide.max() >= 2**31:
    raise ValueError("a symbol outside int32")
  return wide.astype(np.int32)
