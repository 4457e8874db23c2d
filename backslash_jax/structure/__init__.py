"""Structured sparsity: groups of weights, their pruning, and a group rate."""

from backslash_jax.structure.group_rate import GroupRateState, group_rate
from backslash_jax.structure.groups import Group, Slice
from backslash_jax.structure.magnitude import kept, prune
from backslash_jax.structure.pruning import (
  KeepZerosState,
  PruningState,
  clear_moments,
  gradual_pruning,
  keep_zeros,
)

__all__ = [
  "Group",
  "GroupRateState",
  "KeepZerosState",
  "PruningState",
  "Slice",
  "clear_moments",
  "gradual_pruning",
  "group_rate",
  "keep_zeros",
  "kept",
  "prune",
]
