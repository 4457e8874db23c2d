"""The quantization step: its default, its validation, and steps per leaf."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from backslash_jax import tree

# The default quantization step in training, for the measured bits and the
# rate's epsilon. Models trained from scratch with it lose no significant
# accuracy when rounded to it. `save` and `compress` have no default step.
STEP = 2.0**-6


def steps_by_name(
  params, step: Any, mask: tree.Mask = tree.matrices
) -> dict[str, Any]:
  """The step of every leaf that is quantized, by name.

  Args:
    params: tree of arrays.
    step: one step for all selected leaves, a number or a JAX array; or a
      mapping from names to steps.
    mask: selects the leaves that are quantized, see `bs.matrices`. With steps
      by name, the default selects the named leaves.

  Raises:
    ValueError: if a step is not positive and finite, if a step names no
      floating leaf of params, if a selected leaf has no step, or if the mask
      selects nothing.
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
  """Raises ValueError unless `step` is a positive finite number.

  JAX arrays are not checked: they may be traced, and may be 0, which means "not
  chosen yet".
  """
  jax = sys.modules.get("jax")
  if jax and isinstance(step, jax.Array):
    return
  try:
    is_good = bool(np.ndim(step) == 0 and 0 < step < math.inf)
  except TypeError:
    is_good = False
  is_good = is_good and not isinstance(step, bool)
  if not is_good:
    where = "" if name is None else f" of tensor {name!r}"
    raise ValueError(
      f"the step{where} is {step!r}: it must be positive and finite"
    )
