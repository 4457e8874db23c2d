"""The files beside the weights of a fine-tune, kept in its one coded file.

A file that the directory of the base has too is kept as its checksum, and is
copied from there. Any other one is kept as text, in the metadata.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from backslash_jax import archive

KEY = "backslash_jax.files"  # Of the metadata.


def pack(source: Path, names: Iterable[Path], base: Path) -> dict[str, str]:
  """The metadata that keep the files of a directory; {} if there are none.

  Args:
    source: the directory.
    names: of the files, relative to it.
    base: the base of the weights.

  Raises:
    ValueError: if a file is neither in the base nor short text.
  """
  found: dict[str, int | str] = {}
  for name in names:
    content = (source / name).read_bytes()
    other = base / name
    if base.is_dir() and other.is_file() and other.read_bytes() == content:
      found[name.as_posix()] = zlib.crc32(content)
      continue
    try:
      found[name.as_posix()] = content.decode()
    except UnicodeDecodeError:
      raise ValueError(
        f"{source / name}: not text, and not the same in {base}, so it cannot"
        " be kept in one file; give a directory as the output"
      ) from None
  packed = json.dumps(found, ensure_ascii=False)
  if len(packed) > archive.MAX_METADATA // 2:
    kept = {name: text for name, text in found.items() if type(text) is str}
    largest = max(kept, key=lambda name: len(kept[name]))
    raise ValueError(
      f"{source / largest}: too long to be kept in one file, and not the same"
      f" in {base}; give a directory as the output"
    )
  return {KEY: packed} if found else {}


def unpack(path: Path, packed: str, base: Path, target: Path) -> None:
  """Writes the files that the metadata of a coded file keep.

  Args:
    path: of the coded file, for errors.
    packed: the item KEY of its metadata.
    base: the base of the weights.
    target: a directory.

  Raises:
    ValueError: if a file of the base is missing or differs.
    ArchiveError: if `packed` is not what `pack` returns.
  """
  try:
    found = {Path(name): own for name, own in json.loads(packed).items()}
    for name, content in found.items():
      if name.is_absolute() or ".." in name.parts:
        raise ValueError
      if type(content) not in (int, str):
        raise ValueError
  except (ValueError, AttributeError):
    raise archive.ArchiveError(
      f"{path}: the files in its metadata are invalid"
    ) from None
  for name, content in found.items():
    octets = b""
    if isinstance(content, str):
      octets = content.encode()
    elif not (base / name).is_file():
      raise ValueError(f"{base / name}: missing; {path} needs it of its base")
    else:
      octets = (base / name).read_bytes()
      if zlib.crc32(octets) != content:
        raise ValueError(f"{base / name}: not the file of the base of {path}")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_bytes(octets)
