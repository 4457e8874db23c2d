"""Row and column classes of a matrix: by how much each one's scale differs.

The encoder and the fitter assign classes by the same rule. A decoder reads them
from the chunk, so nothing in this module is part of the file format.
"""

import numpy as np

from backslash_jax.coding import expected, loops, models
from backslash_jax.coding.models import QuantizedGGD

_CLASSES = np.arange(-models.MAX_CLASS, models.MAX_CLASS + 1)


def magnitudes(symbols: np.ndarray, shift: int) -> np.ndarray:
  """|symbols / 2**shift|, rounded to nearest, of int32 symbols.

  Returns:
    Integers of the shape of `symbols`: int64, or int32 if that is enough.
  """
  if shift:
    wide = symbols.astype(np.int64)
    return np.abs((wide + (1 << (shift - 1))) >> shift)
  if symbols.min(initial=0) > -(2**31):
    return np.abs(symbols)
  return np.abs(symbols.astype(np.int64))


def symbol_means(
  symbols: np.ndarray, shift: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """`means` of the `magnitudes` of a matrix of int32 symbols."""
  if shift:
    return means(magnitudes(symbols, shift))
  rows, columns = symbols.shape
  sums = loops.choose(symbols.size).magnitude_sums(symbols)
  return sums[0] / columns, sums[1] / rows


def means(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The means of the rows and of the columns of a matrix, float64."""
  rows, columns = sizes.shape
  return (
    sizes.sum(1, dtype=np.float64) / columns,
    sizes.sum(0, dtype=np.float64) / rows,
  )


def assign(
  means: tuple[np.ndarray, np.ndarray], model: QuantizedGGD
) -> tuple[np.ndarray, np.ndarray]:
  """The classes of the rows and of the columns of a matrix of magnitudes.

  A row or column gets the class whose expected mean is nearest to its own mean
  on a logarithmic scale. The classes of the columns are chosen for the classes
  that the rows have.

  Args:
    means: what `means` returns for the magnitudes.
    model: classes that it does not code are 0.

  Returns:
    Row classes and column classes, int64.
  """
  row_class, column_class = (np.zeros(side.size, np.int64) for side in means)
  if model.row_alpha_index is not None:
    row_class = _nearest(means[0], model, column_class, model.row_alpha_index)
  if model.column_alpha_index is not None:
    column_class = _nearest(
      means[1], model, row_class, model.column_alpha_index
    )
  return row_class, column_class


def _nearest(
  means: np.ndarray, model: QuantizedGGD, other: np.ndarray, alpha_index: int
) -> np.ndarray:
  """The class of each mean, given the classes `other` of the other side.

  Only classes are taken that the table of the scale `alpha_index` can code.
  """
  offset = int(other.min())
  shares = np.bincount(other - offset) / other.size
  wanted = [
    sum(
      share
      * expected.mean_magnitude(
        model.nu_index, models.class_alpha_index(model, k + offset + int(c))
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
  reach = models.reach(models.CLASS_NU_INDEX, alpha_index)
  return np.clip(found, -reach, reach)
