"""Sums over many sharded tensors.

Each device reduces its own shards inside `shard_map`. All tensors that are
split over the same mesh axes then share one all-reduce of two float32 per
tensor. There is no other communication, and no tensor is gathered. Every device
reduces its own copy of a replicated tensor, which counts once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from backslash_jax.moments import dispatch


def sums(
  leaves: list[jax.Array],
  shardings: list[NamedSharding | None],
  implementation: str | None,
) -> jax.Array:
  """sum |x| and sum x^2 of each of T floating tensors, float32 [T, 2].

  Args:
    leaves: the tensors.
    shardings: sharding of each tensor; None leaves it to the compiler.
    implementation: as in `dispatch.sums`.
  """
  rows: dict[int, jax.Array] = {}
  for i, (x, s) in enumerate(zip(leaves, shardings, strict=True)):
    if s is None:
      # The compiler cannot partition a kernel and would gather the tensor.
      # Under automatic axes, the type of x does not tell whether it is sharded.
      whole = jax.device_count() == 1
      name = implementation or (None if whole else "xla")
      rows[i] = jnp.stack(dispatch.sums(x, name, jax.default_backend()))
  for mesh, axes, members in _groups(shardings):
    platform = _platform(mesh)

    def local(*shards, platform=platform):
      each = [dispatch.sums(x, implementation, platform) for x in shards]
      return jnp.stack([jnp.stack(pair) for pair in each])

    reduced = _reduce(local, mesh, axes, members, leaves)
    rows |= zip(members, reduced, strict=True)
  return jnp.stack([rows[i] for i in range(len(leaves))])


def each(
  leaves: list[jax.Array],
  shardings: list[NamedSharding | None],
  fn: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """The sum of fn(shard) over the shards of each of T tensors, [T, ...].

  Args:
    leaves: the tensors.
    shardings: sharding of each tensor; None counts as one shard.
    fn: array -> array; all results must have the same shape.
  """
  pairs = enumerate(zip(leaves, shardings, strict=True))
  rows = {i: fn(x) for i, (x, s) in pairs if s is None}
  for mesh, axes, members in _groups(shardings):
    reduced = _reduce(
      lambda *shards: jnp.stack([fn(x) for x in shards]),
      mesh,
      axes,
      members,
      leaves,
    )
    rows |= zip(members, reduced, strict=True)
  return jnp.stack([rows[i] for i in range(len(leaves))])


def add_up(
  leaves: list[jax.Array],
  shardings: list[NamedSharding | None],
  fn: Callable[[jax.Array, jax.Array], jax.Array],
  scalars: jax.Array,
) -> jax.Array:
  """The sum of fn(shard, scalar) over all shards of all T tensors, a scalar.

  Args:
    leaves: the tensors.
    shardings: sharding of each tensor; None counts as one shard.
    fn: (array, scalar) -> scalar.
    scalars: one per tensor, [T].
  """
  triples = zip(leaves, shardings, scalars, strict=True)
  zero = jnp.zeros([], jnp.float32)
  total = sum((fn(x, a) for x, s, a in triples if s is None), zero)
  for mesh, axes, members in _groups(shardings):

    def local(scalars, *shards, members=tuple(members)):
      pairs = zip(shards, members, strict=True)
      return jnp.sum(jnp.stack([fn(x, scalars[i]) for x, i in pairs]))

    total += _reduce(local, mesh, axes, members, leaves, scalars)
  return total


def _groups(shardings):
  """(mesh, axes, {index: spec}) for each set of axes that tensors share."""
  groups: dict[Any, dict[int, PartitionSpec]] = {}
  for i, s in enumerate(shardings):
    if s is not None:
      groups.setdefault((s.mesh, split_axes(s)), {})[i] = s.spec
  return [(mesh, axes, members) for (mesh, axes), members in groups.items()]


def _reduce(local, mesh, axes, members, leaves, *replicated):
  """The sum of local(*replicated, *shards) of a group over its mesh axes."""

  def summed(*arguments):
    value = local(*arguments)
    return jax.lax.psum(value, axes) if axes else value

  reduce = jax.shard_map(
    summed,
    mesh=mesh,
    in_specs=(PartitionSpec(),) * len(replicated) + tuple(members.values()),
    out_specs=PartitionSpec(),
    check_vma=False,  # Pallas does not declare how its output varies.
  )
  return reduce(*replicated, *(leaves[i] for i in members))


def typed(x: jax.Array) -> NamedSharding | None:
  """The sharding in the type of x under explicit mesh axes; else None."""
  s = jax.typeof(x).sharding
  explicit = [t == AxisType.Explicit for t in s.mesh.axis_types]
  return s if explicit and all(explicit) else None


def given(
  name: str, x: jax.Array, by_name: dict[str, Any]
) -> NamedSharding | None:
  """The sharding of leaf x, from a dict of shardings by name.

  Returns:
    The sharding; None for a SingleDeviceSharding.

  Raises:
    ValueError: if it is missing, is not a NamedSharding, or does not divide x.
  """
  s = by_name.get(name)
  if isinstance(s, jax.sharding.SingleDeviceSharding):
    return None
  if not isinstance(s, NamedSharding):
    raise ValueError(
      f"moments: sharding has {s!r} for {name}, wanted a NamedSharding; give a"
      " tree with the structure of params, or None"
    )
  for dim, entry in enumerate(s.spec):
    parts = math.prod(s.mesh.shape[a] for a in _names(entry))
    if dim >= x.ndim or x.shape[dim] % parts:
      raise ValueError(
        f"moments: {s.spec} over mesh {dict(s.mesh.shape)} splits dimension"
        f" {dim} of {name} into {parts}, which its shape {x.shape} does not"
        " allow; replicate that dimension or use another mesh"
      )
  return s


def split_axes(sharding: NamedSharding) -> tuple[str, ...]:
  """The mesh axes over which a sharding splits x, in mesh order."""
  used = {a for entry in sharding.spec for a in _names(entry)}
  return tuple(a for a in sharding.mesh.axis_names if a in used)


def _names(entry):
  """The mesh axes in one entry of a PartitionSpec."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)


def _platform(mesh):
  if isinstance(mesh, Mesh):
    return mesh.devices.flat[0].platform
  device = mesh.abstract_device
  return device.platform if device else jax.default_backend()
