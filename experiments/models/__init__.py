"""The models, by name."""

from typing import Any

from flax import nnx

from experiments.data.task import Task
from experiments.models import decoder, encoder


def build(config: Any, task: Task, *, seed: int) -> nnx.Module:
  """The model that `config` names, for a task, with fresh parameters.

  Args:
    config: `config.model` of an experiment.
    task: gives the vocabulary and the classes.
    seed: of the initial parameters.

  Returns:
    A module (tokens int32 [B, L], mask bool [B, L]) -> float32 logits,
    [B, classes] from "encoder" and [B, L, vocabulary] from "decoder".

  Raises:
    ValueError: an unknown name, a model that cannot do the task, or sizes
      that do not fit together.
  """
  if config.dropout:
    raise ValueError(
      f"model.dropout is {config.dropout}; these models have none: set it to 0"
    )
  dtypes = ("float32", "bfloat16")
  if config.dtype not in dtypes:
    raise ValueError(
      f"model.dtype is {config.dtype!r}; it is one of {', '.join(dtypes)}"
    )
  sizes = {
    "vocab_size": task.vocab_size,
    "depth": config.depth,
    "width": config.width,
    "heads": config.heads,
    "mlp": config.mlp,
    "dtype": config.dtype,
  }
  kinds = {"encoder": "classification", "decoder": "lm"}
  if config.name not in kinds:
    raise ValueError(
      f"model.name is {config.name!r}; there are {', '.join(sorted(kinds))}"
    )
  if task.kind != kinds[config.name]:
    raise ValueError(
      f"model.name is {config.name!r}, which is for {kinds[config.name]}, but "
      f"{task.name} is a task of kind {task.kind}"
    )
  rngs = nnx.Rngs(seed)
  if config.name == "decoder":
    return decoder.Decoder(decoder.ModelConfig(**sizes), rngs=rngs)
  classes = len(task.class_names)
  return encoder.Encoder(
    encoder.ModelConfig(num_classes=classes, **sizes), rngs=rngs
  )
