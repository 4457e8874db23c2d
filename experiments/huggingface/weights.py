"""Pretrained weights: a Hugging Face id or directory <-> a model.

  model = weights.load("gpt2", num_labels=2)
  logits = model(token_ids, mask)
  weights.save(model, "runs/gpt2")  # transformers loads this directory

Which tensor is which parameter stands in huggingface/tables.py, which field of
config.json is which size in huggingface/config.py.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from experiments.huggingface import config as config_json
from experiments.huggingface import convert, files, tables
from experiments.huggingface.files import WeightsError
from experiments.models import bert, gemma2, gpt2, llama, sizes
from experiments.models.config import ModelConfig

TABLES: dict[type[ModelConfig], tables.Table] = {
  bert.ModelConfig: tables.BERT,
  gpt2.ModelConfig: tables.GPT2,
  llama.ModelConfig: tables.LLAMA,
  gemma2.ModelConfig: tables.GEMMA2,
}


def load(
  path_or_id: str | os.PathLike,
  *,
  num_labels: int | None = None,
  dtype: DTypeLike = "float32",
  param_dtype: DTypeLike | None = None,
  attention: str | None = None,
  remat: bool = False,
  scan: bool = False,
  seed: int = 0,
  put: Callable[[str, np.ndarray], jax.Array] | None = None,
) -> sizes.Model:
  """A pretrained model, called as model(token_ids, mask) -> float32 logits.

  Args:
    path_or_id: a Hugging Face directory (config.json beside safetensors or
      pytorch_model.bin, whole or in shards), or the id of a model to download.
    num_labels: asks for a classifier with so many classes; a checkpoint with
      no classifier gives one with a new head. None takes what the checkpoint
      is: its own number of classes if it is a classifier, else next-token
      logits; BERT, which has none, then gets two classes as in transformers.
    dtype: of the computation.
    param_dtype: of the parameters; None means `dtype`.
    attention: implementation, see `attention.attend`; None chooses one.
    remat: whether blocks are computed again in the backward pass.
    scan: whether blocks are stacked and run as one loop.
    seed: of a new head.
    put: makes the array on the devices, given a parameter's path such as
      "decoder/layer_0/mlp/up/kernel" and its value; None puts it whole on the
      default device.

  Returns:
    A Bert, Gpt2, Llama or Gemma2 of `experiments.models`. Its attribute
    `new_parameters` has the paths of the parameters of a new head.

  Raises:
    WeightsError: no such directory or id, no network, gated; files missing,
      damaged or unsupported; or tensors that are not those of the model, all
      of them listed by name and shape.
    ModuleNotFoundError: huggingface_hub or torch is needed and missing.
  """
  directory = files.locate(path_or_id)
  path = directory / "config.json"
  values = files.read_json(path)
  _, config = config_json.read(path, values)
  if num_labels is None:
    num_labels = own_labels(config, values)
  config = dataclasses.replace(
    config,
    num_labels=num_labels,
    dtype=_floating(dtype),
    param_dtype=_floating(dtype if param_dtype is None else param_dtype),
    attention=attention,
    remat=remat,
    scan=scan,
  )
  graphdef, state = nnx.split(sizes.abstract(config))
  wanted: Any = traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")
  arrays, new = convert.read(
    directory,
    TABLES[type(config)],
    config,
    wanted,
    seed,
    put or (lambda _, array: jnp.asarray(array)),
  )
  nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(arrays, sep="/"))
  model: Any = nnx.merge(graphdef, state)
  model.new_parameters = new
  return model


def save(
  model: nnx.Module,
  path: str | os.PathLike,
  *,
  shard_bytes: int = files.SHARD_BYTES,
) -> None:
  """Writes a Hugging Face directory, which transformers and `load` read.

  Args:
    model: a Bert, Gpt2, Llama or Gemma2. Parameters keep their dtype.
    path: the directory, made if it is not there. Weights and config.json in
      it are replaced, other files (a tokenizer) stay. config.json is written
      last: a directory without it was not finished.
    shard_bytes: largest file of weights, in bytes.

  Raises:
    WeightsError: not one of these models, or `path` is a file.
  """
  config = getattr(model, "config", None)
  if not isinstance(config, ModelConfig):
    raise WeightsError(
      f"{type(model).__name__} is no model with a Hugging Face layout; there "
      f"are {', '.join(make.__name__ for make in sizes.MODELS.values())}"
    )
  directory = pathlib.Path(path).expanduser()
  if directory.exists() and not directory.is_dir():
    raise WeightsError(f"{directory}: a file, wanted a directory to write to")
  values = config_json.write(config)
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "config.json").unlink(missing_ok=True)
  state = nnx.state(model, nnx.Param)
  params: Any = traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")
  tensors = convert.tensors(TABLES[type(config)], config, params)
  files.write_tensors(directory, tensors, shard_bytes=shard_bytes)
  files.write_json(directory / "config.json", values)


def _floating(dtype: DTypeLike) -> str:
  name = jnp.dtype(dtype).name
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"dtype is {name}, wanted a floating one")
  return name


def own_labels(config: ModelConfig, values: dict[str, Any]) -> int | None:
  """The classes of the checkpoint itself; None for a language model."""
  architecture = str((values.get("architectures") or [""])[0])
  if architecture.endswith("ForSequenceClassification"):
    return config_json.num_labels(values) or 2
  return config.num_labels
