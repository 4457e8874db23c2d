"""The files that datasets come from: a local directory or official archives."""

import hashlib
import json
import lzma
import os
import pathlib
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

_CONNECT_SECONDS = 30
_DESCRIPTION = ".INFO"
_ALTERNATIVE = (
  "or fetch the data by other means, lay them out as docs/data.md says and set "
  "data.source to that directory"
)


class SourceError(ValueError):
  """Source data that are missing, damaged or not what they should be."""


class Archive(NamedTuple):
  """A file of an official source and its digest, None where it is not known."""

  url: str
  digest: str | None = None  # Hexadecimal: SHA-256, or MD5 if 32 digits.


def locate(source: str | os.PathLike[str], directory: str) -> pathlib.Path:
  """The directory of one dataset below `data.source`.

  Raises:
    SourceError: it is not there.
  """
  root = pathlib.Path(source).expanduser()
  path = root / directory
  if not path.is_dir():
    raise SourceError(
      f"data.source is {root}, but {path} is not a directory; lay the data out "
      "as docs/data.md says, or leave data.source unset to download them"
    )
  return path


def digest(paths: list[pathlib.Path]) -> str:
  """Identifies the content of files, 64 hexadecimal digits.

  Raises:
    SourceError: one of them is missing or cannot be read.
  """
  whole = hashlib.sha256()
  for path in paths:
    whole.update(hashlib.sha256(_bytes(path)).digest())
  return whole.hexdigest()


def rows(
  path: pathlib.Path, fields: Mapping[str, type]
) -> Iterator[dict[str, Any]]:
  """The objects of a .jsonl.xz file, each with these fields of these types.

  Raises:
    SourceError: the file is missing or damaged, or a row is not as wanted.
  """
  for number, line in enumerate(_text(path).split("\n"), start=1):
    if not line:
      continue
    place = f"{path}, line {number}"
    try:
      row = json.loads(line)
    except ValueError as error:
      raise SourceError(f"{place}: not JSON ({error}); replace it") from error
    check(row, fields, place)
    yield row


def check(row: Any, fields: Mapping[str, type], place: str) -> None:
  """Raises SourceError unless `row` has these fields of these types."""
  for field, kind in fields.items():
    found = row.get(field) if isinstance(row, dict) else None
    if not isinstance(found, kind):
      raise SourceError(
        f"{place}: field {field!r} is {found!r}, wanted {kind.__name__}; "
        "docs/data.md names the fields of every dataset"
      )


def read_json(path: pathlib.Path) -> Any:
  """The content of a JSON file, decompressed where the name ends in .xz."""
  try:
    return json.loads(_text(path))
  except ValueError as error:
    if isinstance(error, SourceError):
      raise
    raise SourceError(f"{path}: not JSON ({error}); replace it") from error


def fetch(
  manager: tfds.download.DownloadManager, archive: Archive
) -> pathlib.Path:
  """Downloads an archive, unless it is there already, and checks its digest.

  Raises:
    SourceError: it cannot be downloaded, or is not the file that it should be.
  """
  url = archive.url
  try:
    if not _is_cached(manager, url):
      # tfds would try for minutes before it finds that there is no network.
      urllib.request.urlopen(url, timeout=_CONNECT_SECONDS).close()
    path = pathlib.Path(manager.download(url))
  except Exception as error:  # tfds, requests and urllib raise their own.
    raise SourceError(
      f"cannot download {url}: {error}; check the network and try again, "
      f"{_ALTERNATIVE}"
    ) from error
  if archive.digest is not None:
    algorithm = {32: "md5", 64: "sha256"}[len(archive.digest)]
    with path.open("rb") as file:
      found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != archive.digest:
      path.unlink()
      _description(path).unlink(missing_ok=True)
      raise SourceError(
        f"{url}: the file has {algorithm} {found}, wanted {archive.digest}; it "
        f"was deleted: try again, {_ALTERNATIVE}"
      )
  return path


def _is_cached(manager: tfds.download.DownloadManager, url: str) -> bool:
  """Whether tfds has the file, with its description."""
  found = pathlib.Path(manager.download_dir).rglob(f"*{_DESCRIPTION}")
  return any(url in path.read_text() for path in found)


def _description(path: pathlib.Path) -> pathlib.Path:
  """What tfds writes beside a download; it keeps the digest."""
  return path.with_name(path.name + _DESCRIPTION)


def members(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """(name, content) of the files in a .zip or a compressed tar archive.

  Raises:
    SourceError: the archive is damaged or truncated.
  """
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
          if not name.endswith("/"):
            yield name, archive.read(name)
      return
    # As a stream ("r|") it would take a truncated archive for whole.
    with tarfile.open(path) as archive:
      for member in archive:
        if (file := archive.extractfile(member)) is not None:
          yield member.name, file.read()
  except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
    raise SourceError(
      f"{path}: damaged or truncated archive ({error}); delete it, it will be "
      "downloaded again"
    ) from error


def _text(path: pathlib.Path) -> str:
  data = _bytes(path)
  try:
    if path.suffix == ".xz":
      data = lzma.decompress(data)
    return data.decode()
  except (lzma.LZMAError, UnicodeDecodeError) as error:
    raise SourceError(
      f"{path}: damaged or truncated ({error}); fetch it again"
    ) from error


def _bytes(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise SourceError(
      f"{path}: {error.strerror}; docs/data.md names the files of every dataset"
    ) from error
