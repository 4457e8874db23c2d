"""Tensors of files as they lie in memory: dense, packed or coded.

The tensors of layers that have one shape become one, with an axis of layers
first, so that a model runs them in one loop and compiles one layer. Each keeps
its own step.
"""

import collections
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import backslash_jax as bs
from backslash_jax import coded
from experiments import settings
from experiments.huggingface import reading
from experiments.models import compact, functional

KINDS = {"dense": False, "packed": "packed", "coded": True}
_LAYER = re.compile(r"/layer_(\d+)/")


class Stored(NamedTuple):
  """A tensor that is still in its file.

  Attributes:
    file: that has it.
    name: in the file.
    shape: as saved.
    dtype: likewise.
  """

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype


# A tensor, or those of all layers in order; each stored or an array.
Source = Any


def of_directory(path: pathlib.Path, kind: str) -> Iterator[tuple[str, Any]]:
  """(name, array or Stored) of the tensors of a Hugging Face directory.

  Raises:
    UserError: something in it is not coded, and `kind` is not dense.
    WeightsError: as `reading.read_tensors`.
  """
  if kind == "dense":
    return reading.read_tensors(path)

  def coded_only(file: pathlib.Path) -> Iterator[tuple[str, Stored]]:
    if file.suffix == ".bin":
      raise settings.UserError(
        f"{file} is in the format of torch, and --weights={kind} needs coded"
        " weights: save it as model.safetensors, run `backslash-jax compress`"
        " and serve that"
      )
    if not reading.is_coded(file):
      reading.check_plain(file)
      raise settings.UserError(
        f"{file} has no coded weights, which --weights={kind} needs: run"
        f" `backslash-jax compress {path} CODED` and serve CODED"
      )
    return _stored(file)

  return reading.read_tensors(path, coded_only)


def of_file(file: pathlib.Path, kind: str) -> Iterator[tuple[str, Any]]:
  """The same of one coded file; WeightsError if it needs a base."""
  reading.check_whole(file, file)
  if kind == "dense":
    yield from functional.flatten(bs.load(file)).items()
  else:
    yield from _stored(file)


def _stored(file: pathlib.Path) -> Iterator[tuple[str, Stored]]:
  for tensor in bs.inspect(file).tensors:
    dtype = jnp.dtype(tensor.dtype)
    yield tensor.name, Stored(file, tensor.name, tensor.shape, dtype)


def by_layer(found: Mapping[str, Any]) -> dict[str, Source]:
  """Those of "a/layer_0/b", "a/layer_1/b", ... together, as "a/layers/b"."""
  sources: dict[str, Source] = {}
  layers: dict[str, dict[int, Any]] = collections.defaultdict(dict)
  for name, x in found.items():
    if match := _LAYER.search(name):
      layers[name.replace(match[0], "/layers/")][int(match[1])] = x
    else:
      sources[name] = x
  for name, own in layers.items():
    sources[name] = [own[i] for i in range(len(own))]
  return sources


def in_memory(
  sources: dict[str, Source], kind: str, tokens: int, stacked: bool
) -> dict[str, Any]:
  """What lies on the device.

  Args:
    sources: the tensors by name; they are taken out of it.
    kind: one of KINDS.
    tokens: rows of the matrices that are divided into blocks of rows.
    stacked: whether tensors with "/layers/" in their names have layers already.
  """
  tensors: dict[str, Any] = {}
  single: dict[pathlib.Path, dict[str, str]] = collections.defaultdict(dict)
  for name in list(sources):
    x = sources.pop(name)
    if isinstance(x, Stored):
      single[x.file][x.name] = name
      continue
    if isinstance(x, list) and isinstance(x[0], Stored):
      x = coded.stack([(y.file, y.name) for y in x], KINDS[kind])
    elif isinstance(x, list):
      x = np.stack(x)
    tensors[name] = jax.tree.map(jnp.asarray, x)
  for file, names in single.items():
    shapes = {t.name: t.shape for t in bs.inspect(file).tensors}
    blocks = {name: blocks_of(shapes[name], tokens) for name in names}
    found = bs.load(
      file,
      names=list(names),
      coded=KINDS[kind],
      stacked=["*/layers/*"] if stacked else (),
      blocks={name: count for name, count in blocks.items() if count > 1},
    )
    for own, name in names.items():
      tensors[name] = jax.tree.map(jnp.asarray, found.pop(own))
  return tensors


def blocks_of(shape: tuple[int, ...], tokens: int) -> int:
  """Into how many blocks a matrix with a row for each token is divided."""
  if len(shape) != 2 or shape[0] != tokens:
    return 1
  return compact.block_count(*shape)
