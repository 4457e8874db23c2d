"""The index as JSON: written, and checked when it is read.

A field of the index is one of three kinds: of the file, of each tensor or of
each chunk. Those of every tensor and chunk are lists. Those of some tensors are
objects, from the tensor's number to its item, and absent if they are empty. To
add one, give it a name and a check in `_SOME`, and an attribute to Entry.
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping

import numpy as np

from backslash_jax import tree
from backslash_jax.archive import nesting, reported
from backslash_jax.archive.index import (
  EXACT,
  MAX_DIMENSIONS,
  Entry,
  Repeats,
  dtype_of,
  plan,
)
from backslash_jax.coding import coders, models

FREE = 1 << 26  # A file may claim so many decoded bytes,
RATIO = 1 << 12  # and so many more for each of its own bytes.
MAX_METADATA = 1 << 18  # Characters.
_DIGEST = re.compile("[0-9a-f]{16}")
_MAX_BYTES = 1 << 63  # Of a tensor, its axes of length 0 counted as 1.


def to_json(
  structure, entries: list[Entry], chunks: list, metadata: Mapping[str, str]
) -> dict:
  """The index as JSON.

  Args:
    structure: of the tree, see nesting.describe.
    entries: in the order of the tree's leaves.
    chunks: [size, checksum] of each chunk.
    metadata: free text by name.
  """
  fields = {
    "tree": structure,
    "dtype": [e.dtype.name for e in entries],
    "shape": [e.shape for e in entries],
    "step": [e.step for e in entries],
    "coder": [e.coder for e in entries],
    "model": [
      None if e.model is None else coders.to_json(e.coder, e.model)
      for e in entries
    ],
    "bits": [e.bits for e in entries],
    "nu": [e.reported_nu for e in entries],
    "alpha": [e.reported_alpha for e in entries],
    "bytes": [size for size, _ in chunks],
    "crc32": [checksum for _, checksum in chunks],
  }
  some: dict[str, dict] = {
    "axes": {i: e.axes for i, e in enumerate(entries) if e.axes is not None},
    "same": {i: e.same for i, e in enumerate(entries) if e.same is not None},
    "repeats": {
      i: repeats_to_json(e.repeats) for i, e in enumerate(entries) if e.repeats
    },
    "base": {i: e.base for i, e in enumerate(entries) if e.base is not None},
    "metadata": dict(metadata),
  }
  return fields | {name: items for name, items in some.items() if items}


def repeats_to_json(repeats: Repeats) -> list[list[int]]:
  """The distances between the repeated rows, and their sources."""
  gaps = np.diff(repeats.rows, prepend=-1)
  return [gaps.tolist(), repeats.sources.tolist()]


def from_json(
  index: object, payload: int, file_size: int, version: int
) -> tuple[object, list[Entry], list[tuple[int, int, int]], dict[str, str]]:
  """Checks an index and parses it.

  Args:
    index: what the JSON parser returned, possibly forged.
    payload: bytes of the payload.
    file_size: bytes of the file.
    version: of the file.

  Returns:
    The structure of the tree, the entries, the (offset, size, checksum) of each
    chunk, and the metadata.

  Raises:
    ValueError: if the index is not what `to_json` returns.
  """
  fields = _checked(index, version)
  structure = fields["tree"]
  try:
    names = list(nesting.names(structure))
  except (TypeError, RecursionError):
    raise ValueError("the tree is malformed") from None
  if len(set(names)) < len(names):
    raise ValueError("two tensors have one name")
  entries: list[Entry] = []
  columns = [fields[field] for field in _EACH]
  some = [_by_number(fields.get(field, {}), len(names)) for field in _SOME]
  for i, (name, *own) in enumerate(zip(names, *columns, strict=True)):
    rare = dict(zip(_SOME, (items.get(i) for items in some), strict=True))
    entries.append(_entry(name, entries, rare, *own))
    if version == 1 and isinstance(entries[-1].model, models.Trellis):
      raise ValueError(f"tensor {name!r} has a trellis, which version 1 lacks")
  claimed = sum(entry.nbytes for entry in entries)
  if claimed > FREE + RATIO * file_size:
    raise ValueError(f"{claimed} bytes of tensors in a file of {file_size}")
  chunks, offset = [], 0
  for size, checksum in zip(fields["bytes"], fields["crc32"], strict=True):
    chunks.append((offset, size, checksum))
    offset += size
  parts = plan(entries)
  filled = len(chunks) == len(parts) + 1 and version > 1
  if offset != payload or not (len(chunks) == len(parts) or filled):
    raise ValueError("the chunks do not cover the payload")
  if any(len({entries[p.tensor].coder for p in own}) > 1 for own in parts):
    raise ValueError("the tensors of one chunk have different coders")
  return structure, entries, chunks, fields.get("metadata", {})


def filler(entries: list[Entry], payload: int) -> int:
  """Bytes to add to the payload of so many bytes, so that it may claim all."""
  claimed = sum(entry.nbytes for entry in entries)
  return max(-(-(claimed - FREE) // RATIO) - payload, 0)


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
  """The metadata as a dict; ValueError if a file cannot keep it."""
  found = dict(metadata or {})
  if not _is_metadata(found):
    raise ValueError(
      "metadata must be strings by name, with at most"
      f" {MAX_METADATA} characters in all"
    )
  return found


def _checked(index: object, version: int) -> dict:
  """The index, if its fields have the right types, lengths and ranges."""
  wanted = {"tree", *_EACH, *_CHUNK}
  free = {"metadata", *_SOME} if version > 1 else set()
  if not isinstance(index, dict) or not wanted <= index.keys() <= wanted | free:
    raise ValueError("its fields are not those of the format")
  for group in (_EACH, _CHUNK):
    if not all(isinstance(index[field], list) for field in group):
      raise ValueError(f"{', '.join(group)} must be lists")
    if len({len(index[field]) for field in group}) > 1:
      raise ValueError(f"{', '.join(group)} differ in length")
  for field, valid in (_EACH | _CHUNK).items():
    for place, value in enumerate(index[field]):
      if not valid(value):
        raise ValueError(f"{field} {place} is {reprlib.repr(value)}")
  for field, valid in _SOME.items():
    items = index.get(field, {0: None})
    if not isinstance(items, dict) or not items:
      raise ValueError(f"{field} is not an object with items")
    for place, value in items.items():
      if field in index and not valid(value):
        raise ValueError(f"{field} {place} is {reprlib.repr(value)}")
  if "metadata" in index and not (
    index["metadata"] and _is_metadata(index["metadata"])
  ):
    raise ValueError("the metadata are not strings by name, or too many")
  return index


def _by_number(items: dict, count: int) -> dict[int, object]:
  """The items by tensor number instead of its decimal digits."""
  found = {}
  for key, value in items.items():
    number = int(key) if key.isdecimal() and len(key) < 20 else count
    if number >= count or str(number) != key:
      raise ValueError(f"{reprlib.repr(key)} is not the number of a tensor")
    found[number] = value
  return found


def _is_metadata(value: object) -> bool:
  return (
    isinstance(value, dict)
    and all(isinstance(x, str) for pair in value.items() for x in pair)
    and sum(len(x) for pair in value.items() for x in pair) <= MAX_METADATA
  )


def _is_integer(value: object, stop: int) -> bool:
  return type(value) is int and 0 <= value < stop


def _is_positive(value: object) -> bool:
  """Whether a value is a positive finite number, written as a float."""
  return isinstance(value, float) and 0 < value < math.inf


def _is_nu(value: object) -> bool:
  low, high = reported.NU_RANGE
  return value is None or (
    isinstance(value, float) and low <= value <= high and _is_positive(value)
  )


def _is_shape(value: object) -> bool:
  return (
    isinstance(value, list)
    and len(value) <= MAX_DIMENSIONS
    and all(_is_integer(n, _MAX_BYTES) for n in value)
    and math.prod(n for n in value if n) < _MAX_BYTES
  )


def _is_repeats(value: object) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 2
    and all(isinstance(numbers, list) for numbers in value)
    and 0 < len(value[0]) == len(value[1])
    and all(_is_integer(n, 1 << 40) for numbers in value for n in numbers)
  )


def _is_digest(value: object) -> bool:
  return isinstance(value, str) and bool(_DIGEST.fullmatch(value))


# The fields of each tensor, of each chunk and of some tensors.
_EACH: dict[str, Callable[[object], bool]] = {
  "dtype": lambda x: isinstance(x, str),
  "shape": _is_shape,
  "step": lambda x: x is None or _is_positive(x),
  "coder": lambda x: x == EXACT or x in coders.NAMES,
  "model": lambda x: x is None or isinstance(x, list),
  "bits": lambda x: _is_integer(x, 1 << 63),
  "nu": _is_nu,
  "alpha": lambda x: x is None or _is_positive(x),
}
_CHUNK: dict[str, Callable[[object], bool]] = {
  "bytes": lambda x: _is_integer(x, 1 << 53),
  "crc32": lambda x: _is_integer(x, 1 << 32),
}
_SOME: dict[str, Callable[[object], bool]] = {
  "axes": lambda x: _is_integer(x, MAX_DIMENSIONS),
  "same": lambda x: _is_integer(x, 1 << 53),
  "repeats": _is_repeats,
  "base": _is_digest,
}


def _entry(
  name: str,
  before: list[Entry],
  some: dict,
  dtype,
  shape,
  step,
  coder,
  model,
  bits,
  nu,
  alpha,
) -> Entry:
  """An entry of checked fields; ValueError if they contradict each other.

  Args:
    name: of the tensor.
    before: the entries before it.
    some: its items of the fields of some tensors, or None.
    dtype: and all others: its items of the fields of each tensor.
  """
  dtype = dtype_of(dtype)
  if math.prod(n for n in shape if n) * dtype.itemsize >= _MAX_BYTES:
    raise ValueError(f"tensor {name!r} has the shape {shape!r}")
  exact = coder == EXACT
  copied = some["same"] is not None
  if exact != (step is None) or (exact or copied) != (model is None):
    raise ValueError(
      f"tensor {name!r} has the coder {coder!r} and the step {step}"
    )
  if (nu is None) != (alpha is None) or (exact and nu is not None):
    raise ValueError(f"tensor {name!r} has nu {nu} and alpha {alpha}")
  if not exact:
    if not tree.is_float(dtype):
      raise ValueError(f"tensor {name!r}: coder {coder!r}, dtype {dtype.name}")
    try:
      model = None if copied else coders.from_json(coder, model)
    except ValueError as error:
      raise ValueError(f"tensor {name!r}: {error}") from None
  axes = some["axes"]
  if axes is not None and not 1 <= axes < len(shape):
    raise ValueError(f"tensor {name!r}: {axes} axes of {len(shape)} are rows")
  entry = Entry(
    name, dtype, tuple(shape), step, coder, model, bits, nu, alpha, axes
  )._replace(base=some["base"])
  if copied:
    _check_same(entry, before, some)
    return entry._replace(same=some["same"])
  if some["repeats"] is not None:
    return entry._replace(repeats=_repeats(entry, *some["repeats"]))
  return entry


def _check_same(entry: Entry, before: list[Entry], some: dict) -> None:
  """ValueError unless the entry can be equal to the earlier one it names."""
  place = some["same"]
  fields = ("dtype", "shape", "step", "coder", "reported_nu", "reported_alpha")
  fields += ("stored_dtype",)
  if (
    place >= len(before)
    or before[place].same is not None
    or any(getattr(entry, f) != getattr(before[place], f) for f in fields)
    or entry.axes is not None
    or some["repeats"] is not None
    or entry.bits
  ):
    raise ValueError(f"tensor {entry.name!r} cannot be equal to tensor {place}")


def _repeats(entry: Entry, gaps: list[int], sources: list[int]) -> Repeats:
  """The repeated rows of a matrix; ValueError if they are impossible."""
  rows = np.cumsum(np.array(gaps)) - 1
  found = Repeats(rows, np.array(sources))
  # So many rows are stored before each of them.
  earlier = rows - np.arange(rows.size)
  if (
    min(gaps) < 1
    or sum(gaps) > entry.matrix[0]
    or (found.sources >= earlier).any()
  ):
    raise ValueError(
      f"tensor {entry.name!r} repeats rows that it does not have"
    )
  return found
