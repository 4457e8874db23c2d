"""Attention: one function, several implementations of it.

`plain` is the reference; it holds the scores of all heads, float32
[B, H, T, S]. `chunked` holds those of some queries at a time. `splash` is the
Pallas kernel of JAX for TPUs, `cudnn` that of cuDNN for GPUs: both hold none.
All have the same result to rounding, and one test. Shapes as in layers.py.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask,
)

from experiments.models import partition, products

# Scores of more positions than this are not held at once.
_LONG = 1024
_CHUNK = 512  # Queries whose scores `chunked` holds.


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["real", "positions", "keys"],
  meta_fields=["causal", "window"],
)
@dataclasses.dataclass(frozen=True)
class Mask:
  """Who may see whom.

  Attributes:
    real: bool [B, S], True at real tokens; padding is never seen.
    causal: whether a position sees only itself and what came before.
    window: of a causal mask: how many positions are seen, itself included;
      None: all.
    positions: int32 [B, T], those of the queries; None: 0, 1, 2, ...
    keys: int32 [B, S], the positions of the keys, where these are a cache;
      None: the keys are those of the queries.
  """

  real: jax.Array
  causal: bool = False
  window: int | None = None
  positions: jax.Array | None = None
  keys: jax.Array | None = None

  def dense(self, first: jax.Array | int = 0, size: int | None = None):
    """bool [B, 1, T, S], or [B, 1, 1, S] where all T may see the same.

    Args:
      first: position of the first query.
      size: T; None means as many as keys.
    """
    visible_Bx1x1xS = self.real[:, None, None, :]
    if not self.causal:
      return visible_Bx1x1xS
    if self.keys is not None and self.positions is not None:
      before = self.positions[:, None, :, None] - self.keys[:, None, None, :]
    else:
      keys_S = jnp.arange(self.real.shape[1])
      queries_T = keys_S if size is None else first + jnp.arange(size)
      before = (queries_T[:, None] - keys_S[None, :])[None, None]
    seen = before >= 0
    if self.window is not None:
      seen &= before < self.window
    return visible_Bx1x1xS & seen


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """Keeps values within (-cap, cap), smoothly; None leaves them."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
  q_BxTxHxD: jax.Array,
  k_BxSxKxD: jax.Array,
  v_BxSxKxD: jax.Array,
  mask: Mask,
  *,
  query_scale: float,
  cap: float | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """Attention, [B, T, H, D] in the dtype of the values.

  Args:
    q_BxTxHxD: queries.
    k_BxSxKxD: keys; H is a multiple of K.
    v_BxSxKxD: values.
    mask: who sees whom. A query that sees no key gets finite numbers.
    query_scale: scores are divided by its square root.
    cap: bound of the scores, see `softcap`.
    implementation: one of IMPLEMENTATIONS; None chooses by platform and shape.
      A cache of keys is always for `plain`.

  Raises:
    NotImplementedError: the implementation cannot do this, and why.
  """
  size, platform = q_BxTxHxD.shape[1], partition.platform()
  options = {"query_scale": query_scale, "cap": cap}
  if mask.keys is not None:
    implementation = "plain"  # Of few queries, and the keys of a cache.
  else:
    # Their order is all that counts.
    mask = dataclasses.replace(mask, positions=None)
  if implementation is None:
    implementation = "plain"
    # In a program that is exported for any length, the size is a symbol.
    if isinstance(size, int) and size > _LONG:
      why = unsupported("splash", q_BxTxHxD, cap, platform)
      implementation = "chunked" if why else "splash"
  elif why := unsupported(implementation, q_BxTxHxD, cap, platform):
    raise NotImplementedError(
      f"model.attention is {implementation!r}, {why}; None chooses one"
    )
  function = functools.partial(IMPLEMENTATIONS[implementation], **options)
  if implementation in PLATFORMS:
    # The compiler cannot split a kernel.
    keys = ("batch", None, "kv_heads", None)
    queries = ("batch", None, "heads", None)
    inputs = (queries, keys, keys, ("batch", None))
    function = partition.per_device(function, inputs, queries)
  return function(q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, mask)


def unsupported(
  implementation: str, q: jax.Array, cap: float | None, platform: str
) -> str | None:
  """Why an implementation cannot be used; None if it can."""
  needed = PLATFORMS.get(implementation, platform)
  if platform != needed:
    return (
      f"which needs a {needed.upper()}, but this runs on {platform.upper()}"
    )
  length, features = q.shape[1], q.shape[3]
  if implementation == "splash" and length % 128:
    return f"which needs a length that 128 divides, not {length}"
  if implementation == "cudnn":
    if cap is not None:
      return "which cannot bound the scores (a softcap)"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
      return f"which needs model.dtype='bfloat16', not {q.dtype}"
    if features % 8 or features > 128:
      return f"which needs heads of 8, 16, ... 128 features, not {features}"
  return None


def plain(q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, mask, *, query_scale, cap):
  """The scores of all heads at once."""
  return _of_queries(
    q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, mask.dense(), query_scale, cap
  )


def chunked(q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, mask, *, query_scale, cap):
  """The scores of one chunk of queries after the other, backward again."""
  batch, size, heads, features = q_BxTxHxD.shape
  chunks = -(-size // _CHUNK)
  padding = (0, 0), (0, chunks * _CHUNK - size), (0, 0), (0, 0)
  q_BxNxCxHxD = jnp.pad(q_BxTxHxD, padding).reshape(
    batch, chunks, _CHUNK, heads, features
  )

  @jax.checkpoint
  def chunk(first, q_BxCxHxD):
    dense = mask.dense(first, _CHUNK)
    y = _of_queries(q_BxCxHxD, k_BxSxKxD, v_BxSxKxD, dense, query_scale, cap)
    return partition.constrain(y, "batch", None, "heads", None)

  y_NxBxCxHxD = jax.lax.map(
    lambda x: chunk(*x),
    (_CHUNK * jnp.arange(chunks), q_BxNxCxHxD.swapaxes(0, 1)),
  )
  y_BxTxHxD = y_NxBxCxHxD.swapaxes(0, 1).reshape(batch, -1, heads, features)
  return y_BxTxHxD[:, :size]


def _of_queries(
  q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, seen_Bx1xTxS, query_scale, cap
):
  """The attention of some queries: R = G T rows see each head of keys."""
  batch, size, _, features = q_BxTxHxD.shape
  keys = k_BxSxKxD.shape[2]
  q_BxTxKxGxD = q_BxTxHxD.reshape(batch, size, keys, -1, features)
  q_BxKxRxD = q_BxTxKxGxD.transpose(0, 2, 3, 1, 4).reshape(
    batch, keys, -1, features
  )
  k_BxKxDxS = k_BxSxKxD.transpose(0, 2, 3, 1)
  v_BxKxSxD = v_BxSxKxD.swapaxes(1, 2)
  scores_BxKxRxS = products.product(q_BxKxRxD, k_BxKxDxS)
  scores_BxKxRxS = softcap(scores_BxKxRxS / math.sqrt(query_scale), cap)
  # A finite number, so that a row with nothing to see stays finite. XLA adds on
  # CPUs in less than half of the time of a selection.
  hidden_Bx1x1xTxS = jnp.where(seen_Bx1xTxS[:, :, None], 0.0, -1e30)
  shape_BxKxGxTxS = (batch, keys, -1, size, scores_BxKxRxS.shape[-1])
  scores_BxKxGxTxS = scores_BxKxRxS.reshape(shape_BxKxGxTxS) + hidden_Bx1x1xTxS
  y_BxKxRxD = _weighted(
    scores_BxKxGxTxS.reshape(scores_BxKxRxS.shape), v_BxKxSxD
  )
  y_BxKxGxTxD = y_BxKxRxD.reshape(batch, keys, -1, size, features)
  y_BxTxKxGxD = y_BxKxGxTxD.transpose(0, 3, 1, 2, 4)
  return y_BxTxKxGxD.reshape(q_BxTxHxD.shape)


@jax.custom_vjp
def _weighted(scores_xRxS, v_xSxD):
  """The mean of the values by the softmax of the scores, in their dtype."""
  return _weighted_forward(scores_xRxS, v_xSxD)[0]


def _weighted_forward(scores_xRxS, v_xSxD):
  weights_xRxS = jax.nn.softmax(scores_xRxS).astype(v_xSxD.dtype)
  y_xRxD = products.product(weights_xRxS, v_xSxD).astype(v_xSxD.dtype)
  return y_xRxD, (weights_xRxS, v_xSxD, y_xRxD)


def _weighted_backward(kept, gradient_xRxD):
  weights_xRxS, v_xSxD, y_xRxD = kept
  gradient_weights_xRxS = products.by_transposed(gradient_xRxD, v_xSxD)
  gradient_v_xSxD = products.of_transposed(weights_xRxS, gradient_xRxD)
  # The mean of the weights' gradient, by the weights, is the product of the
  # result and its gradient, which have fewer numbers.
  common_xRx1 = jnp.sum(
    gradient_xRxD.astype(jnp.float32) * y_xRxD, axis=-1, keepdims=True
  )
  gradient_scores_xRxS = weights_xRxS * (gradient_weights_xRxS - common_xRx1)
  return gradient_scores_xRxS, gradient_v_xSxD.astype(v_xSxD.dtype)


_weighted.defvjp(_weighted_forward, _weighted_backward)


def splash(
  q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, mask, *, query_scale, cap, interpret=False
):
  """JAX's kernel for TPUs, which skips what no query of a block may see."""
  size, heads = q_BxTxHxD.shape[1:3]
  shape = (size, size)
  if not mask.causal:
    seen = splash_attention_mask.FullMask(shape)
  elif mask.window is None:
    seen = splash_attention_mask.CausalMask(shape)
  else:
    seen = splash_attention_mask.LocalMask(shape, (mask.window - 1, 0), 0)
  block = math.gcd(size, _CHUNK)
  kernel = splash_attention_kernel.make_splash_mha(
    splash_attention_mask.MultiHeadMask([seen] * heads),
    block_sizes=splash_attention_kernel.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    attn_logits_soft_cap=cap,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  real = mask.real.astype(jnp.int32)
  # Every query sees real keys, 1, and no others.
  segments = splash_attention_kernel.SegmentIds(jnp.ones_like(real), real)
  scale = jnp.asarray(1 / math.sqrt(query_scale), q_BxTxHxD.dtype)
  y_BxHxTxD: Any = jax.vmap(kernel)(
    (q_BxTxHxD * scale).swapaxes(1, 2),
    k_BxSxKxD.swapaxes(1, 2),
    v_BxSxKxD.swapaxes(1, 2),
    segment_ids=segments,
  )
  return y_BxHxTxD.swapaxes(1, 2).astype(v_BxSxKxD.dtype)


def cudnn(
  q_BxTxHxD,
  k_BxSxKxD,
  v_BxSxKxD,
  mask,
  *,
  query_scale,
  cap,
  implementation: Literal["cudnn", "xla"] = "cudnn",
):
  """cuDNN's kernel for GPUs, as JAX calls it."""
  del cap
  return jax.nn.dot_product_attention(
    q_BxTxHxD,
    k_BxSxKxD,
    v_BxSxKxD,
    mask=mask.real[:, None, None, :],
    scale=1 / math.sqrt(query_scale),
    is_causal=mask.causal,
    local_window_size=mask.window and (mask.window - 1, 0),
    implementation=implementation,
  )


IMPLEMENTATIONS = {
  "plain": plain,
  "chunked": chunked,
  "splash": splash,
  "cudnn": cudnn,
}
PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}  # Of those that are kernels.
