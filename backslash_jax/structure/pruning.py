"""Pruning during training: removed weights stay zero.

Put `gradual_pruning` and `keep_zeros` last in the chain, after the learning
rate. They replace the final update wherever a weight is removed. They cannot
change the moments of the optimizers before them; wrap the chain in
`clear_moments` to set those to zero where a weight is removed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from backslash_jax import arguments, quantize, tree
from backslash_jax.structure import groups as grouping
from backslash_jax.structure import magnitude


class PruningState(NamedTuple):
  """State of `gradual_pruning`.

  Attributes:
    pruning_count: updates so far, int32.
    kept: tree of bool with the shapes of params; False where a weight has been
      removed.
  """

  pruning_count: jax.Array
  kept: Any


def gradual_pruning(
  sparsity: float,
  end: int,
  *,
  begin: int = 0,
  every: int = 10,
  scope: str = "tensor",
  groups: Sequence[grouping.Group] | None = None,
  mask: tree.Mask = tree.DEFAULT,
) -> optax.GradientTransformationExtraArgs:
  """Removes a growing fraction of the smallest weights.

  The removed fraction rises from 0 in update `begin` to `sparsity` in update
  `end`, fastest at the beginning:

      s_t = s (1 - (1 - (t - begin) / (end - begin))^3)

  >>> import backslash_jax as bs, optax
  >>> from backslash_jax import structure
  >>> tx = optax.chain(optax.adamw(1e-3), structure.gradual_pruning(0.8, 1000))

  Args:
    sparsity: final fraction of the weights to remove, in [0, 1).
    end: last update in which weights are removed.
    begin: first update in which weights are removed; default 0.
    every: updates between removals; default 10.
    scope: "tensor" (default) or "model", see `magnitude.kept`.
    groups: if given, removes whole units, see `magnitude.kept`.
    mask: selects the leaves to prune, see `bs.matrices`, the default.

  Returns:
    A transformation to put last in a chain. Its update needs params.

  Raises:
    ValueError: if an argument is out of range.

  Source: Zhu & Gupta, To prune, or not to prune, arXiv 1710.01878.
  """
  arguments.check(
    "gradual_pruning", "sparsity", sparsity, "in [0, 1)", lambda v: 0 <= v < 1
  )
  arguments.check_count("gradual_pruning", "begin", begin, 0)
  arguments.check_count("gradual_pruning", "end", end, 1)
  arguments.check_count("gradual_pruning", "every", every, 1)
  if not isinstance(begin, jax.Array) and not isinstance(end, jax.Array):
    if begin >= end:
      raise ValueError(
        f"gradual_pruning: begin must be before end, found begin {begin!r} and"
        f" end {end!r}"
      )
  magnitude.check(scope)

  def init(params):
    kept = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    return PruningState(jnp.zeros([], jnp.int32), kept)

  def update(updates, state, params=None, **extra_args):
    del extra_args
    _check_params("gradual_pruning", params)
    left = jnp.clip((end - state.pruning_count) / (end - begin), 0.0, 1.0)
    fraction = sparsity * (1.0 - left**3)
    chooses = (state.pruning_count - begin) % every == 0
    chooses &= (begin <= state.pruning_count) & (state.pruning_count <= end)
    chooses |= state.pruning_count == end

    def choose():
      largest = magnitude.kept(
        params, fraction, scope=scope, groups=groups, mask=mask
      )
      return jax.tree.map(jnp.logical_and, state.kept, largest)

    kept = jax.lax.cond(chooses, choose, lambda: state.kept)
    updates = jax.tree.map(
      lambda u, x, k: jnp.where(k, u, -x.astype(u.dtype)), updates, params, kept
    )
    count = jnp.asarray(optax.safe_increment(state.pruning_count))
    return updates, PruningState(count, kept)

  return optax.GradientTransformationExtraArgs(init, update)


class KeepZerosState(NamedTuple):
  """State of `keep_zeros`: the number of updates so far, int32."""

  keep_zeros_count: jax.Array


def keep_zeros(
  step: float, begin: int, *, mask: tree.Mask = tree.DEFAULT
) -> optax.GradientTransformationExtraArgs:
  """Sets weights that round to zero to zero, from update `begin` on.

  Use it for a phase without a rate after a phase with one. In update `begin`,
  weights with a magnitude of at most half a step become zero. They stay zero
  afterwards.

  Args:
    step: quantization step of the coded file, in the units of the parameters.
    begin: number of updates before this takes effect.
    mask: selects the leaves, see `bs.matrices`, the default.

  Returns:
    A transformation to put last in a chain. Its update needs params.

  Raises:
    ValueError: if step is not positive and finite.
  """
  quantize.check_step(step)
  arguments.check_count("keep_zeros", "begin", begin, 0)

  def init(params):
    del params
    return KeepZerosState(jnp.zeros([], jnp.int32))

  def update(updates, state, params=None, **extra_args):
    del extra_args
    _check_params("keep_zeros", params)
    # First the whole zero bin; afterwards only weights that are already zero.
    bound = jnp.where(state.keep_zeros_count == begin, step / 2, 0.0)
    bound = jnp.where(state.keep_zeros_count < begin, -1.0, bound)
    updates = jax.tree.map(
      lambda m, u, x: (
        jnp.where(jnp.abs(x) <= bound, -x.astype(u.dtype), u) if m else u
      ),
      tree.select(params, mask),
      updates,
      params,
    )
    count = jnp.asarray(optax.safe_increment(state.keep_zeros_count))
    return updates, KeepZerosState(count)

  return optax.GradientTransformationExtraArgs(init, update)


def clear_moments(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Clears the optimizer moments of weights that a chain sets to zero.

  Otherwise, if a removed weight is trained again, its old momentum determines
  the first updates.

  >>> import optax
  >>> from backslash_jax import structure
  >>> tx = structure.clear_moments(
  ...   optax.chain(optax.adam(1e-3), structure.gradual_pruning(0.8, 1000))
  ... )

  Args:
    tx: a chain that ends with the transformation that removes weights.

  Returns:
    A transformation with the state of tx. Where an update makes a weight
    exactly zero, the floating per-parameter entries of the state become zero
    (`optax.tree.map_params` finds them). Its update needs params.
  """
  tx = optax.with_extra_args_support(tx)

  def update(updates, state, params=None, **extra_args):
    _check_params("clear_moments", params)
    updates, state = tx.update(updates, state, params, **extra_args)
    gone = jax.tree.map(lambda x, u: x + u == 0, params, updates)

    def forget(s, gone):
      if not jnp.issubdtype(jnp.result_type(s), jnp.inexact):
        return s  # Pruning masks and other non-floating state.
      return jnp.where(gone, jnp.zeros_like(s), s)

    return updates, optax.tree.map_params(tx.init, forget, state, gone)

  return optax.GradientTransformationExtraArgs(tx.init, update)


def _check_params(name: str, params: Any) -> None:
  if params is None:
    raise ValueError(f"{name} needs params: tx.update(grads, state, params)")
