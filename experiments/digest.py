"""Digests of arrays that do not depend on how the arrays are split.

The digest is two sums modulo 2^32, over the elements, of hashes of the
element's bits and its position. Sums of integers do not depend on their order,
so each device adds up its own part, one all-reduce joins eight bytes, and an
array has the same digest on any number of devices. An array in which a single
element differs has another digest; any two others share theirs with a
probability of about 2^-64.
"""

from typing import Any

import jax
import jax.numpy as jnp

from backslash_jax import tree


def of(params: Any) -> dict[str, str]:
  """The digest of every leaf by its name: 16 hexadecimal digits.

  Args:
    params: tree of real arrays. Arrays that are split over several processes
      must be given in all of them; all get the result.
  """
  named = tree.named_leaves(params)
  # One after the other: leaves of one shape share a program, and programs with
  # collectives that run at the same time can wait for each other for ever.
  return {
    name: "".join(f"{int(word):08x}" for word in jax.device_get(_sums(leaf)))
    for name, leaf in named
  }


@jax.jit
def _sums(x):
  """The two sums, uint32 [2]."""
  words = _words(x)
  # The row-major index, modulo 2^32. Reshaping would move what is split.
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    position = position * jnp.uint32(size % 2**32) + index
  first = _mix(words ^ _mix(position + jnp.uint32(0x9E3779B9)))
  second = _mix(first + jnp.uint32(0x7F4A7C15))
  return jnp.stack([jnp.sum(h, dtype=jnp.uint32) for h in (first, second)])


def _words(x):
  """The bits of each element as uint32; elements of 8 bytes become two."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x):
  """A bijection of uint32 in which every bit of x moves half of the result.

  Source: the finalizer of MurmurHash3 (Appleby, public domain).
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
