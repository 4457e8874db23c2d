"""The names of coded files in a model directory.

Loaders of plain weights look for `model.safetensors` and for the index
`model.safetensors.index.json`. Some take a file of that name that holds other
tensors, and leave the model random. A coded file in a directory therefore has
another name: `model.backslash.safetensors`, of a shard
`model-00001-of-00002.backslash.safetensors`, of the index
`model.backslash.safetensors.index.json`.
"""

import json
import pathlib

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
_CODED = ".backslash"


def coded(name: str) -> str:
  """The name of the coded file, or index, for one of plain weights.

  Args:
    name: ends in SUFFIX or INDEX.
  """
  end = INDEX if name.endswith(INDEX) else SUFFIX
  return name.removesuffix(end) + _CODED + end


def plain(name: str) -> str:
  """The inverse of `coded`; a name that `coded` does not give is kept."""
  end = INDEX if name.endswith(INDEX) else SUFFIX
  return name.removesuffix(_CODED + end) + end if is_coded(name) else name


def is_coded(name: str) -> bool:
  """Whether a name is one that `coded` gives."""
  return name.endswith((_CODED + SUFFIX, _CODED + INDEX))


def shards(index: pathlib.Path) -> list[pathlib.Path]:
  """The files that an index of shards names, all of them there.

  Raises:
    ValueError: if it is no index, or a file is missing.
  """
  try:
    names = set(json.loads(index.read_text())["weight_map"].values())
    found = [index.parent / name for name in sorted(names)]
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise ValueError(f"{index}: not a shard index: {error}") from None
  for file in found:
    if not file.is_file():
      raise ValueError(f"{file}: this shard of {index} is missing")
  return found


def renamed_index(text: str, rename) -> str:
  """The text of an index whose files are renamed."""
  listing = json.loads(text)
  names = listing["weight_map"]
  listing["weight_map"] = {key: rename(name) for key, name in names.items()}
  return json.dumps(listing, indent=2) + "\n"
