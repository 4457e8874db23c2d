"""What a file stores once: equal tensors, and equal rows of a matrix.

Tensors and rows are compared by what is stored: their integers if they are
quantized, else their bytes. A few columns are compared first, so a tensor
without equal rows costs little. Nothing in this module is needed to decode.
"""

import json
import zlib

import numpy as np

from backslash_jax import sampling
from backslash_jax.archive import index, quantizing, schema
from backslash_jax.archive.index import Entry, Repeats
from backslash_jax.coding import coders, exact

_SMALLEST = 64  # Bytes of a tensor that may be worth a reference.
_SAMPLE = 256  # Elements of a tensor that are compared first.
_COLUMNS = 64  # Columns of a matrix that are compared first.
_FEW = 1 << 16  # Elements of a matrix that tell its entropy,
_LARGE = 255  # with all larger magnitudes taken together.


def equal_tensors(
  leaves: list, entries: list[Entry], *, by_bytes: bool
) -> list[int | None]:
  """For each tensor the number of the first one that is equal to it, or None.

  Very small tensors, and those of one symbol or value, are left out: they cost
  less than a reference.

  Args:
    leaves: the tensors.
    entries: theirs.
    by_bytes: whether only tensors of equal bytes are equal, because the symbol
      of a value depends on all values of its chunk, as with mu.
  """
  found: list[int | None] = [None] * len(entries)
  alike: dict[tuple, list[int]] = {}
  for i, entry in enumerate(entries):
    if entry.nbytes < _SMALLEST:
      continue
    flat = _flat(leaves[i])
    sample = flat[sampling.strata(flat.size, _SAMPLE)]
    content = _content(entry, sample, by_bytes)
    if content == content[: len(content) // sample.size] * sample.size:
      if _is_constant(entry, flat, by_bytes):
        continue
    others = alike.setdefault(
      (entry.dtype, entry.stored_dtype, entry.shape, entry.step, content), []
    )
    for j in others:
      if _are_equal(entry, flat, _flat(leaves[j]), by_bytes):
        found[i] = j
        break
    else:
      others.append(i)
  return found


def equal_rows(
  leaf, entry: Entry, mu: float, *, trellis: bool = False
) -> Repeats | None:
  """The rows of a tensor's matrix that are better not stored; None if none are.

  Args:
    leaf: the tensor.
    entry: its entry.
    mu: as for quantizing.symbols.
    trellis: whether a trellis will quantize the tensor. Its rows are then equal
      if their values are.
  """
  rows, columns = entry.matrix
  weight = columns * (entry.dtype.itemsize if entry.step is None else 1)
  is_large = rows * weight > index.CHUNK
  depend = entry.step is not None and (trellis or mu > 0)
  if min(rows, columns) < 2 or (depend and is_large):
    return None  # The symbols depend on the other rows of the chunk.
  matrix = np.asarray(leaf).reshape(rows, columns)
  compared = entry._replace(step=None) if trellis else entry
  sample = matrix[:, sampling.strata(columns, _COLUMNS)]
  keys = _hashes(_integers(compared, sample))
  _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
  likely = np.flatnonzero(counts[place] > 1)
  if not likely.size:
    return None
  if depend and not trellis:
    matrix = whole_symbols(leaf, entry, mu).reshape(matrix.shape)
    compared = entry = entry._replace(step=None)
  _, first, place = np.unique(
    _hashes_of(compared, matrix, likely), return_index=True, return_inverse=True
  )
  sources = likely[first[place]]
  repeated = _verified(compared, matrix, likely, sources)
  rows_, sources = likely[repeated], sources[repeated]
  if not rows_.size:
    return None
  stored = np.delete(np.arange(rows), rows_)
  repeats = Repeats(rows_, np.searchsorted(stored, sources))
  return repeats if _pays(entry, matrix, repeats, stored) else None


def whole_symbols(leaf, entry: Entry, mu: float) -> np.ndarray:
  """The symbols of a whole tensor, in its own shape.

  They do not depend on the view of the tensor as a matrix, and are those of
  quantize.apply.
  """
  return quantizing.symbols(entry, np.asarray(leaf), mu)


def _flat(leaf) -> np.ndarray:
  return np.asarray(leaf).reshape(-1)


def _integers(entry: Entry, array: np.ndarray) -> np.ndarray:
  """What is compared, as integers of the shape of `array`."""
  if entry.step is not None:
    return quantizing.symbols(entry, array)
  if array.dtype.itemsize > 8:
    wide = np.ascontiguousarray(array).view(np.uint64)
    return wide.reshape(array.shape[0], -1)
  return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _content(entry: Entry, values: np.ndarray, by_bytes: bool) -> bytes:
  if by_bytes:
    entry = entry._replace(step=None)
  return _integers(entry, values).tobytes()


def _are_equal(
  entry: Entry, a: np.ndarray, b: np.ndarray, by_bytes: bool
) -> bool:
  return all(
    _content(entry, a[start : start + quantizing.BLOCK], by_bytes)
    == _content(entry, b[start : start + quantizing.BLOCK], by_bytes)
    for start in range(0, a.size, quantizing.BLOCK)
  )


def _is_constant(entry: Entry, flat: np.ndarray, by_bytes: bool) -> bool:
  first = _content(entry, flat[:1], by_bytes)
  return all(
    _content(entry, block, by_bytes) == first * block.size
    for start in range(0, flat.size, quantizing.BLOCK)
    for block in [flat[start : start + quantizing.BLOCK]]
  )


def _hashes(integers: np.ndarray) -> np.ndarray:
  """A number for each row, uint64; equal rows have equal numbers."""
  factors = np.arange(1, integers.shape[1] + 1, dtype=np.uint64)
  factors *= np.uint64(0x9E3779B97F4A7C15)
  factors ^= factors >> np.uint64(29)
  factors |= np.uint64(1)
  return (integers.astype(np.uint64) * factors).sum(1, dtype=np.uint64)


def _hashes_of(entry: Entry, matrix: np.ndarray, rows: np.ndarray):
  return np.concatenate(
    [_hashes(_integers(entry, matrix[own])) for own in _blocks(matrix, rows)]
  )


def _verified(entry: Entry, matrix, rows, sources) -> np.ndarray:
  """Whether each row is later than its source and equal to it."""
  pairs = zip(_blocks(matrix, rows), _blocks(matrix, sources), strict=True)
  return np.concatenate(
    [
      (own > source)
      & (_integers(entry, matrix[own]) == _integers(entry, matrix[source])).all(
        1
      )
      for own, source in pairs
    ]
  )


def _blocks(matrix: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
  """Row numbers in groups that are converted at once."""
  step = max(quantizing.BLOCK // matrix.shape[1], 1)
  return [rows[start : start + step] for start in range(0, rows.size, step)]


def _pays(entry: Entry, matrix: np.ndarray, repeats: Repeats, stored) -> bool:
  """Whether the rows take more bits than the numbers of the rows.

  Of a large matrix, the bits are those of a sample of its rows, scaled.
  """
  text = json.dumps(schema.repeats_to_json(repeats), separators=(",", ":"))
  price = 8 * len(zlib.compress(text.encode(), 9)) + 64
  rows, columns = matrix.shape
  if _entropy(entry, matrix, repeats.rows) < price:
    return False
  taken = sampling.strata(rows, max(index.CHUNK // 2 // columns, 1))
  fewer = np.intersect1d(taken, stored, assume_unique=True)
  saved = _bits(entry, matrix[taken]) - _bits(entry, matrix[fewer])
  return saved * rows > price * taken.size


def _entropy(entry: Entry, matrix: np.ndarray, rows: np.ndarray) -> float:
  """About the bits of some rows, from a sample.

  Their entropy under the histogram of all rows, or under their own, with a
  class for each row, if that is less. Exact elements have all their bits.
  """
  if entry.coder == index.EXACT:
    return 8.0 * rows.size * matrix[0].nbytes

  def symbols(own):
    own = own[sampling.strata(own.size, max(_FEW // matrix.shape[1], 1))]
    found = matrix[own]
    if entry.step is not None:
      found = quantizing.symbols(entry, found)
    return np.minimum(np.abs(found.astype(np.int64)), _LARGE)

  everything = symbols(np.arange(matrix.shape[0]))
  counts = np.bincount(everything.ravel(), minlength=_LARGE + 1) + 0.5
  own = np.bincount(symbols(rows).ravel(), minlength=_LARGE + 1)
  scale = rows.size * matrix.shape[1] / own.sum()
  together = own @ np.log2(counts.sum() / counts)
  apart = own @ np.log2(own.sum() / np.maximum(own, 1)) + own[1:].sum()
  return float(min(scale * together, scale * apart + 4 * rows.size))


def _bits(entry: Entry, rows: np.ndarray) -> float:
  """Bits of rows that are coded on their own."""
  if entry.coder == index.EXACT:
    return 8.0 * len(exact.encode([rows])[0])
  found = rows
  if entry.step is not None:
    found = quantizing.symbols(entry, rows)
  model = coders.fit(entry.coder, found)
  return coders.encode(entry.coder, [(found, model)])[1][0]
