"""Keys and values of the tokens that a causal model has seen.

A prompt fills the first slots of a cache, padding included, and every token
that is generated takes the next slot. Which slots a token sees is decided by
their positions, which count real tokens only, so a prompt may be padded on
either side. Shapes as in layers.py; S slots, N blocks that share an array.
"""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from experiments.models import attention, partition

Config = Any  # A ModelConfig or SmallConfig.


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["keys", "values", "slot", "block"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class KeyValues:
  """What blocks have computed of the tokens so far.

  Attributes:
    keys: [N, B, S, K, D].
    values: the same.
    slot: int32, where the next tokens go.
    block: int32, which of the N blocks is at work.
  """

  keys: jax.Array
  values: jax.Array
  slot: jax.Array
  block: jax.Array

  def write(self, k_BxTxKxD: jax.Array, v_BxTxKxD: jax.Array) -> "KeyValues":
    """With those of the next tokens, of the block that is at work."""
    place = (self.block, 0, self.slot, 0, 0)

    def put(all_, x):
      return jax.lax.dynamic_update_slice(
        all_, x[None].astype(all_.dtype), place
      )

    return dataclasses.replace(
      self,
      keys=put(self.keys, k_BxTxKxD),
      values=put(self.values, v_BxTxKxD),
    )

  def read(self) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, S, K, D] of the block that is at work."""
    take = functools.partial(
      jax.lax.dynamic_index_in_dim, index=self.block, keepdims=False
    )
    return take(self.keys), take(self.values)

  def next_block(self) -> "KeyValues":
    """The same for the block that follows."""
    return dataclasses.replace(self, block=self.block + 1)


# Of a model's blocks; one of all of them if they are stacked.
Known = tuple[KeyValues | None, ...] | None


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["keys", "values", "real", "positions", "used"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Cache:
  """All that a causal model keeps of the tokens so far.

  Attributes:
    keys: [N, B, S, K, D] in the dtype of the computation: one array, N the
      depth, if the blocks are stacked, else one of N = 1 for each block.
    values: the same.
    real: bool [B, S], the slots that hold a real token.
    positions: int32 [B, S], those of the tokens in the slots.
    used: int32, how many slots hold a token.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  real: jax.Array
  positions: jax.Array
  used: jax.Array


class Causal(Protocol):
  """A language model of this package."""

  config: Config

  def advance(
    self, tokens_BxT: jax.Array, mask: attention.Mask, known: Known = None
  ) -> tuple[jax.Array, Known]: ...

  def head(self) -> Any: ...


def empty(config: Config, batch: int, slots: int) -> Cache:
  """A cache of a model that has seen nothing."""
  scan = getattr(config, "scan", False)
  sizes = [config] if scan else [config.layer(i) for i in range(config.depth)]
  features = config.head_dim or config.width // config.heads

  def zeros(size):
    heads = getattr(size, "kv_heads", None) or size.heads
    shape = (config.depth if scan else 1, batch, slots, heads, features)
    x = jnp.zeros(shape, config.dtype)
    return partition.constrain(x, None, "batch", None, "kv_heads", None)

  return Cache(
    keys=tuple(map(zeros, sizes)),
    values=tuple(map(zeros, sizes)),
    real=jnp.zeros((batch, slots), bool),
    positions=jnp.zeros((batch, slots), jnp.int32),
    used=jnp.zeros((), jnp.int32),
  )


def prefill(
  model: Causal, tokens_BxP: jax.Array, mask_BxP: jax.Array, slots: int
) -> tuple[jax.Array, Cache]:
  """The logits after a prompt, float32 [B, V], and a cache that holds it.

  Args:
    model: a causal one.
    tokens_BxP: int32, the prompts, padded on one side.
    mask_BxP: bool, True at real tokens; every row has one.
    slots: of the cache: P and the tokens that will follow.
  """
  batch, size = tokens_BxP.shape
  positions_BxP = jnp.maximum(jnp.cumsum(mask_BxP, axis=1) - 1, 0)
  mask = attention.Mask(mask_BxP, causal=True, positions=positions_BxP)
  last_B = jnp.max(jnp.where(mask_BxP, jnp.arange(size)[None], 0), axis=1)
  cache = empty(model.config, batch, slots)
  x_BxPxW, cache = _advance(model, tokens_BxP, mask, mask_BxP, cache)
  x_Bx1xW = jnp.take_along_axis(x_BxPxW, last_B[:, None, None], axis=1)
  return model.head()(x_Bx1xW)[:, 0], cache


def decode(
  model: Causal, tokens_B: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
  """The logits after one more token of each row, float32 [B, V]; the cache.

  Args:
    model: a causal one.
    tokens_B: int32.
    cache: with a free slot; the result is in its place.
  """
  next_Bx1 = jnp.max(
    jnp.where(cache.real, cache.positions + 1, 0), axis=1, keepdims=True
  )
  real_Bx1 = jnp.ones_like(next_Bx1, bool)
  place = (0, cache.used)
  put = jax.lax.dynamic_update_slice
  mask = attention.Mask(
    put(cache.real, real_Bx1, place),
    causal=True,
    positions=next_Bx1,
    keys=put(cache.positions, next_Bx1, place),
  )
  tokens_Bx1 = tokens_B[:, None]
  x_Bx1xW, cache = _advance(model, tokens_Bx1, mask, real_Bx1, cache)
  return model.head()(x_Bx1xW)[:, 0], cache


def _advance(model, tokens_BxT, mask, real_BxT, cache):
  """`model.advance` with a cache in place of the keys and values alone."""
  first = jnp.zeros((), jnp.int32)
  known = tuple(
    KeyValues(k, v, cache.used, first)
    for k, v in zip(cache.keys, cache.values, strict=True)
  )
  x_BxTxW, known = model.advance(tokens_BxT, mask, known)
  place = (0, cache.used)
  put = jax.lax.dynamic_update_slice
  return x_BxTxW, Cache(
    keys=tuple(kv.keys for kv in known),
    values=tuple(kv.values for kv in known),
    real=put(cache.real, real_BxT, place),
    positions=put(cache.positions, mask.positions, place),
    used=cache.used + tokens_BxT.shape[1],
  )
