"""A small causal Transformer language model over bytes."""

import dataclasses

import jax
from flax import nnx

from experiments.models import attention, cache, layers, losses
from experiments.models import config as model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(model_config.SmallConfig):
  """Sizes of the decoder."""


class Decoder(nnx.Module):
  """Tokens -> causal blocks -> logits of the next token.

  One matrix embeds the tokens and scores them: half the vocabulary's
  parameters to train, and to ship.
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.embed = nnx.Embed(
      config.vocab_size,
      config.width,
      # The last normalization leaves a mean square of 1: logits then begin
      # with a standard deviation of 0.02 sqrt(W), close to uniform.
      embedding_init=nnx.initializers.normal(0.02),
      dtype=config.dtype,
      rngs=rngs,
    )
    self.decoder = layers.Stack(config, rngs)

  def hidden(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """What the last norm gives, [B, L, W] in the dtype of the computation."""
    return self.advance(tokens_BxL, attention.Mask(mask_BxL, causal=True))[0]

  def advance(
    self,
    tokens_BxT: jax.Array,
    mask: attention.Mask,
    known: cache.Known = None,
  ) -> tuple[jax.Array, cache.Known]:
    """What the last norm gives, [B, T, W], and `known` with the new tokens."""
    return self.decoder(layers.lookup(self.embed, tokens_BxT), mask, known)

  def head(self) -> losses.Head:
    """What scores the next tokens."""
    return losses.Head(
      "embed/embedding",
      self.embed.embedding[...],
      self.config.dtype,
      self.config.vocab_size,
      layers.logits,
    )

  def __call__(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """Logits, float32 [B, L, V]; those at t see the tokens up to t.

    Args:
      tokens_BxL: int32.
      mask_BxL: bool, True at real tokens; the others change no logits but
        their own.
    """
    return self.head()(self.hidden(tokens_BxL, mask_BxL))
