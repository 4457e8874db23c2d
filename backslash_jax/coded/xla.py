"""Decodes in plain XLA, on any platform: a scan over the steps of all lanes."""

import jax
import jax.numpy as jnp

from backslash_jax.coded.streams import FLOOR, PRECISION, SLOTS

PLATFORMS = ("cpu", "gpu", "tpu")


def ids(words, counts, states, frequency, tuples, steps: int) -> jax.Array:
  """The tuples of one block, uint32 [steps, lanes].

  Args:
    words: uint16 [words].
    counts: uint16 [lanes].
    states: uint32 [lanes].
    frequency: uint16 [ids].
    tuples: uint32 [ids].
    steps: ids of each lane.
  """
  table = slots(frequency)
  counts = counts.astype(jnp.uint32)
  positions = jnp.cumsum(counts) - counts

  def step(carry, _):
    state, position = carry
    entry = _take(table, state & (SLOTS - 1))
    state = (entry >> 20) * (state >> PRECISION) + ((entry >> 8) & (SLOTS - 1))
    short = state < FLOOR
    word = _take(words, position).astype(jnp.uint32)
    state = jnp.where(short, (state << 16) | word, state)
    position += short.astype(jnp.uint32)
    return (state, position), (entry & 255).astype(jnp.uint8)

  _, found = jax.lax.scan(step, (states, positions), None, length=steps)
  return _take(tuples, found)


def slots(frequency: jax.Array) -> jax.Array:
  """frequency << 20 | (slot - start) << 8 | id by slot, uint32 [SLOTS]."""
  frequency = frequency.astype(jnp.uint32)
  stops = jnp.cumsum(frequency)
  slot = jnp.arange(SLOTS, dtype=jnp.uint32)
  # Every id but those of frequency 0 marks its first slot.
  own = jnp.searchsorted(stops, slot, side="right").astype(jnp.uint32)
  frequency, stop = _take(frequency, own), _take(stops, own)
  return (frequency << 20) | ((slot - stop + frequency) << 8) | own


def _take(x: jax.Array, i: jax.Array) -> jax.Array:
  """x[i] for indices that are known to be in bounds."""
  return x.at[i].get(mode="promise_in_bounds", wrap_negative_indices=False)
