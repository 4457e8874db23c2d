"""A trained model as it is served: weights in memory, tokenizer, functions.

The weights stay as `weights` says, and every block makes its own dense where it
is computed, see `compact`:

  dense   the arrays
  packed  the levels, in integers of 2 to 16 bits
  coded   entropy coded, about as large as in the file
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx, traverse_util

import backslash_jax as bs
from experiments import evaluate, settings
from experiments.data import vocabulary
from experiments.deploy import release
from experiments.huggingface import config as config_json
from experiments.huggingface import convert, files, reading
from experiments.huggingface import weights as pretrained
from experiments.models import compact, functional, sizes
from experiments.serve import weights

_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
  """A model, ready to be called.

  Attributes:
    path: the directory that it was read from.
    config: its ModelConfig.
    forward: its functions, of parameters.
    tensors: what lies in memory, by name: arrays, coded or packed weights.
    views: the parameters, by path: which tensor each is, see `convert.views`.
    words: the vocabulary; None if there is no tokenizer.
    training: of a model that was trained here.
  """

  path: pathlib.Path
  config: Any
  forward: functional.Forward
  tensors: Mapping[str, Any]
  views: Mapping[str, compact.Parameter]
  words: vocabulary.Vocabulary | None
  training: release.Trained | None = None

  @property
  def is_causal(self) -> bool:
    """Whether it predicts next tokens."""
    labels = getattr(self.config, "num_labels", None)
    return labels is None and not hasattr(self.config, "num_classes")

  def params(self, tensors: Mapping[str, Any]) -> Any:
    """The parameters that the functions of `forward` take, in jit."""
    flat = {
      path: dataclasses.replace(view, source=tensors[view.source])
      for path, view in self.views.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")

  @functools.cached_property
  def prefill(self) -> Any:
    """jit of (tensors, tokens, mask, slots), see `cache.prefill`."""
    return jax.jit(
      lambda tensors, tokens, mask, slots: self.forward.prefill(
        self.params(tensors), tokens, mask, slots
      ),
      static_argnums=3,
    )

  @functools.cached_property
  def decode(self) -> Any:
    """jit of (tensors, tokens, cache), see `cache.decode`; takes the cache."""
    return jax.jit(
      lambda tensors, tokens, cache: self.forward.decode(
        self.params(tensors), tokens, cache
      ),
      donate_argnums=2,
    )

  @functools.cached_property
  def losses(self) -> Any:
    """jit of (tensors, tokens, mask, targets), see `losses.losses`."""
    return jax.jit(
      lambda tensors, *batch: self.forward.losses(self.params(tensors), *batch)
    )

  @property
  def nbytes(self) -> int:
    """Bytes of the weights in memory."""
    return sum(x.nbytes for x in jax.tree.leaves(self.tensors))


def read(
  path: pathlib.Path, kind: str = "dense", dtype: str = "float32"
) -> Served:
  """The model in a directory.

  Args:
    path: a directory in the layout of Hugging Face, plain or as `backslash-jax
      compress` coded it, or the workdir of a finished training.
    kind: one of `weights.KINDS`.
    dtype: of the computation, "float32" or "bfloat16".

  Raises:
    UserError: there is no such model, or not with such weights.
  """
  if kind not in weights.KINDS:
    raise settings.UserError(
      f"--weights={kind}: it is one of {', '.join(weights.KINDS)}"
    )
  described = path / "config.json"
  try:
    if not path.is_dir():
      raise settings.UserError(_no_directory(path))
    if not described.exists():
      raise settings.UserError(_no_config(path))
    values = files.read_json(described)
    if "data" in values and "model" in values:
      return _trained(path, kind, dtype)
    return _hugging_face(path, values, kind, dtype)
  except (bs.ArchiveError, ValueError, OSError, ModuleNotFoundError) as error:
    raise settings.UserError(str(error)) from error


def _no_directory(path: pathlib.Path) -> str:
  """What to do about a path that is no directory."""
  if not path.is_file():
    return (
      f"{path}: no such directory; give one with a config.json and weights, or"
      " the workdir of a training"
    )
  if reading.is_coded(path):
    reading.check_whole(path, path)
  return (
    f"{path}: a file; give the directory with its config.json (a directory that"
    " was coded to one file: run `backslash-jax decompress` first)"
  )


def _no_config(path: pathlib.Path) -> str:
  """What to do about a directory without config.json."""
  if advice := release.held(path):
    return f"{path} has no config.json; {advice}"
  return (
    f"{path} has no config.json, so it is neither a Hugging Face directory,"
    " which has config.json and model.safetensors (or"
    " model.backslash.safetensors), nor the workdir of a finished training,"
    f" which has config.json and {evaluate.SHIPPED}"
  )


def _trained(path: pathlib.Path, kind: str, dtype: str) -> Served:
  """A model that was trained by `experiments.main`."""
  trained = release.read(path)
  for field in ("delta", "lora"):
    if trained.config.model.get(field):
      raise settings.UserError(
        f"{path} was trained with config.model.{field}, so its file is not a"
        " whole model: only those are served"
      )
  config = dataclasses.replace(trained.model_config, dtype=dtype)
  has_layers = getattr(config, "scan", False)
  sources: dict[str, Any] = dict(weights.of_file(trained.file, kind))
  if not has_layers and _can_scan(config):
    config = dataclasses.replace(config, scan=True)
    sources = weights.by_layer(sources)
  tensors = weights.in_memory(sources, kind, config.vocab_size, has_layers)
  return Served(
    path=path,
    config=config,
    forward=functional.forward(config),
    tensors=tensors,
    views=_by_token(
      {name: compact.Parameter(name) for name in tensors}, tensors, config
    ),
    words=vocabulary.load(trained.config.data.tokenizer),
    training=trained,
  )


def _hugging_face(
  path: pathlib.Path, values: dict[str, Any], kind: str, dtype: str
) -> Served:
  """A model in the layout of Hugging Face."""
  _, config = config_json.read(path / "config.json", values)
  config = dataclasses.replace(
    config,
    dtype=dtype,
    param_dtype=dtype,
    num_labels=pretrained.own_labels(config, values),
    scan=_can_scan(config),
  )
  state = nnx.state(sizes.abstract(config), nnx.Param)
  wanted: Any = traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")
  found = weights.of_directory(path, kind)
  table = pretrained.TABLES[type(config)]
  sources, views = convert.views(path, found, table, config, wanted)
  tensors = weights.in_memory(sources, kind, config.vocab_size, False)
  words = None
  if any((path / name).exists() for name in _TOKENIZERS):
    words = vocabulary.load(str(path))
  return Served(
    path=path,
    config=config,
    forward=functional.forward(config),
    tensors=tensors,
    views=_by_token(views, tensors, config),
    words=words,
  )


def _can_scan(config: Any) -> bool:
  """Whether the layers are alike, and can run in one loop."""
  return hasattr(config, "scan") and config.layer_sizes is None


def _by_token(
  views: dict[str, compact.Parameter], tensors: Mapping[str, Any], config: Any
) -> dict[str, compact.Parameter]:
  """The views; embeddings and heads are used by blocks of tokens."""
  for path, view in views.items():
    if path.endswith("embedding") or view.transposed:
      shape = tuple(tensors[view.source].shape)
      count = weights.blocks_of(shape, config.vocab_size)
      views[path] = dataclasses.replace(view, blocks=count)
  return views
