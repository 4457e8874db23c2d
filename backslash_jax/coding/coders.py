"""The coders by name: fitting a model, coding pieces as one chunk, and JSON."""

import math
import reprlib
import struct
from typing import Any

import numpy as np

from backslash_jax.coding import exp_golomb, huffman, models, rans
from backslash_jax.coding import fit as fitting
from backslash_jax.coding.piece import Piece

NAMES = ("rans", "huffman", "exp_golomb", "exp_golomb_ranked")
_SIZE = struct.Struct("<I")


def fit(coder: str, symbols: np.ndarray, *, sample: bool = False):
  """The coder's model of fewest bits for int32 `symbols`.

  Args:
    coder: one of NAMES.
    symbols: of any shape; its last axis is the columns of rANS's matrix.
    sample: whether the model of rANS must be able to code other symbols, too.
  """
  match coder:
    case "rans":
      return fitting.fit(symbols, sample=sample)
    case "huffman":
      return huffman.fit(symbols)
    case _:
      return exp_golomb.fit(symbols, ranked=coder == "exp_golomb_ranked")


def encode(coder: str, pieces: list) -> tuple[bytes, list[float]]:
  """Encodes (int32 matrix, model) pairs into one chunk.

  Returns:
    The chunk, and the code length of each matrix in bits.

  Raises:
    ValueError: if a model lacks one of its symbols.
  """
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
  """Decodes a vector of symbols per piece, int32, or int16 if that is enough.

  Raises:
    ValueError: if the data is bad.
  """
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


def from_json(coder: str, fields: object) -> Any:
  """The model that `to_json` turned into `fields`.

  Args:
    coder: one of NAMES.
    fields: what a JSON parser returned, possibly forged.

  Raises:
    ValueError: if it is not a model of the coder within the format's limits.
  """
  match coder, fields:
    case "rans", [lowest, list(counts)]:
      return models.check(models.Table(_int(lowest), _ints(counts)))
    case "rans", [nu_index, alpha_index, tail, shift, row, column]:
      model = models.QuantizedGGD(
        _int(nu_index),
        _int(alpha_index),
        _int(tail),
        _int(shift),
        None if row is None else _int(row),
        None if column is None else _int(column),
      )
      return models.check(model)
    case "rans", [nu_index, alpha_index, tail, row, column, *odd] if (
      len(odd) == 3
    ):
      model = models.Trellis(
        _int(nu_index),
        _int(alpha_index),
        _int(tail),
        None if row is None else _int(row),
        None if column is None else _int(column),
        *map(_int, odd),
      )
      return models.check(model)
    case "huffman", [lowest, list(lengths), bool(escape)]:
      model = huffman.Model(_int(lowest), _ints(lengths), escape)
      return huffman.check(model)
    case "exp_golomb", [order, None]:
      return exp_golomb.check(exp_golomb.Model(_int(order)))
    case "exp_golomb_ranked", [order, list(ranks)]:
      model = exp_golomb.Model(_int(order), np.array(_ints(ranks), np.int32))
      return exp_golomb.check(model)
  raise ValueError(f"not a model of the coder {coder!r}")


def _int(value: object) -> int:
  """Returns the value; ValueError unless it is an integer of 32 bits."""
  if type(value) is not int or not -(2**31) <= value < 2**31:
    raise ValueError(f"{reprlib.repr(value)} is not a 32-bit integer")
  return value


def _ints(values: list) -> tuple[int, ...]:
  return tuple(_int(value) for value in values)
