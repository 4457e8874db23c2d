"""Decodes in one Pallas kernel for TPU, compiled by Mosaic.

A TPU has no gather. The id of a slot is found by comparing it with the start of
every id; these are in scalar memory. The words of a lane are a column of a
matrix. The lanes of a step read from neighbouring rows, whose numbers are
compared with each lane's position. 1024 lanes fill a vector register.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from backslash_jax.coded import xla
from backslash_jax.coded.leaves import Coded
from backslash_jax.coded.streams import PRECISION, SLOTS

PLATFORMS = ("tpu",)
_TILE = 8, 128
_LANES = 1024
_CHUNK = 128  # Steps of a block of the result.
_MAX_WORDS = 4096  # Of a lane: 16 MiB of vector memory for 1024 lanes, twice.
_MEMORY = 64 << 20


def limitation(x: Coded) -> str | None:
  """Why the kernel does not support x; None if it does."""
  if x.longest > _MAX_WORDS:
    return f"it takes lanes of {_MAX_WORDS} words, found {x.longest}"
  return None


@functools.partial(jax.jit, static_argnames="interpret")
def tuples(x: Coded, *, interpret: bool = False) -> jax.Array:
  """The tuples of one block, as `xla.tuples`."""
  steps, lanes = x.steps, x.states.shape[-1]
  groups = pl.cdiv(lanes, _LANES)
  chunk = min(_CHUNK, steps)
  chunks = pl.cdiv(steps, chunk)
  tables = x.frequency.shape[0]
  tall = groups * _TILE[0], _TILE[1]

  def laid_out(a: jax.Array) -> jax.Array:
    """[..., lanes] as int32 [..., groups * 8, 128]."""
    padding = [(0, 0)] * (a.ndim - 1) + [(0, groups * _LANES - lanes)]
    a = jax.lax.bitcast_convert_type(a.astype(jnp.uint32), jnp.int32)
    return jnp.pad(a, padding).reshape(*a.shape[:-1], *tall)

  numbers = []
  if tables > 1:
    own = jnp.asarray(jax.vmap(lambda t: xla.table_of(x, t))(jnp.arange(steps)))
    numbers = [laid_out(jnp.pad(own, ((0, chunks * chunk - steps), (0, 0))))]

  def kernel(starts, frequencies, known, words, states, *rest):
    *number, out, state, position = rest
    # Lanes that only fill up the last register read nothing.
    index = jax.lax.broadcasted_iota(jnp.int32, _TILE, 0) * _TILE[1]
    index += jax.lax.broadcasted_iota(jnp.int32, _TILE, 1)
    is_lane = index < lanes - _LANES * pl.program_id(0)

    @pl.when(pl.program_id(1) == 0)
    def _():
      state[...] = states[...]
      position[...] = jnp.zeros(_TILE, jnp.int32)

    def step(t, _):
      slot = state[...] & (SLOTS - 1)
      if number:
        slot += number[0][t] * SLOTS

      def compare(i, found):
        beyond = slot >= starts[i]
        own = starts[i], frequencies[i], known[i]
        return tuple(
          jnp.where(beyond, a, b) for a, b in zip(own, found, strict=True)
        )

      zero = jnp.zeros(_TILE, jnp.int32)
      start, frequency, levels = jax.lax.fori_loop(
        0, starts.shape[0], compare, (zero, zero, zero)
      )
      out[t] = levels
      high = jax.lax.shift_right_logical(state[...], PRECISION)
      following = frequency * high + slot - start
      place = position[...]

      def read(row, word):
        return jnp.where(place == row, words[row], word)

      rows = words.shape[0]
      first = jnp.min(jnp.where(is_lane, place, rows))
      last = jnp.minimum(jnp.max(place), rows - 1)
      word = jax.lax.fori_loop(first, last + 1, read, zero)
      short = jax.lax.shift_right_logical(following, 16) == 0
      state[...] = jnp.where(short, (following << 16) | word, following)
      position[...] = place + (short & is_lane).astype(jnp.int32)
      return _

    jax.lax.fori_loop(0, chunk, step, 0)

  scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
  by_step = pl.BlockSpec((chunk, *_TILE), lambda group, i: (i, group, 0))
  found = pl.pallas_call(
    kernel,
    grid=(groups, chunks),
    in_specs=[
      *[scalars] * 3,
      pl.BlockSpec((x.longest, *_TILE), lambda group, i: (0, group, 0)),
      pl.BlockSpec(_TILE, lambda group, i: (group, 0)),
      *[by_step] * len(numbers),
    ],
    out_specs=by_step,
    out_shape=jax.ShapeDtypeStruct((chunks * chunk, *tall), jnp.int32),
    scratch_shapes=[pltpu.VMEM(_TILE, jnp.int32)] * 2,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=_MEMORY,
    ),
    interpret=interpret,
    name="backslash_decode",
  )(*_ids(x), laid_out(_columns(x)), laid_out(x.states), *numbers)
  found = found.reshape(-1, groups * _LANES)[:steps, :lanes]
  return jax.lax.bitcast_convert_type(found, jnp.uint32)


def _ids(x: Coded) -> list[jax.Array]:
  """Start, frequency and levels of the ids of all tables, int32 [n] each.

  The starts ascend: those of table i are from i * SLOTS on. Ids of frequency 0
  are the last of a table and start where the next one does, which comes later.
  """
  frequency = x.frequency.astype(jnp.int32)
  start = jnp.cumsum(frequency, 1) - frequency
  start += SLOTS * jnp.arange(frequency.shape[0])[:, None]
  known = xla.words_of(x.tuples).reshape(frequency.shape[0], -1)
  known = known[:, : frequency.shape[1]]
  known = jax.lax.bitcast_convert_type(known, jnp.int32)
  return [a.reshape(-1) for a in (start, frequency, known)]


def _columns(x: Coded) -> jax.Array:
  """The words of each lane, from the first on, uint16 [longest, lanes]."""
  # Those of a block, or more.
  size = min(x.words.size, x.longest * x.counts.size)
  begin = jnp.minimum(x.begins[0], x.words.size - size)
  first = x.first_words() - begin
  words = jax.lax.dynamic_slice(x.words, (begin,), (size,))
  words = jnp.pad(words, (0, x.longest))
  take = lambda i: jax.lax.dynamic_slice(words, (i,), (x.longest,))  # noqa: E731
  return jax.vmap(take)(first).T
