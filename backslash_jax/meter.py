"""Entropy of the quantized parameters, measured during training.

A generalized Gaussian predicts the code length from two moments, which is
accurate if the parameters follow it. After rate-constrained training many
tensors do not: a few rows are large and the rest are zero. The prediction can
then be wrong by half. The meter therefore computes the entropy from a histogram
of the quantized integers in a sample of each tensor. The bins get wider with
the magnitude.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from backslash_jax import sampling
from backslash_jax.moments import sharded, split

# Largest sample of a tensor, or of one shard of it, in elements.
SAMPLE = 2**17
# First level of every bin of |q|: one level per bin up to 16, then bins that
# each begin 2^(1/4) times further out.
_EDGES = np.round(
  np.concatenate([np.arange(16), 16 * 2 ** (np.arange(60) / 4)])
)


@jax.jit  # Tensors of one shape are traced and lowered once.
def entropy(x: jax.Array, step: float | jax.Array) -> jax.Array:
  """Entropy of round(x / step) in bits per element, float32 scalar.

  All levels within a bin count as equally likely. The bias of the finite sample
  is corrected (Miller & Madow 1955). The result is nan if a sampled element is
  nan.

  Args:
    x: floating array of any shape.
    step: quantization step, in the units of x.
  """
  if x.size == 0:
    return jnp.zeros([], jnp.float32)
  x = _sample(x).astype(jnp.float32)
  level = jnp.round(jnp.abs(x) / jnp.asarray(step, jnp.float32))
  reached = jax.lax.platform_dependent(
    level, cpu=_reached_in_turn, default=_reached
  )
  count = reached - jnp.append(reached[1:], jnp.int32(0))
  # Both signs, except for zero. The last bin is unbounded; it is nearly empty.
  width = np.append(np.diff(_EDGES), _EDGES[-1]) * np.where(_EDGES == 0, 1, 2)
  p = count.astype(jnp.float32) / x.size
  nats = jnp.sum(special.entr(p) + p * jnp.log(width.astype(np.float32)))
  bins = jnp.sum((count > 0).astype(jnp.float32))
  nats += (bins - 1.0) / (2.0 * x.size)
  return jnp.where(reached[0] == x.size, nats / math.log(2.0), jnp.nan)


def bits_per_parameter(
  params: Any, step: float | jax.Array, sharding: Any = None
) -> jax.Array:
  """Mean entropy of the floating leaves, in bits per parameter.

  Each leaf has its own histogram. A leaf that is split over a mesh has one per
  shard, and the bits of the shards are added. This takes one all-reduce of one
  float32 for all leaves that are split over the same mesh axes.

  Args:
    params: pytree of arrays.
    step: quantization step: a scalar for all floating leaves, or [T], one per
      floating leaf in the order of the leaves.
    sharding: as in `moments.tree_moments`.

  Returns:
    float32 scalar; 0 if there are no parameters.
  """
  leaves, shardings = split(params, sharding)
  # Floats, because JAX rejects Python integers of 2^31 and more.
  total = float(sum(x.size for x in leaves))
  if total == 0:
    return jnp.zeros([], jnp.float32)
  bits = sharded.add_up(
    leaves,
    shardings,
    lambda x, own: float(x.size) * entropy(x, own),
    jnp.broadcast_to(jnp.asarray(step, jnp.float32), [len(leaves)]),
  )
  return bits / total


def _reached(level):
  """Number of levels at or beyond the first level of each bin, int32."""
  edges = jnp.expand_dims(
    jnp.asarray(_EDGES, level.dtype), range(1, level.ndim + 1)
  )
  return jnp.sum(
    level[None] >= edges, axis=range(1, level.ndim + 1), dtype=jnp.int32
  )


def _reached_in_turn(level):
  """`_reached` edge by edge, which is ten times as fast in XLA on CPU."""

  def reached(edge):
    # Counts up to SAMPLE are exact in float32, and XLA vectorizes this sum.
    return jnp.sum((level >= edge).astype(jnp.float32)).astype(jnp.int32)

  return jax.lax.map(reached, jnp.asarray(_EDGES, level.dtype))


def _sample(x):
  """At most SAMPLE elements of x, spread over each axis.

  An axis is cut into equal parts, each a power of two long, and one index is
  taken from each part. If every shard consists of whole parts, no element
  leaves its device.
  """
  parts, widths = list(x.shape), [1] * x.ndim
  while np.prod(parts, dtype=np.int64) > SAMPLE:
    axis = int(np.argmax(parts))
    widths[axis] *= 2
    parts[axis] = x.shape[axis] // widths[axis]
  for axis, (count, width) in enumerate(zip(parts, widths, strict=True)):
    if width == 1:
      continue
    x = jax.lax.slice_in_dim(x, 0, count * width, axis=axis)
    blocks = x.reshape(*x.shape[:axis], count, width, *x.shape[axis + 1 :])
    places = sampling.strata(count * width, count) % width
    take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
    x = jax.vmap(take, (axis, 0, None), axis)(
      blocks, places.astype(np.int32), axis
    )
  return x
