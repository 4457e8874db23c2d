"""What the Transformers here are made of.

Shapes: B examples, T or S positions, W width, H heads, D = W / H. Blocks are
pre-norm, linear layers have no bias, positions are rotary. So nearly every
parameter stands in a matrix, and a matrix is what gets a rate. Parameters are
float32; `dtype` is that of the computation.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


def attention_mask(mask_BxS: jax.Array, *, causal: bool) -> jax.Array:
  """Who may see whom, bool [B, 1, T, S] (or [B, 1, 1, S] where all T may).

  Args:
    mask_BxS: bool, True at real tokens; padding is never seen.
    causal: whether a position sees only itself and what came before.
  """
  visible_Bx1x1xS = mask_BxS[:, None, None, :]
  if not causal:
    return visible_Bx1x1xS
  size = mask_BxS.shape[1]
  earlier_TxS = jnp.tril(jnp.ones((size, size), bool))
  return visible_Bx1x1xS & earlier_TxS[None, None]


def rotate(x_BxTxHxD: jax.Array) -> jax.Array:
  """Rotary positions: turns pairs of features by angles of their position.

  Source: Su et al. 2021, arXiv 2104.09864, in the layout that pairs the first
  half of the features with the second.
  """
  size, half = x_BxTxHxD.shape[1], x_BxTxHxD.shape[3] // 2
  # Wavelengths from 2 pi to 2 pi times the base, geometrically.
  frequency_D = 1e4 ** (-jnp.arange(half) / half)
  angle_TxD = jnp.arange(size)[:, None] * frequency_D[None, :]
  cos = jnp.cos(angle_TxD)[None, :, None, :].astype(x_BxTxHxD.dtype)
  sin = jnp.sin(angle_TxD)[None, :, None, :].astype(x_BxTxHxD.dtype)
  first, second = jnp.split(x_BxTxHxD, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, first * sin + second * cos], axis=-1
  )


class Attention(nnx.Module):
  """Multi-head self-attention with rotary positions."""

  def __init__(self, width: int, heads: int, dtype: DTypeLike, rngs: nnx.Rngs):
    if width % (2 * heads):
      raise ValueError(
        f"model.width is {width} and model.heads {heads}: rotary positions "
        "need an even number of features per head, width / heads"
      )
    self.heads = heads
    linear = functools.partial(
      nnx.Linear, width, width, use_bias=False, dtype=dtype, rngs=rngs
    )
    self.query = linear()
    self.key = linear()
    self.value = linear()
    self.out = linear()

  def __call__(self, x_BxTxW: jax.Array, mask_BxHxTxS: jax.Array) -> jax.Array:
    shape_BxTxHxD = (*x_BxTxW.shape[:2], self.heads, -1)
    q_BxTxHxD = rotate(self.query(x_BxTxW).reshape(shape_BxTxHxD))
    k_BxSxHxD = rotate(self.key(x_BxTxW).reshape(shape_BxTxHxD))
    v_BxSxHxD = self.value(x_BxTxW).reshape(shape_BxTxHxD)
    scores_BxHxTxS = jnp.einsum("BTHD,BSHD->BHTS", q_BxTxHxD, k_BxSxHxD)
    scores_BxHxTxS /= math.sqrt(q_BxTxHxD.shape[-1])
    # A finite number, so that a row with nothing to see stays finite.
    scores_BxHxTxS = jnp.where(
      mask_BxHxTxS, scores_BxHxTxS.astype(jnp.float32), -1e30
    )
    weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS).astype(v_BxSxHxD.dtype)
    y_BxTxHxD = jnp.einsum("BHTS,BSHD->BTHD", weights_BxHxTxS, v_BxSxHxD)
    return self.out(y_BxTxHxD.reshape(x_BxTxW.shape))


class Mlp(nnx.Module):
  """Two linear layers with a GELU between."""

  def __init__(self, width: int, hidden: int, dtype: DTypeLike, rngs: nnx.Rngs):
    linear = functools.partial(
      nnx.Linear, use_bias=False, dtype=dtype, rngs=rngs
    )
    self.up = linear(width, hidden)
    self.down = linear(hidden, width)

  def __call__(self, x_BxTxW: jax.Array) -> jax.Array:
    return self.down(jax.nn.gelu(self.up(x_BxTxW)))


class Block(nnx.Module):
  """Attention and MLP, each normalized at its input and added to it."""

  def __init__(
    self,
    width: int,
    heads: int,
    hidden: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.attention_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
    self.attention = Attention(width, heads, dtype, rngs)
    self.mlp_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
    self.mlp = Mlp(width, hidden, dtype, rngs)

  def __call__(self, x_BxTxW: jax.Array, mask_BxHxTxS: jax.Array) -> jax.Array:
    x_BxTxW += self.attention(self.attention_norm(x_BxTxW), mask_BxHxTxS)
    return x_BxTxW + self.mlp(self.mlp_norm(x_BxTxW))


class Stack(nnx.Module):
  """Blocks layer_0, layer_1, ... and a last normalization."""

  def __init__(
    self,
    depth: int,
    width: int,
    heads: int,
    hidden: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.depth = depth
    # Attributes, not a list: paths of parameters are then strings throughout.
    for i in range(depth):
      setattr(self, f"layer_{i}", Block(width, heads, hidden, dtype, rngs))
    self.norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)

  def __call__(self, x_BxTxW: jax.Array, mask_BxHxTxS: jax.Array) -> jax.Array:
    for i in range(self.depth):
      x_BxTxW = getattr(self, f"layer_{i}")(x_BxTxW, mask_BxHxTxS)
    return self.norm(x_BxTxW)
