"""What of a pretrained model is trained: its weights, their change or adapters.

With `config.model.delta` the parameters are the difference from the pretrained
weights, see `bs.delta`. With `config.model.lora`, a rank r, they are two
matrices a and b for each kernel of a block, whose product is added to it (Hu et
al. 2021, arXiv 2106.09685). New heads are trained as they are in both.

With `config.model.distill` the weights are trained, and their loss compares
predictions with those of the pretrained ones (Hinton et al. 2015, arXiv
1503.02531).

The pretrained weights, `base`, are never trained, and neither the optimizer
state nor a checkpoint holds them. Without these fields base is {}.
"""

import zlib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

import backslash_jax as bs
from backslash_jax import tree

# The kernels that get adapters: every linear layer except embeddings and heads.
_ADAPTED = ("*attention/*/kernel", "*mlp/*/kernel")
_SCALE = 2.0  # Of the product of the adapters: alpha is twice the rank.


def split(
  config: ml_collections.ConfigDict, params: Any, new: Collection[str]
) -> tuple[Any, Any]:
  """The initial values of what is trained, and the base.

  Args:
    config: of the experiment.
    params: the whole model, nested dicts.
    new: names of parameters that were not pretrained.

  Raises:
    ValueError: with `config.model.distill`, there are new parameters.
  """
  if config.model.distill:
    if new:
      raise ValueError(
        f"config.model.distill is {config.model.distill:g}, but"
        f" config.model.weights makes no predictions: it lacks {min(new)}"
      )
    # A copy: an update takes the place of the parameters before it. Matrices
    # are as the model computes with them.
    dtype = jnp.dtype(config.model.dtype)
    matrices = tree.selected(params)

    def copied(name, x):
      own = dtype if name in matrices and dtype.itemsize < 4 else x.dtype
      return jnp.array(x, own)

    return params, tree.map_named(copied, params)
  if not (config.model.delta or config.model.lora):
    return params, {}
  flat: Any = traverse_util.flatten_dict(params, sep="/")
  base = {name: x for name, x in flat.items() if name not in new}
  if config.model.delta:
    return bs.delta(params, base), _nested(base)
  trained = {name: flat[name] for name in new}
  adapted = tree.selected(_nested(base), list(_ADAPTED))
  for name, x in adapted.items():
    *stacked, rows, columns = x.shape
    rank = config.model.lora
    key = jax.random.key(config.seed)
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    bound = rows**-0.5
    trained[f"{name}/a"] = jax.random.uniform(
      key, (*stacked, rows, rank), x.dtype, -bound, bound
    )
    trained[f"{name}/b"] = jnp.zeros((*stacked, rank, columns), x.dtype)
  return _nested(trained), _nested(base)


def merge(model: ml_collections.ConfigDict, base: Any, trained: Any) -> Any:
  """The whole model's parameters.

  Args:
    model: `config.model`.
    base: from `split`.
    trained: as `split` returns it.
  """
  if model.delta:
    return bs.apply_delta(base, trained)
  if not model.lora:
    return trained
  merged: Any = traverse_util.flatten_dict(base, sep="/")
  own: Any = traverse_util.flatten_dict(trained, sep="/")
  for name, x in own.items():
    kernel, _, part = name.rpartition("/")
    if kernel not in merged:
      merged[name] = x  # A new head.
    elif part == "a":
      product = jnp.matmul(x, own[f"{kernel}/b"])
      merged[kernel] = merged[kernel] + _SCALE * product
  return _nested(merged)


def _nested(flat):
  return traverse_util.unflatten_dict(flat, sep="/")
