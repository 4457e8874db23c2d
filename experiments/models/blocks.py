"""What the pretrained architectures are put together from, given a config.

Shapes as in layers.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models import (
  attention,
  cache,
  compact,
  layers,
  losses,
)
from experiments.models.config import ModelConfig

_NORMAL = nnx.initializers.normal(0.02)


def embed(config: ModelConfig, rngs: nnx.Rngs, size: int) -> nnx.Embed:
  """A vector of the model's width for each of `size` tokens or positions."""
  return nnx.Embed(
    size,
    config.width,
    embedding_init=_NORMAL,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    rngs=rngs,
  )


def linear(
  config: ModelConfig, rngs: nnx.Rngs, size: int, *, use_bias: bool
) -> nnx.Linear:
  """A linear layer from the model's width to `size` features."""
  return layers.Linear(
    config.width,
    size,
    use_bias=use_bias,
    kernel_init=_NORMAL,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    rngs=rngs,
  )


def layer_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
  return nnx.LayerNorm(
    config.width,
    epsilon=config.epsilon,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits.
    rngs=rngs,
  )


def rms_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
  return nnx.RMSNorm(
    config.width,
    epsilon=config.epsilon,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    rngs=rngs,
  )


def self_attention(
  config: ModelConfig, rngs: nnx.Rngs, **options
) -> layers.Attention:
  """Self-attention of the model's width and heads, see `layers.Attention`."""
  return layers.Attention(
    config.width,
    config.heads,
    config.dtype,
    rngs,
    head_dim=config.head_dim,
    param_dtype=config.param_dtype,
    kernel_init=_NORMAL,
    implementation=config.attention,
    **options,
  )


def mlp(config: ModelConfig, rngs: nnx.Rngs, **options) -> layers.Mlp:
  """The model's feed-forward layers with biases, see `layers.Mlp`."""
  return layers.Mlp(
    config.width,
    config.mlp,
    config.dtype,
    rngs,
    use_bias=True,
    param_dtype=config.param_dtype,
    kernel_init=_NORMAL,
    **options,
  )


class GatedMlp(nnx.Module):
  """An MLP whose hidden features are multiplied by an activated gate."""

  def __init__(
    self,
    config: ModelConfig,
    rngs: nnx.Rngs,
    activation: Callable[[jax.Array], jax.Array],
  ):
    self.activation = activation
    self.gate = linear(config, rngs, config.mlp, use_bias=False)
    self.up = linear(config, rngs, config.mlp, use_bias=False)
    self.down = layers.Linear(
      config.mlp,
      config.width,
      use_bias=False,
      kernel_init=_NORMAL,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      rngs=rngs,
    )

  def __call__(self, x_BxTxW: jax.Array) -> jax.Array:
    return self.down(self.activation(self.gate(x_BxTxW)) * self.up(x_BxTxW))


class Blocks(nnx.Module):
  """The blocks of a model: layer_0, layer_1, ..., or one `layers` of them all.

  With `config.scan` every parameter has a leading axis of size depth and one
  block is compiled; with `config.remat` a block keeps only its input for the
  backward pass.

  Args:
    block: makes one block (x [B, T, W], mask, known) -> ([B, T, W], known).
    pattern: which of the masks that a call is given the blocks see, in turn.
  """

  def __init__(
    self,
    block: Callable[..., nnx.Module],  # Of (config, rngs).
    config: ModelConfig,
    rngs: nnx.Rngs,
    pattern: Sequence[int] = (0,),
  ):
    self.scan = config.scan
    self.remat = config.remat
    self.dtype = config.dtype
    # Which mask each block sees.
    self.kinds = tuple(pattern[i % len(pattern)] for i in range(config.depth))
    self.period = len(pattern)
    if self.scan:
      self.layers = nnx.vmap(lambda rngs: block(config, rngs))(
        rngs.split(config.depth)
      )
      return
    # Attributes, not a list: paths of parameters are then strings throughout.
    for i in range(config.depth):
      setattr(self, f"layer_{i}", block(config.layer(i), rngs))

  def __call__(
    self,
    x_BxTxW: jax.Array,
    *masks: attention.Mask,
    known: cache.Known = None,
  ) -> tuple[jax.Array, cache.Known]:
    """What the last block gives, and `known` with the new keys and values."""
    if self.scan:
      return self._scan(x_BxTxW, masks, known)
    all_known = list(known or [None] * len(self.kinds))
    for i, kind in enumerate(self.kinds):
      graphdef, params = nnx.split(getattr(self, f"layer_{i}"))
      apply = layers.block_function(graphdef, self.dtype, remat=self.remat)
      params = nnx.to_pure_dict(params)
      x_BxTxW, all_known[i] = apply(params, x_BxTxW, masks[kind], all_known[i])
    return x_BxTxW, tuple(all_known)

  def _scan(
    self,
    x_BxTxW: jax.Array,
    masks: Sequence[attention.Mask],
    known: cache.Known,
  ) -> tuple[jax.Array, cache.Known]:
    """Runs the stacked blocks in a loop, in each round one for each mask."""
    graphdef, params = nnx.split(self.layers)
    # Within a scan, common subexpressions cannot undo the remat.
    apply = layers.block_function(
      graphdef, self.dtype, remat=self.remat, prevent_cse=False
    )

    params = nnx.to_pure_dict(params)

    def step(carry, sliced):
      x_BxTxW, known = carry
      for i, mask in enumerate(round_masks):
        own = jax.tree.map(lambda p, i=i: p[i], sliced)
        own = compact.in_layer(params, own)
        x_BxTxW, known = apply(own, x_BxTxW, mask, known)
        known = known and known.next_block()
      return (x_BxTxW, known), None

    carry: Any = x_BxTxW, known and known[0]
    done, depth = 0, len(self.kinds)
    # Whole rounds of the pattern, then what is left of it.
    for size in (self.period, depth % self.period):
      rounds = (depth - done) // size if size else 0
      round_masks = [masks[kind] for kind in self.kinds[:size]]
      if rounds:
        end = done + rounds * size
        carry, _ = jax.lax.scan(
          step, carry, _in_rounds(params, done, end, size)
        )
        done = end
    x_BxTxW, last = carry
    return x_BxTxW, None if last is None else (last,)


def _in_rounds(params: Any, begin: int, end: int, size: int) -> Any:
  """Of `compact.layers` some, [rounds, size, ...]."""
  rounds = (end - begin) // size
  return jax.tree.map(
    lambda p: p.reshape(rounds, size, *p.shape[1:]),
    compact.layers(params, begin, end),
  )


def last_token(x_BxLxW: jax.Array, mask_BxL: jax.Array) -> jax.Array:
  """The features at the last real token of each sequence, [B, W].

  A sequence with no real token gives those of its first position.
  """
  positions_L = jnp.arange(mask_BxL.shape[1])
  last_B = jnp.max(jnp.where(mask_BxL, positions_L[None], 0), axis=1)
  return jnp.take_along_axis(x_BxLxW, last_B[:, None, None], axis=1)[:, 0]


def tied_head(
  embedding: nnx.Embed, softcap: float | None = None
) -> losses.Head:
  """Scores every token by its embedding."""

  def logits(table_VxW, x_BxLxW):
    return attention.softcap(layers.logits(table_VxW, x_BxLxW), softcap)

  weight = embedding.embedding[...]
  return losses.Head(
    "word/embedding", weight, embedding.dtype, len(weight), logits
  )
