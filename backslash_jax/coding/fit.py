"""Fits the rANS model that codes given integers in the fewest bits.

A decoder reads the model from the file, so nothing in this module is part of
the file format, and it computes in floating point.
"""

import numpy as np

from backslash_jax import sampling
from backslash_jax.coding import classes, expected, frequencies, models
from backslash_jax.coding.models import QuantizedGGD, Table

SAMPLE = 1 << 18  # Models are compared on about this many symbols.
_WIDE = 128  # Larger symbols have low bits that a model cannot predict.
_ANY = 64  # An alpha_index whose table has all classes.


def fit(symbols: np.ndarray, *, sample: bool = False) -> models.Model:
  """The model of fewest bits for int32 symbols, the model's own bits included.

  Args:
    symbols: int32, of any shape. The last axis is the columns of the model's
      matrix, all others are its rows.
    sample: whether the model must be able to code other symbols, too.

  Returns:
    A QuantizedGGD; a Table if that takes fewer bits and `sample` is false.
  """
  if sample:
    return quantized_ggd(symbols)[0]
  if symbols.size == 0:
    return Table(0, (models.TOTAL,))
  low, high = int(symbols.min()), int(symbols.max())
  if low == high:
    return Table(low, (models.TOTAL,))
  model, bits = quantized_ggd(symbols)
  if model.shift == 0 and max(-low, high) <= frequencies.LARGEST:
    return _fit_table(symbols, low, bits) or model
  return model


def quantized_ggd(symbols: np.ndarray) -> tuple[QuantizedGGD, float]:
  """The quantized generalized Gaussian of fewest bits, and those bits.

  Args:
    symbols: int32, as for `fit`.
  """
  columns = symbols.shape[-1] if symbols.ndim > 1 else 1
  matrix = symbols.reshape(-1, columns)
  rows = matrix.shape[0]
  taken = sampling.strata(rows, max(rows * SAMPLE // max(symbols.size, 1), 1))
  weight = rows / max(taken.size, 1)
  shift = _shift(matrix[taken])
  sizes = table_keys(matrix[taken], shift)
  histograms = histograms_of(sizes, 0)
  model, _ = search(histograms, None, (4, 2))
  side = 0.0
  if min(matrix.shape) > 1:
    model, histograms, side = _fit_classes(
      model, classes.symbol_means(matrix, shift), sizes, taken
    )
  model, bits = search(histograms, model, (2, 1))
  bits = bits * weight + side + shift * symbols.size
  return model._replace(shift=shift), bits


def table_keys(symbols: np.ndarray, shift: int) -> np.ndarray:
  """`classes.magnitudes`, with one value for all that are coded as escapes."""
  sizes = classes.magnitudes(symbols, shift)
  return np.minimum(sizes, frequencies.LARGEST + 1).astype(np.intp)


def costs(
  matrix: np.ndarray, model: QuantizedGGD
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """What a symbol takes in each row and column of a matrix.

  Args:
    matrix: int32 symbols [R, C].
    model: of these symbols.

  Returns:
    The class of each row [R] and of each column [C], int64 and not negative,
    and the bits by the sum of both classes and by `table_keys`, float64
    [classes, frequencies.LARGEST + 2].
  """
  means = classes.symbol_means(matrix, model.shift)
  row_class, column_class = classes.assign(means, model)
  low = int(row_class.min()) + int(column_class.min())
  high = int(row_class.max()) + int(column_class.max())
  table = np.stack(
    [
      expected.costs(
        model.nu_index, models.class_alpha_index(model, c), model.tail
      )
      for c in range(low, high + 1)
    ]
  )
  return row_class - row_class.min(), column_class - column_class.min(), table


def _fit_classes(
  plain: QuantizedGGD, means, keys: np.ndarray, taken: np.ndarray
):
  """Compares no, row, column, and row and column classes.

  Returns:
    The best model, its histograms, and the bits of its classes.
  """
  best, lowest = (plain, [], 0.0), np.inf
  for row, column in ((None, None), (_ANY, None), (None, _ANY), (_ANY, _ANY)):
    model = plain._replace(row_alpha_index=row, column_alpha_index=column)
    row_class, column_class = classes.assign(means, model)
    total = row_class[taken, None] + column_class
    histograms = histograms_of(keys, total)
    side = 0.0
    if row is not None:
      row, bits = _fit_alpha_index(row_class)
      side += bits
    if column is not None:
      column, bits = _fit_alpha_index(column_class)
      side += bits
    bits = sum(_entropy(counts) for _, counts in histograms)
    bits = bits * row_class.size / taken.size + side
    if bits < lowest:
      model = plain._replace(row_alpha_index=row, column_alpha_index=column)
      best, lowest = (model, histograms, side), bits
  return best


def histograms_of(keys: np.ndarray, total) -> list[tuple[int, np.ndarray]]:
  """(class sum, counts by magnitude) for each sum that occurs."""
  low, high = int(np.min(total)), int(np.max(total))
  width = int(keys.max()) + 1
  places = keys + (total - low) * width
  table = np.bincount(places.ravel(), minlength=(high - low + 1) * width)
  rows = enumerate(table.reshape(-1, width), low)
  return [(c, counts) for c, counts in rows if counts.any()]


def _entropy(counts: np.ndarray) -> float:
  """Bits under an ideal table, plus two per entry used, against overfitting."""
  used = counts[counts > 0]
  return float(used @ np.log2(used.sum() / used)) + 2.0 * used.size


def _fit_alpha_index(values: np.ndarray) -> tuple[int, float]:
  """The grid point of the scale of classes, and the classes' bits under it."""
  counts = np.bincount(np.abs(values))
  costs = {
    alpha_index: float(
      counts @ expected.costs(models.CLASS_NU_INDEX, alpha_index)[: counts.size]
    )
    for alpha_index in range(-48, 64, 4)
  }
  best = min(costs, key=costs.__getitem__)
  return best, costs[best]


def search(
  histograms, start: QuantizedGGD | None, strides, *, odd: bool = False
) -> tuple[QuantizedGGD, float]:
  """Descends over the grid: the model of fewest bits, and those bits.

  Args:
    histograms: (class sum, counts by magnitude) pairs.
    start: the first model; None for one that has the mean magnitude.
    strides: distances of the grid points to compare, one after another.
    odd: of the odd quantizer of a trellis.
  """
  known = {}

  def cost(nu_index, alpha_index, tail):
    point = (nu_index, alpha_index, tail)
    if point not in known:
      model = QuantizedGGD(*point)
      known[point] = sum(
        counts
        @ expected.costs(
          nu_index, models.class_alpha_index(model, c), tail, odd=odd
        )[: counts.size]
        for c, counts in histograms
      )
    return known[point]

  if start is None:
    total = sum(counts.sum() for _, counts in histograms)
    mean = sum(c @ np.arange(c.size) for _, c in histograms) / total
    start = QuantizedGGD(2, _alpha_index_of_mean(2, mean))
  best = start[:3]
  for stride in strides:
    moved = True
    while moved:
      moved = False
      for found in _neighbours(*best, stride):
        if cost(*found) < cost(*best):
          best, moved = found, True
          break
  nu_index, alpha_index, tail = best
  model = start._replace(nu_index=nu_index, alpha_index=alpha_index, tail=tail)
  return model, cost(*best)


def _neighbours(nu_index: int, alpha_index: int, tail: int, stride: int):
  """Adjacent grid points; a new shape comes with the scale of equal mean."""
  low, high = frequencies.NU_INDEX_RANGE
  mean = expected.mean_magnitude(nu_index, alpha_index)
  for other in (nu_index - stride, nu_index + stride):
    if low <= other <= high:
      yield other, _alpha_index_of_mean(other, mean), tail
  low, high = frequencies.ALPHA_INDEX_RANGE
  for other in (alpha_index - stride, alpha_index + stride):
    if low <= other <= high:
      yield nu_index, other, tail
  low, high = frequencies.TAIL_RANGE
  for other in (tail - 1, tail + 1):
    if low <= other <= high:
      yield nu_index, alpha_index, other


def _alpha_index_of_mean(nu_index: int, mean: float) -> int:
  """The first grid point whose expected magnitude is at least `mean`."""
  low, high = frequencies.ALPHA_INDEX_RANGE
  while high - low > 1:
    middle = (low + high) // 2
    if expected.mean_magnitude(nu_index, middle) < mean:
      low = middle
    else:
      high = middle
  return high


def _fit_table(symbols: np.ndarray, low: int, bits: float) -> Table | None:
  """The empirical table; None if with its own size it takes `bits` or more."""
  counts = np.bincount((symbols.ravel() - low).astype(np.intp))
  used = counts[counts > 0]
  entropy = float((used * np.log2(symbols.size / used)).sum())
  side = 9.0 * counts.size + 64
  if entropy + side >= bits or counts.size > models.TOTAL // 4:
    return None
  quantized = quantize_counts(counts)
  lengths = np.log2(models.TOTAL / np.maximum(quantized, 1))
  if float(counts @ lengths) + side >= bits:
    return None
  return Table(low, tuple(quantized.tolist()))


def quantize_counts(counts: np.ndarray) -> np.ndarray:
  """Frequencies in proportion to the counts; they sum to TOTAL.

  Only a count of zero gets the frequency zero.
  """
  used = counts > 0
  free = models.TOTAL - np.count_nonzero(used)
  tails = np.cumsum(counts) * free // counts.sum()
  return np.diff(tails, prepend=0) + used


def _shift(symbols: np.ndarray) -> int:
  """How many low bits to store uncoded, since a model cannot predict them."""
  flat = symbols.ravel()
  flat = np.abs(flat[sampling.strata(flat.size, 4096)].astype(np.int64))
  wide = float(np.quantile(flat, 0.8))
  return min(
    max(int(np.ceil(np.log2(max(wide, 1) / _WIDE))), 0), models.MAX_SHIFT
  )
