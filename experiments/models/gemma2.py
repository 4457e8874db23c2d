"""Gemma 2, for next-token prediction or sequence classification.

Source: Gemma Team 2024, arXiv 2408.00118. Shapes as in layers.py.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models import attention, blocks, cache, layers, losses, rotary
from experiments.models import config as model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(model_config.ModelConfig):
  """Sizes of a Gemma 2.

  Blocks 0, 2, 4, ... see the last `window` positions, the others all before.
  """

  epsilon: float = 1e-6
  kv_heads: int
  head_dim: int
  window: int  # Positions, the current one included.
  query_scale: int  # Queries are divided by its square root.
  attention_softcap: float | None
  logit_softcap: float | None
  positions: rotary.Rotary


SIZES = {
  "2b": ModelConfig(
    vocab_size=256000,
    width=2304,
    depth=26,
    heads=8,
    kv_heads=4,
    head_dim=256,
    mlp=9216,
    max_positions=8192,
    window=4096,
    query_scale=256,
    attention_softcap=50.0,
    logit_softcap=30.0,
    positions=rotary.Rotary(),
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
  ),
}


class ZeroCentredNorm(nnx.Module):
  """RMS normalization times 1 + scale, in float32 until after the product."""

  def __init__(self, config: ModelConfig):
    self.epsilon = config.epsilon
    self.scale = nnx.Param(jnp.zeros((config.width,), config.param_dtype))

  def __call__(self, x_BxTxW: jax.Array) -> jax.Array:
    x = x_BxTxW.astype(jnp.float32)
    x *= jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.epsilon)
    scale = 1 + self.scale[...].astype(jnp.float32)
    return (x * scale[None, None]).astype(x_BxTxW.dtype)


class Block(nnx.Module):
  """Attention and gated MLP, normalized at input and output, and added."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.attention_norm = ZeroCentredNorm(config)
    self.attention = blocks.self_attention(
      config,
      rngs,
      kv_heads=config.kv_heads,
      positions=config.positions,
      query_scale=config.query_scale,
      softcap=config.attention_softcap,
    )
    self.attention_out_norm = ZeroCentredNorm(config)
    self.mlp_norm = ZeroCentredNorm(config)
    gelu = functools.partial(jax.nn.gelu, approximate=True)
    self.mlp = blocks.GatedMlp(config, rngs, activation=gelu)
    self.mlp_out_norm = ZeroCentredNorm(config)

  def __call__(
    self,
    x_BxTxW: jax.Array,
    mask: attention.Mask,
    known: cache.KeyValues | None = None,
  ) -> tuple[jax.Array, cache.KeyValues | None]:
    y_BxTxW, known = self.attention(self.attention_norm(x_BxTxW), mask, known)
    x_BxTxW += self.attention_out_norm(y_BxTxW)
    y_BxTxW = self.mlp(self.mlp_norm(x_BxTxW))
    return x_BxTxW + self.mlp_out_norm(y_BxTxW), known


class Gemma2(nnx.Module):
  """Embedding -> causal blocks -> norm -> logits of the token or the class."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.word = blocks.embed(config, rngs, config.vocab_size)
    self.decoder = blocks.Blocks(Block, config, rngs, pattern=(0, 1))
    self.norm = ZeroCentredNorm(config)
    if config.num_labels is not None:
      self.score = blocks.linear(
        config, rngs, config.num_labels, use_bias=False
      )

  def hidden(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """What the last norm gives, [B, L, W] in the dtype of the computation."""
    self.config.check_length(tokens_BxL.shape[1])
    return self.advance(tokens_BxL, attention.Mask(mask_BxL, causal=True))[0]

  def advance(
    self,
    tokens_BxT: jax.Array,
    mask: attention.Mask,
    known: cache.Known = None,
  ) -> tuple[jax.Array, cache.Known]:
    """What the last norm gives, [B, T, W], and `known` with the new tokens."""
    config = self.config
    x_BxTxW = layers.lookup(self.word, tokens_BxT)
    # The published weights belong to a factor rounded to the dtype.
    x_BxTxW *= jnp.asarray(math.sqrt(config.width), x_BxTxW.dtype)
    local = dataclasses.replace(mask, window=config.window)
    x_BxTxW, known = self.decoder(x_BxTxW, local, mask, known=known)
    return self.norm(x_BxTxW), known

  def head(self) -> losses.Head:
    """What scores the next tokens."""
    return blocks.tied_head(self.word, self.config.logit_softcap)

  def __call__(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """Logits, float32: [B, L, V] of the next tokens, or [B, C] of the classes.

    Args:
      tokens_BxL: int32.
      mask_BxL: bool, True at real tokens; classes are read at the last one.

    Raises:
      ValueError: L is more than `max_positions`.
    """
    x_BxLxW = self.hidden(tokens_BxL, mask_BxL)
    if self.config.num_labels is not None:
      x_BxW = blocks.last_token(x_BxLxW, mask_BxL)
      return self.score(x_BxW).astype(jnp.float32)
    return self.head()(x_BxLxW)
