"""Which model codes given integers in the fewest bits.

Only encoders come here: nothing in this module is part of the file format, and
floating point may do.
"""

import math

import numpy as np

from backslash_jax.coding import expected, frequencies, models
from backslash_jax.coding.models import Gaussian, Table

_SAMPLE = 1 << 18  # Symbols that decide between models.
_WIDE = 128  # Larger symbols have low bits that look like noise.
_ANY = 64  # A scale of classes that reaches all of them.
_CLASSES = np.arange(-models.MAX_CLASS, models.MAX_CLASS + 1)


def fit(symbols: np.ndarray, *, sample: bool = False) -> models.Model:
  """The model of fewest bits for int32 `symbols`, its own bits counted.

  Args:
    symbols: of any shape; rows run over all axes but the last, columns over the
      last one.
    sample: whether the model must be able to code any other symbols, too.
  """
  if sample:
    return gaussian(symbols)[0]
  if symbols.size == 0:
    return Table(0, (models.TOTAL,))
  low, high = int(symbols.min()), int(symbols.max())
  if low == high:
    return Table(low, (models.TOTAL,))
  model, bits = gaussian(symbols)
  if model.shift == 0 and max(-low, high) <= frequencies.LARGEST:
    return _fit_table(symbols, low, bits) or model
  return model


def gaussian(symbols: np.ndarray) -> tuple[Gaussian, float]:
  """The generalized Gaussian of fewest bits for `symbols`, and those bits."""
  columns = symbols.shape[-1] if symbols.ndim > 1 else 1
  matrix = symbols.reshape(-1, columns)
  stride = -(-symbols.size // _SAMPLE)
  shift = _shift(matrix[::stride])
  sizes = magnitudes(matrix, shift)
  keys = np.minimum(sizes[::stride], frequencies.LARGEST + 1).astype(np.intp)
  histograms = _histograms(keys, 0)
  model, _ = _search(histograms, None, (4, 2))
  side = 0.0
  if min(matrix.shape) > 1:
    model, histograms, side = _fit_classes(model, means(sizes), keys, stride)
  model, bits = _search(histograms, model, (2, 1))
  bits = bits * stride + side + shift * symbols.size
  return model._replace(shift=shift), bits


def code_lengths(symbols: np.ndarray, model: Gaussian) -> np.ndarray:
  """Bits of each symbol of a tensor under the model, as float64."""
  columns = symbols.shape[-1] if symbols.ndim > 1 else 1
  sizes = magnitudes(symbols.reshape(-1, columns), model.shift)
  rows, columns = classes(means(sizes), model)
  total = rows[:, None] + columns
  low, high = int(total.min()), int(total.max())
  table = np.stack(
    [
      expected.costs(model.nu, models.point(model, c), model.tail)
      for c in range(low, high + 1)
    ]
  )
  sizes = np.minimum(sizes, frequencies.LARGEST + 1)
  return table[total - low, sizes].reshape(symbols.shape)


def shape_and_scale(values: np.ndarray) -> tuple[float | None, float | None]:
  """nu and alpha of the generalized Gaussian with the values' two moments.

  From at most 2**18 values, evenly spaced, in float64, to three digits; nu is
  clamped to [0.1, 8]. None and None if all are zero or there are none.
  """
  flat = values[:: max(values.size // _SAMPLE, 1)].astype(np.float64).ravel()
  scale = float(np.abs(flat).max(initial=0.0))
  if scale == 0:
    return None, None
  flat = np.abs(flat / scale)
  ratio = math.log(np.square(flat).mean() / flat.mean() ** 2)

  def excess(nu):
    a, b, c = (math.lgamma(k / nu) for k in (1, 2, 3))
    return a + c - 2 * b - ratio

  low, high = 0.1, 8.0
  for _ in range(40):  # The ratio of the moments falls with nu.
    middle = (low + high) / 2
    low, high = (middle, high) if excess(middle) > 0 else (low, middle)
  gammas = math.lgamma(1 / low) - math.lgamma(2 / low)
  alpha = scale * float(flat.mean()) * math.exp(gammas)
  return float(f"{low:.3g}"), float(f"{alpha:.3g}")


def magnitudes(symbols: np.ndarray, shift: int) -> np.ndarray:
  """|symbols >> shift|, rounded to nearest."""
  if shift == 0:
    return (
      np.abs(symbols)
      if symbols.min(initial=0) > -(2**31)
      else np.abs(symbols.astype(np.int64))
    )
  wide = symbols.astype(np.int64)
  return np.abs((wide + (1 << (shift - 1))) >> shift)


def means(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of each row and of each column of a matrix, float64."""
  rows, columns = sizes.shape
  return (
    sizes.sum(1, dtype=np.float64) / columns,
    sizes.sum(0, dtype=np.float64) / rows,
  )


def classes(
  means: tuple[np.ndarray, np.ndarray], model: Gaussian
) -> tuple[np.ndarray, np.ndarray]:
  """Row and column classes of a matrix of magnitudes, by its means.

  Each class is the one whose expected mean is nearest, in ratio, to the mean of
  its row or column, given the other classes.
  """
  row_class, column_class = (np.zeros(side.size, np.int64) for side in means)
  if model.rows is not None:
    row_class = _nearest(means[0], model, column_class, model.rows)
  if model.columns is not None:
    column_class = _nearest(means[1], model, row_class, model.columns)
  return row_class, column_class


def _nearest(means, model: Gaussian, other: np.ndarray, grid: int):
  """The classes, among those that the table of `grid` has, of the means."""
  offset = int(other.min())
  shares = np.bincount(other - offset) / other.size
  wanted = [
    sum(
      share
      * expected.mean_magnitude(
        model.nu, models.point(model, k + offset + int(c))
      )
      for k, share in enumerate(shares)
      if share
    )
    for c in _CLASSES
  ]
  logs = np.log(np.maximum(np.array(wanted, np.float64), 1e-6))
  logs = np.maximum.accumulate(logs)
  borders = (logs[1:] + logs[:-1]) / 2
  found = _CLASSES[np.searchsorted(borders, np.log(np.maximum(means, 1e-6)))]
  reach = models.reach(models.CLASS_NU, grid)
  return np.clip(found, -reach, reach)


def _fit_classes(plain: Gaussian, means, keys: np.ndarray, stride: int):
  """No, row, column or both classes: the model, histograms and side bits."""
  best, lowest = (plain, [], 0.0), np.inf
  for rows, columns in ((None, None), (_ANY, None), (None, _ANY), (_ANY, _ANY)):
    model = plain._replace(rows=rows, columns=columns)
    row_class, column_class = classes(means, model)
    total = row_class[::stride, None] + column_class
    histograms = _histograms(keys, total)
    side = 0.0
    if rows is not None:
      alpha, bits = _fit_alpha(row_class)
      model, side = model._replace(rows=alpha), side + bits
    if columns is not None:
      alpha, bits = _fit_alpha(column_class)
      model, side = model._replace(columns=alpha), side + bits
    bits = stride * sum(_entropy(counts) for _, counts in histograms) + side
    if bits < lowest:
      best, lowest = (model, histograms, side), bits
  return best


def _histograms(keys: np.ndarray, total) -> list[tuple[int, np.ndarray]]:
  """(class, counts by magnitude) for each class that occurs."""
  low, high = int(np.min(total)), int(np.max(total))
  width = int(keys.max()) + 1
  places = keys + (total - low) * width
  table = np.bincount(places.ravel(), minlength=(high - low + 1) * width)
  rows = enumerate(table.reshape(-1, width), low)
  return [(c, counts) for c, counts in rows if counts.any()]


def _entropy(counts: np.ndarray) -> float:
  """Bits under an ideal table, and something for what a table overfits."""
  used = counts[counts > 0]
  return float(used @ np.log2(used.sum() / used)) + 2.0 * used.size


def _fit_alpha(values: np.ndarray) -> tuple[int, float]:
  """The grid point for classes, and their bits under it."""
  counts = np.bincount(np.abs(values))
  costs = {
    alpha: float(counts @ expected.costs(models.CLASS_NU, alpha)[: counts.size])
    for alpha in range(-48, 64, 4)
  }
  alpha = min(costs, key=costs.__getitem__)
  return alpha, costs[alpha]


def _search(histograms, start: Gaussian | None, strides):
  """The model of fewest bits for (class, counts) pairs, and those bits."""
  known = {}

  def cost(nu, alpha, tail):
    if (nu, alpha, tail) not in known:
      model = Gaussian(nu, alpha)
      known[nu, alpha, tail] = sum(
        counts @ expected.costs(nu, models.point(model, c), tail)[: counts.size]
        for c, counts in histograms
      )
    return known[nu, alpha, tail]

  if start is None:
    total = sum(counts.sum() for _, counts in histograms)
    mean = sum(c @ np.arange(c.size) for _, c in histograms) / total
    start = Gaussian(2, _alpha_of_mean(2, mean))
  best = start[:3]
  for stride in strides:
    moved = True
    while moved:
      moved = False
      for found in _neighbours(*best, stride):
        if cost(*found) < cost(*best):
          best, moved = found, True
          break
  return start._replace(nu=best[0], alpha=best[1], tail=best[2]), cost(*best)


def _neighbours(nu: int, alpha: int, tail: int, stride: int):
  """Grid points around one; a new shape comes with the scale of equal mean."""
  low, high = frequencies.NU_RANGE
  mean = expected.mean_magnitude(nu, alpha)
  for other in (nu - stride, nu + stride):
    if low <= other <= high:
      yield other, _alpha_of_mean(other, mean), tail
  low, high = frequencies.ALPHA_RANGE
  for other in (alpha - stride, alpha + stride):
    if low <= other <= high:
      yield nu, other, tail
  low, high = frequencies.TAIL_RANGE
  for other in (tail - 1, tail + 1):
    if low <= other <= high:
      yield nu, alpha, other


def _alpha_of_mean(nu: int, mean: float) -> int:
  """The grid point whose expected magnitude is nearest to `mean`."""
  low, high = frequencies.ALPHA_RANGE
  while high - low > 1:
    middle = (low + high) // 2
    if expected.mean_magnitude(nu, middle) < mean:
      low = middle
    else:
      high = middle
  return high


def _fit_table(symbols: np.ndarray, low: int, bits: float) -> Table | None:
  """The empirical table, if it takes less than `bits`, itself included."""
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
  """Frequencies of at least one, that sum to TOTAL, in proportion to counts."""
  used = counts > 0
  free = models.TOTAL - np.count_nonzero(used)
  tails = np.cumsum(counts) * free // counts.sum()
  return np.diff(tails, prepend=0) + used


def _shift(symbols: np.ndarray) -> int:
  """How many low bits carry no information that a model could use."""
  flat = symbols.ravel()
  flat = np.abs(flat[:: -(-flat.size // 4096)].astype(np.int64))
  wide = float(np.quantile(flat, 0.8))
  return min(
    max(int(np.ceil(np.log2(max(wide, 1) / _WIDE))), 0), models.MAX_SHIFT
  )
