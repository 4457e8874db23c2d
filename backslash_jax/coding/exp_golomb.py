"""Exp-Golomb codes of order k, of zigzag or frequency-ranked integers.

A non-negative integer v is written as u = v + 2**k: the floor(log2 u) - k zeros
and the one of its prefix, then the floor(log2 u) bits below u's leading bit.
All prefixes come first and all suffixes after them, so that both parse without
a loop over symbols; the number of bits is that of the usual order.
"""

from typing import NamedTuple

import numpy as np

from backslash_jax.coding import bits

MAX_ORDER = 31


class Model(NamedTuple):
  """How integers become code words.

  Attributes:
    order: k, 0 to 31.
    ranks: None for the zigzag mapping (0, -1, 1, -2, ...), or the int32 symbols
      in the order of their code words, the most frequent first.
  """

  order: int
  ranks: np.ndarray | None = None


def fit(symbols: np.ndarray, *, ranked: bool = False) -> Model:
  """The order, and with `ranked` the mapping, of fewest bits for `symbols`."""
  values, counts = np.unique(symbols, return_counts=True)
  ranks = None
  if ranked:
    # Ties go to the smaller magnitude, then to the negative.
    order = np.lexsort((values, np.abs(values.astype(np.int64)), -counts))
    ranks, counts = values[order].astype(np.int32), counts[order]
    mapped = np.arange(values.size, dtype=np.uint64)
  else:
    mapped = zigzag(values)
  costs = [int((counts * _lengths(mapped, k)).sum()) for k in range(MAX_ORDER)]
  return Model(int(np.argmin(costs)), ranks)


def encode(symbols: np.ndarray, model: Model) -> bytes:
  """Codes int32 `symbols`; ValueError if a ranked model lacks one of them."""
  prefixes, suffixes, widths = _code(symbols, model)
  ones = np.cumsum(prefixes + 1) - 1
  unary = np.zeros(int(ones[-1]) + 1 if ones.size else 0, np.uint8)
  unary[ones] = 1
  head = np.packbits(unary, bitorder="little").tobytes()
  return head + bits.pack(suffixes, widths)


def decode(data: bytes | memoryview, model: Model, size: int) -> np.ndarray:
  """The `size` int32 symbols of `data`; ValueError if it is not their code."""
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
    return _unzigzag(mapped)
  if size and mapped.max() >= model.ranks.size:
    raise ValueError("a rank beyond the table")
  return model.ranks[mapped.astype(np.int64)]


def code_length(symbols: np.ndarray, model: Model) -> int:
  """Bits of the code words, without the padding to whole bytes."""
  return int(_lengths(_map(symbols, model), model.order).sum())


def zigzag(symbols: np.ndarray) -> np.ndarray:
  """0, -1, 1, -2, 2, ... to 0, 1, 2, 3, 4, ... as uint64."""
  wide = symbols.astype(np.int64)
  return ((wide << 1) ^ (wide >> 63)).astype(np.uint64)


def _unzigzag(mapped: np.ndarray) -> np.ndarray:
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
  """Bits of each mapped integer's code word, int64."""
  shifted = (mapped + np.uint64(1 << order)).astype(np.float64)
  return 2 * np.frexp(shifted)[1].astype(np.int64) - 1 - order
