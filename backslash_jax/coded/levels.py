"""Levels of coded and packed weights, for the kernels of other libraries."""

import math

import jax
import jax.numpy as jnp

from backslash_jax.coded.decode import decode
from backslash_jax.coded.leaves import Coded, Packed


def levels(x: Coded | Packed) -> tuple[jax.Array, jax.Array]:
  """A leaf as integers and a scale, such as `qwix.QArray(*levels(x))` takes.

  Their product is what `decode` gives, up to the rounding of one float32
  product. Runs inside and outside of `jit`, where levels beyond int8 are
  clipped.

  Args:
    x: a leaf of `bs.load(path, coded=...)`.

  Returns:
    The levels, int8 [*shape], and the scale, float32 [n, 1, ...] with n layers
    or n = 1.

  Raises:
    TypeError: if it is not such a leaf.
    ValueError: if a level does not fit into int8, or the step into float32.
  """
  if not isinstance(x, Coded | Packed):
    raise TypeError(f"{type(x).__name__} has no levels: it is an array")
  if x.scale.shape[-1] != 2:
    raise ValueError(f"{x!r} has values that no float32 step gives: decode it")
  shape = x.shape
  # Of each layer; blocks of rows are of one tensor, with one step.
  steps = jnp.sum(x.scale, -1).reshape(-1)[:: math.prod(x.grid[1:])]
  steps = steps if steps.size == shape[0] else steps[:1]
  steps = steps.reshape(-1, *(1,) * (len(shape) - 1))
  found = jnp.rint(decode(x).astype(jnp.float32) / steps)
  if not isinstance(found, jax.core.Tracer):
    largest = float(jnp.max(jnp.abs(found)))
    if largest > 127:
      raise ValueError(
        f"{x!r} has a level of {largest:.0f}, beyond int8: decode it"
      )
  return jnp.clip(found, -127, 127).astype(jnp.int8), steps
