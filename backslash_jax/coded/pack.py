"""Levels of a tensor to the leaves that stay in device memory, on the host."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from backslash_jax.coded import exact, layout, streams
from backslash_jax.coded.leaves import Coded, Packed

_WIDEST = 2048  # Lanes that are encoded at once.
Place = Callable[[np.ndarray], object]  # Puts a child on the device.


class Tensor(NamedTuple):
  """A quantized tensor on the host.

  Attributes:
    levels: integers, of the tensor's shape.
    unit: what they are multiples of.
    dtype: of the values.
  """

  levels: np.ndarray
  unit: float
  dtype: np.dtype


def coded(x: Tensor, grid: tuple[int, ...], place: Place) -> Coded:
  """The coded leaf of a tensor.

  Args:
    x: the tensor.
    grid: into how many blocks each leading axis is divided.
    place: from a NumPy array with the grid's axes first to one of JAX.
  """
  blocks = layout.blocks(x.levels, grid)
  shape, classes = layout.plan(blocks, x.dtype.itemsize)
  sides = [layout.classes_of(block, shape.rows, classes) for block in blocks]
  low, high = layout.tables_of(sides)
  tables = high - low + 1
  ids, alphabets, places, values = [], [], [], []
  for block, (row, column) in zip(blocks, sides, strict=True):
    table = np.clip(row[:, None] + column - low, 0, tables - 1)
    own, found, escaped = _look_up(block, table, tables, shape.rows, x)
    alphabets.append(own)
    ids.append(_laid_out(found, shape))
    rows = np.repeat(escaped, shape.rows, 0)[: len(block)]
    at, y = _beside(block, rows & (block != 0) | layout.is_beyond(block), x)
    places.append(at)
    values.append(y)
  frequency, keys = _tabulated(alphabets)
  states, counts, words = _encode(ids, frequency)
  levels = _levels(keys)
  scale = exact.scales(x.unit, int(levels.min()), int(levels.max()))
  if scale is None:
    scale = exact.values(np.arange(-128, 128), x.unit, x.dtype)
  # A row's class is that of its table where the columns have none.
  row_classes = [_padded(row, shape.height, row[-1]) - low for row, _ in sides]
  column_classes = [_padded(own, shape.width, own[-1]) for _, own in sides]
  if not classes.by_row:
    column_classes = [own - low for own in column_classes]
  if not classes.by_row or tables == 1:
    row_classes = [own[:0] for own in row_classes]
  if not classes.by_column or tables == 1:
    column_classes = [own[:0] for own in column_classes]

  def child(parts):
    parts = np.stack(parts)
    return place(parts.reshape(grid + parts.shape[1:]))

  return Coded(
    words=child(_even(words, 0, 1)),
    counts=child(counts),
    states=child(states),
    frequency=child(frequency),
    tuples=child(levels[..., : shape.rows]),
    row_classes=child([own.astype(np.int8) for own in row_classes]),
    column_classes=child([own.astype(np.int8) for own in column_classes]),
    places=child(_even(places, blocks[0].size)),
    values=child(_even(values, 0)),
    scale=child([scale] * len(blocks)),
    block=_block(x, grid),
    divided=len(grid),
    segments=shape.segments,
    longest=max(int(counts.max()), 1),
    dtype=x.dtype,
  )


def packed(x: Tensor, grid: tuple[int, ...], place: Place) -> Packed:
  """The packed leaf of a tensor; arguments as of `coded`."""
  blocks = layout.blocks(x.levels, grid)
  blocks = blocks.reshape(len(blocks), -1)
  windows = {bits: _window(x.levels, bits) for bits in (2, 4, 8, 16)}
  each = 8 * (4 + x.dtype.itemsize)
  bits = min(windows, key=lambda b: b * x.levels.size + each * windows[b][1])
  lowest = windows[bits][0]
  stop = lowest + (1 << bits)
  octets, places, values = [], [], []
  for block in blocks:
    outside = (block < lowest) | (block >= stop)
    at, y = _beside(block, outside, x)
    places.append(at)
    values.append(y)
    raw = np.where(outside, 0, block - lowest)
    octets.append(_pack(raw, bits))
  scale = exact.scales(x.unit, lowest, stop - 1)
  if scale is None:
    scale = exact.values(np.arange(lowest, stop), x.unit, x.dtype)

  def child(parts):
    parts = np.stack(parts)
    return place(parts.reshape(grid + parts.shape[1:]))

  return Packed(
    octets=child(octets),
    lowest=child([np.int32(lowest)] * len(blocks)),
    places=child(_even(places, blocks.shape[1])),
    values=child(_even(values, 0)),
    scale=child([scale] * len(blocks)),
    block=_block(x, grid),
    divided=len(grid),
    bits=bits,
    dtype=x.dtype,
  )


def dense(x: Tensor) -> np.ndarray:
  """The values of a tensor."""
  return exact.values(x.levels, x.unit, x.dtype)


def _block(x: Tensor, grid) -> tuple[int, ...]:
  rest = x.levels.shape[len(grid) :]
  return (
    tuple(n // g for n, g in zip(x.levels.shape, grid, strict=False)) + rest
  )


def _look_up(block, table, tables: int, rows: int, x: Tensor):
  """The alphabet of each table, the id of each tuple, and which are escapes.

  An id is counted from that of its table, MAX_IDS after the one before.
  """
  keys = layout.keys(block, rows)
  price = layout.price(rows, x.dtype.itemsize)
  ids = np.empty(keys.shape, np.int16)
  escaped = np.empty(keys.shape, bool)
  alphabets = []
  for i in range(tables):
    mine = slice(None) if tables == 1 else table == i
    known, counts, at = layout.counted(keys[mine], rows)
    if not known.size:
      known, counts = np.zeros(1, np.uint32), np.ones(1)
    own = layout.alphabet(known, counts, price)
    alphabets.append(own)
    place = np.searchsorted(own.keys, known)
    beyond = own.keys[np.minimum(place, own.keys.size - 1)] != known
    place[beyond] = own.keys.size
    ids[mine] = place[at] + i * streams.MAX_IDS
    escaped[mine] = beyond[at]
  return alphabets, ids, escaped


def _laid_out(ids: np.ndarray, shape: layout.Shape) -> np.ndarray:
  """The ids of each lane, [steps, lanes], with what fills up the last ones.

  The last row and column are repeated, which keeps the table of each place.
  """
  height, width = ids.shape
  padding = ((0, shape.height - height), (0, shape.width - width))
  if any(padding[0]) or any(padding[1]):
    ids = np.pad(ids, padding, "edge")
  return ids.reshape(-1, shape.lanes)


def _tabulated(alphabets) -> tuple[np.ndarray, np.ndarray]:
  """Frequencies uint16 and tuples uint32, [blocks, tables, ids]."""
  width = max(own.frequency.size for block in alphabets for own in block)
  frequency, keys = (
    np.stack(
      [
        np.stack([_padded(getattr(own, field), width, 0) for own in block])
        for block in alphabets
      ]
    )
    for field in ("frequency", "keys")
  )
  return frequency.astype(np.uint16), keys


def _encode(ids: list[np.ndarray], frequency: np.ndarray):
  """States, counts and words of each block; several blocks at once."""
  blocks, tables, width = frequency.shape
  wide = np.zeros([blocks, tables, streams.MAX_IDS], np.uint32)
  wide[..., :width] = frequency
  start = np.cumsum(wide, -1, dtype=np.uint32) - wide
  states, counts, words = [], [], []
  group = max(_WIDEST // ids[0].shape[1], 1)
  for first in range(0, blocks, group):
    own = slice(first, min(first + group, blocks))
    symbols = np.concatenate(
      [
        part.astype(np.int32) + i * tables * streams.MAX_IDS
        for i, part in enumerate(ids[own])
      ],
      1,
    )
    found = streams.encode(symbols, wide[own].ravel(), start[own].ravel())
    here = found[1].reshape(own.stop - own.start, -1)
    states.append(found[0].reshape(here.shape))
    counts.append(here)
    words += np.split(found[2], np.cumsum(here.sum(1))[:-1])
  counts = np.concatenate(counts)
  narrow = np.uint16 if counts.max() < 1 << 16 else np.uint32
  return np.concatenate(states), counts.astype(narrow), words


def _levels(keys: np.ndarray) -> np.ndarray:
  """The levels of tuples, int8 [..., MAX_ROWS]."""
  return keys.astype("<u4")[..., None].view(np.int8)


def _beside(block: np.ndarray, escaped: np.ndarray, x: Tensor):
  """Places and values of what an escape or a window leaves out."""
  flat = block.reshape(-1)
  at = np.flatnonzero(escaped.reshape(-1))
  return at.astype(np.int32), exact.values(flat[at], x.unit, x.dtype)


def _window(levels: np.ndarray, bits: int) -> tuple[int, int]:
  """The lowest level of the best window of 2^bits, and how many are outside."""
  low, high = int(levels.min()), int(levels.max())
  size = 1 << bits
  if high - low < size:
    return low, 0
  reach = min(max(-low, high), 1 << 16)
  counts = np.bincount(np.clip(levels.ravel(), -reach, reach) + reach)
  sums = np.concatenate([[0], np.cumsum(counts)])
  inside = sums[size:] - sums[: sums.size - size]
  first = int(np.argmax(inside))
  return first - reach, levels.size - int(inside[first])


def _pack(raw: np.ndarray, bits: int) -> np.ndarray:
  if bits == 16:
    return raw.astype(np.uint16)
  each = 8 // bits
  padded = np.zeros(-(-raw.size // each) * each, np.uint8)
  padded[: raw.size] = raw
  parts = padded.reshape(each, -1)
  out = parts[0].copy()
  for i in range(1, each):
    out |= parts[i] << np.uint8(bits * i)
  return out


def _padded(x: np.ndarray, size: int, value) -> np.ndarray:
  return np.pad(x, (0, size - x.size), constant_values=value)


def _even(parts: list[np.ndarray], value, least: int = 0) -> list[np.ndarray]:
  """Parts of one length, `least` or more."""
  size = max(least, *(part.size for part in parts))
  return [_padded(part, size, value) for part in parts]
