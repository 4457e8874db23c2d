"""Cross entropies of a model's predictions, without all of its logits at once.

Shapes as in layers.py; V tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from experiments.models import compact, partition

_MANY = 2**27  # More logits than this are not held at once, on one device.
_CHUNK = 1024  # Positions whose logits are then, over all its sequences.


class Head(NamedTuple):
  """The last layer of a language model.

  Attributes:
    name: of its parameter, such as "lm_head/kernel".
    weight: the parameter.
    dtype: of the computation.
    vocabulary: V.
    logits: (weight in dtype, x [B, L, W]) -> float32 [B, L, V].
  """

  name: str
  weight: jax.Array
  dtype: DTypeLike
  vocabulary: int
  logits: Callable[[jax.Array, jax.Array], jax.Array]

  def __call__(self, x_BxLxW: jax.Array) -> jax.Array:
    """The logits of the next tokens, float32 [B, L, V]."""
    if compact.is_parameter(self.weight):
      return self._by_block(x_BxLxW)
    weight = partition.gather({self.name: self.weight}, self.dtype)[self.name]
    logits_BxLxV = self.logits(weight.astype(self.dtype), x_BxLxW)
    return partition.constrain(logits_BxLxV, "batch", None, "vocabulary")

  def _by_block(self, x_BxLxW: jax.Array) -> jax.Array:
    """The same of a coded weight: of one block of tokens after the other."""

    def block(weight, first):
      del first
      return (), self.logits(weight.astype(self.dtype), x_BxLxW)

    parameter: Any = self.weight
    _, logits_NxBxLxv = compact.by_block(parameter, block)
    batch, length, _ = x_BxLxW.shape
    return jnp.moveaxis(logits_NxBxLxv, 0, 2).reshape(batch, length, -1)


def losses(
  model: Any, tokens_BxL: jax.Array, mask_BxL: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cross entropies in nats, float32, and whether the best guess is right.

  Args:
    model: of this package.
    tokens_BxL: int32.
    mask_BxL: bool, True at real tokens.
    targets: int32 [B, L], the next tokens, or [B], the classes.
  """
  if targets.ndim == 2:
    x_BxLxW, head = model.hidden(tokens_BxL, mask_BxL), model.head()
    parts = partition.parts("batch", targets.shape[0])
    if targets.size // parts * head.vocabulary > _MANY:
      weight = compact.dense({head.name: head.weight})[head.name]
      head = head._replace(weight=weight)
      return _in_chunks(head, x_BxLxW, targets, targets.shape[0] // parts)
    logits = head(x_BxLxW)
  else:
    logits = model(tokens_BxL, mask_BxL)
  return of_logits(logits, targets)


def of_logits(
  logits: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """As `losses`, of logits [..., V]."""
  entropies = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return entropies, jnp.argmax(logits, axis=-1) == targets


def _in_chunks(head, x_BxLxW, targets_BxL, own_batch):
  """As `losses`: the logits of some positions after the other, backward again.

  Every device goes through its own sequences, `own_batch` of them, so that the
  gradient of the weight is summed over devices once and not in every chunk.
  """
  length = targets_BxL.shape[1]
  size = max(1, _CHUNK // own_batch)
  chunks = -(-length // size)

  def own(weight, x_BxLxW, targets_BxL):
    @jax.checkpoint
    def chunk(arrays):
      x_BxCxW, targets_BxC = arrays
      logits_BxCxV = head.logits(weight, x_BxCxW)
      # Tokens are compared, not gathered: they may be split over devices.
      tokens_V = jnp.arange(head.vocabulary)[None, None]
      is_target_BxCxV = tokens_V == targets_BxC[..., None]
      target_BxC = jnp.where(is_target_BxCxV, logits_BxCxV, 0).sum(-1)
      entropies = jax.nn.logsumexp(logits_BxCxV, axis=-1) - target_BxC
      return entropies, jnp.argmax(logits_BxCxV, axis=-1) == targets_BxC

    arrays = [_split(a, chunks, size) for a in (x_BxLxW, targets_BxL)]
    found = jax.lax.map(chunk, tuple(arrays))
    return tuple(_join(a)[:, :length] for a in found)

  computed = partition.over_batch(own, head.name, head.dtype)
  return computed(head.weight, x_BxLxW, targets_BxL)


def _split(x_BxL, chunks, size):
  """[N, B, C, ...], the last chunk filled up with zeros."""
  padding = [(0, 0)] * x_BxL.ndim
  padding[1] = 0, chunks * size - x_BxL.shape[1]
  batch, _, *rest = x_BxL.shape
  shape = batch, chunks, size, *rest
  return jnp.pad(x_BxL, padding).reshape(shape).swapaxes(0, 1)


def _join(x_NxBxC):
  """[B, N C]."""
  return x_NxBxC.swapaxes(0, 1).reshape(x_NxBxC.shape[1], -1)
