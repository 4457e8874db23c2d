"""What the Transformers here are made of.

Shapes: B examples, T or S positions, W width, H heads of D features; with
grouped queries, K heads of keys and values that G = H / K query heads share.
Parameters are float32 unless `param_dtype` says otherwise; `dtype` is that of
the computation.

The blocks of the small byte-level models are pre-norm, their linear layers have
no bias and their positions are rotary. So nearly every parameter stands in a
matrix, and a matrix is what gets a rate.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models import (
  attention,
  cache,
  compact,
  partition,
  products,
  rotary,
)
from experiments.models import config as model_config

_LECUN = nnx.initializers.lecun_normal()  # What nnx.Linear has.
_ROTARY = rotary.Rotary()
# Parameters that are gathered where they are used, by what their paths have in
# them: a block's, the embedding of tokens, which may be used twice, and a head.
GATHERED_IN_USE = r"(^|/)(layer(s|_\d+)/|(embed|word)/embedding$|lm_head/)"


class Linear(nnx.Linear):
  """A linear layer whose result is rounded once, after the bias is added."""

  def __init__(self, inputs: int, outputs: int, **options: Any):
    super().__init__(
      inputs, outputs, dot_general=products.dot_general, **options
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    return super().__call__(x).astype(self.dtype)


class Attention(nnx.Module):
  """Multi-head self-attention, by default with rotary positions.

  Args:
    kv_heads: heads of keys and values, of which `heads` is a multiple; None
      means as many as `heads`.
    head_dim: features per head; None means width / heads.
    positions: None leaves them to the embedding.
    query_scale: scores are divided by its square root; None means head_dim.
    softcap: bound of the scores.
    implementation: see `attention.attend`.
    out_init: of the layer after the heads; None means `kernel_init`.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    positions: rotary.Rotary | None = _ROTARY,
    query_scale: float | None = None,
    softcap: float | None = None,
    implementation: str | None = None,
    use_bias: bool = False,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: nnx.Initializer = _LECUN,
    out_init: nnx.Initializer | None = None,
  ):
    if head_dim is None and width % heads:
      raise ValueError(
        f"model.width is {width} and model.heads {heads}: the heads do not "
        "divide the width"
      )
    self.head_dim = head_dim or width // heads
    self.kv_heads = kv_heads or heads
    if positions is not None and self.head_dim % 2:
      raise ValueError(
        f"model.width is {width} and model.heads {heads}: rotary positions "
        "need an even number of features per head, width / heads"
      )
    if heads % self.kv_heads:
      raise ValueError(
        f"{heads} heads cannot share {self.kv_heads} heads of keys and values: "
        "the first must be a multiple of the second"
      )
    self.positions = positions
    self.query_scale = query_scale or self.head_dim
    self.softcap = softcap
    self.implementation = implementation
    linear = functools.partial(
      Linear,
      use_bias=use_bias,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    features, kv_features = heads * self.head_dim, self.kv_heads * self.head_dim
    self.query = linear(width, features, kernel_init=kernel_init)
    self.key = linear(width, kv_features, kernel_init=kernel_init)
    self.value = linear(width, kv_features, kernel_init=kernel_init)
    self.out = linear(features, width, kernel_init=out_init or kernel_init)

  def __call__(
    self,
    x_BxTxW: jax.Array,
    mask: attention.Mask,
    known: cache.KeyValues | None = None,
  ) -> tuple[jax.Array, cache.KeyValues | None]:
    """The attention [B, T, W], and `known` with the new keys and values."""
    batch, size, _ = x_BxTxW.shape
    heads_BxTxHxD = (batch, size, -1, self.head_dim)
    q_BxTxHxD = self.query(x_BxTxW).reshape(heads_BxTxHxD)
    k_BxSxKxD = self.key(x_BxTxW).reshape(heads_BxTxHxD)
    v_BxSxKxD = self.value(x_BxTxW).reshape(heads_BxTxHxD)
    if self.positions is not None:
      turn = functools.partial(
        rotary.rotate, rotary=self.positions, positions_BxT=mask.positions
      )
      q_BxTxHxD, k_BxSxKxD = turn(q_BxTxHxD), turn(k_BxSxKxD)
    q_BxTxHxD = partition.constrain(q_BxTxHxD, "batch", None, "heads", None)
    k_BxSxKxD = partition.constrain(k_BxSxKxD, "batch", None, "kv_heads", None)
    v_BxSxKxD = partition.constrain(v_BxSxKxD, "batch", None, "kv_heads", None)
    if known is not None:
      known = known.write(k_BxSxKxD, v_BxSxKxD)
      if mask.keys is not None:
        k_BxSxKxD, v_BxSxKxD = known.read()
    y_BxTxHxD = attention.attend(
      q_BxTxHxD,
      k_BxSxKxD,
      v_BxSxKxD,
      mask,
      query_scale=self.query_scale,
      cap=self.softcap,
      implementation=self.implementation,
    )
    return self.out(y_BxTxHxD.reshape(batch, size, -1)), known


def table(embed: nnx.Embed) -> jax.Array:
  """The embeddings of all tokens [V, W], in the dtype of the computation."""
  name, dtype = "word/embedding", embed.dtype
  gathered = partition.gather({name: embed.embedding[...]}, dtype)
  return gathered[name].astype(dtype)


def lookup(embed: nnx.Embed, tokens_BxL: jax.Array) -> jax.Array:
  """The embeddings of tokens, [B, L, W]."""
  weight: Any = embed.embedding[...]
  if compact.is_parameter(weight):
    x_BxLxW = compact.lookup(weight, tokens_BxL, embed.dtype)
  else:
    x_BxLxW = jnp.take(table(embed), tokens_BxL, axis=0)
  return partition.constrain(x_BxLxW, "batch", None, None)


def logits(table_VxW: jax.Array, x_BxLxW: jax.Array) -> jax.Array:
  """The score of every token by its row of a table, float32 [B, L, V]."""
  batch, length, width = x_BxLxW.shape
  logits_RxV = products.by_transposed(x_BxLxW.reshape(-1, width), table_VxW)
  return logits_RxV.reshape(batch, length, -1)


class Mlp(nnx.Module):
  """Two linear layers with an activation between."""

  def __init__(
    self,
    width: int,
    hidden: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    *,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
    use_bias: bool = False,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: nnx.Initializer = _LECUN,
    out_init: nnx.Initializer | None = None,
  ):
    linear = functools.partial(
      Linear,
      use_bias=use_bias,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.activation = activation
    self.up = linear(width, hidden, kernel_init=kernel_init)
    self.down = linear(hidden, width, kernel_init=out_init or kernel_init)

  def __call__(self, x_BxTxW: jax.Array) -> jax.Array:
    return self.down(self.activation(self.up(x_BxTxW)))


class Block(nnx.Module):
  """Attention and MLP, each normalized at its input and added to it."""

  def __init__(
    self,
    config: model_config.SmallConfig,
    size: model_config.LayerSize,
    rngs: nnx.Rngs,
  ):
    width, dtype = config.width, config.dtype
    self.size = size
    if size.heads:
      self.attention_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
      self.attention = Attention(
        width, size.heads, dtype, rngs, head_dim=config.head_dim
      )
    if size.mlp:
      self.mlp_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
      self.mlp = Mlp(width, size.mlp, dtype, rngs)

  def __call__(
    self,
    x_BxTxW: jax.Array,
    mask: attention.Mask,
    known: cache.KeyValues | None = None,
  ) -> tuple[jax.Array, cache.KeyValues | None]:
    if self.size.heads:
      y_BxTxW, known = self.attention(self.attention_norm(x_BxTxW), mask, known)
      x_BxTxW += y_BxTxW
    if self.size.mlp:
      x_BxTxW += self.mlp(self.mlp_norm(x_BxTxW))
    return x_BxTxW, known


def block_function(
  graphdef: nnx.GraphDef,
  dtype: DTypeLike,
  *,
  remat: bool = False,
  prevent_cse: bool = True,
) -> Callable[..., tuple[jax.Array, cache.KeyValues | None]]:
  """A block: (parameters, x [B, T, W], mask, known=None) -> ([B, T, W], known).

  On a mesh the batch stays split, and the parameters are gathered here: in the
  backward pass again.
  """

  def apply(params, x_BxTxW, mask, known=None):
    params = partition.gather(params, dtype, after=x_BxTxW)
    block = nnx.merge(graphdef, params)
    x_BxTxW = partition.constrain(x_BxTxW, "batch", None, None)
    x_BxTxW, known = block(x_BxTxW, mask, known)
    return partition.constrain(x_BxTxW, "batch", None, None), known

  if remat:
    return jax.checkpoint(apply, prevent_cse=prevent_cse)
  if partition.is_placed():
    policy = _all_but_gathered
    return jax.checkpoint(apply, prevent_cse=prevent_cse, policy=policy)
  return apply


def _all_but_gathered(primitive, *_, **__) -> bool:
  """What the backward pass finds stored: everything but gathered parameters."""
  return primitive.name not in ("sharding_constraint", "convert_element_type")


class Stack(nnx.Module):
  """Blocks layer_0, layer_1, ... and a last normalization."""

  def __init__(self, config: model_config.SmallConfig, rngs: nnx.Rngs):
    self.depth = config.depth
    self.dtype = config.dtype
    # Attributes, not a list: paths of parameters are then strings throughout.
    for i in range(config.depth):
      setattr(self, f"layer_{i}", Block(config, config.layer(i), rngs))
    self.norm = nnx.RMSNorm(config.width, dtype=config.dtype, rngs=rngs)

  def __call__(
    self,
    x_BxTxW: jax.Array,
    mask: attention.Mask,
    known: cache.Known = None,
  ) -> tuple[jax.Array, cache.Known]:
    all_known = list(known or [None] * self.depth)
    for i in range(self.depth):
      graphdef, params = nnx.split(getattr(self, f"layer_{i}"))
      apply = block_function(graphdef, self.dtype)
      params = nnx.to_pure_dict(params)
      x_BxTxW, all_known[i] = apply(params, x_BxTxW, mask, all_known[i])
    return self.norm(x_BxTxW), tuple(all_known)
