"""rANS of integers under static models.

A chunk holds one or more pieces, each a matrix of integers with a model, in one
stream of interleaved lanes (see `lanes`). Its bytes, all little-endian:

  uint16 lanes, uint32 tail, uint32 words, the states, the words,
  the low bits of each piece whose model shifts,
  and, if there are escapes, their exp-Golomb code.

A chunk without a coded symbol has no bytes.
"""

import math
import struct
from collections.abc import Iterator

import numpy as np

from backslash_jax.coding import bits, exp_golomb, lanes, piece
from backslash_jax.coding.models import Model, QuantizedGGD
from backslash_jax.coding.piece import Piece

_HEADER = struct.Struct("<HII")
LANE_BITS = 10_000  # Bits of a chunk per lane; a lane costs about 11.


def encode(symbols: np.ndarray, model: Model) -> bytes:
  """Encodes int32 `symbols`, of any shape, under `model`.

  Raises:
    ValueError: if `model` is a table without one of the symbols.
  """
  return encode_pieces([(matrix(symbols), model)])[0]


def decode(
  data: bytes | memoryview, model: Model, size: int | tuple[int, int]
) -> np.ndarray:
  """Decodes a vector of int32 symbols.

  Args:
    data: what `encode` returned.
    model: the model that `encode` was given.
    size: number of symbols; (rows, columns) if the model has classes.

  Raises:
    ValueError: if `data` is not what `encode` returns.
  """
  shape = (size, 1) if isinstance(size, int) else size
  return decode_pieces(data, [Piece(shape, model)])[0].astype(np.int32)


def code_length(symbols: np.ndarray, model: Model) -> float:
  """Bits of the code of int32 `symbols`, without header and lanes' states."""
  coded = piece.prepare(matrix(symbols), model)
  escapes = coded.escapes
  return coded.length + exp_golomb.code_length(escapes, exp_golomb.fit(escapes))


def matrix(symbols: np.ndarray) -> np.ndarray:
  """A view with all axes but the last as rows; a vector is one column."""
  columns = symbols.shape[-1] if symbols.ndim > 1 else 1
  rows = math.prod(symbols.shape[:-1]) if symbols.ndim > 1 else symbols.size
  return symbols.reshape(rows, columns)


def encode_pieces(
  pieces: list[tuple[np.ndarray, Model]], *, lane_bits: int = LANE_BITS
) -> tuple[bytes, list[float]]:
  """Encodes matrices of int32 symbols into one chunk.

  Args:
    pieces: the matrices and their models.
    lane_bits: bits of the chunk per lane.

  Returns:
    The chunk, and the code length of each matrix in bits.

  Raises:
    ValueError: if a model is a table without one of its symbols.
  """
  coded = [piece.prepare(symbols, model) for symbols, model in pieces]
  lengths = [part.length for part in coded]
  segments = [segment for part in coded for segment in part.segments]
  if not sum(segment.size for segment in segments):
    return b"", lengths
  count = int(min(max(sum(lengths) / lane_bits, 1), lanes.MAX_LANES))
  tail = _tail(segments, count)
  states, words = lanes.encode(segments, count, tail)
  body = states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
  low = b"".join(part.low for part in coded)
  escapes = np.concatenate([part.escapes for part in coded])
  beyond, model = exp_golomb.encode_escapes(escapes)
  if escapes.size:
    lengths = [
      length + exp_golomb.code_length(part.escapes, model)
      for length, part in zip(lengths, coded, strict=True)
    ]
  return _HEADER.pack(count, tail, words.size) + body + low + beyond, lengths


def decode_pieces(
  data: bytes | memoryview, pieces: list[Piece]
) -> list[np.ndarray]:
  """Decodes a vector of symbols per piece, int32, or int16 if that is enough.

  Raises:
    ValueError: if the data is bad.
  """
  data = memoryview(data)
  total = sum(piece.coded_size(one) for one in pieces)
  if total == 0 and len(data):
    raise ValueError("bytes where nothing is coded")
  decoder, position = _open(data, total)
  found = [piece.decode(decoder, one) for one in pieces]
  decoder.finish()
  low = []
  for shape, model in pieces:
    width = model.shift if isinstance(model, QuantizedGGD) else 0
    size = math.prod(shape) if width else 0
    stop = position + (size * width + 7) // 8
    low.append(bits.unpack(data[position:stop], np.full(size, width)))
    position = stop
  found = list(_without_escapes(found, data[position:]))
  return [
    piece.finish(part, fields, one.model)
    for part, fields, one in zip(found, low, pieces, strict=True)
  ]


def _tail(segments: list[np.ndarray], count: int) -> int:
  """How many symbols give the surviving lanes a word per retiring lane."""
  if lanes.survivors(count) == count:
    return 0
  # 16 bits per lane; the rest is for the states and for the rounded sum.
  wanted, tail = 17.0 * count + 64, 0
  for segment in reversed(segments):
    for stop in range(segment.size, 0, -8 * count):
      block = segment[max(stop - 8 * count, 0) : stop]
      sums = np.cumsum(piece.BITS[block[::-1] >> 16])
      if sums[-1] >= wanted:
        return tail + int(np.searchsorted(sums, wanted)) + 1
      wanted -= sums[-1]
      tail += block.size
  return tail


def _open(data: memoryview, total: int) -> tuple[lanes.Decoder, int]:
  """The decoder of a chunk's stream, and the byte where the stream ends."""
  if total == 0:
    none = np.empty(0, np.uint32)
    return lanes.Decoder(none, none, 0, 0), 0
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


def _without_escapes(
  pieces: list[piece.Decoded], data: memoryview
) -> Iterator[piece.Decoded]:
  """Replaces escapes by the symbols that the code in `data` stands for."""
  count = sum(one.places.size for one in pieces)
  excess = exp_golomb.decode_escapes(data, count)
  if not excess.all():
    raise ValueError("an escape for a symbol that has a code")
  for one in pieces:
    found, places, limits, odd = one
    own, excess = excess[: places.size].astype(np.int64), excess[places.size :]
    own += np.sign(own) * limits
    if own.size and not -(2**31) <= own.min() <= own.max() < 2**31:
      raise ValueError("a symbol outside int32")
    if odd is not None and ((own ^ found[places]) & 1).any():
      raise ValueError("an escape of the other parity than its symbol")
    if own.size and not -(2**15) <= own.min() <= own.max() < 2**15:
      found = found.astype(np.int32)
    found[places] = own
    yield one._replace(symbols=found)
