"""The moments in one Pallas kernel for GPU, compiled by Mosaic GPU.

A split reduction. There are a few programs per multiprocessor. Each loops over
its part of the flat tensor with one accumulator per lane of a block, then
reduces the block. XLA adds the partial sums, 2 per program, and what is left
over at the end of the tensor, less than a block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

PLATFORMS = ("gpu",)
DTYPES = ("float32", "bfloat16", "float16")
BLOCK = 4096
MAX_PROGRAMS = 1024
_THREADS = 128  # Of a program; each of them stores the sums.


def limitation(x: jax.Array) -> str | None:
  """Why the kernel does not support x; None if it does."""
  if x.dtype.name not in DTYPES:
    return f"it takes {', '.join(DTYPES)}, found {x.dtype}"
  if not 0 < x.size < 2**31 - BLOCK:
    return f"it takes 1 to 2^31 - {BLOCK + 1} elements, found {x.size}"
  return None


@functools.partial(jax.jit, static_argnames=("interpret", "max_programs"))
def sums(
  x: jax.Array, *, interpret: Any = None, max_programs: int = MAX_PROGRAMS
) -> tuple[jax.Array, jax.Array]:
  """(sum |x|, sum x^2) as float32 scalars, of an array of one of DTYPES.

  `interpret` is that of `mosaic_gpu.kernel`.
  """
  flat = x.reshape(-1)
  blocks = flat.size // BLOCK
  rest = flat[blocks * BLOCK :].astype(jnp.float32)
  found = jnp.sum(jnp.abs(rest)), jnp.sum(rest * rest)
  if not blocks:
    return found
  # Divide the blocks as evenly as possible among the programs.
  steps = pl.cdiv(blocks, max_programs)
  programs = pl.cdiv(blocks, steps)

  def kernel(x_ref, abs_ref, square_ref):
    program = jax.lax.axis_index("program")
    first = program * steps

    def of_block(i):
      x = x_ref[pl.ds(i * BLOCK, BLOCK)].astype(jnp.float32)
      return jnp.abs(x), x * x

    def add(i, carry):
      abs_block, square_block = of_block(first + i)
      return carry[0] + abs_block, carry[1] + square_block

    here = jnp.minimum(steps, blocks - first)
    abs_sums, square_sums = jax.lax.fori_loop(1, here, add, of_block(first))
    # The smallest store is one number of each thread.
    abs_ref[program] = jnp.broadcast_to(jnp.sum(abs_sums), [_THREADS])
    square_ref[program] = jnp.broadcast_to(jnp.sum(square_sums), [_THREADS])

  partial = jax.ShapeDtypeStruct((programs, _THREADS), jnp.float32)
  abs_sums, square_sums = mosaic_gpu.kernel(
    kernel,
    out_type=(partial, partial),
    grid=(programs,),
    grid_names=("program",),
    interpret=interpret,
    kernel_name="backslash_moments",
  )(flat)
  abs_sum = found[0] + jnp.sum(abs_sums[:, 0])
  return abs_sum, found[1] + jnp.sum(square_sums[:, 0])
