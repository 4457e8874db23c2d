"""Noticing that training has diverged, and saying where."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Sums over everything that a step made: one is not finite if any value is.
INDICATORS = ("loss", "gradient_norm", "update_norm")


def flags(
  values: Mapping[str, jax.Array], trees: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Which leaves of each tree are finite, bool[leaves], inside jit.

  The leaves are looked at only if an indicator in `values` is not finite, so
  that a step that goes well does not pay for it.
  """

  def look(tree):
    leaves = jax.tree.leaves(tree)
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])

  def assume(tree):
    return jnp.ones([len(jax.tree.leaves(tree))], bool)

  return jax.lax.cond(
    jnp.isfinite(sum(values[k] for k in INDICATORS)),
    lambda: {name: assume(tree) for name, tree in trees.items()},
    lambda: {name: look(tree) for name, tree in trees.items()},
  )


def problem(
  step: int,
  values: Mapping[str, float],
  finite: Mapping[str, np.ndarray],
  names: list[str],
) -> str | None:
  """None if the step's indicators are finite, else which tensors are not.

  Args:
    step: its number.
    values: its metrics.
    finite: its `flags`, on the host.
    names: the path of each leaf.
  """
  indicators = {k: values[k] for k in INDICATORS}
  if np.isfinite(sum(indicators.values())):
    return None
  numbers = ", ".join(f"{k} {v:.4g}" for k, v in indicators.items())
  lines = [f"training diverged at step {step}: {numbers}; not finite are"]
  for kind, good in finite.items():
    bad = [name for name, g in zip(names, good, strict=True) if not g]
    shown = ", ".join(bad[:8]) or "none"
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    lines.append(f"  {kind}: {shown}{more}")
  return "\n".join(lines)


def names(tree: Any) -> list[str]:
  """The path of every leaf, like "encoder/layers_0/kernel"."""
  return [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree.leaves_with_path(tree)
  ]
