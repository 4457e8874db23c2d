"""Which axes of a tensor are the rows of its matrix.

Rows and columns have scales of their own, so the view decides the bits: the
kernel of a convolution [O, I, k] is better seen as O rows than as O * I rows of
k elements.
"""

import numpy as np

from backslash_jax import sampling
from backslash_jax.archive import index, quantizing
from backslash_jax.archive.index import Entry
from backslash_jax.coding import fit


def best_axes(leaf, entry: Entry) -> int | None:
  """How many leading axes as rows take the fewest bits; None for the default.

  A tensor larger than a chunk is judged by a sample along its first axis.
  """
  dimensions = len(entry.shape)
  if dimensions < 3 or entry.coder != "rans" or not entry.size:
    return None
  slices = max(index.CHUNK // (entry.size // entry.shape[0]), 1)
  sample = np.asarray(leaf)[sampling.strata(entry.shape[0], slices)]
  symbols = quantizing.symbols(entry, sample)
  bits, shapes = {}, set()
  for axes in range(dimensions - 1, 0, -1):
    shape = index.matrix_shape(entry.shape, axes)
    if shape not in shapes:  # The default is the first, and stays in a draw.
      shapes.add(shape)
      own = index.matrix_shape(symbols.shape, axes)
      bits[axes] = fit.quantized_ggd(symbols.reshape(own))[1]
  best = min(bits, key=bits.__getitem__)
  return None if best == dimensions - 1 else best
