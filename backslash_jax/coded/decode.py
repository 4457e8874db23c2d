"""Arrays from coded weights, inside jit."""

import dataclasses
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from backslash_jax.coded import exact
from backslash_jax.coded.leaves import Coded, Packed, check_number, matrix
from backslash_jax.moments import sharded

# The modules of this package; Pallas takes long to import.
IMPLEMENTATIONS = ("xla", "pallas_tpu")


def decode(x: Any, *, at: Any = None, implementation: str | None = None) -> Any:
  """The arrays of coded or packed weights, bit-equal to those of `bs.load`.

  Runs inside and outside of `jit`, and in the bodies of `jax.lax.scan` and
  `shard_map`.

  Args:
    x: a leaf of `bs.load(path, coded=...)`, or a pytree with such leaves. What
      is already an array stays as it is.
    at: the number of a layer, an integer that may be traced, such as the index
      of a scan. Only that layer of every leaf is decoded: the result is that of
      `leaf[at]`, also of arrays. Of a leaf that was divided with `blocks`, it
      is the block of rows. None decodes all.
    implementation: of `Coded` leaves, "xla" or "pallas_tpu". None (default)
      takes "xla": the kernel was compiled for TPUs, but not measured on one.

  Returns:
    The array, or the tree with arrays.

  Raises:
    NotImplementedError: if the named implementation does not exist, does not
      support a leaf or does not run on this platform.
    IndexError: if `at` is a Python integer and there is no such layer.
    TypeError: if `at` is no integer.
    ValueError: if a leaf is not divided into the layers that `at` counts, was
      sliced or cast, or is split over devices along an axis that is not
      divided.
  """
  name = "xla" if implementation is None else implementation
  if name not in IMPLEMENTATIONS:
    raise NotImplementedError(
      f"decode has no implementation {name!r}; there are"
      f" {', '.join(IMPLEMENTATIONS)}"
    )
  module = importlib.import_module(f"backslash_jax.coded.{name}")
  platform = jax.default_backend()

  def leaf(x):
    if not isinstance(x, Coded | Packed):
      return x if at is None else _row(x, at)
    if at is not None:
      x = x.at(at)
    if isinstance(x, Packed):
      return _leaf(x, module)
    limitation = module.limitation(x)
    if platform not in module.PLATFORMS:
      limitation = f"it runs on {module.PLATFORMS[0]}, found {platform}"
    if limitation:
      raise NotImplementedError(
        f"decode of {x!r} with implementation={name!r}: {limitation}; None and"
        " 'xla' decode every leaf on every platform"
      )
    return _leaf(x, module)

  return jax.tree.map(
    leaf, x, is_leaf=lambda node: isinstance(node, Coded | Packed)
  )


def _row(x: Any, i: Any) -> jax.Array:
  x = jnp.asarray(x)
  if not x.ndim:
    raise ValueError("at is for layers, which a tensor of no dimensions lacks")
  check_number(i, x.shape[0])
  if isinstance(i, jax.core.Tracer):
    # XLA for CPUs slices bfloat16 arrays in float32. It would cast a stack of
    # layers as a whole, once, before the loop that slices it.
    x, i = jax.lax.optimization_barrier((x, i))
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _leaf(x: Coded | Packed, module) -> jax.Array:
  """One leaf's array; each device decodes its own blocks."""

  def local(x):
    if isinstance(x, Coded):
      return _blocks(x, lambda own: _coded(own, module))
    return _blocks(x, _packed)

  placed = sharded.typed(jax.tree.leaves(x)[0])
  if placed is None:  # Or the compiler's partitioner does the same.
    return local(x)
  specs = jax.tree.map(lambda child: jax.typeof(child).sharding.spec, x)
  count = len(x.grid)
  for spec in jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, jax.P)):
    if tuple(spec[:count]) != tuple(placed.spec[:count]) or any(spec[count:]):
      raise ValueError(
        f"{x!r} is divided into {x.grid} blocks, which {spec} splits: load it"
        " with sharding=..., or reshard what is decoded"
      )
  return jax.shard_map(
    local,
    mesh=placed.mesh,
    in_specs=(specs,),
    out_specs=jax.P(*placed.spec[:count]),
    check_vma=False,  # Pallas does not declare how its output varies.
  )(x)


def _blocks(x, decode_one) -> jax.Array:
  """Decodes every block of a leaf, and puts them in their places."""
  shape = x.shape  # Refuses what was sliced.
  grid = x.grid
  block = x.block[x.divided - len(grid) :]

  def one(own, shared):
    part = dataclasses.replace(x, **own, **shared)
    levels = decode_one(part).reshape(block)
    return _patched(_values(levels, part), part)

  own, shared = x.own(), x.shared()
  if grid:
    for _ in grid[1:]:
      one = jax.vmap(one)
    # The shards along the first axis, and the blocks of each.
    one = jax.vmap(jax.vmap(one, (0, None)))
    shards = grid[0] // x.each
    own = jax.tree.map(
      lambda a: a.reshape(shards, grid[0] // shards, *a.shape[1:]), own
    )
  found = one(own, shared).reshape(*grid, *block)
  count = len(grid)
  # [grid..., block...] to the axes of the tensor.
  order = [axis for i in range(count) for axis in (i, count + i)]
  order += range(2 * count, count + len(block))
  return found.transpose(order).reshape(shape)


def _values(levels, x) -> jax.Array:
  if x.scale.shape[-1] == 2:
    return exact.dequantize(levels, x.scale, x.dtype)
  lowest = x.lowest if isinstance(x, Packed) else -128
  return jnp.take(x.scale, levels.astype(jnp.int32) - lowest, mode="clip")


def _patched(array, x) -> jax.Array:
  """The array with the values that no level stands for."""
  if not x.most:
    return array
  number = jnp.arange(x.most)
  at = jnp.minimum(x.begins[-2] + number, x.places.size - 1)
  places = jnp.where(number < x.begins[-1], x.places[at], array.size)
  flat = array.reshape(-1).at[places].set(x.values[at], mode="drop")
  return flat.reshape(array.shape)


def _coded(x: Coded, module) -> jax.Array:
  """The levels of one block, int32 [size]."""
  size, columns = matrix(x.block)
  found = module.tuples(x).reshape(-1, 1, x.width)[:, :, :columns]
  shifts = jnp.arange(24, 24 - 8 * x.rows, -8, dtype=jnp.uint32)
  found = (found << shifts[None, :, None]).astype(jnp.int32) >> 24
  return found.reshape(-1)[: size * columns]


def _packed(x: Packed) -> jax.Array:
  """The levels of one block, int32 [size]."""
  size, bits = math.prod(x.block), x.bits
  if bits < 8:
    shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)
    octets = (x.octets[None] >> shifts[:, None]) & ((1 << bits) - 1)
  else:
    octets = x.octets
  return octets.reshape(-1)[:size].astype(jnp.int32) + x.lowest
