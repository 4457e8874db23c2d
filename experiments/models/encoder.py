"""A small byte-level Transformer encoder that classifies."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models import attention, layers
from experiments.models import config as model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(model_config.SmallConfig):
  """Sizes of the encoder."""

  num_classes: int
  # The stem: a convolution over `kernel` embedded bytes, and the maximum over
  # each `stride` of its positions. What the blocks see is `stride` times
  # shorter, and a word gives the same features wherever in it it begins.
  byte_width: int = 32
  kernel: int = 8
  stride: int = 8


class Encoder(nnx.Module):
  """Bytes -> convolution -> blocks -> maximum over positions -> logits."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
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
      use_bias=False,
      dtype=config.dtype,
      rngs=rngs,
    )
    self.encoder = layers.Stack(config, rngs)
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
    stride = self.config.stride
    if length % stride:
      raise ValueError(
        f"sequences of {length} tokens do not divide by the stem's stride "
        f"{stride}: pad them to a multiple"
      )
    x_BxLxE = jnp.where(
      mask_BxL[..., None], layers.lookup(self.embed, tokens_BxL), 0
    )
    shape_BxTxS = (batch, length // stride, stride)
    mask_BxTxS = mask_BxL.reshape(shape_BxTxS)
    x_BxTxW = _max(self.stem(x_BxLxE).reshape(*shape_BxTxS, -1), mask_BxTxS)
    mask_BxT = mask_BxTxS.any(axis=2)
    attention_mask = attention.Mask(mask_BxT)
    x_BxTxW, _ = self.encoder(jax.nn.gelu(x_BxTxW), attention_mask)
    return self.head(_max(x_BxTxW, mask_BxT)).astype(jnp.float32)


def _max(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Maximum over the last axis but one, where mask is True; 0 if nowhere."""
  largest = jnp.where(mask[..., None], x, -1e30).max(axis=-2)
  return jnp.where(mask.any(axis=-1)[..., None], largest, 0)
