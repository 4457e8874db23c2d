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
_TAUGHT_CHUNK = 256  # The same where a teacher has logits too.


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

      def chunk(weight, x_BxCxW, targets_BxC):
        return _compared(head.logits(weight, x_BxCxW), targets_BxC)

      return _in_chunks(head, weight, chunk, (x_BxLxW, targets), _CHUNK)
    logits = head(x_BxLxW)
  else:
    logits = model(tokens_BxL, mask_BxL)
  return of_logits(logits, targets)


def taught(
  model: Any,
  teacher: Any,
  part: float,
  tokens_BxL: jax.Array,
  mask_BxL: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """As `losses`, with a part of each target taken from another model.

  Args:
    model: of this package.
    teacher: of the same structure; it gets no gradient.
    part: of its predictions, in [0, 1]; 1 - part is that of the targets.
    tokens_BxL: int32.
    mask_BxL: bool, True at real tokens.
    targets: int32 [B, L], the next tokens, or [B], the classes.
  """
  inputs = tokens_BxL, mask_BxL
  if targets.ndim == 1:
    logits, wanted = model(*inputs), teacher(*inputs)
    return _compared(logits, targets, wanted, part)
  head, taught_by = model.head(), teacher.head()

  def chunk(weights, x_BxCxW, y_BxCxW, targets_BxC):
    own, other = weights
    wanted = taught_by.logits(jax.lax.stop_gradient(other), y_BxCxW)
    return _compared(head.logits(own, x_BxCxW), targets_BxC, wanted, part)

  arrays = model.hidden(*inputs), teacher.hidden(*inputs), targets
  weights = head.weight, taught_by.weight
  return _in_chunks(head, weights, chunk, arrays, _TAUGHT_CHUNK)


def of_logits(
  logits: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """As `losses`, of logits [..., V]."""
  entropies = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return entropies, jnp.argmax(logits, axis=-1) == targets


def _compared(logits, targets, wanted=None, part=0.0):
  """As `of_logits`; a part of the targets are predictions with logits wanted.

  Tokens are compared, not gathered: they may be split over devices.
  """
  tokens = jnp.arange(logits.shape[-1]).reshape(*[1] * targets.ndim, -1)
  is_target = tokens == targets[..., None]
  target = jnp.where(is_target, logits, 0).sum(-1)
  if wanted is not None:
    wanted = jax.nn.softmax(jax.lax.stop_gradient(wanted))
    target = (1 - part) * target + part * jnp.sum(wanted * logits, axis=-1)
  entropies = jax.nn.logsumexp(logits, axis=-1) - target
  return entropies, jnp.argmax(logits, axis=-1) == targets


def _in_chunks(head, weights, of_chunk, arrays, positions):
  """What of_chunk gives for some positions after the other, backward again.

  Every device goes through its own sequences, so that the gradient of the
  weight is summed over devices once and not in every chunk.

  Args:
    head: of the model.
    weights: its weight, or a tuple of such.
    of_chunk: of weights and a chunk of the arrays.
    arrays: [B, L, ...].
    positions: of a chunk, over all sequences of a device.
  """
  batch, length = arrays[0].shape[:2]
  size = max(1, positions // (batch // partition.parts("batch", batch)))
  chunks = -(-length // size)

  def own(weights, *arrays):
    chunk = jax.checkpoint(lambda arrays: of_chunk(weights, *arrays))
    found = jax.lax.map(chunk, tuple(_split(a, chunks, size) for a in arrays))
    return tuple(_join(a)[:, :length] for a in found)

  computed = partition.over_batch(own, head.name, head.dtype)
  return computed(weights, *arrays)


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
