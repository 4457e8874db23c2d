"""Exp-Golomb codes of order k, of zigzag or frequency-ranked integers.

A non-negative integer v is written as u = v + 2**k: a prefix of floor(log2 u) -
k zeros and a one, then a suffix, the floor(log2 u) bits below u's leading bit.
All prefixes come first and all suffixes follow, so that NumPy can parse both
without a loop over symbols. The number of bits is the same as in the usual
order, where each suffix follows its prefix.
"""

from typing import NamedTuple

import numpy as np

from backslash_jax.coding import bits

MAX_ORDER = 30


class Model(NamedTuple):
  """How integers become code words.

  Attributes:
    order: k, 0 to MAX_ORDER.
    ranks: None for the zigzag mapping (0, -1, 1, -2, ...), or the int32 symbols
      in the order of their code words, the most frequent first.
  """

  order: int
  ranks: np.ndarray | None = None


def fit(symbols: np.ndarray, *, ranked: bool = False) -> Model:
  """The order of fewest bits for int32 `symbols`.

  Args:
    symbols: of any shape.
    ranked: whether to map integers by their frequency in `symbols`.
  """
  values, counts = np.unique(symbols, return_counts=True)
  ranks = None
  if ranked:
    # Ties go to the smaller magnitude, then to the negative.
    order = np.lexsort((values, np.abs(values.astype(np.int64)), -counts))
    ranks, counts = values[order].astype(np.int32), counts[order]
    mapped = np.arange(values.size, dtype=np.uint64)
  else:
    mapped = zigzag(values)
  costs = [
    int((counts * _lengths(mapped, k)).sum()) for k in range(MAX_ORDER + 1)
  ]
  return Model(int(np.argmin(costs)), ranks)


def check(model: Model) -> Model:
  """Returns the model; ValueError if its order is outside the limits."""
  if not 0 <= model.order <= MAX_ORDER:
    raise ValueError(f"the order {model.order} is outside the format's limits")
  return model


def encode(symbols: np.ndarray, model: Model) -> bytes:
  """Encodes int32 `symbols`; ValueError if a ranked model lacks one."""
  prefixes, suffixes, widths = _code(symbols, model)
  ones = np.cumsum(prefixes + 1) - 1
  unary = np.zeros(int(ones[-1]) + 1 if ones.size else 0, np.uint8)
  unary[ones] = 1
  head = np.packbits(unary, bitorder="little").tobytes()
  return head + bits.pack(suffixes, widths)


def decode(data: bytes | memoryview, model: Model, size: int) -> np.ndarray:
  """Decodes int32 [size]; ValueError if `data` is not the code of so many."""
  octets = np.frombuffer(data, np.uint8)
  if size > 8 * octets.size:
    raise ValueError(f"{octets.size} bytes cannot hold {size} symbols")
  ones = np.flatnonzero(np.unpackbits(octets, bitorder="little"))[:size]
  if ones.size < size:
    raise ValueError(f"{ones.size} prefixes, {size} wanted")
  prefixes = np.diff(ones, prepend=-1) - 1
  head = (int(ones[-1]) + 8) // 8 if size else 0
  widths = prefixes + model.order
  if size and widths.max() >= bits.MAX_WIDTH:
    raise ValueError("a code word longer than any 32-bit integer needs")
  suffixes = bits.unpack(memoryview(data)[head:], widths)
  mapped = suffixes + (np.uint64(1) << widths.astype(np.uint64))
  mapped -= np.uint64(1 << model.order)
  if model.ranks is None:
    if size and mapped.max() >= 1 << 32:
      raise ValueError("a symbol outside int32")
    return unzigzag(mapped)
  if size and mapped.max() >= model.ranks.size:
    raise ValueError("a rank beyond the table")
  return model.ranks[mapped.astype(np.int64)]


def code_length(symbols: np.ndarray, model: Model) -> int:
  """Bits of the code words, without the padding to whole bytes."""
  return int(_lengths(_map(symbols, model), model.order).sum())


def encode_escapes(symbols: np.ndarray) -> tuple[bytes, Model]:
  """Encodes int32 symbols that another coder escapes.

  Returns:
    The best order as one byte, and the code; no bytes for no symbols. The model
    of that order.
  """
  model = fit(symbols)
  if not symbols.size:
    return b"", model
  return bytes([model.order]) + encode(symbols, model), model


def decode_escapes(data: bytes | memoryview, size: int) -> np.ndarray:
  """Decodes int32 [size] from `encode_escapes`; ValueError if it is not."""
  if not size:
    if len(data):
      raise ValueError("bytes are left over")
    return np.empty(0, np.int32)
  if not len(data) or data[0] > MAX_ORDER:
    raise ValueError("the escapes have no order")
  return decode(memoryview(data)[1:], Model(data[0]), size)


def zigzag(symbols: np.ndarray) -> np.ndarray:
  """Maps 0, -1, 1, -2, 2, ... to 0, 1, 2, 3, 4, ...; int32 to uint64."""
  wide = symbols.astype(np.int64)
  return ((wide << 1) ^ (wide >> 63)).astype(np.uint64)


def unzigzag(mapped: np.ndarray) -> np.ndarray:
  """The inverse of `zigzag`; uint64 below 2**32 to int32."""
  wide = mapped.astype(np.int64)
  return ((wide >> 1) ^ -(wide & 1)).astype(np.int32)


def _map(symbols: np.ndarray, model: Model) -> np.ndarray:
  """Each symbol's non-negative integer."""
  if model.ranks is None:
    return zigzag(symbols)
  order = np.argsort(model.ranks)
  place = np.searchsorted(model.ranks, symbols, sorter=order)
  place = order[np.minimum(place, order.size - 1)] if order.size else place
  if order.size == 0 and symbols.size:
    raise ValueError("an empty table of ranks")
  if symbols.size and (model.ranks[place] != symbols).any():
    raise ValueError("a symbol that the table of ranks lacks")
  return place.astype(np.uint64)


def _code(symbols: np.ndarray, model: Model):
  """Prefix zeros, suffixes and suffix widths, one per symbol."""
  shifted = _map(symbols, model) + np.uint64(1 << model.order)
  # frexp is exact below 2**53: the exponent of u is its bit length.
  widths = np.frexp(shifted.astype(np.float64))[1].astype(np.int64) - 1
  suffixes = shifted - (np.uint64(1) << widths.astype(np.uint64))
  return widths - model.order, suffixes, widths


def _lengths(mapped: np.ndarray, order: int) -> np.ndarray:
  """Bits of the code word of each mapped integer, int64."""
  shifted = (mapped + np.uint64(1 << order)).astype(np.float64)
  return 2 * np.frexp(shifted)[1].astype(np.int64) - 1 - order
