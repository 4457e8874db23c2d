"""The models here as functions of their parameters, given a config."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from experiments import models
from experiments.models import cache, layers, losses, partition
from experiments.models import config as model_config

Config = model_config.ModelConfig | model_config.SmallConfig
Leaves = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
  """A model as a function (params, tokens, mask) -> float32 logits.

  Attributes:
    structure: of the model.
    rest: what it has besides parameters.
    dtype: of the computation.
  """

  structure: nnx.GraphDef
  rest: Any
  dtype: DTypeLike

  def __call__(
    self, params: Any, tokens_BxL: jax.Array, mask_BxL: jax.Array
  ) -> jax.Array:
    return self.model(params)(tokens_BxL, mask_BxL)

  def losses(
    self,
    params: Any,
    tokens_BxL: jax.Array,
    mask_BxL: jax.Array,
    targets: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """See `losses.losses`."""
    return losses.losses(self.model(params), tokens_BxL, mask_BxL, targets)

  def prefill(
    self, params: Any, tokens_BxP: jax.Array, mask_BxP: jax.Array, slots: int
  ) -> tuple[jax.Array, cache.Cache]:
    """See `cache.prefill`."""
    return cache.prefill(self.model(params), tokens_BxP, mask_BxP, slots)

  def decode(
    self, params: Any, tokens_B: jax.Array, known: cache.Cache
  ) -> tuple[jax.Array, cache.Cache]:
    """See `cache.decode`."""
    return cache.decode(self.model(params), tokens_B, known)

  def model(self, params: Any) -> Any:
    """The module with these parameters."""
    # Blocks gather their own.
    skip = layers.GATHERED_IN_USE
    params = partition.gather(params, self.dtype, skip=skip)
    return nnx.merge(self.structure, params, self.rest)


def forward(config: Config) -> Forward:
  """The model of a config as a function of its parameters."""
  return split(nnx.eval_shape(lambda: models.from_config(config)))[0]


def split(model: Any) -> tuple[Forward, Any]:
  """A module as a function of its parameters, and these."""
  structure, params, rest = nnx.split(model, nnx.Param, ...)
  config: Config = model.config  # pyrefly: ignore[missing-attribute]
  forward = Forward(structure, rest, config.dtype)
  return forward, nnx.to_pure_dict(params)


def flatten(params: Any) -> Leaves:
  """The parameters by path, such as "encoder/layer_0/mlp/up/kernel"."""
  flat: Any = traverse_util.flatten_dict(params, sep="/")
  return flat
