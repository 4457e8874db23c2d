"""Encodes tensors into chunks, several chunks at once.

Beside the tensors, a few chunks per worker are in memory, whatever the size of
the model.
"""

from collections.abc import Iterator

import numpy as np

from backslash_jax import sampling
from backslash_jax.archive import (
  index,
  parallel,
  quantizing,
  reported,
  sharing,
  views,
)
from backslash_jax.archive.index import Entry, Part
from backslash_jax.archive.quantizing import Distortion
from backslash_jax.coding import coders, exact, fit_trellis, trellis
from backslash_jax.quantize import viterbi

_SAMPLE = 1 << 15  # Elements from which the size of an exact tensor is known.


class Encoder:
  """Fits the models of `entries` and encodes the leaves into chunks.

  Args:
    leaves: the arrays.
    entries: one per leaf, without models.
    mu: squared error in step^2 accepted per bit saved, see
      quantize.rate_distortion.
    use_trellis: whether a trellis quantizes the tensors that suit it.
  """

  def __init__(
    self, leaves: list, entries: list[Entry], mu: float, use_trellis: bool
  ):
    self._leaves = leaves
    self._mu = mu
    self._trellis = [
      use_trellis
      and entry.step is not None
      and entry.base is None
      and viterbi.suits(leaf, entry.step)
      for entry, leaf in zip(entries, leaves, strict=True)
    ]
    self._bits = [0.0] * len(entries)
    self._distortions = [Distortion()] * len(entries)
    self._entries = list(entries)
    try:
      by_bytes = mu > 0 or use_trellis
      same = sharing.equal_tensors(leaves, entries, by_bytes=by_bytes)
      for i, j in enumerate(same):
        self._entries[i] = self._entries[i]._replace(same=j)
      self._entries = list(
        parallel.in_order(self._viewed, range(len(self._entries)))
      )
    except ValueError:
      # A sample has a value that cannot be coded: say how many the tensor has.
      for leaf, entry in zip(leaves, entries, strict=True):
        if entry.step is not None:
          quantizing.symbols(entry, np.asarray(leaf))
      raise

  def chunks(self) -> Iterator[tuple[list[Part], bytes]]:
    """The parts and the bytes of each chunk, in the file's order."""
    for parts, data, bits, found in parallel.in_order(
      self._encode, self._tasks()
    ):
      for part, length, own in zip(parts, bits, found, strict=True):
        self._bits[part.tensor] += length
        self._distortions[part.tensor] |= own
      yield parts, data

  def entries(self) -> list[Entry]:
    """The entries with models and bits; complete after the last chunk."""
    done = []
    for entry, bits in zip(self._entries, self._bits, strict=True):
      entry = entry._replace(bits=round(bits))
      if entry.same is not None:
        source = done[entry.same]
        entry = entry._replace(
          reported_nu=source.reported_nu, reported_alpha=source.reported_alpha
        )
      done.append(entry)
    return done

  def parameters(self, parts: list[Part]) -> int:
    """The number of parameters in the parts of a chunk."""
    return index.parameters(self._entries, parts)

  def distortion(self, i: int) -> Distortion:
    """That of tensor i; complete after the last chunk."""
    entry = self._entries[i]
    if entry.same is None or entry.step is None:
      return self._distortions[i]
    if self._mu or self._trellis[i]:  # Its values are the other tensor's.
      return self._distortions[entry.same]
    found, flat = Distortion(), np.asarray(self._leaves[i]).reshape(-1)
    for start in range(0, flat.size, quantizing.BLOCK):
      block = flat[start : start + quantizing.BLOCK]
      own = quantizing.symbols(entry, block)
      found |= quantizing.distortion(block, own, entry.step)
    return found

  def is_larger(self, i: int) -> bool:
    """Whether the code of tensor i is larger than the exact tensor.

    To be asked after the last chunk. The exact size of a tensor of more than
    2**15 elements is that of a sample of its rows, scaled.
    """
    entry = self._entries[i]
    if entry.same is not None:
      return self.is_larger(entry.same)
    if entry.step is None or not entry.size:
      return False
    rows, columns = entry.stored
    # An exact code of less than a bit per byte is not looked for.
    if self._bits[i] <= rows * columns * entry.dtype.itemsize:
      return False
    wanted = sampling.strata(rows, max(_SAMPLE // columns, 1))
    sample = self._rows(i, wanted)
    size = exact.code_length(sample) * rows * columns / sample.size
    return self._bits[i] > size

  def _viewed(self, i: int) -> Entry:
    """The entry of tensor i with its view and its repeated rows."""
    entry, leaf = self._entries[i], self._leaves[i]
    if entry.same is not None:
      return entry
    entry = entry._replace(axes=views.best_axes(leaf, entry))
    repeats = sharing.equal_rows(
      leaf, entry, self._mu, trellis=self._trellis[i]
    )
    return entry._replace(repeats=repeats)

  def _tasks(self) -> Iterator[list[Part]]:
    for i, entry in enumerate(self._entries):
      if entry.step is not None and not entry.size:
        self._fit(i, np.zeros((0, 1)), np.zeros((0, 1), np.int32))
    for parts in index.plan(self._entries):
      i, start, stop = parts[0]
      entry = self._entries[i]
      if start == 0 and stop < entry.stored[0] and entry.step is not None:
        self._fit_large(i, stop)
      yield parts

  def _fit_large(self, i: int, count: int) -> None:
    """Sets the one model of a tensor of several chunks.

    That of rANS is fitted to a sample of `count` rows, since it can code any
    symbols. The other coders' models are fitted to all symbols, since they can
    code no others.
    """
    entry = self._entries[i]
    rows = entry.stored[0]
    sample = entry.coder == "rans" and not self._constant(i)
    array = self._rows(i, sampling.strata(rows, count if sample else rows))
    self._fit(i, array, self._symbols(i, array), sample)
    if entry.repeats is not None:
      left_out = self._matrix(i)[entry.repeats.rows]
      own = quantizing.symbols(entry, left_out)
      self._distortions[i] |= quantizing.distortion(left_out, own, entry.step)

  def _encode(self, parts: list[Part]):
    first = self._entries[parts[0].tensor]
    if first.step is None:
      arrays = [self._rows(i, slice(a, b)) for i, a, b in parts]
      return parts, *exact.encode(arrays), [Distortion()] * len(parts)
    pieces, found = [], []
    for i, start, stop in parts:
      entry = self._entries[i]
      is_whole = (start, stop) == (0, entry.stored[0])
      if self._trellis[i]:
        array = self._rows(i, slice(start, stop))
        levels = self._symbols(i, array)
        if is_whole:
          self._fit(i, self._matrix(i), levels)
        found.append(self._trellis_distortion(i, array, levels))
      elif is_whole:
        leaf = np.asarray(self._leaves[i])
        levels = sharing.whole_symbols(leaf, entry, self._mu)
        found.append(quantizing.distortion(leaf, levels, entry.step))
        levels = levels.reshape(entry.matrix)
        if entry.repeats is not None:
          levels = levels[entry.repeats.stored(entry.matrix[0])]
        self._fit(i, self._matrix(i), levels)
      else:
        array = self._rows(i, slice(start, stop))
        levels = self._symbols(i, array)
        found.append(quantizing.distortion(array, levels, entry.step))
      pieces.append((levels, self._entries[i].model))
    return parts, *coders.encode(first.coder, pieces), found

  def _symbols(self, i: int, array: np.ndarray) -> np.ndarray:
    """The symbols of an array of rows of tensor i."""
    own = quantizing.trellis_symbols if self._trellis[i] else quantizing.symbols
    return own(self._entries[i], array, self._mu)

  def _trellis_distortion(self, i: int, array, symbols) -> Distortion:
    """That of the rows of tensor i in a part, and of those repeated."""
    entry, levels = self._entries[i], trellis.levels(symbols)
    assert entry.step is not None
    if entry.repeats is not None:
      array = self._matrix(i)
      levels = levels[entry.repeats.places(array.shape[0])]
    found = quantizing.distortion(array, levels, entry.step / 2)
    return found._replace(error=found.error / 4, power=found.power / 4)

  def _matrix(self, i: int) -> np.ndarray:
    return np.asarray(self._leaves[i]).reshape(self._entries[i].matrix)

  def _rows(self, i: int, wanted) -> np.ndarray:
    """Some of the stored rows of tensor i, by their numbers."""
    repeats, matrix = self._entries[i].repeats, self._matrix(i)
    if repeats is None:
      return matrix[wanted]
    return matrix[repeats.stored(matrix.shape[0])[wanted]]

  def _constant(self, i: int) -> bool:
    """Whether all values of a tensor are equal."""
    matrix = self._matrix(i)
    first = matrix[0, 0]
    rows = max(quantizing.BLOCK // matrix.shape[1], 1)
    return all(
      (matrix[start : start + rows] == first).all()
      for start in range(0, matrix.shape[0], rows)
    )

  def _fit(
    self, i: int, array: np.ndarray, levels: np.ndarray, sample: bool = False
  ) -> None:
    """Sets the model of tensor i from its values and symbols, or a sample."""
    entry = self._entries[i]
    if self._trellis[i]:
      model = fit_trellis.fit_trellis(levels, sample=sample)
    else:
      model = coders.fit(entry.coder, levels, sample=sample)
    nu, alpha = reported.shape_and_scale(array)
    self._entries[i] = entry._replace(
      model=model, reported_nu=nu, reported_alpha=alpha
    )
