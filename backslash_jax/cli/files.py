"""Which files a command reads and writes; every refusal before any work."""

import contextlib
import errno
import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from backslash_jax.archive import naming, plain
from backslash_jax.cli import staging

# Weights in other formats, of no use beside the same weights as safetensors.
_REDUNDANT = (
  "pytorch_model*.bin",
  "*.bin.index.json",
  "tf_model.h5",
  "flax_model.msgpack",
)
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")


class Plan(NamedTuple):
  """What a command does.

  Attributes:
    models: (input, output) of each safetensors file.
    copies: (input, output) of each file that is copied.
    skipped: files that are not copied.
    folder: the output directory; None if the output is a file.
  """

  models: list[tuple[Path, Path]]
  copies: list[tuple[Path, Path]]
  skipped: list[Path]
  folder: Path | None = None


def models(source: Path) -> list[Path]:
  """The safetensors files of a directory, or the file itself.

  Raises:
    ValueError: if a directory has none, or not all shards of a model.
  """
  if not source.is_dir():
    return [source]
  found = [file for file in _walk(source) if file.suffix == ".safetensors"]
  if not found:
    raise ValueError(f"{source}: the directory has no *.safetensors file")
  _check_shards(found)
  return found


def plan(
  source: Path,
  target: Path,
  rename: Callable[[str], str],
  *,
  force: bool,
  redundant: bool = True,
) -> Plan:
  """What to read, write and copy.

  Args:
    source: a file or a directory.
    target: likewise; it need not exist.
    rename: gives the name of an output in a directory: `naming.coded`, or
      `naming.plain`. An index of shards is renamed too.
    force: whether existing output may be replaced.
    redundant: whether to copy weights in other formats, too.

  Raises:
    ValueError: if `source` lacks a shard, or the output is in the way.
    OSError: if a path cannot be read.
  """
  found = models(source)
  if not source.is_dir():
    done = Plan([(source, target)], [], [])
    _check_file(target, force)
  else:
    _check_directory(source, target, force)
    others = [file for file in _walk(source) if file not in set(found)]
    skipped = [] if redundant else _redundant(others, found)

    def pairs(files):
      return [
        (file, target / _renamed(file.relative_to(source), rename))
        for file in files
      ]

    copied = [file for file in others if file not in set(skipped)]
    done = Plan(pairs(found), pairs(copied), skipped, target)
  pairs_ = done.models + done.copies
  for file, _ in pairs_:
    plain.check_regular(file)
  inputs = {_identity(file): file for file, _ in pairs_}
  for file, output in pairs_:
    other = output.with_name(file.name)
    if other != output and source.is_dir() and other.exists():
      raise ValueError(
        f"{other}: the output directory has other weights: remove them, or"
        " give another path"
      )
    if output.is_dir():
      raise ValueError(f"{output}: a directory is in the way")
    if output.exists() and _identity(output) in inputs:
      raise ValueError(
        f"{output}: the output is the input {inputs[_identity(output)]}: give"
        " another path"
      )
  return done


def check_base(base: Path | None, target: Path) -> None:
  """Raises ValueError if an output would become a part of the base."""
  if base and target.resolve().is_relative_to(base.resolve()):
    raise ValueError(
      f"{target}: the output is in the base, {base}: give another path"
    )


def is_model_file(path: Path) -> bool:
  """Whether an output is one file although the input is a directory."""
  return path.suffix == ".safetensors" and not path.is_dir()


def plan_file(source: Path, target: Path, *, force: bool) -> Plan:
  """The plan that codes a directory to one file; errors as of `plan`."""
  _check_file(target, force)
  if target.resolve().is_relative_to(source.resolve()):
    raise ValueError(
      f"{target}: the output is in the input directory: give another path"
    )
  return Plan([(source, target)], [], [])


def beside(source: Path) -> list[Path]:
  """The files of a directory beside its weights, relative to it."""
  found = [file for file in _walk(source) if file.suffix == ".safetensors"]
  others = [
    file
    for file in _walk(source)
    if file.suffix != ".safetensors" and not file.name.endswith(naming.INDEX)
  ]
  left_out = set(_redundant(others, found))
  return [file.relative_to(source) for file in others if file not in left_out]


def plan_directory(source: Path, target: Path, *, force: bool) -> Plan:
  """The plan that makes a directory of one coded file; errors as of `plan`."""
  _check_new(target, force)
  return Plan([(source, target / "model.safetensors")], [], [], target)


@contextlib.contextmanager
def writing(plan: Plan) -> Generator[Plan]:
  """The plan with outputs to write to; they are in their places at the end.

  All of them, or none if the block raises anything. A file alone is written so
  by what writes it.
  """
  final = plan.folder
  if final is None:
    yield plan
    return
  with staging.replacing(final) as folder:

    def staged(pairs):
      return [(a, folder / b.relative_to(final)) for a, b in pairs]

    yield plan._replace(
      models=staged(plan.models), copies=staged(plan.copies), folder=folder
    )


def copy(source: Path, target: Path) -> None:
  """Copies a file, into a directory that is made if it does not exist.

  In an index that gets another name, the files get their other names, too.
  """
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == target.name:
      shutil.copy2(source, target)
      return
    is_coded = naming.is_coded(target.name)
    rename = naming.coded if is_coded else naming.plain
    target.write_text(naming.renamed_index(source.read_text(), rename))
  except OSError as error:
    if error.errno is None:
      raise
    raise OSError(error.errno, os.strerror(error.errno), str(target)) from error


def _renamed(path: Path, rename: Callable[[str], str]) -> Path:
  """The path of an output; only weights and their index are renamed."""
  if not path.name.endswith((naming.SUFFIX, naming.INDEX)):
    return path
  return path.with_name(rename(path.name))


def _walk(folder: Path) -> Iterator[Path]:
  """All files in a directory and below, sorted; links are followed."""
  seen = {_identity(folder)}
  for here, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
    # A link to a directory above would never end.
    folders[:] = sorted(
      name for name in folders if _new(seen, Path(here, name))
    )
    yield from (Path(here, name) for name in sorted(names))


def _raise(error: OSError):
  raise error


def _new(seen: set, folder: Path) -> bool:
  identity = _identity(folder)
  is_new = identity not in seen
  seen.add(identity)
  return is_new


def _identity(path: Path) -> tuple[int, int]:
  """The same for all links to one file."""
  found = path.stat()
  return found.st_dev, found.st_ino


def _check_shards(found: list[Path]) -> None:
  """ValueError if a shard that an index or a name promises is missing."""
  there = set(found)
  for folder in sorted({file.parent for file in found}):
    for named in sorted(folder.glob("*.safetensors.index.json")):
      if missing := set(naming.shards(named)) - there:
        raise ValueError(f"{min(missing)}: {named} names a file elsewhere")
  counts: dict[tuple, int] = {}
  for file in found:
    if match := _SHARD.fullmatch(naming.plain(file.name)):
      key = (file.parent, match[1], match[3])
      counts[key] = counts.get(key, 0) + 1
  for (folder, name, total), count in counts.items():
    if count != int(total):
      raise ValueError(
        f"{folder / name}-*-of-{total}.safetensors: {count} of {int(total)}"
        " shards are there"
      )


def _redundant(others: list[Path], found: list[Path]) -> list[Path]:
  folders = {file.parent for file in found}
  return [
    file
    for file in others
    if file.parent in folders
    and any(fnmatch.fnmatchcase(file.name, pattern) for pattern in _REDUNDANT)
  ]


def _check_file(target: Path, force: bool) -> None:
  if target.is_dir():
    raise ValueError(f"{target}: a directory, and the input is a file")
  if not target.parent.is_dir():
    raise FileNotFoundError(
      errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent)
    )
  if target.exists() and not target.is_file():
    raise ValueError(f"{target}: not a regular file")
  if target.exists() and not force:
    raise ValueError(f"{target}: the file exists; --force replaces it")


def _check_directory(source: Path, target: Path, force: bool) -> None:
  if target.exists() and not target.is_dir():
    raise ValueError(f"{target}: not a directory, and the input is one")
  inside = target.resolve()
  if inside == source.resolve() or source.resolve() in inside.parents:
    raise ValueError(
      f"{target}: the output is in the input directory: give another path"
    )
  _check_new(target, force)


def _check_new(target: Path, force: bool) -> None:
  if target.exists() and not target.is_dir():
    raise ValueError(f"{target}: not a directory")
  if target.is_dir() and any(target.iterdir()) and not force:
    raise ValueError(
      f"{target}: the directory is not empty; --force writes into it"
    )
