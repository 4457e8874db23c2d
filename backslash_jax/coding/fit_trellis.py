"""Fits the model of the symbols of a trellis, as `fit` does of others."""

import numpy as np

from backslash_jax import sampling
from backslash_jax.coding import (
  classes,
  expected,
  fit,
  frequencies,
  models,
  trellis,
)
from backslash_jax.coding.models import Trellis


def fit_trellis(symbols: np.ndarray, *, sample: bool = False) -> models.Model:
  """The model of about the fewest bits for int32 symbols of a trellis.

  Args:
    symbols: all the symbols of a piece, of any shape. The last axis is the
      columns of the model's matrix, all others are its rows.
    sample: whether the model must be able to code other symbols, too.

  Returns:
    A Trellis; a constant Table if all symbols are 0 and `sample` is false.
  """
  if not sample and not symbols.any():
    return models.Table(0, (models.TOTAL,))
  columns = symbols.shape[-1] if symbols.ndim > 1 else 1
  symbols = symbols.reshape(-1, columns)
  plain, _ = fit.quantized_ggd(symbols)
  plain = plain._replace(shift=0, tail=max(plain.tail, 1))
  is_odd = trellis.is_odd(symbols)
  rows = symbols.shape[0]
  taken = sampling.strata(rows, max(rows * fit.SAMPLE // symbols.size, 1))
  row_class, column_class = classes.assign(means(symbols, is_odd), plain)
  total = row_class[taken, None] + column_class
  keys = np.minimum(np.abs(symbols[taken]), frequencies.LARGEST + 1)
  found = []
  for odd in (False, True):
    own = is_odd[taken] == odd
    if not own.any():
      found.append(plain)
      continue
    counts = fit.histograms_of(keys[own].astype(np.intp), total[own])
    found.append(fit.search(counts, plain, (2, 1), odd=odd)[0])
  even, odd = (ggd._replace(tail=max(ggd.tail, 1)) for ggd in found)
  points = (plain.row_alpha_index, plain.column_alpha_index)
  return Trellis(*even[:3], *points, *odd[:3])


def means(
  symbols: np.ndarray, is_odd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The mean |value| of the rows and of the columns of a matrix of symbols."""
  sizes = 2 * np.abs(symbols.astype(np.int64))
  sizes -= (sizes > 0) * is_odd
  row, column = classes.means(sizes)
  return row / 2, column / 2


def code_lengths(model: Trellis, class_sums: range) -> np.ndarray:
  """Bits by quantizer (even, odd), class sum and magnitude, float32.

  The last magnitude is that of all larger ones.
  """
  return np.array(
    [
      [
        expected.costs(
          own.nu_index, models.class_alpha_index(own, c), own.tail, odd=odd
        )
        for c in class_sums
      ]
      for odd, own in enumerate((model.even, model.odd))
    ],
    np.float32,
  )
