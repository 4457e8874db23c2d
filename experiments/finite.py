"""Detects that training diverged, and names the tensors."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Sums over all values of an update: not finite if any of the values is not.
INDICATORS = ("loss", "gradient_norm", "update_norm")


def flags(
  values: Mapping[str, jax.Array], trees: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Which leaves of each tree are finite, bool[leaves], inside jit.

  The leaves are read only if an indicator in `values` is not finite, so an
  ordinary update costs nothing.
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
  update: int,
  values: Mapping[str, float],
  finite: Mapping[str, np.ndarray],
  names: list[str],
) -> str | None:
  """None if the indicators of an update are finite, else the bad tensors.

  Args:
    update: its number.
    values: its metrics.
    finite: its `flags`, on the host.
    names: of the leaves.
  """
  indicators = {k: values[k] for k in INDICATORS}
  if np.isfinite(sum(indicators.values())):
    return None
  numbers = ", ".join(f"{k} {v:.4g}" for k, v in indicators.items())
  lines = [f"training diverged at update {update}: {numbers}; not finite are"]
  for kind, good in finite.items():
    bad = [name for name, g in zip(names, good, strict=True) if not g]
    shown = ", ".join(bad[:8]) or "none"
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    lines.append(f"  {kind}: {shown}{more}")
  return "\n".join(lines)
