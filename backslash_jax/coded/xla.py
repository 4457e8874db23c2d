"""Decodes in plain XLA, on any platform: a loop over the steps of all lanes."""

import jax
import jax.numpy as jnp

from backslash_jax.coded.leaves import Coded
from backslash_jax.coded.streams import FLOOR, MAX_IDS, PRECISION, SLOTS

PLATFORMS = ("cpu", "gpu", "tpu")


def limitation(x: Coded) -> str | None:
  """None: this implementation supports every x."""
  del x


def tuples(x: Coded) -> jax.Array:
  """The tuples of one block, uint32 [steps, lanes], a byte for each level."""
  steps, lanes = x.steps, x.states.shape[-1]
  table = jax.vmap(slots)(x.frequency).reshape(-1)
  known = words_of(x.tuples)
  positions = x.first_words().astype(jnp.uint32)

  def step(t, carry):
    states, positions, found = carry
    slot = states & (SLOTS - 1)
    number = table_of(x, t)
    if number is None:
      entry = _take(table, slot)
      ids = entry & (MAX_IDS - 1)
    else:
      entry = _take(table, slot + number * SLOTS)
      ids = (entry & (MAX_IDS - 1)) + number * MAX_IDS
    states = (entry >> 20) * (states >> PRECISION)
    states += (entry >> 8) & (SLOTS - 1)
    short = states < FLOOR
    word = _take(x.words, positions).astype(jnp.uint32)
    states = jnp.where(short, (states << 16) | word, states)
    found = jax.lax.dynamic_update_slice(found, _take(known, ids)[None], (t, 0))
    return states, positions + short.astype(jnp.uint32), found

  # All of it is replaced. Zeros would not depend on x, and the compiler would
  # make those of all tensors of a program first.
  found = jnp.broadcast_to(x.states[None], [steps, lanes])
  return jax.lax.fori_loop(0, steps, step, (x.states, positions, found))[2]


def slots(frequency: jax.Array) -> jax.Array:
  """frequency << 20 | (slot - start) << 8 | id by slot, uint32 [SLOTS]."""
  frequency = frequency.astype(jnp.uint32)
  stops = jnp.cumsum(frequency)
  slot = jnp.arange(SLOTS, dtype=jnp.uint32)
  ids = jnp.searchsorted(stops, slot, side="right").astype(jnp.uint32)
  frequency, stop = _take(frequency, ids), _take(stops, ids)
  return (frequency << 20) | ((slot - stop + frequency) << 8) | ids


def words_of(tuples: jax.Array) -> jax.Array:
  """Tuples int8 [tables, ids, rows] as uint32 [tables * MAX_IDS]."""
  _, ids, rows = tuples.shape
  octets = tuples.astype(jnp.uint8).astype(jnp.uint32)
  shifts = jnp.arange(0, 8 * rows, 8, dtype=jnp.uint32)
  known = jnp.sum(octets << shifts[None, None], -1, dtype=jnp.uint32)
  return jnp.pad(known, ((0, 0), (0, MAX_IDS - ids))).reshape(-1)


def table_of(x: Coded, t: jax.Array) -> jax.Array | None:
  """The table of each lane in step t, uint32 [lanes]; None if there is one."""
  tables = x.frequency.shape[0]
  if tables == 1:
    return None
  lanes = x.states.shape[-1]
  each = lanes // x.width if x.segments == 1 else 1  # Rows of tuples in a step.
  total = jnp.zeros([each, lanes // each], jnp.int32)
  if x.row_classes.size:
    rows = x.row_classes.reshape(-1, each)[jax.lax.div(t, x.segments)]
    total += rows[:, None].astype(jnp.int32)
  if x.column_classes.size:
    columns = x.column_classes.reshape(x.segments, -1)[
      jax.lax.rem(t, x.segments)
    ]
    total += columns[None].astype(jnp.int32)
  return jnp.clip(total, 0, tables - 1).reshape(lanes).astype(jnp.uint32)


def _take(x: jax.Array, i: jax.Array) -> jax.Array:
  """x[i] for indices that are known to be in bounds."""
  return x.at[i].get(mode="promise_in_bounds", wrap_negative_indices=False)
