"""Canonical Huffman codes with words of at most 15 bits.

The code words of every run of RUN symbols start at a known bit, so that NumPy
decodes all runs at once. The bytes: for each run but the last, its bits as a
little-endian uint32; the code words, each from its most significant bit (see
`bits`); if there are escapes, their exp-Golomb code.
"""

from typing import NamedTuple

import numpy as np

from backslash_jax.coding import bits, exp_golomb

LIMIT = 15
LARGEST = 2047  # Larger magnitudes are escaped.
RUN = 4096
_ESCAPE = LARGEST + 1


class Model(NamedTuple):
  """Code word lengths, one per integer from `lowest` on.

  Attributes:
    lowest: the first symbol.
    lengths: bits of each code word, 1 to LIMIT; 0 for a symbol without one.
    escape: whether the last length is that of the escape, which stands for all
      symbols without a code word.
  """

  lowest: int
  lengths: tuple[int, ...]
  escape: bool = False


def fit(symbols: np.ndarray, counts: np.ndarray | None = None) -> Model:
  """The code of fewest bits for int32 `symbols` of any shape.

  Args:
    symbols: the symbols.
    counts: how often each occurs, int64 of the same shape; None: once.
  """
  has_word = (symbols >= -LARGEST) & (symbols <= LARGEST)
  inside = symbols[has_word]
  low = int(inside.min(initial=LARGEST)) if inside.size else 0
  places = (inside.ravel() - low).astype(np.intp)
  escape = inside.size < symbols.size
  if counts is None:
    found = np.bincount(places)
    beyond = symbols.size - inside.size
  else:
    found = np.zeros(places.max(initial=-1) + 1, np.int64)
    np.add.at(found, places, counts[has_word])
    beyond = int(counts[~has_word].sum())
  if escape:
    found = np.append(found, beyond)
  return Model(low, tuple(_lengths(found).tolist()), escape)


def check(model: Model) -> Model:
  """Returns the model; ValueError if its lengths are not a prefix code."""
  lowest, lengths, escape = model
  ok = (
    len(lengths) <= 2 * LARGEST + 2
    and abs(lowest) <= LARGEST
    and lowest + len(lengths) - escape <= LARGEST + 1
    and all(0 <= length <= LIMIT for length in lengths)
  )
  if not ok or sum(0.5**length for length in lengths if length) > 1:
    raise ValueError("the code word lengths are no prefix code")
  return model


def encode(symbols: np.ndarray, model: Model) -> bytes:
  """Encodes int32 `symbols`; ValueError if one has no code word."""
  flat = symbols.ravel()
  place, outside = _places(flat, model)
  widths = np.array(model.lengths, np.int64)[place]
  body = bits.pack(_codes(model)[place], widths)
  runs = (
    np.add.reduceat(widths, np.arange(0, flat.size, RUN)) if flat.size else []
  )
  beyond, _ = exp_golomb.encode_escapes(flat[outside])
  return np.array(runs[:-1], "<u4").tobytes() + body + beyond


def decode(data: bytes | memoryview, model: Model, size: int) -> np.ndarray:
  """Decodes int32 [size]; ValueError if `data` is not the code of so many."""
  if size == 0:
    return _finish(np.empty(0, np.int32), data)
  runs = -(-size // RUN)
  head = 4 * (runs - 1)
  if len(data) < head:
    raise ValueError("the lengths of the runs are cut off")
  octets = np.frombuffer(data, np.uint8)
  starts = np.concatenate(
    [[0], np.cumsum(octets[:head].view("<u4"), dtype=np.int64)]
  )
  symbols, stops = _decode_runs(octets[head:], starts, model, size)
  if (stops[:-1] != starts[1:]).any():
    raise ValueError("a run does not end where the next begins")
  used = head + (int(stops[-1]) + 7) // 8
  if used > len(data):
    raise ValueError("the code words are cut off")
  return _finish(symbols, memoryview(data)[used:])


def code_length(symbols: np.ndarray, model: Model) -> int:
  """Bits of the code words and the escapes, without run lengths and padding."""
  flat = symbols.ravel()
  place, outside = _places(flat, model)
  total = int(np.array(model.lengths, np.int64)[place].sum())
  if outside.any():
    total += exp_golomb.code_length(
      flat[outside], exp_golomb.fit(flat[outside])
    )
  return total


def _lengths(counts: np.ndarray) -> np.ndarray:
  """The best lengths of at most LIMIT bits, by package-merge."""
  lengths = np.zeros(counts.size, np.int64)
  used = np.flatnonzero(counts)
  if used.size < 2:
    lengths[used] = 1
    return lengths
  order = used[np.argsort(counts[used], kind="stable")]
  leaves = counts[order]
  merged, leaf_first = [], leaves[:0]
  for _ in range(LIMIT):
    packages = leaf_first[: leaf_first.size // 2 * 2].reshape(-1, 2).sum(1)
    weights = np.concatenate([leaves, packages])
    by_weight = np.argsort(weights, kind="stable")
    merged.append(by_weight < leaves.size)
    leaf_first = weights[by_weight]
  taken = 2 * leaves.size - 2
  for is_leaf in reversed(merged):
    own = np.count_nonzero(is_leaf[:taken])
    lengths[order[:own]] += 1
    taken = 2 * (taken - own)
  return lengths


def _codes(model: Model) -> np.ndarray:
  """The canonical code words as uint64, the most significant bit lowest."""
  codes = np.zeros(len(model.lengths), np.uint64)
  code, last = 0, 0
  for length, place in sorted((n, i) for i, n in enumerate(model.lengths) if n):
    code <<= length - last
    codes[place] = int(f"{code:0{length}b}"[::-1], 2)
    code, last = code + 1, length
  return codes


def _places(flat: np.ndarray, model: Model):
  """The index of each symbol's code word, and whether it is escaped."""
  lengths = np.array(model.lengths, np.int64)
  plain = lengths.size - model.escape
  wide = flat.astype(np.int64) - model.lowest
  outside = (wide < 0) | (wide >= plain)
  place = np.where(outside, plain, wide)
  if model.escape:
    outside |= lengths[place] == 0
    place[outside] = plain
  elif outside.any() or (lengths[place] == 0).any():
    raise ValueError("a symbol that the code lacks")
  return place, outside


def _decode_runs(octets, starts, model: Model, size: int):
  """The symbols, _ESCAPE for escapes, and the bit where each run ends."""
  table = np.zeros(1 << LIMIT, np.uint32)
  for place, code in enumerate(_codes(model).tolist()):
    length = model.lengths[place]
    if length:
      escaped = model.escape and place == len(model.lengths) - 1
      symbol = _ESCAPE if escaped else model.lowest + place
      table[code :: 1 << length] = (symbol + LARGEST) << 4 | length
  words = np.zeros(octets.size // 4 + 3, "<u4")
  words.view(np.uint8)[: octets.size] = octets
  windows = words[:-1].astype(np.uint64) | (words[1:].astype(np.uint64) << 32)
  out = np.empty((RUN, starts.size), np.int32)
  position = np.minimum(starts, 8 * octets.size)
  last = size - (starts.size - 1) * RUN
  for row in range(min(RUN, size)):
    n = starts.size if row < last else starts.size - 1
    here = position[:n]
    found = windows.take(here >> 5, mode="clip") >> (here & 31).astype(
      np.uint64
    )
    entry = table.take((found & np.uint64(table.size - 1)).astype(np.intp))
    if not entry.all():
      raise ValueError("bits that are no code word")
    out[row, :n] = (entry >> 4).astype(np.int32) - LARGEST
    here += (entry & 15).astype(np.int64)
  return out.T.ravel()[:size], position


def _finish(symbols: np.ndarray, data: bytes | memoryview) -> np.ndarray:
  """Puts the escaped symbols in their places."""
  places = np.flatnonzero(symbols == _ESCAPE)
  symbols[places] = exp_golomb.decode_escapes(data, places.size)
  return symbols
