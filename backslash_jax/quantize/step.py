"""The quantization step: its default, its checks, a step for each leaf."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from backslash_jax import tree

# The quantization step where none is given: of the meter, the rate's epsilon
# and the recipes. What is from scratch and was trained with it loses nothing
# that matters by rounding; `save` and `compress` are told theirs.
STEP = 2.0**-6


def steps_by_name(
  params, step: Any, mask: tree.Mask = tree.matrices
) -> dict[str, Any]:
  """The step of every leaf that is quantized, by its name.

  Args:
    params: a tree of arrays.
    step: one step for all, a number or an array of JAX, or a mapping from names
      to steps. With names, the default mask means
      the leaves that are named.
    mask: the leaves that are quantized, see `bs.matrices`.

  Raises:
    ValueError: a step is not positive and finite, names no floating leaf of
      params, or is missing for a leaf of the mask; the mask selects nothing.
  """
  if not isinstance(step, Mapping):
    check_step(step)
    return dict.fromkeys(tree.selected(params, mask), step)
  leaves = dict(tree.named_leaves(params))
  step = {name: tree.value_of(own) for name, own in step.items()}
  for name in step:
    if name not in leaves or not tree.is_float(leaves[name]):
      what = "is not floating" if name in leaves else "is not in the tree"
      raise ValueError(f"step has a step for {name!r}, which {what}")
    check_step(step[name], name)
  if mask is tree.matrices:
    return {name: step[name] for name in leaves if name in step}
  chosen = tree.selected(params, mask)
  if missing := [name for name in chosen if name not in step]:
    raise ValueError(
      f"tensor {missing[0]!r} has no step: name it in step, or leave it out of"
      " the mask"
    )
  return {name: step[name] for name in chosen}


def check_step(step: Any, name: str | None = None) -> None:
  """ValueError unless `step` is a positive finite number.

  Arrays of JAX pass: they may be traced, and 0 for "not chosen yet".
  """
  jax = sys.modules.get("jax")
  if jax and isinstance(step, jax.Array):
    return
  try:
    is_good = bool(np.ndim(step) == 0 and 0 < step < math.inf)
  except TypeError:
    is_good = False
  if not is_good:
    where = "" if name is None else f" of tensor {name!r}"
    raise ValueError(
      f"the step{where} is {step!r}: it must be positive and finite"
    )
