"""A smaller network of the same function: without the units that are zero.

A unit that adds nothing leaves: a hidden unit or a head whose way out is zero,
or whose way in is, so that what it adds is constant and goes into the bias
that follows. Rows of an embedding that are zero become one, and features
between the embedding of bytes and its convolution leave as hidden units do.
What cannot leave exactly stays, and the report says why.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from backslash_jax.structure import groups as grouping
from experiments import models
from experiments.models import bert, decoder, encoder, functional, units
from experiments.models import config as model_config

_ENCODERS = bert.ModelConfig, encoder.ModelConfig


@dataclasses.dataclass(frozen=True)
class Line:
  """What became of the units of one layer.

  Attributes:
    group: "mlp", "heads", "rows" or "features".
    layer: path of the layer; "" for rows and features.
    before, after: numbers of units.
    note: why units that are zero were kept; or "".
  """

  group: str
  layer: str
  before: int
  after: int
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Simplified:
  """A smaller model of the same function.

  Attributes:
    config: of the model that `params` belong to.
    params: nested dicts of arrays, dtypes as they were.
    token_ids: int32 [V]; where rows were removed, token t is now
      token_ids[t], and a model of these params is called with those. None:
      tokens are what they were.
    report: per group and layer.
  """

  config: Any
  params: dict[str, Any]
  token_ids: np.ndarray | None
  report: tuple[Line, ...]


def simplify(config: functional.Config, params: Any) -> Simplified:
  """Takes out of a model what is exactly zero in it.

  Call it with what `bs.load` returns: weights that are coded as zero are zero
  there. A layer that loses its last unit is left out of the small models,
  whose layers add nothing then; elsewhere it keeps one.

  Args:
    config: of the model.
    params: its parameters, nested dicts of arrays.

  Raises:
    ValueError: the parameters are not those of the model.
  """
  params = jax.tree.map(np.asarray, params)
  leaves = functional.flatten(params)
  _check(config, leaves)
  found = grouping.bind(units.declare(config, _present(config)), params)
  activation = _activation(config)
  lines, counts = [], {}
  changes: dict[str, Any] = {}
  token_ids = None
  least = 0 if isinstance(config, model_config.SmallConfig) else 1
  for u in found:
    if u.name == "rows":
      line, token_ids = _merge_rows(config, u, leaves)
    else:
      line, counts[u.name, u.key[0]] = _take_out(u, leaves, activation, least)
    lines += line
  if token_ids is not None:
    changes["vocab_size"] = int(token_ids.max()) + 1
  if isinstance(config, encoder.ModelConfig):
    lines.append(_take_features(config, leaves))
    changes["byte_width"] = lines[-1].after
  new = dataclasses.replace(_resized(config, counts), **changes)
  params = traverse_util.unflatten_dict(leaves, sep="/")
  return Simplified(new, params, token_ids, tuple(lines))


def _check(config, leaves):
  """Raises ValueError where leaves are not the parameters of the config."""
  state = nnx.state(
    nnx.eval_shape(lambda: models.from_config(config)), nnx.Param
  )
  wanted = functional.flatten(nnx.to_pure_dict(state))
  wrong = [
    f"{name}: found {found}, wanted {want}"
    for name in sorted(wanted.keys() | leaves.keys())
    if (found := getattr(leaves.get(name), "shape", "nothing"))
    != (want := getattr(wanted.get(name), "shape", "nothing"))
  ]
  if wrong:
    raise ValueError("parameters of another model:\n" + "\n".join(wrong))


def _present(config):
  """The groups that the model has units of."""
  layers = [config.layer(i) for i in range(config.depth)]
  names = ["heads"] * any(x.heads for x in layers)
  return [*names, *["mlp"] * any(x.mlp for x in layers), "rows"]


def _activation(config):
  """Of the hidden units; the model knows it."""
  whole = dataclasses.replace(config, layer_sizes=None)
  model: Any = nnx.eval_shape(lambda: models.from_config(whole))
  blocks = getattr(model, "encoder", None) or model.decoder
  block = blocks.layers if getattr(config, "scan", False) else blocks.layer_0
  return block.mlp.activation


def _views(u, leaves):
  """The weights of each unit by parameter, [layers, units, ...]."""
  layers, n = math.prod(u.shape[:-1]), u.shape[-1]
  stacked = len(u.shape) - 1
  views = {}
  for part in u.parts:
    x = np.moveaxis(leaves[part.path], part.axis, stacked)
    name = part.path.removeprefix(u.key[0])
    views[name] = x.reshape(layers, n, part.entries, -1)
  return views


def _is_zero(x):
  """Which units are all zeros, bool [layers, units]."""
  return ~x.any(axis=(2, 3))


def _dead(u, views, activation):
  """Which units add nothing but a constant, and that constant.

  Returns:
    bool [layers, units], and what a unit's ways out are multiplied with,
    float32 [layers, units, entries]; zero without biases.
  """
  bias = "mlp/up/bias" if u.name == "mlp" else "attention/value/bias"
  if u.name == "mlp":
    out = views["mlp/down/kernel"]
    constant = np.zeros(out.shape[:3], np.float32)
    is_constant = _is_zero(views["mlp/up/kernel"])
    if "mlp/gate/kernel" in views:
      # These activations are zero at zero.
      is_constant |= _is_zero(views["mlp/gate/kernel"])
    elif bias in views:
      constant = np.array(activation(views[bias][..., 0].astype(np.float32)))
  else:
    out = views["attention/out/kernel"]
    is_constant = _is_zero(views["attention/value/kernel"])
    constant = np.zeros(out.shape[:3], np.float32)
    if bias in views:
      # The weights of attention sum to one; several queries share a value.
      value = views[bias][..., 0]
      repeats = constant.shape[2] // value.shape[2]
      constant = np.tile(value.astype(np.float32), (1, 1, repeats))
  silent = _is_zero(out)
  constant = np.where(silent[..., None], 0, constant)
  return silent | is_constant, constant


def _take_out(u, leaves, activation, least):
  """Shrinks the leaves of the units of one layer, or of stacked layers."""
  views = _views(u, leaves)
  dead, constant = _dead(u, views, activation)
  out_name = "mlp/down" if u.name == "mlp" else "attention/out"
  out, bias = views[f"{out_name}/kernel"], u.key[0] + f"{out_name}/bias"
  layers, n = dead.shape
  notes = [""] * layers
  has_bias = bias in leaves
  if not has_bias:
    stuck = dead & constant.any(axis=2)
    dead &= ~stuck
    notes = ["a constant, and no bias to add it to" * any(s) for s in stuck]
  wanted = np.maximum((~dead).sum(axis=1), least)
  kept = int(wanted.max())
  for i in np.flatnonzero((~dead).sum(axis=1) < least):
    notes[i] = "all are zero, and a layer keeps one"
  for i in np.flatnonzero(wanted < kept):
    notes[i] = (
      f"{wanted[i]} would do, but stacked layers share one size; without"
      " config.scan each has its own"
    )
  # The units that stay, in their order; of the dead ones as many as needed.
  order = np.argsort(dead, axis=1, kind="stable")
  stay, go = np.sort(order[:, :kept], axis=1), order[:, kept:]
  if has_bias:
    gone = np.zeros_like(dead)
    np.put_along_axis(gone, go, True, axis=1)
    added = np.einsum("lue,luew->lw", constant * gone[..., None], out)
    old = leaves[bias]
    leaves[bias] = (old + added.reshape(old.shape)).astype(old.dtype)
  for part in u.parts:
    leaves[part.path] = _select(leaves[part.path], part, u, stay)
  name = u.key[0].strip("/")
  if kept == 0:
    notes = ["the whole layer is left out"]
    for path in [part.path for part in u.parts]:
      del leaves[path]
    del leaves[f"{name}/{out_name.partition('/')[0]}_norm/scale"]
  lines = [
    Line(u.name, name if layers == 1 else f"{name}/{i}", n, kept, notes[i])
    for i in range(layers)
  ]
  return lines, kept


def _select(x, part, u, stay):
  """The entries of the units that stay, per layer."""
  entries = stay[..., None] * part.entries + np.arange(part.entries)
  entries = entries.reshape(len(stay), -1)
  if len(u.shape) == 1:
    return np.take(x, entries[0], axis=part.axis)
  layers = [
    np.take(y, e, axis=part.axis) for y, e in zip(x, entries, strict=True)
  ]
  return np.stack(layers)


def _merge_rows(config, u, leaves):
  """Lets the rows of zeros be one; the new id of every token, or None."""
  (part,) = u.parts
  x = leaves[part.path]
  zero = ~x.any(axis=1)
  before = len(x)
  if zero.sum() < 2:
    return [Line("rows", "", before, before)], None
  if _is_tied(config):
    note = (
      f"{zero.sum()} are zero, but the embedding also scores the next token,"
      " and each of its rows is one"
    )
    return [Line("rows", "", before, before, note)], None
  stays = ~zero
  stays[np.argmax(zero)] = True
  ids = np.cumsum(stays) - 1
  token_ids = np.where(zero, ids[np.argmax(zero)], ids).astype(np.int32)
  leaves[part.path] = x[stays]
  return [Line("rows", "", before, int(stays.sum()))], token_ids


def _take_features(config, leaves):
  """Shrinks what lies between the embedding of bytes and its convolution."""
  embedding, kernel = leaves["embed/embedding"], leaves["stem/kernel"]
  before = embedding.shape[1]
  alive = embedding.any(axis=0) & kernel.any(axis=(0, 2))
  note = "" if alive.any() else "all are zero, and a layer keeps one"
  alive[0] |= not alive.any()
  leaves["embed/embedding"] = embedding[:, alive]
  leaves["stem/kernel"] = kernel[:, alive]
  return Line("features", "", before, int(alive.sum()), note)


def _is_tied(config):
  """Whether the embedding of tokens is the output layer too."""
  if isinstance(config, model_config.SmallConfig):
    return isinstance(config, decoder.ModelConfig)
  return config.num_labels is None and getattr(config, "tied", True)


def _resized(config, counts):
  """The config with the heads and hidden units that are left."""
  stack = "encoder" if isinstance(config, _ENCODERS) else "decoder"
  is_stacked = getattr(config, "scan", False)
  prefixes = [
    f"{stack}/layers/" if is_stacked else f"{stack}/layer_{i}/"
    for i in range(config.depth)
  ]
  shared = config.heads // (getattr(config, "kv_heads", None) or config.heads)
  layers = tuple(
    model_config.LayerSize(
      counts.get(("heads", p), 0) * shared, counts.get(("mlp", p), 0)
    )
    for p in prefixes
  )
  changes: dict[str, Any] = {
    "head_dim": config.head_dim or config.width // config.heads,
    "layer_sizes": None,
  }
  if len(set(layers)) == 1 and layers[0].heads and layers[0].mlp:
    changes |= {"heads": layers[0].heads, "mlp": layers[0].mlp}
    if hasattr(config, "kv_heads"):
      changes["kv_heads"] = layers[0].heads // shared
  else:
    changes["layer_sizes"] = layers
  return dataclasses.replace(config, **changes)
