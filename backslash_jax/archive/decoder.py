"""Decodes the chunks of a file into tensors, several chunks at once.

Beside the tensors, a few chunks per worker are in memory, whatever the size of
the model.
"""

import collections
import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

from backslash_jax import quantize
from backslash_jax.archive import container, index, parallel, quantizing
from backslash_jax.archive.index import Entry, Part, Repeats
from backslash_jax.coding import coders, exact, models
from backslash_jax.coding.piece import Piece


class Decoder:
  """Decodes tensors from the chunks of a file.

  Args:
    reader: of the file.
    entries: its tensors.
    rows: from an entry to the (start, stop) rows of its matrix that are wanted,
      None for no rows. All other rows of its array are undefined. Of an entry
      with a base, the array is the difference, see `differences.add`.
    levels: whether the array of an entry is that of its int32 levels, multiples
      of its unit, in place of the values.
  """

  def __init__(
    self,
    reader: container.Reader,
    entries: list[Entry],
    rows: Callable[[Entry], tuple[int, int] | None],
    levels: Callable[[Entry], bool] = lambda entry: False,
  ):
    self._levels = levels
    self._reader = reader
    self._entries = entries
    wanted = [rows(entry) for entry in entries]
    # The tensors that come out of the stored one, by the number of that.
    self._users: dict[int, list[int]] = collections.defaultdict(list)
    for i, (entry, span) in enumerate(zip(entries, wanted, strict=True)):
      if span is not None:
        self._users[i if entry.same is None else entry.same].append(i)
    self._rows = {
      i: self._stored_rows(i, [wanted[user] for user in users])
      for i, users in self._users.items()
    }
    self._arrays: dict[int, np.ndarray] = {}

  def run(
    self, chunks: list[tuple[int, int, int]]
  ) -> Iterator[tuple[list[Part], Iterator[tuple[Entry, np.ndarray]]]]:
    """Yields the parts of each chunk and the tensors that it completes.

    Tensors without elements come first, with no parts. A tensor is in memory
    until the iterator gives it away.

    Args:
      chunks: (offset, size, checksum) of each chunk.

    Raises:
      ArchiveError: if a chunk is damaged.
    """
    plan = index.plan(self._entries)
    for filler in chunks[len(plan) :]:
      self._reader.chunk(*filler)
    plan = zip(plan, chunks, strict=False)
    tasks = [
      (parts, chunk) for parts, chunk in plan if any(map(self._wanted, parts))
    ]
    missing = collections.Counter(
      part.tensor for parts, _ in tasks for part in parts if self._wanted(part)
    )
    empty = [
      self._entries[i]
      for users in self._users.values()
      for i in users
      if not self._entries[i].size
    ]
    yield (
      [],
      ((entry, np.empty(entry.shape, entry.stored_dtype)) for entry in empty),
    )
    for batch in self._batches(tasks):
      for parts in parallel.in_order(self._decode, self._allocating(batch)):
        complete = []
        for i in (part.tensor for part in parts if self._wanted(part)):
          missing[i] -= 1
          if not missing[i]:
            complete.append(i)
        yield (
          parts,
          itertools.chain.from_iterable(map(self._finished, complete)),
        )

  def _stored_rows(self, i: int, spans: list) -> tuple[int, int]:
    """The stored rows of tensor i that rows of its matrix need."""
    if self._entries[i].repeats is not None:
      return 0, self._entries[i].stored[0]
    return min(start for start, _ in spans), max(stop for _, stop in spans)

  def _finished(self, i: int) -> Iterator[tuple[Entry, np.ndarray]]:
    """The tensors that come out of stored tensor i, as separate arrays."""
    entry = self._entries[i]
    held = [self._arrays.pop(i)]
    if entry.repeats is not None:
      _expand(held[0].reshape(entry.matrix), entry.repeats)
    *copies, last = self._users[i]
    for user in copies:
      yield self._entries[user], held[0].copy().reshape(entry.shape)
    yield self._entries[last], held.pop().reshape(entry.shape)

  def _batches(self, tasks) -> Iterator[list]:
    """Groups tasks whose tensors may be in memory together.

    The tensors of a batch are together no larger than the largest tensor of the
    file, or than the workers need to be busy.
    """
    tensors: set[int] = set()
    room = max((entry.nbytes for entry in self._entries), default=0)
    room = max(room, 4 * index.CHUNK * parallel.workers())
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
          dtype = np.int32 if self._levels(entry) else entry.stored_dtype
          try:
            self._arrays[part.tensor] = np.empty(entry.size, dtype)
          except MemoryError:
            raise self._reader.error(
              f"tensor {entry.name!r} of shape {entry.shape} does not fit into "
              "memory"
            ) from None
      yield parts, chunk

  def _wanted(self, part: Part) -> bool:
    start, stop = self._rows.get(part.tensor, (0, 0))
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
    unit, model = entry.unit, cast(Any, entry.model)
    if unit is None or self._levels(entry):
      out[:] = values
      return
    if entry.coder == "rans" and models.is_constant(model):
      out[:] = quantize.dequantize(values[:1], unit, array.dtype)
      return
    for start in range(0, values.size, quantizing.BLOCK):
      block = values[start : start + quantizing.BLOCK]
      out[start : start + block.size] = quantize.dequantize(
        block, unit, array.dtype
      )


def _expand(matrix: np.ndarray, repeats: Repeats) -> None:
  """Puts the stored rows, the first of the matrix, in their places.

  No row moves up, so from the last row on none is overwritten before its use.
  """
  places = repeats.places(matrix.shape[0])
  step = max(quantizing.BLOCK // matrix.shape[1], 1)
  for stop in range(matrix.shape[0], 0, -step):
    block = slice(max(stop - step, 0), stop)
    matrix[block] = matrix[places[block]]
