"""The ModelConfig of a pretrained architecture that an experiment asks for."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from experiments.data.task import Task
from experiments.models import bert, gemma2, gpt2, llama, rotary
from experiments.models.config import ModelConfig

SIZES: dict[str, dict[str, Any]] = {
  "bert": bert.SIZES,
  "gpt2": gpt2.SIZES,
  "llama": llama.SIZES,
  "gemma2": gemma2.SIZES,
}

CONFIGS: dict[str, type[ModelConfig]] = {
  "bert": bert.ModelConfig,
  "gpt2": gpt2.ModelConfig,
  "llama": llama.ModelConfig,
  "gemma2": gemma2.ModelConfig,
}

Model = bert.Bert | gpt2.Gpt2 | llama.Llama | gemma2.Gemma2

MODELS: dict[type[ModelConfig], Callable[..., Model]] = {
  bert.ModelConfig: bert.Bert,
  gpt2.ModelConfig: gpt2.Gpt2,
  llama.ModelConfig: llama.Llama,
  gemma2.ModelConfig: gemma2.Gemma2,
}


def abstract(config: ModelConfig) -> Model:
  """The model of a config, its parameters shapes without memory."""
  make = MODELS[type(config)]
  return nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))


def model_config(config: Any, task: Task) -> ModelConfig:
  """The config of a model with fresh parameters, for a task.

  Args:
    config: `config.model` of an experiment: `name`, and `size` or, where that
      is None, depth, width, heads and mlp; `dtype`, `attention`, `remat`,
      `scan`.
    task: gives the vocabulary, the classes and the least number of positions.

  Raises:
    ValueError: an unknown size, or sequences longer than its positions.
  """
  if config.size is None:
    chosen = _own_size(config, task)
  elif config.size in SIZES[config.name]:
    chosen = SIZES[config.name][config.size]
  else:
    raise ValueError(
      f"model.size is {config.size!r}; of {config.name} there are "
      f"{', '.join(SIZES[config.name])}, or None for model.depth, width, heads "
      "and mlp"
    )
  chosen.check_length(task.seq_len)
  if chosen.vocab_size != task.vocab_size:
    # The ids of another vocabulary would mean nothing.
    chosen = dataclasses.replace(
      chosen,
      vocab_size=task.vocab_size,
      pad_token_id=None,
      bos_token_id=None,
      eos_token_id=None,
    )
  return dataclasses.replace(
    chosen,
    num_labels=task.num_classes,
    dtype=config.dtype,
    attention=config.attention,
    remat=config.remat,
    scan=config.scan,
  )


def _own_size(config: Any, task: Task) -> ModelConfig:
  """A size that has no name, from the experiment's own numbers."""
  common: dict[str, Any] = {
    "vocab_size": task.vocab_size,
    "width": config.width,
    "depth": config.depth,
    "heads": config.heads,
    "mlp": config.mlp,
    "max_positions": task.seq_len,
  }
  if config.name == "bert":
    return bert.ModelConfig(**common, epsilon=1e-12)
  if config.name == "gpt2":
    return gpt2.ModelConfig(**common, bos_token_id=None, eos_token_id=None)
  if config.width % config.heads:
    raise ValueError(
      f"model.width is {config.width} and model.heads {config.heads}: the "
      "heads do not divide the width"
    )
  common |= {
    "kv_heads": config.heads,
    "head_dim": config.width // config.heads,
    "positions": rotary.Rotary(),
  }
  if config.name == "llama":
    return llama.ModelConfig(**common, tied=True)
  return gemma2.ModelConfig(
    **common,
    window=max(1, task.seq_len // 2),
    query_scale=common["head_dim"],
    attention_softcap=50.0,
    logit_softcap=30.0,
  )
