"""Code lengths of quantized parameters, for several codes."""

import collections
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from backslash_jax import tree
from backslash_jax.coding import exp_golomb, huffman


def code_lengths(
  params: Any, step: float | Mapping[str, float]
) -> dict[str, float]:
  """Bits per parameter of the matrices of quantized parameters.

  "fixed", "exp_golomb" (order 0, of the values ranked by frequency) and
  "huffman" use one table for the whole model, as the paper does; "entropy"
  is the sum of every tensor's own empirical entropy.

  Args:
    params: tree whose matrices hold multiples of step; they are read one at a
      time.
    step: the quantization step, or one for each matrix's path.
  """
  pooled: collections.Counter[int] = collections.Counter()
  entropy = 0.0
  for name, x in tree.selected(params).items():
    own = step[name] if isinstance(step, Mapping) else step
    levels = np.rint(np.asarray(x, np.float64) / own).astype(np.int32)
    values, counts = np.unique(levels, return_counts=True)
    p = counts / levels.size
    entropy -= levels.size * float(np.sum(p * np.log2(p)))
    pooled.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
  values, counts = map(np.array, zip(*sorted(pooled.items()), strict=True))
  total = int(counts.sum())
  return {
    "fixed": math.ceil(math.log2(values.size)),
    "exp_golomb": _exp_golomb(counts) / total,
    "huffman": _huffman(values, counts) / total,
    "entropy": entropy / total,
  }


def _exp_golomb(counts):
  """Bits of the ranks 0, 1, ... of the values, the most frequent first."""
  ranks = np.arange(counts.size)
  octaves = np.frexp(ranks + 1.0)[1] - 1  # floor(log2(rank + 1))
  return int(np.sort(counts)[::-1] @ (2 * octaves + 1))


def _huffman(values, counts):
  """Bits of the best code words and of the escapes, see `huffman`."""
  model = huffman.fit(values, counts)
  lengths = np.array(model.lengths, np.int64)
  inside = np.abs(values) <= huffman.LARGEST
  bits = int(counts[inside] @ lengths[values[inside] - model.lowest])
  if inside.all():
    return bits
  beyond = np.repeat(values[~inside], counts[~inside]).astype(np.int32)
  bits += int(lengths[-1]) * beyond.size
  return bits + exp_golomb.code_length(beyond, exp_golomb.fit(beyond))
