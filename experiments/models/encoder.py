"""A small byte-level Transformer encoder that classifies."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models import layers


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes of the encoder."""

  vocab_size: int
  num_classes: int
  depth: int
  width: int
  heads: int
  mlp: int
  dtype: str
  # The stem: a convolution over the embedded bytes that leaves one position in
  # `stride`. Attention over whole bytes costs that many times more.
  byte_width: int = 32
  kernel: int = 8
  stride: int = 4


class Encoder(nnx.Module):
  """Bytes -> strided convolution -> blocks -> mean over positions -> logits."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.stride = config.stride
    self.embed = nnx.Embed(
      config.vocab_size,
      config.byte_width,
      embedding_init=nnx.initializers.normal(1.0),
      dtype=config.dtype,
      rngs=rngs,
    )
    self.stem = nnx.Conv(
      config.byte_width,
      config.width,
      (config.kernel,),
      strides=(config.stride,),
      use_bias=False,
      dtype=config.dtype,
      rngs=rngs,
    )
    self.encoder = layers.Stack(
      config.depth, config.width, config.heads, config.mlp, config.dtype, rngs
    )
    self.head = nnx.Linear(
      config.width,
      config.num_classes,
      use_bias=False,
      dtype=config.dtype,
      rngs=rngs,
    )

  def __call__(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """Logits, float32 [B, C].

    Args:
      tokens_BxL: int32; L is a multiple of the stem's stride.
      mask_BxL: bool, True at real tokens; the others change nothing.
    """
    batch, length = tokens_BxL.shape
    if length % self.stride:
      raise ValueError(
        f"sequences of {length} tokens do not divide by the stem's stride "
        f"{self.stride}: pad them to a multiple"
      )
    x_BxLxE = jnp.where(mask_BxL[..., None], self.embed(tokens_BxL), 0)
    x_BxTxW = self.stem(x_BxLxE)
    mask_BxT = mask_BxL.reshape(batch, -1, self.stride).any(axis=-1)
    attention_mask = layers.attention_mask(mask_BxT, causal=False)
    x_BxTxW = self.encoder(x_BxTxW, attention_mask).astype(jnp.float32)
    weights_BxTx1 = mask_BxT[..., None].astype(jnp.float32)
    total_Bx1 = jnp.maximum(weights_BxTx1.sum(axis=1), 1)
    pooled_BxW = (x_BxTxW * weights_BxTx1).sum(axis=1) / total_Bx1
    return self.head(pooled_BxW).astype(jnp.float32)
