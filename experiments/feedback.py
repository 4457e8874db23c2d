"""Post-training quantization of a model with error feedback, block by block.

Each linear layer is quantized by the second moments that its inputs have in the
model whose earlier blocks are quantized already. What these are for stands in
`backslash_jax.feedback`.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx, traverse_util

from backslash_jax import feedback
from backslash_jax import quantize as quantizers
from experiments import atomic, digest
from experiments.models import attention, blocks, functional, layers

Moments = dict[str, jax.Array]  # [I, I] by the name of the layer's matrix.
Levels = dict[str, np.ndarray]
Batch = Mapping[str, Any]
# Of layers with more inputs than there were tokens.
_MORE_DAMPING = 0.1


def quantize(
  forward: functional.Forward,
  params: Any,
  step: float | Mapping[str, float],
  batches: Iterable[Batch],
  *,
  mu: float = 0.0,
  damping: float = feedback.DAMPING,
  kept: pathlib.Path | None = None,
  progress: Callable[[str], object] = lambda _: None,
) -> dict:
  """The parameters with the selected matrices quantized.

  The kernels of linear layers are quantized with error feedback, and so are
  embeddings that also score the next token. Other matrices are rounded, and so
  are those of layers that no token reaches.

  Args:
    forward: the model; its blocks are not scanned.
    params: its parameters.
    step: of each matrix, see `quantize.steps_by_name`.
    batches: training batches, see `data.Dataset`.
    mu: extra error accepted per bit saved, see `feedback.quantize` and
      `quantize.rate_distortion`.
    damping: see `feedback.quantize`.
    kept: a directory that gets the levels of each block. A call with the same
      arguments that was stopped goes on after the last of them.
    progress: called with a line about each block, and what is odd.

  Returns:
    A tree like `params`. The quantized leaves are multiples of their steps.

  Raises:
    ValueError: a matrix cannot be quantized; it says which and why.
  """
  steps = dict(quantizers.steps_by_name(params, step))
  found = dict(functional.flatten(params))
  batches = list(batches)
  tokens = sum(int(np.sum(b["mask"])) for b in batches)
  if kept is not None:
    kept /= _key(params, steps, batches, mu, damping)

  def use(levels: Levels) -> None:
    for name, own in levels.items():
      found[name] = quantizers.dequantize(
        own.astype(np.int32), steps.pop(name), np.dtype(found[name].dtype)
      )

  def restored(part: str) -> bool:
    path = kept and kept / part
    if path is None or not path.exists():
      return False
    use(safetensors.numpy.load_file(path))
    return True

  def choose(part: str, prefix: str, moments: Moments) -> None:
    levels = chosen_levels(prefix, moments)
    if kept is not None:
      content = safetensors.numpy.save(levels)
      atomic.write(kept / part, lambda file: file.write_bytes(content))
    use(levels)

  def chosen_levels(prefix: str, moments: Moments) -> Levels:
    chosen = {}
    for name, own in moments.items():
      name = prefix + name
      if name not in steps:
        continue
      if not bool(jnp.any(own)):
        progress(f"{name}: no token reaches it, so it is rounded")
        continue
      more = damping
      if tokens < len(own):
        more = max(damping, _MORE_DAMPING)
        progress(
          f"{name}: {tokens} tokens are fewer than its {len(own)} inputs, so"
          f" the damping is {more:g}"
        )
      # A table of embeddings has a row for each output.
      is_table = name.endswith("embedding")
      kernel = found[name].T if is_table else found[name]
      try:
        levels = feedback.quantize(
          kernel, own, steps[name], mu=mu, damping=more
        )
      except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
      levels = np.ascontiguousarray(levels.T if is_table else levels)
      chosen[name] = levels.astype(_narrow(levels))
    return chosen

  where, stack = _stack(_model(forward, params))
  inputs = [_entry(forward, where, params, b) for b in batches]
  for i in range(depth := len(inputs[0][1])):
    prefix = f"{where}/layer_{i}/"
    graphdef = nnx.graphdef(getattr(stack, f"layer_{i}"))
    names = [name for name in found if name.startswith(prefix)]
    own = _tree({n.removeprefix(prefix): found[n] for n in names})
    if not restored(part := f"block_{i}.safetensors"):
      moments = _sum(
        _of_block(graphdef, own, x, m[i], measured=True)[0] for x, m in inputs
      )
      choose(part, prefix, moments)
    own = _tree({n.removeprefix(prefix): found[n] for n in names})
    inputs = [(_of_block(graphdef, own, x, m[i])[1], m) for x, m in inputs]
    progress(f"quantized block {i + 1} of {depth}")
  params = _tree(found)
  if not restored(part := "rest.safetensors"):
    after = zip(batches, inputs, strict=True)
    moments = _sum(
      _after_blocks(forward, where, params, b, x) for b, (x, _) in after
    )
    choose(part, "", moments)
  return quantizers.apply(_tree(found), steps, mu=mu) if steps else _tree(found)


def _tree(leaves: Mapping[str, Any]) -> dict:
  return traverse_util.unflatten_dict(dict(leaves), sep="/")


def _narrow(levels: np.ndarray) -> np.dtype:
  """The smallest signed dtype that holds the levels."""
  largest = int(np.abs(levels).max(initial=0))
  return np.min_scalar_type(-largest - 1)


def _key(
  params: Any,
  steps: Mapping[str, float],
  batches: Sequence[Batch],
  *options: float,
) -> str:
  """Names all that the levels depend on."""
  found = hashlib.sha256()
  for batch in batches:
    for name in ("tokens", "mask"):
      found.update(np.ascontiguousarray(batch[name]).tobytes())
  fields = digest.of(params), sorted(steps.items()), options
  found.update(json.dumps(fields).encode())
  return found.hexdigest()[:16]


def _sum(moments: Iterable[Moments]) -> Moments:
  return functools.reduce(functools.partial(jax.tree.map, jnp.add), moments)


def _model(forward: functional.Forward, params: Any) -> Any:
  return nnx.merge(forward.structure, params, forward.rest)


def _stack(model: Any) -> tuple[str, blocks.Blocks | layers.Stack]:
  """The name and the value of the attribute that has the blocks.

  Raises:
    ValueError: the blocks are scanned.
  """
  for (*path, name), module in nnx.iter_modules(model):
    if isinstance(module, blocks.Blocks | layers.Stack) and not path:
      if isinstance(module, blocks.Blocks) and module.scan:
        raise ValueError("the blocks are one loop: set model.scan=False")
      return str(name), module
  raise TypeError(f"{type(model).__name__} has no blocks")


def _recorded(
  module: nnx.Module, moments: Moments, real: jax.Array, skip: str = "\0"
) -> None:
  """Lets the linear layers of a module record the moments of their inputs.

  Args:
    module: its calls are traced afterwards.
    moments: gets them.
    real: bool [B, L]; where the inputs have these axes, only those of real
      tokens count.
    skip: a member of the module whose layers do not.
  """

  def dot_general(path, x, *args, **kwargs):
    mask = real if x.shape[:-1] == real.shape else None
    moments[f"{path}/kernel"] = feedback.second_moments(x, mask)
    return jax.lax.dot_general(x, *args, **kwargs)

  for path, layer in nnx.iter_modules(module):
    if isinstance(layer, nnx.Linear) and path[:1] != (skip,):
      layer.dot_general = functools.partial(
        dot_general, "/".join(map(str, path))
      )


class _Entry(nnx.Module):
  """In place of the blocks: keeps what they are given."""

  def __call__(self, x: jax.Array, *masks: attention.Mask, known: None = None):
    self.seen = nnx.data((x, masks))
    return x, known


class _Exit(nnx.Module):
  """In place of the blocks: gives what they gave."""

  def __init__(self, stack: nnx.Module, x: jax.Array):
    self.norm = getattr(stack, "norm", lambda x: x)
    self.x = nnx.data(x)

  def __call__(self, x: jax.Array, *masks: attention.Mask, known: None = None):
    return self.norm(self.x), known


@functools.partial(jax.jit, static_argnums=(0, 1))
def _entry(forward, where, params, batch):
  """What the first block is given, [B, T, W], and the mask of each block."""
  model = _model(forward, params)
  stack, entry = getattr(model, where), _Entry()
  setattr(model, where, entry)
  model(batch["tokens"], batch["mask"])
  x, masks = entry.seen
  kinds = getattr(stack, "kinds", (0,) * getattr(stack, "depth", 0))
  return x, [masks[kind] for kind in kinds]


@functools.partial(jax.jit, static_argnums=0, static_argnames="measured")
def _of_block(graphdef, params, x, mask, *, measured=False):
  """The moments of a block's layers if measured, and what it gives."""
  block: Any = nnx.merge(graphdef, params)
  moments: Moments = {}
  if measured:
    _recorded(block, moments, mask.real)
  y, _ = block(x, mask)
  return moments, y


@functools.partial(jax.jit, static_argnums=(0, 1))
def _after_blocks(forward, where, params, batch, x):
  """The moments of the layers after the blocks, which gave x."""
  model = _model(forward, params)
  setattr(model, where, _Exit(getattr(model, where), x))
  moments: Moments = {}
  _recorded(model, moments, batch["mask"], skip=where)
  tokens, mask = batch["tokens"], batch["mask"]
  if model(tokens, mask).ndim == 3:  # Scores of the next tokens.
    hidden = model.hidden(tokens, mask)
    moments[model.head().name] = feedback.second_moments(hidden, mask)
  return moments
