"""GPT-2, for next-token prediction or sequence classification.

Source: Radford et al. 2019, "Language models are unsupervised multitask
learners". Shapes as in layers.py.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models import attention, blocks, cache, layers, losses
from experiments.models import config as model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(model_config.ModelConfig):
  """Sizes of a GPT-2; by default its vocabulary and number of positions."""

  vocab_size: int = 50257
  max_positions: int = 1024
  epsilon: float = 1e-5
  bos_token_id: int | None = 50256
  eos_token_id: int | tuple[int, ...] | None = 50256


SIZES = {
  "small": ModelConfig(width=768, depth=12, heads=12, mlp=3072),
  "medium": ModelConfig(width=1024, depth=24, heads=16, mlp=4096),
  "large": ModelConfig(width=1280, depth=36, heads=20, mlp=5120),  # 774M.
  "xl": ModelConfig(width=1600, depth=48, heads=25, mlp=6400),
}


class Block(nnx.Module):
  """Attention and MLP, each normalized at its input and added to it."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    norm = functools.partial(blocks.layer_norm, config, rngs)
    # The sum over all blocks keeps its scale: 2 * depth layers add to it.
    out_init = nnx.initializers.normal(0.02 / math.sqrt(2 * config.depth))
    self.attention_norm = norm()
    self.attention = blocks.self_attention(
      config,
      rngs,
      positions=None,
      use_bias=True,
      out_init=out_init,
    )
    self.mlp_norm = norm()
    self.mlp = blocks.mlp(
      config,
      rngs,
      out_init=out_init,
    )

  def __call__(
    self,
    x_BxTxW: jax.Array,
    mask: attention.Mask,
    known: cache.KeyValues | None = None,
  ) -> tuple[jax.Array, cache.KeyValues | None]:
    y_BxTxW, known = self.attention(self.attention_norm(x_BxTxW), mask, known)
    x_BxTxW += y_BxTxW
    return x_BxTxW + self.mlp(self.mlp_norm(x_BxTxW)), known


class Gpt2(nnx.Module):
  """Embeddings -> causal blocks -> norm -> logits of the token or the class."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.word = blocks.embed(config, rngs, config.vocab_size)
    self.position = blocks.embed(config, rngs, config.max_positions)
    self.decoder = blocks.Blocks(Block, config, rngs)
    self.norm = blocks.layer_norm(config, rngs)
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
    positions_BxT = mask.positions
    if positions_BxT is None:
      positions_BxT = jnp.arange(tokens_BxT.shape[1])[None]
    x_BxTxW = layers.lookup(self.word, tokens_BxT)
    x_BxTxW += self.position(positions_BxT)
    x_BxTxW, known = self.decoder(x_BxTxW, mask, known=known)
    return self.norm(x_BxTxW), known

  def head(self) -> losses.Head:
    """What scores the next tokens."""
    return blocks.tied_head(self.word)

  def __call__(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """Logits, float32: [B, L, V] of the next tokens, or [B, C] of the classes.

    Args:
      tokens_BxL: int32.
      mask_BxL: bool, True at real tokens; classes are read at the last one.

    Raises:
      ValueError: L is more than `max_positions`.
    """
    x_BxLxW = self.hidden(tokens_BxL, mask_BxL)
    if self.config.num_labels is None:
      return self.head()(x_BxLxW)
    x_BxW = blocks.last_token(x_BxLxW, mask_BxL)
    return self.score(x_BxW).astype(jnp.float32)
