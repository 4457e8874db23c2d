"""The base of a difference: its tensors, and the digests that tell them apart.

A digest is over the dtype, the shape and the bits of a tensor. A file names the
tensor that a difference was taken from by its digest, so the base may be in
other files than it was then, and its tensors may have other names.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from backslash_jax import tree
from backslash_jax.archive import naming, plain

DIGEST_SIZE = 8  # Bytes.


class Base:
  """The tensors of a base, by name; each digest is computed once.

  Args:
    source: a tree of arrays; a safetensors file, plain or coded; a directory of
      such files, as of Hugging Face, with or without an index of its shards; or
      a Base.

  Attributes:
    name: what errors call it.
    tensors: the arrays by name. Those of plain files are mapped, not read.

  Raises:
    ValueError: if a path is no model; it says why.
    ArchiveError: if a coded file is damaged, or is a difference itself.
  """

  def __init__(self, source: Any):
    self.name, self.tensors = "the base", {}
    self._digests: dict[str, str] = {}
    if isinstance(source, (str, os.PathLike)):
      self.name = os.fspath(source)
      for file in files(pathlib.Path(source)):
        for name, x in _read(file):
          if name in self.tensors:
            raise ValueError(f"{file}: tensor {name!r} is in two files")
          self.tensors[name] = x
    else:
      self.tensors = dict(tree.named_leaves(source))
    if not self.tensors:
      raise ValueError(f"{self.name}: the base has no tensors")

  def digest(self, name: str) -> str:
    """The digest of a tensor, as hexadecimal digits."""
    if name not in self._digests:
      self._digests[name] = digest(self.tensors[name])
    return self._digests[name]

  def find(self, name: str, wanted: str) -> Any:
    """The tensor with a digest; ValueError if there is none.

    Args:
      name: of the tensor that was taken from it; looked at first.
      wanted: the digest.
    """
    if name in self.tensors and self.digest(name) == wanted:
      return self.tensors[name]
    for other in self.tensors:
      if self.digest(other) == wanted:
        return self.tensors[other]
    if name in self.tensors:
      raise ValueError(f"tensor {name!r} of {self.name} differs")
    raise ValueError(f"{self.name} has not the tensor that {name!r} is from")

  def match(self, leaves: Mapping[str, Any]) -> dict[str, str]:
    """The name in the base of each tensor that it has; of other shape: none.

    Names may have a prefix more or less than in the base, such as the "bert."
    of a model with a head.

    Args:
      leaves: the tensors of a fine-tune by name.

    Raises:
      ValueError: if the base has none of the tensors.
    """
    best: dict[str, str] = {}
    for cut, put in _prefixes(leaves, self.tensors):
      renamed = {
        name: put + name.removeprefix(cut)
        for name in leaves
        if name.startswith(cut)
      }
      found = {n: own for n, own in renamed.items() if own in self.tensors}
      if len(found) > len(best):
        best = found
    best |= {name: name for name in leaves if name in self.tensors}
    fitting = {
      name: own
      for name, own in best.items()
      if can_be_base(self.tensors[own], leaves[name])
    }
    if leaves and not fitting:
      raise ValueError(
        f"{self.name} has no tensor of the names and shapes of the model, such"
        f" as {next(iter(leaves))!r}: is it the base?"
      )
    return fitting


def of(source: Any) -> Base:
  """The Base of a source, or the source if it is one."""
  return source if isinstance(source, Base) else Base(source)


def digest(x: Any) -> str:
  """The digest of an array, as 16 hexadecimal digits."""
  array = np.asarray(x)
  found = hashlib.blake2b(digest_size=DIGEST_SIZE)
  found.update(f"{array.dtype.name} {list(array.shape)}\n".encode())
  # Little-endian, as in the file.
  array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
  found.update(array.reshape(-1).view(np.uint8).data)
  return found.hexdigest()


def can_be_base(own: Any, x: Any) -> bool:
  """Whether a tensor can be stored as the difference from another."""
  if tuple(own.shape) != tuple(x.shape):
    return False
  kinds = {tree.is_float(own), tree.is_float(x)}
  return kinds == {True} or np.dtype(own.dtype) == np.dtype(x.dtype)


def _prefixes(
  leaves: Iterable[str], known: Iterable[str]
) -> Iterator[tuple[str, str]]:
  """Pairs of a prefix to cut off from names, and one to put before them."""
  yield "", ""
  for cut in sorted({_first(name) for name in leaves}):
    yield cut, ""
  for put in sorted({_first(name) for name in known}):
    yield "", put


def _first(name: str) -> str:
  """The first part of a name, with the separator after it."""
  for i, character in enumerate(name):
    if character in "./":
      return name[: i + 1]
  return ""


def files(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of a base; ValueError if a directory has none, or lacks one."""
  if not path.is_dir():
    return [path]
  for index in ("model" + naming.INDEX, naming.coded("model" + naming.INDEX)):
    if (path / index).is_file():
      return naming.shards(path / index)
  found = sorted(path.glob("*.safetensors"))
  if not found:
    raise ValueError(f"{path}: the directory has no *.safetensors file")
  return found


def _read(path: pathlib.Path) -> Iterable[tuple[str, Any]]:
  if not plain.is_coded(path):
    return plain.read(path).items()
  from backslash_jax.archive import file  # It imports this module.

  return tree.named_leaves(file.load(path))
