"""Llama, for next-token prediction or sequence classification.

Llama 3 and 3.2, and DeepSeek LLM 7B, which has the same architecture. Sources:
Touvron et al. 2023, arXiv 2302.13971; Dubey et al. 2024, arXiv 2407.21783;
DeepSeek-AI 2024, arXiv 2401.02954. Shapes as in layers.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models import attention, blocks, cache, layers, losses, rotary
from experiments.models import config as model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(model_config.ModelConfig):
  """Sizes of a Llama."""

  epsilon: float = 1e-5
  kv_heads: int
  head_dim: int
  positions: rotary.Rotary
  tied: bool = False  # The embedding also scores the next token.


SIZES = {
  "3.2-1b": ModelConfig(
    vocab_size=128256,
    width=2048,
    depth=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    mlp=8192,
    max_positions=131072,
    positions=rotary.Rotary(5e5, rotary.RotaryScaling(32.0, 1.0, 4.0, 8192)),
    tied=True,
    bos_token_id=128000,
    eos_token_id=128001,
  ),
  "3-8b": ModelConfig(
    vocab_size=128256,
    width=4096,
    depth=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    mlp=14336,
    max_positions=8192,
    positions=rotary.Rotary(5e5),
    bos_token_id=128000,
    eos_token_id=128001,
  ),
  "deepseek-7b": ModelConfig(
    vocab_size=102400,
    width=4096,
    depth=30,
    heads=32,
    kv_heads=32,
    head_dim=128,
    mlp=11008,
    max_positions=4096,
    positions=rotary.Rotary(),
    epsilon=1e-6,
    bos_token_id=100000,
    eos_token_id=100001,
  ),
}


class Block(nnx.Module):
  """Attention and gated MLP, each normalized at its input and added to it."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.attention_norm = blocks.rms_norm(config, rngs)
    self.attention = blocks.self_attention(
      config,
      rngs,
      kv_heads=config.kv_heads,
      positions=config.positions,
    )
    self.mlp_norm = blocks.rms_norm(config, rngs)
    self.mlp = blocks.GatedMlp(config, rngs, activation=jax.nn.silu)

  def __call__(
    self,
    x_BxTxW: jax.Array,
    mask: attention.Mask,
    known: cache.KeyValues | None = None,
  ) -> tuple[jax.Array, cache.KeyValues | None]:
    y_BxTxW, known = self.attention(self.attention_norm(x_BxTxW), mask, known)
    x_BxTxW += y_BxTxW
    return x_BxTxW + self.mlp(self.mlp_norm(x_BxTxW)), known


class Llama(nnx.Module):
  """Embedding -> causal blocks -> norm -> logits of the token or the class."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.word = blocks.embed(config, rngs, config.vocab_size)
    self.decoder = blocks.Blocks(Block, config, rngs)
    self.norm = blocks.rms_norm(config, rngs)
    if config.num_labels is not None:
      self.score = blocks.linear(
        config, rngs, config.num_labels, use_bias=False
      )
    elif not config.tied:
      self.lm_head = blocks.linear(
        config, rngs, config.vocab_size, use_bias=False
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
    x_BxTxW = layers.lookup(self.word, tokens_BxT)
    x_BxTxW, known = self.decoder(x_BxTxW, mask, known=known)
    return self.norm(x_BxTxW), known

  def head(self) -> losses.Head:
    """What scores the next tokens."""
    if self.config.tied:
      return blocks.tied_head(self.word)
    return losses.Head(
      "lm_head/kernel",
      self.lm_head.kernel[...],
      self.config.dtype,
      self.config.vocab_size,
      lambda kernel_WxV, x_BxLxW: layers.logits(kernel_WxV.T, x_BxLxW),
    )

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
