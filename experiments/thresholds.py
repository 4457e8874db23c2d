"""The magnitudes below which given fractions of all weights lie.

They prune a model of any size where its weights are: only counts leave the
devices, while a sort would gather all weights on one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backslash_jax as bs
from backslash_jax import tree


def find(params: Any, fractions: Sequence[float]) -> list[float]:
  """For each fraction the largest threshold t that removes at most that.

  Removing the matrices' weights of magnitude t or less then removes at most the
  fraction of them. Of several weights of the same magnitude all are removed or
  none. A fraction of 0 gives a threshold below 0.

  Args:
    params: tree of arrays.
    fractions: of the weights of the matrices, in [0, 1).
  """
  matrices = list(tree.selected(params).values())
  total = sum(x.size for x in matrices)
  allowed = np.floor(np.array(fractions) * total + 1e-4)
  # Non-negative float32 numbers are ordered as their bits are. -1 is below all.
  low = np.full(len(fractions), -1, np.int64)
  high = np.full(len(fractions), np.float32(np.inf).view(np.int32), np.int64)
  while (high - low > 1).any():
    middle = (low + high) // 2
    bits = np.maximum(middle, 0).astype(np.int32)
    found = np.asarray(_counts(matrices, bits.view(np.float32)), np.int64)
    fits = (found.sum(axis=0) <= allowed) & (allowed > 0)
    low, high = np.where(fits, middle, low), np.where(fits, high, middle)
  values = np.maximum(low, 0).astype(np.int32).view(np.float32)
  return np.where(low < 0, -1.0, values).tolist()


@jax.jit
def prune(params: Any, threshold: float) -> Any:
  """Sets the matrices' weights of magnitude `threshold` or less to zero."""

  def leaf(x, is_matrix):
    small = jnp.abs(x).astype(jnp.float32) <= threshold
    return jnp.where(small, jnp.zeros_like(x), x) if is_matrix else x

  return jax.tree.map(leaf, params, bs.matrices(params))


@jax.jit
def _counts(matrices, thresholds):
  """Weights of each matrix up to each of R thresholds, int32 [T, R]."""

  def count(x, threshold):
    return jnp.sum(jnp.abs(x).astype(jnp.float32) <= threshold, dtype=jnp.int32)

  return jnp.stack(
    [jnp.stack([count(x, t) for t in thresholds]) for x in matrices]
  )
