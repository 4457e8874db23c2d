"""The files of a Hugging Face model directory: located and written.

A directory holds config.json and the tensors: `model.safetensors`, or shards
with `model.safetensors.index.json`; the same as `backslash-jax compress` coded
them, `model.backslash.safetensors`; or the legacy `pytorch_model.bin` (which
needs torch), sharded or not. `reading` finds and reads the tensors.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors.numpy

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
  except (OSError, ValueError, RecursionError) as error:
    raise WeightsError(
      f"{path}: not readable as JSON ({error}); write or fetch it again"
    ) from error
  if not isinstance(value, dict):
    raise WeightsError(
      f"{path}: holds {type(value).__name__}, not a JSON object; write or fetch"
      " it again"
    )
  return value


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
