"""The models that `experiments.quantize` takes, and the files that it writes.

A source is a directory in the layout of Hugging Face, or the workdir of a
finished training. What is written has the same layout, with a coded file.
"""

import copy
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

import backslash_jax as bs
from backslash_jax.archive import naming
from backslash_jax.cli import staging
from experiments import cells, evaluate, settings
from experiments.data import lines
from experiments.deploy import release
from experiments.huggingface import convert, files, weights
from experiments.models import functional

_PLAIN = ("*.safetensors*", "*.bin", "*.bin.index*", "*.gguf", "*.msgpack")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A model and where it comes from.

  Attributes:
    directory: of it.
    config: of the experiment, with the data of a training.
    model: the config of the model.
    forward: the model as a function.
    params: its parameters.
    file: the name of the coded file.
    metadata: of that file.
    parts: the paths of the parameters that each tensor of it consists of.
    tensors: parameters -> tensors of the file, by name.
    ignore: (directory, names) -> the names of what is not copied.
  """

  directory: pathlib.Path
  config: ml_collections.ConfigDict
  model: Any
  forward: functional.Forward
  params: Any
  file: str
  metadata: Mapping[str, str] | None
  parts: Mapping[str, tuple[str, ...]]
  tensors: Callable[[Any], dict[str, Any]]
  ignore: Callable[[Any, list[str]], Any]

  def save(
    self,
    directory: pathlib.Path,
    tensors: Mapping[str, Any],
    steps: Mapping[str, float],
  ) -> int:
    """Writes the coded file in a directory; returns its size in bytes."""
    path = directory / self.file
    return bs.save(path, tensors, step=steps, metadata=self.metadata).bytes

  def write(
    self,
    out: pathlib.Path,
    tensors: Mapping[str, Any],
    steps: Mapping[str, float],
  ) -> None:
    """Writes a directory of the same layout, whole or not at all."""
    with staging.replacing(out) as staged:
      shutil.copytree(
        self.directory, staged, ignore=self.ignore, dirs_exist_ok=True
      )
      self.save(staged, tensors, steps)


def read(config: ml_collections.ConfigDict) -> Source:
  """The model that config.model.weights names.

  Raises:
    ValueError, settings.UserError: there is none, or it is not a whole model.
  """
  path = pathlib.Path(config.model.weights).expanduser()
  return _trained(config, path) if _is_workdir(path) else _hugging_face(config)


def _is_workdir(path: pathlib.Path) -> bool:
  """Whether `experiments.main` wrote it, of one training or of arms."""
  try:
    return "evaluate" in json.loads((path / "config.json").read_text())
  except (OSError, ValueError):
    return any(path.glob(f"*/{evaluate.SHIPPED}"))


def _hugging_face(config) -> Source:
  directory = files.locate(config.model.weights)
  model = weights.load(directory)
  forward, params = functional.split(model)
  table, own = weights.TABLES[type(model.config)], model.config

  def tensors(params):
    return dict(convert.tensors(table, own, functional.flatten(params)))

  return Source(
    directory=directory,
    config=config,
    model=own,
    forward=forward,
    params=params,
    file=naming.coded("model.safetensors"),
    metadata={"format": "pt"},
    parts=convert.parts(table, own, functional.flatten(params)),
    tensors=tensors,
    ignore=shutil.ignore_patterns(*_PLAIN),
  )


def _trained(config, workdir) -> Source:
  trained = release.read(workdir)
  for field in ("delta", "lora", "scan"):
    if trained.config.model.get(field):
      raise settings.UserError(
        f"{workdir} was trained with config.model.{field}: only whole models"
        " whose blocks are not scanned are quantized"
      )
  path = workdir / cells.TRAINED
  if not path.exists():
    raise settings.UserError(
      f"{workdir} has no {path.name}: name the arm that was trained, whose"
      " training this one shares"
    )
  own, data = copy.deepcopy(config).unlock(), trained.config.data
  if config.data.name == lines.NAME:  # Other texts, read as the model reads.
    own.data.tokenizer, own.data.seq_len = data.tokenizer, data.seq_len
  else:
    own.data = data
  params = bs.load(path)["params"]
  return Source(
    directory=workdir,
    config=own.lock(),
    model=trained.model_config,
    forward=functional.forward(trained.model_config),
    params=params,
    file=evaluate.SHIPPED,
    metadata=None,
    parts={name: (name,) for name in functional.flatten(params)},
    tensors=functional.flatten,
    ignore=lambda _, names: [name for name in names if name != "config.json"],
  )
