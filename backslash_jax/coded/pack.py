"""Levels of a tensor to packed leaves, on the host."""

import numpy as np

from backslash_jax.coded import divide
from backslash_jax.coded.leaves import Packed

_BITS = (2, 4, 8, 16)
_PLACE_BITS = 32
_REACH = 1 << 16  # Levels beyond are outside of every window.


def pack(x: divide.Tensor, grid: divide.Grid) -> Packed:
  """The packed leaf of a tensor."""
  blocks = divide.blocks(divide.matrices(x, grid), x)
  windows = _windows(blocks)
  each = _PLACE_BITS + 8 * x.dtype.itemsize
  bits = min(_BITS, key=lambda b: b * x.levels.size + each * windows[b][1])
  lowest = windows[bits][0]
  window = range(lowest, lowest + (1 << bits))
  octets, places, values = [], [], []
  for block in blocks:
    levels = block.levels.astype(np.int32)
    outside = (levels < lowest) | (levels >= window.stop)
    at, y = block.beside(outside)
    places.append(at)
    values.append(y)
    octets.append(_packed(np.where(outside, 0, levels - lowest).ravel(), bits))
  all_places, place = divide.in_turn(places, grid)
  numbers = [at.size for at in places]
  begins = np.stack([place, numbers], 1).astype(np.int32)
  return Packed(
    octets=divide.stacked(octets, grid),
    lowest=divide.stacked([np.int32(lowest)] * len(blocks), grid),
    places=all_places,
    values=divide.in_turn(values, grid)[0],
    begins=divide.stacked(begins, grid),
    scale=divide.stacked(divide.scales(blocks, window, window), grid),
    block=divide.shape(x, grid),
    divided=len(grid.axes),
    each=grid.each,
    bits=bits,
    most=max(numbers),
    dtype=x.dtype,
  )


def _windows(blocks: list[divide.Block]) -> dict[int, tuple[int, int]]:
  """By bits, the lowest level of the best window, and how many are outside."""
  low = min(int(block.levels.min()) for block in blocks)
  high = max(int(block.levels.max()) for block in blocks)
  reach = min(max(-low, high), _REACH)
  counts = np.zeros(2 * reach + 1, np.int64)
  for block in blocks:
    levels = block.levels.ravel().astype(np.int32)
    levels = np.clip(levels, -reach, reach) + reach
    counts += np.bincount(levels, minlength=counts.size)
  sums = np.concatenate([[0], np.cumsum(counts)])
  found = {}
  for bits in _BITS:
    size = 1 << bits
    if high - low < size:
      found[bits] = low, 0
      continue
    inside = sums[size:] - sums[: sums.size - size]
    first = int(np.argmax(inside))
    found[bits] = first - reach, int(sums[-1] - inside[first])
  return found


def _packed(raw: np.ndarray, bits: int) -> np.ndarray:
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
