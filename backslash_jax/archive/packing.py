"""Encodes tensors into chunks and decodes them, several chunks at once.

Beside the tensors, a few chunks per worker are in memory, whatever the size of
the model.
"""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from backslash_jax import quantize, sampling
from backslash_jax.archive import container, index, reported
from backslash_jax.archive.index import Entry, Part
from backslash_jax.coding import coders, exact, loops
from backslash_jax.coding.piece import Piece

_BLOCK = 1 << 16  # Elements converted at once, to stay in cache.
_SAMPLE = 1 << 15  # Elements from which the size of an exact tensor is known.


class Distortion(NamedTuple):
  """What quantizing did to a tensor.

  Attributes:
    error: sum of the squared errors, in step^2.
    power: sum of the squared values, in step^2.
    nonzero: whether a value that comes back is not zero.
  """

  error: float = 0.0
  power: float = 0.0
  nonzero: bool = False

  @property
  def relative(self) -> float:
    """rms of the error / rms of the values; 0 if all values are zero."""
    return (self.error / self.power) ** 0.5 if self.power else 0.0

  @property
  def erased(self) -> bool:
    """Whether values that were not all zero are all zero now."""
    return self.power > 0 and not self.nonzero


class Encoder:
  """Fits the models of `entries` and encodes the leaves into chunks.

  Args:
    leaves: the arrays.
    entries: one per leaf, without models.
    mu: squared error in step^2 accepted per bit saved, see
      quantize.rate_distortion.
  """

  def __init__(self, leaves: list, entries: list[Entry], mu: float):
    self._leaves = leaves
    self._mu = mu
    self._entries = list(entries)
    self._bits = [0.0] * len(entries)
    # Of each tensor; complete after the last chunk.
    self.distortions = [Distortion()] * len(entries)

  def chunks(self) -> Iterator[tuple[list[Part], bytes]]:
    """The parts and the bytes of each chunk, in the file's order."""
    for parts, data, bits, found in in_order(self._encode, self._tasks()):
      for part, length, own in zip(parts, bits, found, strict=True):
        self._bits[part.tensor] += length
        sums = zip(self.distortions[part.tensor], own, strict=True)
        self.distortions[part.tensor] = Distortion(*(a + b for a, b in sums))
      yield parts, data

  def entries(self) -> list[Entry]:
    """The entries with models and bits; complete after the last chunk."""
    return [
      entry._replace(bits=round(bits))
      for entry, bits in zip(self._entries, self._bits, strict=True)
    ]

  def is_larger(self, i: int) -> bool:
    """Whether the code of tensor i is larger than the exact tensor.

    To be asked after the last chunk. The exact size of a tensor of more than
    2**15 elements is that of a sample of its rows, scaled.
    """
    entry = self._entries[i]
    # Huffman codes, as those of `exact`, take at least a bit per byte.
    if entry.step is None or self._bits[i] <= entry.nbytes:
      return False
    rows, columns = entry.matrix
    wanted = sampling.strata(rows, max(_SAMPLE // columns, 1))
    sample = self._matrix(i)[wanted]
    size = 8 * len(exact.encode([sample])) * entry.size / sample.size
    return self._bits[i] > size

  def _tasks(self) -> Iterator[list[Part]]:
    for i, entry in enumerate(self._entries):
      if entry.step is not None and not entry.size:
        self._fit(i, np.zeros((0, 1)))
    for parts in index.plan(self._entries):
      i, start, stop = parts[0]
      rows = self._entries[i].matrix[0]
      if start == 0 and stop < rows and self._entries[i].step is not None:
        # A tensor of several chunks has one model. That of rANS is fitted to a
        # sample of its rows, since it can code any symbols. The other coders'
        # models are fitted to all symbols, since they can code no others.
        sample = self._entries[i].coder == "rans" and not self._constant(i)
        matrix = self._matrix(i)
        if sample:
          matrix = matrix[sampling.strata(rows, stop)]
        self._fit(i, matrix, sample)
      yield parts

  def _encode(self, parts: list[Part]):
    arrays = [self._matrix(i)[start:stop] for i, start, stop in parts]
    first = self._entries[parts[0].tensor]
    if first.step is None:
      sizes = [8.0 * array.nbytes for array in arrays]
      return parts, exact.encode(arrays), sizes, [Distortion()] * len(parts)
    pieces, found = [], []
    for (i, start, stop), array in zip(parts, arrays, strict=True):
      whole = (start, stop) == (0, self._entries[i].matrix[0])
      symbols = self._fit(i, array) if whole else self._symbols(i, array)
      pieces.append((symbols, self._entries[i].model))
      found.append(_distortion(array, symbols, self._entries[i].step))
    return parts, *coders.encode(first.coder, pieces), found

  def _matrix(self, i: int) -> np.ndarray:
    return np.asarray(self._leaves[i]).reshape(self._entries[i].matrix)

  def _symbols(self, i: int, array: np.ndarray) -> np.ndarray:
    name, step = self._entries[i].name, self._entries[i].step
    assert step is not None
    try:
      if self._mu:
        return quantize.rate_distortion(array, step, self._mu)
      return quantize.quantize(array, step)
    except ValueError as error:
      raise ValueError(f"tensor {name!r}: {error}") from None

  def _constant(self, i: int) -> bool:
    """Whether all values of a tensor are equal."""
    matrix = self._matrix(i)
    first = matrix[0, 0]
    rows = max(_BLOCK // matrix.shape[1], 1)
    return all(
      (matrix[start : start + rows] == first).all()
      for start in range(0, matrix.shape[0], rows)
    )

  def _fit(self, i: int, array: np.ndarray, sample: bool = False) -> np.ndarray:
    """Sets the model of tensor i, and returns the symbols it was fitted to."""
    entry = self._entries[i]
    symbols = self._symbols(i, array)
    model = coders.fit(entry.coder, symbols, sample=sample)
    nu, alpha = reported.shape_and_scale(array)
    self._entries[i] = entry._replace(
      model=model, reported_nu=nu, reported_alpha=alpha
    )
    return symbols


class Decoder:
  """Decodes tensors from the chunks of a file.

  Args:
    reader: of the file.
    entries: its tensors.
    rows: from an entry to the (start, stop) rows of its matrix that are wanted,
      None for no rows. All other rows of its array are undefined.
  """

  def __init__(
    self,
    reader: container.Reader,
    entries: list[Entry],
    rows: Callable[[Entry], tuple[int, int] | None],
  ):
    self._reader = reader
    self._entries = entries
    self._rows = [rows(entry) for entry in entries]
    self._arrays: dict[int, np.ndarray] = {}

  def run(
    self, chunks: list[tuple[int, int, int]]
  ) -> Iterator[tuple[list[Part], list[tuple[Entry, np.ndarray]]]]:
    """Yields the parts of each chunk and the tensors that it completes.

    Tensors without elements come first, with no parts.

    Args:
      chunks: (offset, size, checksum) of each chunk.

    Raises:
      ArchiveError: if a chunk is damaged.
    """
    plan = zip(index.plan(self._entries), chunks, strict=True)
    tasks = [
      (parts, chunk) for parts, chunk in plan if any(map(self._wanted, parts))
    ]
    missing = collections.Counter(
      part.tensor for parts, _ in tasks for part in parts if self._wanted(part)
    )
    yield (
      [],
      [
        (entry, np.empty(entry.shape, entry.dtype))
        for entry, rows in zip(self._entries, self._rows, strict=True)
        if entry.size == 0 and rows is not None
      ],
    )
    for batch in self._batches(tasks):
      for parts in in_order(self._decode, self._allocating(batch)):
        complete = []
        for i in (part.tensor for part in parts if self._wanted(part)):
          missing[i] -= 1
          if not missing[i]:
            entry = self._entries[i]
            complete.append((entry, self._arrays.pop(i).reshape(entry.shape)))
        yield parts, complete

  def _batches(self, tasks) -> Iterator[list]:
    """Groups tasks whose tensors may be in memory together.

    The tensors of a batch are together no larger than the largest tensor of the
    file, or than the workers need to be busy.
    """
    tensors: set[int] = set()
    room = max((entry.nbytes for entry in self._entries), default=0)
    room = max(room, 4 * index.CHUNK * _workers())
    batch = []
    for parts, chunk in tasks:
      new = {part.tensor for part in parts if self._wanted(part)} - tensors
      if batch and new:
        held = sum(self._entries[i].nbytes for i in tensors | new)
        if held > room:
          yield batch
          batch, tensors = [], set()
      tensors |= new
      batch.append((parts, chunk))
    yield batch

  def _allocating(self, tasks) -> Iterator:
    """Yields the tasks; allocates a tensor's array at its first task."""
    for parts, chunk in tasks:
      for part in filter(self._wanted, parts):
        if part.tensor not in self._arrays:
          entry = self._entries[part.tensor]
          try:
            self._arrays[part.tensor] = np.empty(entry.size, entry.dtype)
          except MemoryError:
            raise self._reader.error(
              f"tensor {entry.name!r} of shape {entry.shape} does not fit into "
              "memory"
            ) from None
      yield parts, chunk

  def _wanted(self, part: Part) -> bool:
    span = self._rows[part.tensor]
    if span is None:
      return False
    start, stop = span
    return max(start, part.start) < min(stop, part.stop)

  def _decode(self, task) -> list[Part]:
    parts, chunk = task
    entries = [self._entries[part.tensor] for part in parts]
    try:
      data = self._reader.chunk(*chunk)
      if entries[0].step is None:
        found = exact.decode(
          data,
          [
            (e.matrix[1] * (stop - start), e.dtype)
            for e, (_, start, stop) in zip(entries, parts, strict=True)
          ],
        )
      else:
        pieces = [
          Piece((stop - start, e.matrix[1]), e.model)
          for e, (_, start, stop) in zip(entries, parts, strict=True)
        ]
        found = coders.decode(entries[0].coder, data, pieces)
      for part, values in zip(parts, found, strict=True):
        if self._wanted(part):
          self._store(part, values)
    except (ValueError, ArithmeticError, LookupError, MemoryError) as error:
      names = ", ".join(repr(e.name) for e in entries[:3])
      raise self._reader.error(f"chunk of {names}: {error}") from None
    return parts

  def _store(self, part: Part, values: np.ndarray) -> None:
    entry = self._entries[part.tensor]
    columns = entry.matrix[1]
    array = self._arrays[part.tensor]
    out = array[part.start * columns : part.stop * columns]
    if entry.step is None:
      out[:] = values
      return
    for start in range(0, values.size, _BLOCK):
      block = values[start : start + _BLOCK]
      out[start : start + block.size] = quantize.dequantize(
        block, entry.step, entry.dtype
      )


def _distortion(array: np.ndarray, symbols: np.ndarray, step) -> Distortion:
  """What dequantized symbols differ by from the array they stand for.

  In units of the step, so that no square overflows.
  """
  values, levels = array.reshape(-1), symbols.reshape(-1)
  error, power, nonzero = 0.0, 0.0, False
  for start in range(0, values.size, _BLOCK):
    block = slice(start, start + _BLOCK)
    y = quantize.dequantize(levels[block], step, array.dtype)
    nonzero = nonzero or bool(y.any())
    x = np.divide(values[block], step, dtype=np.float64)
    power += _squares(x)
    x -= np.divide(y, step, dtype=np.float64)
    error += _squares(x)
  return Distortion(error, power, nonzero)


def _squares(x: np.ndarray) -> float:
  """The sum of squares, without the threads of BLAS: there are enough here."""
  return float(np.einsum("i,i->", x, x))


def in_order(function: Callable, tasks: Iterable) -> Iterator:
  """Yields function(task) for each task in order, computed a few ahead."""
  workers = _workers()
  if workers == 1:
    yield from map(function, tasks)
    return
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
      for task in tasks:
        pending.append(pool.submit(function, task))
        if len(pending) > workers:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      for future in pending:
        future.cancel()


def _workers() -> int:
  """Number of threads; NumPy alone holds the interpreter's lock too often."""
  return min(os.cpu_count() or 1, 8) if loops.compiled() else 1
