"""The two moments of a tensor that determine its generalized Gaussian."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from backslash_jax import ggd
from backslash_jax.moments import sharded

Sharding = Any | Callable[[Any], Any]


class Moments(NamedTuple):
  """Sufficient statistics; those of a union of tensors are their sums.

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

  Differentiable, and runs under `jit` and `vmap`.

  Args:
    x: floating array of any shape and any floating dtype.
    implementation: "xla", "xla_cpu", "pallas_tpu" or "pallas_gpu". None takes
      "xla", except for tensors of a MiB or more where one device is all there
      is: "xla_cpu", which is measured to be faster, on a CPU, and "pallas_tpu",
      which the compiler's own estimate prefers, on a TPU.

  Raises:
    TypeError: if x is not floating.
    NotImplementedError: if the implementation that is named does not exist,
      does not take this tensor or does not run on this platform.
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f"moments of a floating array wanted, found {x.dtype}")
  m = tree_moments(x, implementation=implementation)
  return jax.tree.map(lambda s: s[0], m)


def tree_moments(
  params: Any,
  sharding: Sharding | None = None,
  *,
  implementation: str | None = None,
) -> Moments:
  """Moments of the T floating leaves of params, in the order of the leaves.

  A leaf that is known to be split over a mesh is reduced where its shards lie,
  with one all-reduce for all leaves that are split over the same axes. Inside a
  `shard_map` of the caller a leaf is the shard of its device, and so are its
  moments: add them up with `jax.lax.psum`.

  Args:
    params: pytree of arrays.
    sharding: tree of NamedSharding, one wherever params has a floating leaf, or
      a callable that makes such a tree of params. None: explicit mesh axes are
      in the types of the arrays; under automatic ones XLA reduces, and the
      compiler partitions the reduction.
    implementation: as in `moments`; for a leaf that is known to be split, what
      holds there for the tensor holds for each shard.

  Returns:
    Moments of float32 [T] arrays, replicated.

  Raises:
    ValueError: a leaf has no sharding, or one that does not divide it.
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
  """The floating leaves of params and how each is known to be sharded.

  Args:
    params: pytree of arrays.
    sharding: as in `tree_moments`.

  Raises:
    ValueError: a leaf has no sharding, or one that does not divide it.
  """
  paths, leaves = [], []
  for path, x in jax.tree.leaves_with_path(params):
    if jnp.issubdtype(jnp.result_type(x), jnp.floating):
      paths.append(path)
      leaves.append(x)
  if sharding is None:
    return leaves, [sharded.typed(x) for x in leaves]
  tree = sharding(params) if callable(sharding) else sharding
  flat = dict(jax.tree.leaves_with_path(tree))
  pairs = zip(paths, leaves, strict=True)
  return leaves, [sharded.given(path, x, flat) for path, x in pairs]


def shape_parameter(m: Moments) -> jax.Array:
  """nu of the generalized Gaussian that has these moments.

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
