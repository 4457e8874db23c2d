"""The moments in one Pallas kernel for TPU, compiled by Mosaic.

The kernel reads the tensor in place. Leading dimensions form a batch. Blocks of
the last two dimensions, in whole tiles, pass through VMEM. Each grid iteration
adds its block to a row of partial sums, so each lane accumulates few numbers.
The grid has two independent halves, one for each core of a v4 or v5p chip. XLA
adds the partial sums, 4 numbers per lane.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

PLATFORMS = ("tpu",)
DTYPES = ("float32", "bfloat16")
BLOCK_ROWS = 256
BLOCK_COLUMNS = 1024


def limitation(x: jax.Array) -> str | None:
  """Why the kernel does not support x; None if it does."""
  if x.dtype.name not in DTYPES:
    return f"it takes {' and '.join(DTYPES)}, found {x.dtype}"
  if x.size == 0:
    return "it takes tensors with elements, found an empty one"
  return None


@functools.partial(jax.jit, static_argnames="interpret")
def sums(
  x: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """(sum |x|, sum x^2) as float32 scalars, of a float32 or bfloat16 array."""
  x_BxRxC = _batched_matrix(x)
  size = x_BxRxC.shape
  block = 1, min(size[1], BLOCK_ROWS), min(size[2], BLOCK_COLUMNS)
  counts = tuple(pl.cdiv(n, b) for n, b in zip(size, block, strict=True))
  blocks = math.prod(counts)
  halves = min(2, blocks)
  steps = pl.cdiv(blocks, halves)

  def position(half, step):
    i = half * steps + step
    row, c = jax.lax.div(i, counts[2]), jax.lax.rem(i, counts[2])
    return jax.lax.div(row, counts[1]), jax.lax.rem(row, counts[1]), c

  def index_map(half, step):
    # An extra iteration in the second half reads a block but adds nothing.
    b, r, c = position(half, step)
    return jnp.minimum(b, size[0] - 1), r, c

  def kernel(x_ref, out_ref):
    half, step = pl.program_id(0), pl.program_id(1)
    x = x_ref[0].astype(jnp.float32)
    b, r, c = position(half, step)
    keep = None
    for axis, i in ((0, r), (1, c)):
      if size[axis + 1] % block[axis + 1]:
        index = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        inside = index < size[axis + 1] - i * block[axis + 1]
        keep = inside if keep is None else keep & inside
    if halves * steps > blocks:
      inside = jnp.broadcast_to(b < size[0], x.shape)
      keep = inside if keep is None else keep & inside
    if keep is not None:
      x = jnp.where(keep, x, 0.0)

    @pl.when(step == 0)
    def _():
      out_ref[...] = jnp.zeros_like(out_ref)

    out_ref[0, 0:1] += jnp.sum(jnp.abs(x), 0, keepdims=True)
    out_ref[0, 1:2] += jnp.sum(x * x, 0, keepdims=True)

  partial = pl.pallas_call(
    kernel,
    grid=(halves, steps),
    in_specs=[pl.BlockSpec(block, index_map)],
    out_specs=pl.BlockSpec((1, 2, block[2]), lambda half, step: (half, 0, 0)),
    out_shape=jax.ShapeDtypeStruct((halves, 2, block[2]), jnp.float32),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary")
    ),
    cost_estimate=pl.CostEstimate(
      flops=4 * x.size,
      transcendentals=0,
      bytes_accessed=x.size * x.dtype.itemsize,
    ),
    interpret=interpret,
    name="backslash_moments",
  )(x_BxRxC)
  abs_sum, square_sum = jnp.sum(partial, (0, 2))
  return abs_sum, square_sum


def _batched_matrix(x: jax.Array) -> jax.Array:
  """x as [B, R, C], in the layout that XLA uses, so no data moves."""
  if x.ndim < 2:
    return x.reshape(1, -1, 128 if x.size % 1024 == 0 else x.size)
  x = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
  _, r, c = x.shape
  # XLA stores a matrix transposed if that needs less padding to whole tiles.
  padded = pl.cdiv(r, 8) * pl.cdiv(c, 128), pl.cdiv(c, 8) * pl.cdiv(r, 128)
  return x.mT if padded[1] < padded[0] else x
