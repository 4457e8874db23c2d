"""BERT, for sequence classification.

Source: Devlin et al. 2018, arXiv 1810.04805. Shapes as in layers.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models import attention, blocks, layers
from experiments.models import config as model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(model_config.ModelConfig):
  """Sizes of a BERT; `num_labels` is the number of classes, never None."""

  num_labels: int = 2  # pyrefly: ignore[bad-override]
  num_types: int = 2  # Segments; the model here calls every token the first.

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.num_labels is None:
      raise ValueError(
        "bert: num_labels is None, but BERT predicts no next token; give the "
        "number of classes"
      )


SIZES = {
  "base": ModelConfig(
    vocab_size=30522,
    width=768,
    depth=12,
    heads=12,
    mlp=3072,
    max_positions=512,
    epsilon=1e-12,
    pad_token_id=0,
  ),
  "minilm-l6": ModelConfig(
    vocab_size=30522,
    width=384,
    depth=6,
    heads=12,
    mlp=1536,
    max_positions=512,
    epsilon=1e-12,
    pad_token_id=0,
  ),
}


class Block(nnx.Module):
  """Attention and MLP, the sum with each normalized after it."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    norm = functools.partial(blocks.layer_norm, config, rngs)
    self.attention = blocks.self_attention(
      config,
      rngs,
      positions=None,
      use_bias=True,
    )
    self.attention_norm = norm()
    self.mlp = blocks.mlp(
      config,
      rngs,
      activation=functools.partial(jax.nn.gelu, approximate=False),
    )
    self.mlp_norm = norm()

  def __call__(
    self, x_BxTxW: jax.Array, mask: attention.Mask, known: None = None
  ) -> tuple[jax.Array, None]:
    y_BxTxW, _ = self.attention(x_BxTxW, mask)
    x_BxTxW = self.attention_norm(x_BxTxW + y_BxTxW)
    return self.mlp_norm(x_BxTxW + self.mlp(x_BxTxW)), known


class Bert(nnx.Module):
  """Embeddings -> blocks -> first position -> tanh layer -> class logits."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    embed = functools.partial(blocks.embed, config, rngs)
    linear = functools.partial(blocks.linear, config, rngs, use_bias=True)
    self.word = embed(config.vocab_size)
    self.position = embed(config.max_positions)
    self.type = embed(config.num_types)
    self.norm = blocks.layer_norm(config, rngs)
    self.encoder = blocks.Blocks(Block, config, rngs)
    self.pooler = linear(config.width)
    self.classifier = linear(config.num_labels)

  def hidden(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """What the last block gives, [B, L, W] in the dtype of the computation."""
    length = tokens_BxL.shape[1]
    self.config.check_length(length)
    x_BxLxW = layers.lookup(self.word, tokens_BxL)
    x_BxLxW += self.position(jnp.arange(length))[None]
    x_BxLxW += self.type(jnp.zeros((1, 1), jnp.int32))
    mask = attention.Mask(mask_BxL)
    return self.encoder(self.norm(x_BxLxW), mask)[0]

  def __call__(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """Class logits, float32 [B, C].

    Args:
      tokens_BxL: int32; the first position, [CLS], is what the classes are
        read from.
      mask_BxL: bool, True at real tokens; the others change nothing.

    Raises:
      ValueError: L is more than `max_positions`.
    """
    first_BxW = self.hidden(tokens_BxL, mask_BxL)[:, 0]
    pooled_BxW = jnp.tanh(self.pooler(first_BxW))
    return self.classifier(pooled_BxW).astype(jnp.float32)
