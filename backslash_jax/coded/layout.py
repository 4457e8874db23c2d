"""How the levels of a block become tuples, and these go to the lanes.

A block is a matrix of levels. A tuple is `rows` consecutive levels of a column,
so there is a matrix of tuples, `height` x `width`. It goes to the lanes in
row-major order, one tuple to each in turn.
"""

from typing import NamedTuple

import numpy as np

MAX_ROWS = 4
LIMIT = 127  # Levels beyond are stored as values.


class Shape(NamedTuple):
  """Where the tuples of a block of R rows and C columns are.

  Attributes:
    rows: levels of a tuple.
    lanes: streams that decode side by side.
    segments: steps of all lanes for a row of tuples. With one segment, the
      lanes are a whole number of rows of tuples.
    height: rows of tuples, those that only fill up the last step included.
    width: columns of tuples, likewise.
  """

  rows: int
  lanes: int
  segments: int
  height: int
  width: int

  @property
  def steps(self) -> int:
    return self.height * self.width // self.lanes


def shape(size: tuple[int, int], rows: int, lanes: int, segments: int) -> Shape:
  """The shape of a block of `size` with so many lanes and segments."""
  height, width = -(-size[0] // rows), size[1]
  if segments > 1:
    width = lanes * segments
  else:
    each = lanes // width
    height = -(-height // each) * each
  return Shape(rows, lanes, segments, height, width)


def keys(block: np.ndarray, rows: int) -> np.ndarray:
  """The tuples of a matrix as uint32 [height, columns], a byte per level.

  Levels beyond LIMIT count as 0, and so do rows beyond the last.
  """
  size, columns = block.shape
  found = np.where(is_beyond(block), 0, block).astype(np.int8)
  if size % rows:
    padding = np.zeros([-size % rows, columns], np.int8)
    found = np.concatenate([found, padding])
  found = found.view(np.uint8).reshape(-1, rows, columns).astype(np.uint32)
  out = found[:, 0]
  for i in range(1, rows):
    out = out | (found[:, i] << np.uint32(8 * i))
  return out


def is_beyond(levels: np.ndarray) -> np.ndarray:
  """Whether levels have no tuple."""
  return (levels > LIMIT) | (levels < -LIMIT)


def lanes(x: np.ndarray, shape: Shape) -> np.ndarray:
  """A matrix of tuples as those of each lane, [steps, lanes].

  The last row and column are repeated to fill up the last step, which keeps the
  table of each place.
  """
  height, width = x.shape
  padding = ((0, shape.height - height), (0, shape.width - width))
  if any(padding[0]) or any(padding[1]):
    x = np.pad(x, padding, "edge")
  return x.reshape(-1, shape.lanes)
