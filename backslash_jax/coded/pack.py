"""Levels of a tensor to the leaves that stay in device memory, on the host."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from backslash_jax.coded import exact, layout, streams
from backslash_jax.coded.leaves import Coded, Packed

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
  rows = layout.rows(blocks, x.dtype.itemsize)
  price = rows * 8 * (4 + x.dtype.itemsize)
  keys = [layout.keys(block, rows) for block in blocks]
  alphabets = [
    layout.alphabet(*np.unique(own, return_counts=True), price) for own in keys
  ]
  tuples = keys[0].size
  lanes = layout.lanes(float(np.mean([a.bits for a in alphabets])), tuples)
  ids, places, values = [], [], []
  for block, own, alphabet in zip(blocks, keys, alphabets, strict=True):
    found = np.searchsorted(alphabet.keys, own)
    escaped = alphabet.keys[np.minimum(found, alphabet.keys.size - 1)] != own
    found[escaped] = alphabet.keys.size
    filled = np.full(-(-tuples // lanes) * lanes, _commonest(alphabet))
    filled[:tuples] = found.ravel()
    ids.append(filled.reshape(-1, lanes))
    beside = np.repeat(escaped, rows, 0)[: len(block)] & (block != 0)
    at, y = _beside(block, beside | layout.is_beyond(block), x)
    places.append(at)
    values.append(y)
  width = max(a.frequency.size for a in alphabets)
  frequency = np.stack([_padded(a.frequency, width, 0) for a in alphabets])
  states, counts, words = _encode(ids, frequency)
  lowest = min(int(a.keys.size and _levels(a.keys).min()) for a in alphabets)
  highest = max(int(a.keys.size and _levels(a.keys).max()) for a in alphabets)
  scale = exact.scales(x.unit, lowest, highest)
  if scale is None:
    scale = exact.values(np.arange(-128, 128), x.unit, x.dtype)

  def child(parts):
    parts = np.stack(parts)
    return place(parts.reshape(grid + parts.shape[1:]))

  return Coded(
    words=child(_even([*words, np.zeros(1, np.uint16)], 0)[:-1]),
    counts=child(counts),
    states=child(states),
    frequency=child(frequency.astype(np.uint16)),
    tuples=child([_padded(a.keys, width, 0) for a in alphabets]),
    places=child(_even(places, blocks[0].size)),
    values=child(_even(values, 0)),
    scale=child([scale] * len(blocks)),
    block=_block(x, grid),
    divided=len(grid),
    rows=rows,
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


def _encode(ids: list[np.ndarray], frequency: np.ndarray):
  """States, counts and words of each block; all blocks at once."""
  count, lanes = len(ids), ids[0].shape[1]
  together = np.concatenate(ids, 1)
  own = frequency[0] if count == 1 else np.repeat(frequency.T, lanes, 1)
  states, counts, words = streams.encode(together, own)
  counts = counts.reshape(count, lanes)
  words = np.split(words, np.cumsum(counts.sum(1))[:-1])
  return states.reshape(count, lanes), _narrow(counts), words


def _narrow(counts: np.ndarray) -> np.ndarray:
  return counts.astype(
    np.uint16 if counts.max(initial=0) < 1 << 16 else np.uint32
  )


def _commonest(alphabet: layout.Alphabet) -> int:
  return int(np.argmax(alphabet.frequency[:-1]))


def _levels(keys: np.ndarray) -> np.ndarray:
  return keys.astype("<u4").view(np.int8)


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


def _even(parts: list[np.ndarray], value) -> list[np.ndarray]:
  """Parts of one length."""
  size = max(part.size for part in parts)
  return [_padded(part, size, value) for part in parts]
