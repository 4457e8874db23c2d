"""The models here as functions of their parameters, given a config."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from experiments import models
from experiments.models import config as model_config
from experiments.models import layers, partition

Config = model_config.ModelConfig | model_config.SmallConfig
Leaves = dict[str, np.ndarray]
# (params, tokens int32 [B, L], mask bool [B, L]) -> float32 logits.
Forward = Callable[[Any, jax.Array, jax.Array], jax.Array]


def forward(config: Config) -> Forward:
  """The model of a config as a function of its parameters."""
  return split(nnx.eval_shape(lambda: models.from_config(config)))[0]


def split(model: nnx.Module) -> tuple[Forward, Any]:
  """A module as a function of its parameters, and these."""
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  dtype: Any = model.config.dtype

  def apply(params, tokens_BxL, mask_BxL):
    skip = layers.GATHERED_IN_USE
    params = partition.gather(params, dtype, skip=skip)
    return nnx.merge(graphdef, params, rest)(tokens_BxL, mask_BxL)

  return apply, nnx.to_pure_dict(params)


def flatten(params: Any) -> Leaves:
  """The parameters by path, such as "encoder/layer_0/mlp/up/kernel"."""
  flat: Any = traverse_util.flatten_dict(params, sep="/")
  return flat
