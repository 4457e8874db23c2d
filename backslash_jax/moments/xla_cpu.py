"""The moments in XLA on a CPU, in one pass.

XLA on CPU compiles the two sums to two loops, and each reads the whole tensor.
This implementation reads it once, in rows of a flat view that stay in the cache
for both sums. Each column has its own accumulator, so a float32 sum has few
terms and stays accurate. If the tensor were partitioned, the compiler would
gather it for this loop. Use it only for tensors or shards on a single device.
"""

import jax
import jax.numpy as jnp

from backslash_jax.moments import reference

PLATFORMS = ("cpu",)
COLUMNS = 8192
# Rows per loop iteration, which reads and writes the accumulators once.
ROWS = 4


def limitation(x: jax.Array) -> str | None:
  """Why this implementation does not support x; None if it does."""
  if x.size >= 2**31:
    return f"it takes fewer than 2^31 elements, found {x.size}"
  return None


@jax.jit  # Tensors of one shape are traced and lowered once.
def sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(sum |x|, sum x^2) as float32 scalars, of a floating array of any shape."""
  x = x.reshape(-1)
  steps = x.size // (ROWS * COLUMNS)
  if not steps:
    return reference.sums(x)

  def add(i, carry):
    start = i * (ROWS * COLUMNS)
    rows = [
      jax.lax.dynamic_slice(x, (start + r * COLUMNS,), (COLUMNS,))
      for r in range(ROWS)
    ]
    rows = [row.astype(jnp.float32) for row in rows]
    abs_sums, square_sums = carry
    abs_sums += sum(jnp.abs(row) for row in rows)
    square_sums += sum(row * row for row in rows)
    return abs_sums, square_sums

  zeros = jnp.zeros([COLUMNS], jnp.float32)
  columns = jax.lax.fori_loop(0, steps, add, (zeros, zeros))
  rest = reference.sums(x[steps * ROWS * COLUMNS :])
  return jnp.sum(columns[0]) + rest[0], jnp.sum(columns[1]) + rest[1]
