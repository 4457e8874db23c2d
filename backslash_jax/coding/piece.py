"""Pieces: matrices of integers with their models, and the lanes' entries.

A piece goes into the lanes as up to three segments: the classes of its rows,
those of its columns, its elements.
"""

import sys
from typing import NamedTuple

import numpy as np

from backslash_jax.coding import bits, lanes, models
from backslash_jax.coding import fit as fitting
from backslash_jax.coding.models import Gaussian, Model, Table

_BLOCK = 1 << 14  # Symbols looked up at once, to stay in cache.
BITS = lanes.PRECISION - np.log2(np.maximum(np.arange(models.TOTAL + 1), 1))
NOTHING = np.empty(0, np.int32)


class Piece(NamedTuple):
  """Rows and columns of a matrix and the model of its integers."""

  shape: tuple[int, int]
  model: Model


class Coded(NamedTuple):
  """A piece, ready for the lanes."""

  segments: list[np.ndarray]  # uint32 entries.
  low: bytes
  escapes: np.ndarray
  length: float  # Bits.


class Decoded(NamedTuple):
  """A piece out of the lanes, its escapes' places still empty."""

  symbols: np.ndarray  # int32
  places: np.ndarray
  limits: np.ndarray | int  # What each escape exceeds.


def prepare(symbols: np.ndarray, model: Model) -> Coded:
  """The entries of a matrix of int32 symbols, and what they leave out."""
  if symbols.size == 0:
    return Coded([], b"", NOTHING, 0.0)
  if isinstance(model, Gaussian):
    return _prepare_gaussian(symbols, model)
  if symbols.min() < model.lowest or (
    symbols.max() >= model.lowest + len(model.counts)
  ):
    raise ValueError("a symbol that the table lacks")
  if models.is_constant(model):
    return Coded([], b"", NOTHING, 0.0)
  entries = models.encoding(model)[symbols.ravel() - model.lowest]
  if not entries.all():
    raise ValueError("a symbol that the table lacks")
  length = np.bincount(entries >> 16) @ BITS[: int(entries.max() >> 16) + 1]
  return Coded([entries], b"", NOTHING, float(length))


def _prepare_gaussian(symbols: np.ndarray, model: Gaussian) -> Coded:
  low, length, segments = b"", 0.0, []
  if model.shift:
    wide = symbols.astype(np.int64) + (1 << (model.shift - 1))
    fields = wide.ravel() & ((1 << model.shift) - 1)
    low = bits.pack(fields, np.full(fields.size, model.shift))
    length += model.shift * fields.size
    symbols = (wide >> model.shift).astype(np.int32)
  classes = [np.zeros(n, np.int64) for n in symbols.shape]
  if model.rows is not None or model.columns is not None:
    sizes = fitting.magnitudes(symbols, 0)
    classes = fitting.classes(fitting.means(sizes), model)
    for grid, side in zip((model.rows, model.columns), classes, strict=True):
      if grid is not None:
        plain = Gaussian(models.CLASS_NU, grid)
        part = _prepare_gaussian(side[:, None].astype(np.int32), plain)
        segments += part.segments
        length += part.length
  entries, escapes, own = _entries(symbols, model, *classes)
  return Coded([*segments, entries], low, escapes, length + own)


def _entries(symbols, model: Gaussian, row_class, column_class):
  """Entries of the symbols under their classes, escapes' excesses and bits."""
  tables = _class_tables(model, row_class, column_class)
  limits = np.array([-table.lowest for table in tables])
  reach = int(limits.max())
  codes = np.stack([models.encoding(table, reach) for table in tables])
  lengths = BITS[codes >> 16].astype(np.float32)
  row_class = row_class - row_class.min() - column_class.min()
  loops = lanes.compiled(symbols.size) or sys.modules[__name__]
  return loops.look_up(symbols, codes, lengths, limits, row_class, column_class)


def look_up(symbols, codes, lengths, limits, row_class, column_class):
  """Codes of the symbols of a matrix, row and column classes adding up.

  Args:
    symbols: int32.
    codes: uint32 entry by class and by symbol, from -reach - 1 to reach + 1.
    lengths: float32 bits, alike.
    limits: int64 largest magnitude of each class, before its escape.
    row_class: int64, by row.
    column_class: int64, by column.

  Returns:
    The entries in a vector; by how much symbols exceed their limits, with their
    signs, where they do; the sum of the lengths.
  """
  reach, nearest = (codes.shape[1] - 3) // 2, int(limits.min())
  row_place = (row_class * codes.shape[1] + reach + 1)[:, None]
  column_place = column_class * codes.shape[1]
  codes, lengths = codes.ravel(), lengths.ravel()
  entries = np.empty(symbols.shape, np.uint32)
  escapes, total = [NOTHING], 0.0
  rows = max(_BLOCK // symbols.shape[1], 1)
  for start in range(0, symbols.shape[0], rows):
    block = symbols[start : start + rows]
    places = block.astype(np.intp)
    if max(-int(places.min()), int(places.max())) > nearest:
      i, j = (np.abs(places) > nearest).nonzero()
      own = limits[row_class[start + i] + column_class[j]]
      excess = np.abs(places[i, j]) - own
      signed = np.sign(places[i, j]) * excess
      escapes.append(signed[excess > 0].astype(np.int32))
      np.clip(places, -reach - 1, reach + 1, out=places)
    places += row_place[start : start + rows]
    places += column_place
    codes.take(places, out=entries[start : start + rows], mode="clip")
    total += float(lengths.take(places, mode="clip").sum())
  return entries.ravel(), np.concatenate(escapes), total


def _class_tables(model: Gaussian, row_class, column_class):
  """The tables of all sums of a row and a column class, from the lowest on."""
  low = int(row_class.min() + column_class.min())
  high = int(row_class.max() + column_class.max())
  return [
    models.gaussian(model.nu, models.point(model, c), model.tail)
    for c in range(low, high + 1)
  ]


def coded_size(piece: Piece) -> int:
  """How many symbols of a piece are in the stream, its classes included."""
  (rows, columns), model = piece
  if models.is_constant(model) or rows * columns == 0:
    return 0
  size = rows * columns
  if isinstance(model, Gaussian):
    size += rows if model.rows is not None else 0
    size += columns if model.columns is not None else 0
  return size


def decode(decoder: lanes.Decoder, piece: Piece) -> Decoded:
  (rows, columns), model = piece
  size = rows * columns
  if not coded_size(piece):
    value = model.lowest if isinstance(model, Table) else 0
    return Decoded(np.full(size, value, np.int32), NOTHING, 0)
  if not isinstance(model, Gaussian):
    found = decoder.segment(*models.decoding(model, False), None, size)
    return Decoded(found.astype(np.int32), NOTHING, 0)
  classes = []
  for grid, count in ((model.rows, rows), (model.columns, columns)):
    side = np.zeros(count, np.int32)
    if grid is not None:
      table = models.gaussian(models.CLASS_NU, grid)
      side = decoder.segment(*models.decoding(table, True), None, count)
      side = side.astype(np.int32)
      if np.abs(side).max() > models.MAX_CLASS:
        raise ValueError("a class beyond the format's limit")
    classes.append(side)
  made = _class_tables(model, *classes)
  table, symbols = (
    np.concatenate(parts)
    for parts in zip(*(models.decoding(t, True) for t in made), strict=True)
  )
  offsets = None
  if len(made) > 1:
    row_place, column_place = (
      ((side - side.min()) << lanes.PRECISION).astype(np.uint32)
      for side in classes
    )
    offsets = (row_place[:, None] + column_place).ravel()
  found = decoder.segment(table, symbols, offsets, size).astype(np.int32)
  places = (found == models.ESCAPE).nonzero()[0]
  limits = np.array([-table.lowest for table in made])
  own = 0 if offsets is None else offsets[places] >> lanes.PRECISION
  return Decoded(found, places, limits[own])


def unshift(symbols: np.ndarray, low: np.ndarray, model: Model) -> np.ndarray:
  """Symbols with their low bits again."""
  if not low.size or isinstance(model, Table):
    return symbols
  wide = (symbols.astype(np.int64) << model.shift) + low.astype(np.int64)
  wide -= 1 << (model.shift - 1)
  if wide.min() < -(2**31) or wide.max() >= 2**31:
    raise ValueError("a symbol outside int32")
  return wide.astype(np.int32)
