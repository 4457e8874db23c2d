"""The files of a Hugging Face model directory: found, read and written.

A directory holds config.json and the tensors: `model.safetensors`, or shards
with `model.safetensors.index.json`; the same as `backslash-jax compress` coded
them, `model.backslash.safetensors`; or the legacy `pytorch_model.bin` (which
needs torch), sharded or not.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from backslash_jax import archive
from backslash_jax.archive import plain

_DESCRIPTIONS = ("*.json", "*.txt")
SHARD_BYTES = 5 * 10**9


class WeightsError(ValueError):
  """A model directory or id that cannot be loaded; says what to do."""


def locate(
  path_or_id: str | os.PathLike, *, tensors: bool = True
) -> pathlib.Path:
  """The local directory of a model: the path itself or a download.

  Args:
    path_or_id: a directory, or a Hugging Face id such as `gpt2` or
      `google/gemma-2-2b`, which `huggingface_hub` downloads into its cache
      (safetensors and descriptions only, `pytorch_model*.bin` if there are no
      safetensors).
    tensors: whether to download these, or only the descriptions.

  Raises:
    WeightsError: neither a directory nor an id; no network and not in the
      cache; no such id; gated and no token.
    ModuleNotFoundError: an id, and huggingface_hub is not installed.
  """
  path = pathlib.Path(path_or_id).expanduser()
  if path.is_dir():
    return path
  name = os.fspath(path_or_id)
  if path.exists() or not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
    raise WeightsError(
      f"{name}: neither a directory nor a Hugging Face id (`name` or "
      "`owner/name`); pass the directory that holds config.json"
    )
  return _download(name, tensors)


def _download(name: str, tensors: bool) -> pathlib.Path:
  """Fetches the files that `locate` promises into the cache of the hub."""
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{name}: no such directory; to download it as a Hugging Face id, "
      "`pip install huggingface_hub`"
    ) from error

  def fetch(*patterns: str) -> pathlib.Path:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        name,
        allow_patterns=[*_DESCRIPTIONS, *patterns],
        ignore_patterns=["*/*"],
      )
    )

  try:
    directory = fetch(*(["*.safetensors"] if tensors else []))
    if tensors and not any(directory.glob("*.safetensors")):
      directory = fetch("pytorch_model*.bin")
  except errors.GatedRepoError as error:
    raise WeightsError(
      f"{name}: a gated model; accept its licence on its page at "
      "huggingface.co, then log in with `hf auth login` or set HF_TOKEN"
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise WeightsError(
      f"{name}: no such directory here and no such model on huggingface.co; "
      "check the spelling (owner/name), and log in with `hf auth login` if "
      "it is private"
    ) from error
  except errors.LocalEntryNotFoundError as error:
    raise WeightsError(
      f"{name}: not in the local cache, and huggingface.co cannot be reached; "
      "connect and try again (unset HF_HUB_OFFLINE if it is set), or pass a "
      "directory that holds the model"
    ) from error
  except (errors.HfHubHTTPError, OSError) as error:
    raise WeightsError(
      f"{name}: the download failed ({error}); run again to continue it"
    ) from error
  return directory


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The JSON object in a file of a model directory, or a `WeightsError`."""
  try:
    with path.open(encoding="utf-8") as file:
      value = json.load(file)
  except FileNotFoundError as error:
    raise WeightsError(
      f"{path}: missing; a model directory holds config.json and its weights "
      "(one that was being written when it was interrupted does not)"
    ) from error
  except (OSError, ValueError) as error:
    raise WeightsError(f"{path}: not readable as JSON ({error})") from error
  if not isinstance(value, dict):
    raise WeightsError(f"{path}: holds {type(value).__name__}, not an object")
  return value


def read_tensors(
  directory: pathlib.Path,
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, array) of every tensor, one in memory at a time.

  Raises:
    WeightsError: no weights, a missing or damaged file, or shards that do not
      hold what their index lists.
    ModuleNotFoundError: only `pytorch_model.bin`, and torch is not installed.
  """
  for stem, suffix, read in (
    ("model", "safetensors", _read_safetensors),
    ("model", "backslash.safetensors", _read_safetensors),
    ("pytorch_model", "bin", _read_torch),
  ):
    single = directory / f"{stem}.{suffix}"
    index = directory / f"{stem}.{suffix}.index.json"
    if single.exists():
      yield from read(single)
      return
    if index.exists():
      yield from _read_shards(index, read)
      return
  for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
    if shards := sorted(directory.glob(f"{stem}-*-of-*.{suffix}")):
      kind = "." + shards[0].name.split(".", 1)[1]
      raise WeightsError(
        f"{directory / stem}{kind}.index.json: missing, though there are shards"
        f" such as {shards[0].name}; fetch the directory again"
      )
  raise WeightsError(
    f"{directory}: no model.safetensors, model.safetensors.index.json or "
    "pytorch_model.bin; fetch or save the model again"
  )


def _read_shards(index: pathlib.Path, read) -> Iterator[tuple[str, np.ndarray]]:
  """Reads the shards of an index, all of which must be there before any is."""
  shard_of = read_json(index).get("weight_map")
  if not isinstance(shard_of, dict) or not shard_of:
    raise WeightsError(f"{index}: has no weight_map from tensors to files")
  shards = sorted(set(map(str, shard_of.values())))
  if outside := [s for s in shards if pathlib.PurePath(s).name != s]:
    raise WeightsError(f"{index}: names files outside its folder: {outside}")
  missing = [s for s in shards if not (index.parent / s).exists()]
  if missing:
    raise WeightsError(
      f"{index.parent}: {len(missing)} of {len(shards)} shards are missing: "
      f"{', '.join(missing)}; fetch them or the whole directory again"
    )
  for shard in shards:
    found = set()
    for name, array in read(index.parent / shard):
      found.add(name)
      yield name, array
    wanted = {name for name, file in shard_of.items() if file == shard}
    if lost := sorted(wanted - found):
      raise WeightsError(
        f"{index.parent / shard}: lacks {', '.join(lost)}, which "
        f"{index.name} places there; fetch it again"
      )


def _read_safetensors(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
  try:
    if plain.is_coded(path):
      yield from archive.stream(path)
      return
    with safetensors.safe_open(path, framework="numpy") as file:
      for name in file.keys():
        yield name, file.get_tensor(name)
  except archive.ArchiveError as error:
    raise WeightsError(str(error)) from error
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise WeightsError(
      f"{path}: damaged or cut short ({error}); fetch it again"
    ) from error


def _read_torch(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
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
    raise WeightsError(
      f"{path}: damaged or cut short ({error}); fetch it again"
    ) from error
  for name, tensor in state.items():
    if tensor.dtype == torch.bfloat16:
      yield name, tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
      yield name, tensor.numpy()


def write_tensors(
  directory: pathlib.Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  *,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes safetensors, in shards with an index if over `shard_bytes`.

  Replaces the safetensors there are; one shard is in memory at a time.
  """
  for old in directory.glob("model*.safetensors*"):
    old.unlink()
  shards: list[list[str]] = []
  pending: dict[str, np.ndarray] = {}
  total = 0

  def flush() -> None:
    path = directory / f"model-{len(shards) + 1:05d}.partial"
    # torch's readers want to know whose layout it is.
    safetensors.numpy.save_file(pending, path, metadata={"format": "pt"})
    shards.append(list(pending))
    pending.clear()

  for name, array in tensors:
    size = sum(a.nbytes for a in pending.values())
    if pending and size + array.nbytes > shard_bytes:
      flush()
    pending[name] = np.ascontiguousarray(array)
    total += array.nbytes
  flush()
  weight_map = {}
  for i, names in enumerate(shards):
    file = "model.safetensors"
    if len(shards) > 1:
      file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    (directory / f"model-{i + 1:05d}.partial").rename(directory / file)
    weight_map.update(dict.fromkeys(names, file))
  if len(shards) > 1:
    write_json(
      directory / "model.safetensors.index.json",
      {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes a JSON object under a temporary name, then renames it."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
  partial.rename(path)
