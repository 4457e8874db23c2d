"""Tensors of a checkpoint <-> parameters of a model, by a table of names."""

import dataclasses
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments.huggingface import reading, tables
from experiments.huggingface.files import WeightsError
from experiments.models import compact
from experiments.models.config import ModelConfig

# Modules that a checkpoint may lack altogether, for a task it was not
# trained on.
_HEADS = ("pooler", "classifier", "score")


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A tensor of a checkpoint and the parameters that it holds."""

  parameters: tuple[str, ...]
  block: int | None  # Index into stacked parameters.
  layout: str
  shape: tuple[int, ...]  # As stored.


def _entries(
  table: tables.Table,
  config: ModelConfig,
  wanted: Mapping[str, jax.ShapeDtypeStruct | jax.Array],
) -> dict[str, _Entry | None]:
  """By tensor; None for a head that the model does not have."""
  entries = {}
  for tensor, parameters, layout in table.expand(config.depth):
    block = None
    if config.scan and (match := re.search(r"/layer_(\d+)/", parameters[0])):
      block = int(match[1])
      parameters = tuple(p.replace(match[0], "/layers/") for p in parameters)
    if parameters[0] not in wanted:
      entries[tensor] = None
      continue
    shape = wanted[parameters[0]].shape[block is not None :]
    if layout == tables.TRANSPOSED:
      shape = shape[::-1]
    elif layout == tables.FUSED:
      shape = (*shape[:-1], len(parameters) * shape[-1])
    entries[tensor] = _Entry(parameters, block, layout, shape)
  return entries


def read(
  directory: pathlib.Path,
  table: tables.Table,
  config: ModelConfig,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  seed: int,
  put: Callable[[str, np.ndarray], jax.Array],
) -> tuple[dict[str, jax.Array], tuple[str, ...]]:
  """The parameters of a model, by path, from the checkpoint in a directory.

  Args:
    directory: holds the tensors.
    table: how they are named.
    config: of the model.
    wanted: shapes and dtypes of its parameters, by path.
    seed: of a head that the checkpoint does not have.
    put: makes the array on the devices, given a path and a value.

  Returns:
    The parameters, and the paths of those that the checkpoint does not have.

  Raises:
    WeightsError: files missing or damaged; or tensors that are not those of
      the model, all of them listed by name and shape.
  """
  entries = _entries(table, config, wanted)
  arrays, stacks = {}, {}
  missing = {tensor: e for tensor, e in entries.items() if e is not None}
  found = reading.read_tensors(directory)
  for _, entry, array in _matched(directory, found, table, entries, missing):
    for path, value in zip(
      entry.parameters, _from_stored(array, entry), strict=True
    ):
      if entry.block is None:
        arrays[path] = put(path, value.astype(wanted[path].dtype))
        continue
      if path not in stacks:
        stacks[path] = np.empty(wanted[path].shape, wanted[path].dtype)
      stacks[path][entry.block] = value
  for path in list(stacks):
    arrays[path] = put(path, stacks.pop(path))
  new = tuple(path for e in missing.values() for path in e.parameters)
  for path in new:
    arrays[path] = put(path, _initial(path, wanted[path], seed))
  return arrays, new


def views(
  directory: pathlib.Path,
  found: Iterable[tuple[str, Any]],
  table: tables.Table,
  config: ModelConfig,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[dict[str, Any], dict[str, compact.Parameter]]:
  """The tensors of a checkpoint as they are, and parameters as views of them.

  Args:
    directory: for errors.
    found: (name, tensor) of every tensor: anything with a shape and a dtype.
    table: how they are named.
    config: of the model.
    wanted: shapes and dtypes of its parameters, by path.

  Returns:
    The tensors that the model uses, by name: where blocks are stacked, a list
    of those of all blocks. And by path a Parameter whose source is the name.

  Raises:
    WeightsError: as `read`, and a head that the checkpoint does not have.
  """
  entries = _entries(table, config, wanted)
  missing = {tensor: e for tensor, e in entries.items() if e is not None}
  tensors: dict[str, Any] = {}
  parameters = {}
  for tensor, entry, x in _matched(directory, found, table, entries, missing):
    name = tensor
    if entry.block is None:
      tensors[name] = x
    else:
      name = entry.parameters[0]
      tensors.setdefault(name, [None] * config.depth)[entry.block] = x
    for i, path in enumerate(entry.parameters):
      parameters[path] = compact.Parameter(
        name,
        transposed=entry.layout == tables.TRANSPOSED,
        part=i,
        parts=len(entry.parameters),
      )
  if missing:
    raise WeightsError(
      f"{directory}: has no {', '.join(sorted(missing))}: train the model for"
      " a task first"
    )
  return tensors, parameters


def _matched(
  directory: pathlib.Path,
  found: Iterable[tuple[str, Any]],
  table: tables.Table,
  entries: Mapping[str, _Entry | None],
  missing: dict[str, _Entry],
) -> Iterator[tuple[str, _Entry, Any]]:
  """Yields (tensor, entry, value) and takes what was found out of `missing`.

  Raises:
    WeightsError: in the end, see `read`; heads may be missing.
  """
  wrong = []
  for name, array in found:
    tensor = table.canonical(name)
    if tensor is None or entries.get(tensor, ()) is None:
      continue
    entry = missing.pop(tensor, None)
    if entry is None:
      reason = "stands there twice" if tensor in entries else "not in the model"
      wrong.append(f"{name} {list(array.shape)}: {reason}")
    elif array.shape != entry.shape or not jnp.issubdtype(
      array.dtype, jnp.floating
    ):
      wrong.append(
        f"{name}: found {array.dtype} {list(array.shape)}, wanted floating "
        f"{list(entry.shape)}"
      )
    else:
      yield tensor, entry, array
  heads = _missing_heads(missing, entries)
  wrong += [
    f"{tensor} {list(entry.shape)}: missing"
    for tensor, entry in missing.items()
    if tensor not in heads
  ]
  if wrong:
    raise WeightsError(
      f"{directory}: {len(wrong)} tensors do not fit the model that "
      "config.json describes (for a head of another size, pass the "
      "num_labels it was saved with):\n  " + "\n  ".join(sorted(wrong))
    )


def _missing_heads(
  missing: Mapping[str, _Entry], entries: Mapping[str, _Entry | None]
) -> list[str]:
  """The tensors of heads that a checkpoint does not have at all."""
  heads = []
  for head in _HEADS:
    tensors = [
      tensor
      for tensor, entry in entries.items()
      if entry is not None and entry.parameters[0].startswith(f"{head}/")
    ]
    if tensors and all(tensor in missing for tensor in tensors):
      logging.info("the checkpoint has no %s: a new one is made", head)
      heads += tensors
  return heads


def _initial(path: str, wanted: jax.ShapeDtypeStruct, seed: int) -> np.ndarray:
  """Values of a new head: kernels normal, biases zero."""
  if path.endswith("bias"):
    return np.zeros(wanted.shape, wanted.dtype)
  with jax.ensure_compile_time_eval():  # In `nnx.eval_shape` too.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    value = 0.02 * jax.random.normal(key, wanted.shape)
    return np.asarray(value).astype(wanted.dtype)


def _from_stored(array: np.ndarray, entry: _Entry) -> list[np.ndarray]:
  """The parameters in a tensor."""
  if entry.layout == tables.TRANSPOSED:
    return [np.ascontiguousarray(array.T)]
  return np.split(array, len(entry.parameters), axis=-1)


def parts(
  table: tables.Table, config: ModelConfig, params: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
  """The paths of the parameters that each tensor of `tensors` consists of."""
  entries = _entries(table, config, params)
  return {t: e.parameters for t, e in entries.items() if e is not None}


def tensors(
  table: tables.Table, config: ModelConfig, params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, array) of every tensor of a model's checkpoint.

  Args:
    table: how they are named.
    config: of the model.
    params: its parameters, by path.
  """
  for tensor, entry in _entries(table, config, params).items():
    if entry is None:
      continue
    block = ... if entry.block is None else entry.block
    values = [np.asarray(params[path][block]) for path in entry.parameters]
    if entry.layout == tables.TRANSPOSED:
      yield tensor, values[0].T
    else:
      yield tensor, np.concatenate(values, axis=-1)
