"""Weights that are removed while training runs, and stay removed.

Both transformations stand last in the chain, after the learning rate: they see
the step that is about to be made, and replace it where a weight is removed. The
moments of optimizers before them are left alone. A removed weight does not come
back, so that what its moments hold is never used.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from backslash_jax import quantize, rounding


class PruningState(NamedTuple):
  """State of `gradual_pruning`.

  Attributes:
    count: updates so far, int32.
    kept: bool, per parameter: whether it has not been removed.
  """

  count: jax.Array
  kept: Any


def gradual_pruning(
  sparsity: float,
  end: int,
  *,
  begin: int = 0,
  every: int = 10,
  mask: rounding.Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Removes the smallest weights of each tensor, ever more of them.

  The fraction removed rises from 0 at the update `begin` to `sparsity` at the
  update `end`, fast at first,

  .. math:: s_t = s (1 - (1 - (t - begin) / (end - begin))^3)

  >>> import backslash_jax as bs, optax
  >>> from backslash_jax import structure
  >>> tx = optax.chain(optax.adamw(1e-3), structure.gradual_pruning(0.8, 1000))

  Args:
    sparsity: fraction of each tensor's elements to remove, in [0, 1).
    end: update after which nothing more is removed.
    begin: update before which nothing is.
    every: updates from one choice of weights to the next.
    mask: tree of bool, or a callable that makes one of params: the leaves to
      prune; None means `bs.matrices`.

  Returns:
    A transformation, last in a chain. Its update needs params.

  Raises:
    ValueError: for an argument out of its range.

  Source: Zhu & Gupta, To prune, or not to prune, arXiv 1710.01878.
  """
  if not 0 <= sparsity < 1:
    raise ValueError(f"sparsity must be in [0, 1), found {sparsity!r}")
  if not 0 <= begin < end:
    raise ValueError(
      f"0 <= begin < end must hold, found begin {begin!r}, end {end!r}"
    )
  if every < 1:
    raise ValueError(f"every must be at least 1, found {every!r}")

  def init(params):
    kept = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    return PruningState(jnp.zeros([], jnp.int32), kept)

  def update(updates, state, params=None, **extra_args):
    del extra_args
    _check_params("gradual_pruning", params)
    left = jnp.clip((end - state.count) / (end - begin), 0.0, 1.0)
    fraction = sparsity * (1.0 - left**3)
    chooses = (state.count - begin) % every == 0
    chooses &= (begin <= state.count) & (state.count <= end)
    chooses |= state.count == end
    selected = rounding.selected_leaves(params, mask)

    def choose():
      return jax.tree.map(
        lambda kept, x, m: kept & _largest(x, fraction) if m else kept,
        state.kept,
        params,
        selected,
      )

    kept = jax.lax.cond(chooses, choose, lambda: state.kept)
    updates = jax.tree.map(
      lambda u, x, k: jnp.where(k, u, -x.astype(u.dtype)), updates, params, kept
    )
    count = jnp.asarray(optax.safe_increment(state.count))
    return updates, PruningState(count, kept)

  return optax.GradientTransformationExtraArgs(init, update)


class KeepZerosState(NamedTuple):
  """State of `keep_zeros`: the updates so far, int32."""

  count: jax.Array


def keep_zeros(
  step: float, begin: int, *, mask: rounding.Mask | None = None
) -> optax.GradientTransformationExtraArgs:
  """From the update `begin` on, weights that are coded as zeros are zeros.

  For a phase of plain training after one with the rate: the weights whose
  magnitude is within half a step by then become zero and stay so.

  Args:
    step: quantization step of the coded file.
    begin: updates that are made freely.
    mask: as in `gradual_pruning`.

  Returns:
    A transformation, last in a chain. Its update needs params.

  Raises:
    ValueError: for a step that is not positive and finite.
  """
  quantize.check_step(step)

  def init(params):
    del params
    return KeepZerosState(jnp.zeros([], jnp.int32))

  def update(updates, state, params=None, **extra_args):
    del extra_args
    _check_params("keep_zeros", params)
    # The bin of zero at first, then nothing but what is zero already.
    bound = jnp.where(state.count == begin, step / 2, 0.0)
    bound = jnp.where(state.count < begin, -1.0, bound)
    updates = jax.tree.map(
      lambda u, x, m: (
        jnp.where(jnp.abs(x) <= bound, -x.astype(u.dtype), u) if m else u
      ),
      updates,
      params,
      rounding.selected_leaves(params, mask),
    )
    count = jnp.asarray(optax.safe_increment(state.count))
    return updates, KeepZerosState(count)

  return optax.GradientTransformationExtraArgs(init, update)


def _largest(x: jax.Array, fraction: jax.Array) -> jax.Array:
  """Where x is larger than its smallest elements, this fraction of them."""
  size = jnp.abs(x)
  count = jnp.floor(fraction * x.size).astype(jnp.int32)
  ordered = jnp.sort(size, axis=None)
  threshold = jnp.where(count > 0, ordered[jnp.maximum(count - 1, 0)], -1.0)
  return size > threshold


def _check_params(name: str, params: Any) -> None:
  if params is None:
    raise ValueError(f"{name} needs params: tx.update(grads, state, params)")
