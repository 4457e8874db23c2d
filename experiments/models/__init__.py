"""The models, by name.

"encoder" and "decoder" are small models over bytes. "bert", "gpt2", "llama" and
"gemma2" are the published architectures, with fresh parameters in a named size
or pretrained, see `experiments.huggingface.weights`.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx

from experiments.data.task import Task
from experiments.models import decoder, encoder, sizes

MODELS: dict[type, Callable[..., nnx.Module]] = {
  **sizes.MODELS,
  encoder.ModelConfig: encoder.Encoder,
  decoder.ModelConfig: decoder.Decoder,
}
# The kinds of tasks that each can do.
KINDS = {
  "decoder": ("lm",),
  "encoder": ("classification",),
  "bert": ("classification",),
  "gemma2": ("classification", "lm"),
  "gpt2": ("classification", "lm"),
  "llama": ("classification", "lm"),
}


def build(config: Any, task: Task, *, seed: int) -> nnx.Module:
  """The model that `config` names, for a task, with fresh parameters.

  Args:
    config: `config.model` of an experiment.
    task: gives the vocabulary and the classes.
    seed: of the initial parameters.

  Returns:
    A module (tokens int32 [B, L], mask bool [B, L]) -> float32 logits,
    [B, classes] for a classification, [B, L, vocabulary] for an lm task.

  Raises:
    ValueError: an unknown name or size, a model that cannot do the task, or
      sizes that do not fit together; `weights.WeightsError` is one too.
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
  if config.name not in KINDS:
    raise ValueError(
      f"model.name is {config.name!r}; there are {', '.join(KINDS)}"
    )
  if task.kind not in KINDS[config.name]:
    raise ValueError(
      f"model.name is {config.name!r}, which is for {KINDS[config.name][0]}, "
      f"but {task.name} is a task of kind {task.kind}"
    )
  if config.name in sizes.SIZES:
    return _published(config, task, seed)
  return _small(config, task, seed)


def from_config(config: Any, *, seed: int = 0) -> nnx.Module:
  """The model of a ModelConfig of this package, with fresh parameters."""
  return MODELS[type(config)](config, rngs=nnx.Rngs(seed))


def _small(config: Any, task: Task, seed: int) -> nnx.Module:
  """An encoder or a decoder over bytes."""
  fields = {
    "vocab_size": task.vocab_size,
    "depth": config.depth,
    "width": config.width,
    "heads": config.heads,
    "mlp": config.mlp,
    "dtype": config.dtype,
  }
  if config.name == "decoder":
    return from_config(decoder.ModelConfig(**fields), seed=seed)
  classes = len(task.class_names)
  chosen = encoder.ModelConfig(num_classes=classes, **fields)
  if task.seq_len % chosen.stride:
    raise ValueError(
      f"data.seq_len is {task.seq_len}; model.name 'encoder' wants a multiple"
      f" of {chosen.stride}"
    )
  return from_config(chosen, seed=seed)


def _published(config: Any, task: Task, seed: int) -> nnx.Module:
  """A published architecture, with fresh parameters or pretrained ones."""
  if config.weights is None:
    return from_config(sizes.model_config(config, task), seed=seed)
  # Not at the top: it imports this package.
  from experiments.huggingface import weights

  model = weights.load(
    config.weights,
    num_labels=task.num_classes,
    dtype=config.dtype,
    param_dtype="float32",
    attention=config.attention,
    remat=config.remat,
    scan=config.scan,
    seed=seed,
  )
  found = model.config
  if type(found) is not sizes.CONFIGS[config.name]:
    raise ValueError(
      f"model.weights is {config.weights}, a {type(model).__name__}, but "
      f"model.name is {config.name!r}"
    )
  check_vocabulary(task, found, config.weights)
  if task.num_classes != found.num_labels:
    raise ValueError(
      f"{task.name} is a task of kind {task.kind}, but {config.weights} is a "
      f"classifier of {found.num_labels} classes: pass a language model"
    )
  found.check_length(task.seq_len)
  return model


def check_vocabulary(task: Task, model: Any, name: str) -> None:
  """Raises ValueError if a model's config has fewer tokens than a task.

  Args:
    task: of the data.
    model: the config of the model.
    name: of the model, for the error.
  """
  if task.vocab_size > model.vocab_size:
    raise ValueError(
      f"{task.name} has {task.vocab_size} tokens, but {name} only"
      f" {model.vocab_size}: use the tokenizer that belongs to the model, with"
      " config.data.tokenizer"
    )
