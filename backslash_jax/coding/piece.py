"""Pieces: matrices of integers with their models, and their entries.

The stream holds a piece in up to three segments: the classes of its rows, the
classes of its columns, and its elements.
"""

from typing import NamedTuple

import numpy as np

from backslash_jax.coding import (
  bits,
  classes,
  fit_trellis,
  lanes,
  loops,
  models,
  trellis,
)
from backslash_jax.coding.frequencies import PRECISION
from backslash_jax.coding.models import Model, QuantizedGGD, Table, Trellis

# Bits of a symbol by its frequency.
BITS = PRECISION - np.log2(np.maximum(np.arange(models.TOTAL + 1), 1))
_NONE = np.empty(0, np.int32)


class Piece(NamedTuple):
  """The shape of a matrix, (rows, columns), and the model of its integers."""

  shape: tuple[int, int]
  model: Model


class Coded(NamedTuple):
  """A piece before the lanes encode it.

  Attributes:
    segments: the uint32 entries of each segment.
    low: the low bits of the elements, packed.
    escapes: int32, the excess of each escaped element.
    length: bits of the segments and of `low`.
  """

  segments: list[np.ndarray]
  low: bytes
  escapes: np.ndarray
  length: float


class Decoded(NamedTuple):
  """A piece after the lanes have decoded it.

  Attributes:
    symbols: int16 or int32 vector; ESCAPE stands for escaped elements.
    places: the indices of the escaped elements.
    limits: for each of them the largest magnitude that is not escaped.
    odd: of a trellis, the quantizer of each symbol, uint8; else None. Its
      escapes have the parity of the symbols.
  """

  symbols: np.ndarray
  places: np.ndarray
  limits: np.ndarray | int
  odd: np.ndarray | None = None


def prepare(symbols: np.ndarray, model: Model) -> Coded:
  """Looks up the entries of a matrix of int32 symbols.

  Raises:
    ValueError: if the model is a table without one of the symbols.
  """
  if symbols.size == 0:
    return Coded([], b"", _NONE, 0.0)
  if isinstance(model, QuantizedGGD):
    return _prepare_ggd(symbols, model)
  if isinstance(model, Trellis):
    return _prepare_trellis(symbols, model)
  if symbols.min() < model.lowest or (
    symbols.max() >= model.lowest + len(model.counts)
  ):
    raise ValueError("a symbol that the table lacks")
  if models.is_constant(model):
    return Coded([], b"", _NONE, 0.0)
  entries = models.encoding(model)[symbols.ravel() - model.lowest]
  if not entries.all():
    raise ValueError("a symbol that the table lacks")
  length = np.bincount(entries >> 16) @ BITS[: int(entries.max() >> 16) + 1]
  return Coded([entries], b"", _NONE, float(length))


def _prepare_ggd(symbols: np.ndarray, model: QuantizedGGD) -> Coded:
  low, length, segments = b"", 0.0, []
  if model.shift:
    wide = symbols.astype(np.int64) + (1 << (model.shift - 1))
    fields = wide.ravel() & ((1 << model.shift) - 1)
    low = bits.pack(fields, np.full(fields.size, model.shift))
    length += model.shift * fields.size
    symbols = (wide >> model.shift).astype(np.int32)
  sides = tuple(np.zeros(n, np.int64) for n in symbols.shape)
  if (model.row_alpha_index, model.column_alpha_index) != (None, None):
    sides = classes.assign(classes.symbol_means(symbols), model)
  segments, own = _prepare_classes(sides, model)
  length += own
  entries, escapes, own = _entries(symbols, model, *sides)
  return Coded([*segments, entries], low, escapes, length + own)


def _prepare_classes(sides, model: QuantizedGGD):
  """The segments of the classes that the model codes, and their bits."""
  segments, length = [], 0.0
  points = (model.row_alpha_index, model.column_alpha_index)
  for alpha_index, side in zip(points, sides, strict=True):
    if alpha_index is not None:
      plain = QuantizedGGD(models.CLASS_NU_INDEX, alpha_index)
      part = _prepare_ggd(side[:, None].astype(np.int32), plain)
      segments += part.segments
      length += part.length
  return segments, length


def _prepare_trellis(symbols: np.ndarray, model: Trellis) -> Coded:
  odd = trellis.is_odd(symbols)
  sides = classes.assign(fit_trellis.means(symbols, odd), model.even)
  segments, length = _prepare_classes(sides, model.even)
  tables = _trellis_tables(model, *sides)
  limits = np.array([-table.lowest for table in tables])
  reach = int(limits.max())
  codes = np.stack([models.encoding(table, reach, 2) for table in tables])
  row_class, column_class = (2 * (side - side.min()) for side in sides)
  table = row_class[:, None] + column_class
  table += odd
  limit = limits[table]
  sizes = np.abs(symbols.astype(np.int64))
  escaped = sizes > limit
  # Beyond the reach there is an escape for each parity.
  places = np.where(sizes > reach, reach + 2 - (reach + symbols) % 2, symbols)
  entries = codes[table, places + (reach + 2)].ravel()
  excess = np.sign(symbols[escaped]) * (sizes - limit)[escaped]
  length += float(BITS[entries >> 16].sum())
  return Coded([*segments, entries], b"", excess.astype(np.int32), length)


def _trellis_tables(model: Trellis, row_class, column_class):
  """Those of the even and of the odd quantizer, for each sum of classes."""
  low = int(row_class.min() + column_class.min())
  high = int(row_class.max() + column_class.max())
  return [
    models.tabulate_trellis(
      own.nu_index, models.class_alpha_index(own, c), own.tail, bool(odd)
    )
    for c in range(low, high + 1)
    for odd, own in enumerate((model.even, model.odd))
  ]


def _entries(symbols, model: QuantizedGGD, row_class, column_class):
  """The entries of the symbols, the excesses of the escapes, and the bits."""
  tables = _class_tables(model, row_class, column_class)
  limits = np.array([-table.lowest for table in tables])
  reach = int(limits.max())
  codes = np.stack([models.encoding(table, reach) for table in tables])
  lengths = BITS[codes >> 16].astype(np.float32)
  row_class = row_class - row_class.min() - column_class.min()
  look_up = loops.choose(symbols.size).look_up
  return look_up(symbols, codes, lengths, limits, row_class, column_class)


def _class_tables(model: QuantizedGGD, row_class, column_class):
  """The tables of all sums of a row and a column class, in ascending order."""
  low = int(row_class.min() + column_class.min())
  high = int(row_class.max() + column_class.max())
  return [
    models.tabulate(
      model.nu_index, models.class_alpha_index(model, c), model.tail
    )
    for c in range(low, high + 1)
  ]


def coded_size(piece: Piece) -> int:
  """How many symbols of a piece are in the stream, its classes included."""
  (height, width), model = piece
  if models.is_constant(model) or height * width == 0:
    return 0
  size = height * width
  if isinstance(model, QuantizedGGD | Trellis):
    size += height if model.row_alpha_index is not None else 0
    size += width if model.column_alpha_index is not None else 0
  return size


def decode(decoder: lanes.Decoder, piece: Piece) -> Decoded:
  """Takes a piece out of the stream; ValueError if the stream is bad."""
  (height, width), model = piece
  size = height * width
  if not coded_size(piece):
    value = model.lowest if isinstance(model, Table) else 0
    return Decoded(np.full(size, value, np.int32), _NONE, 0)
  if isinstance(model, Table):
    found = decoder.segment(models.decoding([model], 0), None, size)
    return Decoded(found, _NONE, 0)
  sides = (
    _decode_classes(decoder, model.row_alpha_index, height),
    _decode_classes(decoder, model.column_alpha_index, width),
  )
  if isinstance(model, Trellis):
    quantizers, made = 2, _trellis_tables(model, *sides)
  else:
    quantizers, made = 1, _class_tables(model, *sides)
  numbers = None
  if len(made) > quantizers:
    row_number, column_number = (
      ((side - side.min()) * quantizers).astype(np.uint8) for side in sides
    )
    numbers = (row_number[:, None] + column_number).ravel()
  machines = trellis.start(size) if quantizers == 2 else None
  tables = models.decoding(made, quantizers)
  found = decoder.segment(tables, numbers, size, machines)
  places = np.empty(0, np.intp)
  if found.min() <= models.ODD_ESCAPE:
    places = (found <= models.ODD_ESCAPE).nonzero()[0]
  odd = None if machines is None else trellis.is_odd(found)
  limits = np.array([-table.lowest for table in made])
  own = 0 if numbers is None else numbers[places]
  if odd is not None:
    own = own + odd[places]
  return Decoded(found, places, limits[own], odd)


def _decode_classes(
  decoder: lanes.Decoder, alpha_index: int | None, count: int
) -> np.ndarray:
  """The int32 classes of `count` rows or columns; zeros if not coded."""
  if alpha_index is None:
    return np.zeros(count, np.int32)
  table = models.tabulate(models.CLASS_NU_INDEX, alpha_index)
  side = decoder.segment(models.decoding([table], 1), None, count)
  side = side.astype(np.int32)
  if np.abs(side).max() > models.MAX_CLASS:
    raise ValueError("a class beyond the format's limit")
  return side


def finish(part: Decoded, low: np.ndarray, model: Model) -> np.ndarray:
  """The integers of a piece whose escapes are filled in, int16 or int32.

  They are the symbols with their low bits, or of a trellis the levels.

  Raises:
    ValueError: if one is outside int32.
  """
  wide = part.symbols
  if part.odd is not None:
    wide = trellis.levels(part.symbols.astype(np.int64), part.odd)
  elif low.size and isinstance(model, QuantizedGGD):
    wide = (wide.astype(np.int64) << model.shift) + low.astype(np.int64)
    wide -= 1 << (model.shift - 1)
  else:
    return wide
  if wide.min() < -(2**31) or wide.max() >= 2**31:
    raise ValueError("a symbol outside int32")
  return wide.astype(np.int32)
