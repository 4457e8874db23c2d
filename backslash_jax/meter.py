"""Entropy of the quantized parameters, measured while training runs.

A generalized Gaussian predicts the code length from two moments, and is right
as long as the parameters follow it. Rate-constrained training makes tensors
that do not, with a few strong rows among zeros, and there the prediction can be
wrong by half. So the meter counts: it takes the entropy of the integers, from a
histogram whose bins grow with the magnitude, over a sample of each tensor.
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

# A tensor, or a shard of one, is sampled down to at most so many elements.
SAMPLE = 2**17
# First level of every bin of |q|: one level each up to 16, then a fifth wider.
_EDGES = np.round(
  np.concatenate([np.arange(16), 16 * 2 ** (np.arange(60) / 4)])
)


def entropy(x: jax.Array, step: float | jax.Array) -> jax.Array:
  """Entropy in bits per element of round(x / step), float32 scalar.

  Within a bin all levels count as equally likely, and the bias of a finite
  sample is corrected for (Miller & Madow 1955).

  Args:
    x: floating array of any shape; nan where one of it is nan.
    step: distance between quantization levels.
  """
  if x.size == 0:
    return jnp.zeros([], jnp.float32)
  x = _sample(x).astype(jnp.float32)
  level = jnp.round(jnp.abs(x) / jnp.asarray(step, jnp.float32))
  reached = jax.lax.platform_dependent(
    level, cpu=_reached_in_turn, default=_reached
  )
  count = reached - jnp.append(reached[1:], jnp.int32(0))
  # Both signs, but for zero; the last bin has no end, and hardly an element.
  width = np.append(np.diff(_EDGES), _EDGES[-1]) * np.where(_EDGES == 0, 1, 2)
  p = count.astype(jnp.float32) / x.size
  nats = jnp.sum(special.entr(p) + p * jnp.log(width.astype(np.float32)))
  bins = jnp.sum((count > 0).astype(jnp.float32))
  nats += (bins - 1.0) / (2.0 * x.size)
  return jnp.where(reached[0] == x.size, nats / math.log(2.0), jnp.nan)


def bits_per_parameter(
  params: Any, step: float | jax.Array, sharding: Any = None
) -> jax.Array:
  """Mean bits of the floating leaves of params, each coded separately.

  A leaf that is split over a mesh is measured shard by shard, as the coded
  file's chunks are, and the shards' bits are added: one all-reduce of one
  float32 for all leaves that are split over the same axes.

  Args:
    params: pytree of arrays.
    step: distance between quantization levels: one, or [T], one for each
      floating leaf in the order of the leaves.
    sharding: as in `moments.tree_moments`.

  Returns:
    float32 scalar; 0 where there is no parameter.
  """
  leaves, shardings = split(params, sharding)
  # Floats, because JAX takes no integer of 2^31 and more.
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
  """How many of the levels are in each bin or beyond, int32."""
  edges = jnp.expand_dims(
    jnp.asarray(_EDGES, level.dtype), range(1, level.ndim + 1)
  )
  return jnp.sum(
    level[None] >= edges, axis=range(1, level.ndim + 1), dtype=jnp.int32
  )


def _reached_in_turn(level):
  """The same, edge by edge: XLA on CPU does it ten times as fast."""

  def reached(edge):
    # float32 counts exactly what a sample has, and XLA vectorizes its sum.
    return jnp.sum((level >= edge).astype(jnp.float32)).astype(jnp.int32)

  return jax.lax.map(reached, jnp.asarray(_EDGES, level.dtype))


def _sample(x):
  """At most SAMPLE elements of x, spread over each axis.

  An axis is cut in parts of a power of two, and one index is taken from each.
  Where the shards of the axis are such parts as well, none of it leaves its
  device.
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
