"""The moments in one Pallas kernel for GPU, compiled by Triton.

A split reduction. There are a few programs per multiprocessor. Each loops over
its part of the flat tensor with one accumulator per lane of a block, then
reduces the block. XLA adds the partial sums, 2 per program.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

PLATFORMS = ("gpu",)
DTYPES = ("float32", "bfloat16", "float16")
BLOCK = 4096
MAX_PROGRAMS = 1024


def limitation(x: jax.Array) -> str | None:
  """Why the kernel does not support x; None if it does."""
  if x.dtype.name not in DTYPES:
    return f"it takes {', '.join(DTYPES)}, found {x.dtype}"
  if not 0 < x.size < 2**31 - BLOCK:
    return f"it takes 1 to 2^31 - {BLOCK + 1} elements, found {x.size}"
  return None


@functools.partial(jax.jit, static_argnames="interpret")
def sums(
  x: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """(sum |x|, sum x^2) as float32 scalars, of an array of one of DTYPES."""
  size = x.size
  blocks = pl.cdiv(size, BLOCK)
  # Divide the blocks as evenly as possible among the programs.
  steps = pl.cdiv(blocks, MAX_PROGRAMS)
  programs = pl.cdiv(blocks, steps)

  def kernel(x_ref, abs_ref, square_ref):
    first = pl.program_id(0) * steps

    def add(i, carry):
      start = (first + i) * BLOCK
      index = start + jnp.arange(BLOCK)
      block = x_ref.at[pl.ds(start, BLOCK)]
      x = triton.load(block, mask=index < size, other=0).astype(jnp.float32)
      return carry[0] + jnp.abs(x), carry[1] + x * x

    zeros = jnp.zeros([BLOCK], jnp.float32)
    here = jnp.minimum(steps, blocks - first)
    abs_sums, square_sums = jax.lax.fori_loop(0, here, add, (zeros, zeros))
    abs_ref[0] = jnp.sum(abs_sums)
    square_ref[0] = jnp.sum(square_sums)

  partial = jax.ShapeDtypeStruct((programs,), jnp.float32)
  one = pl.BlockSpec((1,), lambda i: (i,))
  abs_sums, square_sums = pl.pallas_call(
    kernel,
    grid=(programs,),
    in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
    out_specs=[one, one],
    out_shape=[partial, partial],
    compiler_params=triton.CompilerParams(num_warps=8, num_stages=4),
    interpret=interpret,
    name="backslash_moments",
  )(x.reshape(-1))
  return jnp.sum(abs_sums), jnp.sum(square_sums)
