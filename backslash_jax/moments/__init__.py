"""Moments of tensors, from which a generalized Gaussian is fitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from backslash_jax import ggd, tree
from backslash_jax.moments import sharded

Sharding = Any | Callable[[Any], Any]


class Moments(NamedTuple):
  """Sums over a tensor. For several tensors together, add their moments.

  Attributes:
    count: number of elements, float32 scalar.
    abs_sum: sum of |x|, float32 scalar.
    square_sum: sum of x^2, float32 scalar.
  """

  count: jax.Array
  abs_sum: jax.Array
  square_sum: jax.Array


def moments(x: jax.Array, *, implementation: str | None = None) -> Moments:
  """Sum of |x| and of x^2 in one pass, accumulated in float32.

  It is differentiable and runs under `jit` and `vmap`.

  Args:
    x: array of any shape and any floating dtype.
    implementation: "xla", "xla_cpu", "pallas_tpu" or "pallas_gpu". None
      (default) uses "xla", except for tensors of 1 MiB or more on a single
      device: these use "xla_cpu" on a CPU, where measurements show that it is
      faster, and "pallas_tpu" on a TPU, where the compiler estimates the same.

  Returns:
    Moments of float32 scalars.

  Raises:
    TypeError: if x is not floating.
    NotImplementedError: if the named implementation does not exist, does not
      support this tensor or does not run on this platform.
  """
  if not tree.is_float(x):
    raise TypeError(f"moments needs a floating array, found {x.dtype}")
  m = tree_moments(x, implementation=implementation)
  return jax.tree.map(lambda s: s[0], m)


def tree_moments(
  params: Any,
  sharding: Sharding | None = None,
  *,
  implementation: str | None = None,
) -> Moments:
  """Moments of the T floating leaves of params, in the order of the leaves.

  If the sharding of a leaf is known, each device reduces its own shards. One
  all-reduce then serves all leaves that are split over the same mesh axes.
  Inside a `shard_map` of the caller, a leaf is the shard of one device: add its
  moments up with `jax.lax.psum`.

  Args:
    params: pytree of arrays.
    sharding: tree with a NamedSharding for each floating leaf of params, or a
      callable that returns such a tree for params. With None (default), the
      shardings over explicit mesh axes are read from the types of the arrays.
      Under automatic axes, the compiler partitions the reduction.
    implementation: as in `moments`. For a leaf with a known sharding, the rules
      there apply to each shard.

  Returns:
    Moments of float32 [T] arrays, replicated.

  Raises:
    ValueError: if a leaf has no sharding, or one that does not divide it.
    NotImplementedError: as `moments`.
  """
  leaves, shardings = split(params, sharding)
  if not leaves:
    return Moments(*jnp.zeros([3, 0], jnp.float32))
  sums_Tx2 = sharded.sums(leaves, shardings, implementation)
  count = jnp.asarray([float(x.size) for x in leaves], jnp.float32)
  return Moments(count, sums_Tx2[:, 0], sums_Tx2[:, 1])


def split(
  params: Any, sharding: Sharding | None = None
) -> tuple[list[jax.Array], list[NamedSharding | None]]:
  """The floating leaves of params, and their shardings where known.

  Args:
    params: pytree of arrays.
    sharding: as in `tree_moments`.

  Returns:
    (leaves, shardings); a sharding is None where it is not known.

  Raises:
    ValueError: if a leaf has no sharding, or one that does not divide it.
  """
  named = [(n, x) for n, x in tree.named_leaves(params) if tree.is_float(x)]
  leaves = [x for _, x in named]
  if sharding is None:
    return leaves, [sharded.typed(x) for x in leaves]
  placed = sharding(params) if callable(sharding) else sharding
  by_name = dict(tree.named_leaves(placed))
  return leaves, [sharded.given(name, x, by_name) for name, x in named]


def shape_parameter(m: Moments) -> jax.Array:
  """Shape nu of the generalized Gaussian with these moments.

  Returns:
    nu in [ggd.MIN_SHAPE, ggd.MAX_SHAPE], float32, of the shape of the sums.
    It is 2 where the sums do not tell the shape: for an empty tensor, for one
    of zeros, and for one so small that its squares are zero. Moments that are
    not finite give nan.
  """
  # The squares of small values underflow to zero.
  blank = (m.abs_sum == 0.0) | (m.square_sum == 0.0)
  count = jnp.maximum(m.count, 1.0)
  mean_abs = jnp.where(blank, 1.0, m.abs_sum) / count
  mean_square = jnp.where(blank, 1.0, m.square_sum) / count
  # In logarithms: XLA would divide by the square of the mean, which underflows.
  nu = ggd.shape_from_log_ratio(jnp.log(mean_square) - 2.0 * jnp.log(mean_abs))
  return jnp.where(blank, 2.0, nu)
