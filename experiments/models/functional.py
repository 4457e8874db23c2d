"""The models here as functions of their parameters, given a config."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from experiments import models
from experiments.models import config as model_config

Config = model_config.ModelConfig | model_config.SmallConfig
Leaves = dict[str, np.ndarray]


def forward(config: Config) -> Callable[..., jax.Array]:
  """The model of a config as (params, tokens, mask) -> float32 logits."""
  model = nnx.eval_shape(lambda: models.from_config(config))
  graphdef, _, rest = nnx.split(model, nnx.Param, ...)
  return lambda params, tokens, mask: nnx.merge(graphdef, params, rest)(
    tokens, mask
  )


def flatten(params: Any) -> Leaves:
  """The parameters by path, such as "encoder/layer_0/mlp/up/kernel"."""
  flat: Any = traverse_util.flatten_dict(params, sep="/")
  return flat
