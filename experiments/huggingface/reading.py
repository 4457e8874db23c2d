"""The weights of a Hugging Face directory: found, checked and read."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import safetensors

from backslash_jax import archive
from backslash_jax.archive import naming, plain
from experiments.huggingface import files

# What the weights may be called, the first of them that is there is read.
_WEIGHTS = (
  "model.safetensors",
  naming.coded("model.safetensors"),
  "pytorch_model.bin",
)

Tensors = Iterator[tuple[str, Any]]


def read_tensors(
  directory: pathlib.Path, read: Callable[[pathlib.Path], Tensors] | None = None
) -> Tensors:
  """Yields (name, array) of every tensor, one in memory at a time.

  Args:
    directory: of the model.
    read: gives the tensors of a safetensors file; None reads their arrays.

  Raises:
    WeightsError: no weights or those of two models, a missing or damaged file,
      a difference from a base, or shards that do not hold what their index
      lists.
    ModuleNotFoundError: only `pytorch_model.bin`, and torch is not installed.
  """
  for path, wanted in find(directory).items():
    found = set()
    own = _read_torch if path.suffix == ".bin" else _read_safetensors
    for name, x in (read or own)(path):
      found.add(name)
      yield name, x
    if lost := sorted(wanted - found):
      raise files.WeightsError(
        f"{path}: lacks {', '.join(lost)}, which the index of the shards places"
        " there; fetch it again"
      )


def find(directory: pathlib.Path) -> dict[pathlib.Path, set[str]]:
  """The files of the weights, each with the tensors that an index gives it."""
  found = [
    path
    for name in _WEIGHTS
    for path in (directory / name, directory / f"{name}.index.json")
    if path.is_file()
  ]
  if not found:
    raise files.WeightsError(_nothing(directory))
  first = found[0]
  listed = _shards(first) if first.suffix == ".json" else {first: set()}
  others = [path for path in found[1:] if naming.is_coded(path.name)]
  if coded := [path for path in listed if is_coded(path)]:
    others += [
      path
      for path in sorted(directory.glob("*.safetensors"))
      if path not in listed and path.is_file() and is_coded(path)
    ]
  if others:
    raise files.WeightsError(
      f"{directory}: {first.name} and {others[0].name} are both weights; move"
      " one of them to a directory of its own"
    )
  for path in coded:
    check_whole(path, directory)
  return listed


def _nothing(directory: pathlib.Path) -> str:
  """What is wrong with a directory that has neither weights nor an index."""
  for name in _WEIGHTS:
    stem, _, suffix = name.partition(".")
    if shards := sorted(directory.glob(f"{stem}-*-of-*[0-9].{suffix}")):
      return (
        f"{directory / name}.index.json: missing, though there are shards such"
        f" as {shards[0].name}; fetch the directory again"
      )
  return (
    f"{directory}: no {', '.join(_WEIGHTS[:-1])} or {_WEIGHTS[-1]}, whole or in"
    " shards with an index; fetch or save the model again"
  )


def is_coded(path: pathlib.Path) -> bool:
  """Whether a file is a coded model; WeightsError if it cannot be read."""
  try:
    return plain.is_coded(path)
  except (OSError, ValueError) as error:
    raise files.WeightsError(f"{path}: cannot be read ({error})") from error


def check_whole(path: pathlib.Path, model: pathlib.Path) -> None:
  """Raises WeightsError if a coded file of a model is damaged or needs a base.

  Args:
    path: the file.
    model: what to decompress, the file itself or its directory.
  """
  try:
    needs_base = archive.inspect(path).is_difference
  except archive.ArchiveError as error:
    raise files.WeightsError(str(error)) from error
  if needs_base:
    raise files.WeightsError(
      f"{path}: a difference from another model; decompress it with its base"
      f" first: `backslash-jax decompress {model} OUT --base BASE`"
    )


def check_plain(path: pathlib.Path) -> None:
  """Raises WeightsError if a file is no plain safetensors file."""
  try:
    plain.read(path)
  except (OSError, ValueError) as error:
    raise files.WeightsError(_damaged(path, error)) from error


def _damaged(path: pathlib.Path, error: Exception) -> str:
  return f"{path}: damaged or cut short ({error}); fetch it again"


def _shards(index: pathlib.Path) -> dict[pathlib.Path, set[str]]:
  """The tensors of each shard of an index; all shards are there."""
  file_of = files.read_json(index).get("weight_map")
  if not isinstance(file_of, dict) or not file_of:
    raise files.WeightsError(
      f"{index}: has no weight_map from tensors to files"
    )
  shards = sorted(set(map(str, file_of.values())))
  if outside := [s for s in shards if pathlib.PurePath(s).name != s]:
    raise files.WeightsError(
      f"{index}: names files outside its folder: {outside}"
    )
  missing = [s for s in shards if not (index.parent / s).is_file()]
  if missing:
    raise files.WeightsError(
      f"{index.parent}: {len(missing)} of {len(shards)} shards are missing: "
      f"{', '.join(missing)}; fetch them or the whole directory again"
    )
  return {
    index.parent / shard: {n for n, file in file_of.items() if file == shard}
    for shard in shards
  }


def _read_safetensors(path: pathlib.Path) -> Tensors:
  try:
    if is_coded(path):
      yield from archive.stream(path)
      return
    with safetensors.safe_open(path, framework="numpy") as file:
      for name in file.keys():
        yield name, file.get_tensor(name)
  except archive.ArchiveError as error:
    raise files.WeightsError(str(error)) from error
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise files.WeightsError(_damaged(path, error)) from error


def _read_torch(path: pathlib.Path) -> Tensors:
  try:
    import torch  # pyrefly: ignore[missing-import]
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{path}: the legacy format, which only torch reads; `pip install "
      "torch`, or convert it to model.safetensors"
    ) from error
  try:
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
  except (OSError, RuntimeError, ValueError, EOFError) as error:
    raise files.WeightsError(_damaged(path, error)) from error
  for name, tensor in state.items():
    if tensor.dtype == torch.bfloat16:
      yield name, tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
      yield name, tensor.numpy()
