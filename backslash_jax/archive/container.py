"""The bytes of a coded model file: a safetensors file of two uint8 tensors.

`payload` is the concatenated chunks, `index` is the compressed JSON that
describes them. The header depends only on the format's version, two sizes and
the index's checksum, so a reader builds it again and compares. The index and
every chunk have a checksum, so every byte of the file is checked. See
docs/format.md.
"""

import json
import os
import stat
import threading
import zlib

from backslash_jax.archive import atomic

VERSION = 2  # What is written.
READABLE = (1, 2)
HEADER_SIZE = 256
# The inflated index may have so many bytes, and so many more for each byte of
# the file. A parser takes up to 24 bytes of memory for each.
_FREE_INDEX = 1 << 18
_INDEX_RATIO = 8
_MAX_SIZE = 1 << 53  # Bytes; integers up to it are exact in any JSON parser.


class ArchiveError(Exception):
  """A coded model file that is damaged, foreign or impossible."""


class Writer:
  """Writes chunks, then the index.

  A context manager. The file appears whole when the block ends, or not at all
  if it raises. OSError as from atomic.replacing.
  """

  def __init__(self, path: str | os.PathLike):
    self._context = atomic.replacing(path)

  def __enter__(self):
    self._file = self._context.__enter__()
    self.restart()
    return self

  def __exit__(self, *exception):
    return self._context.__exit__(*exception)

  def restart(self) -> None:
    """Forgets all chunks."""
    self._file.seek(0)
    self._file.truncate()
    self._file.write(bytes(HEADER_SIZE))
    self._size = 0

  @property
  def payload_size(self) -> int:
    """Bytes of the chunks so far."""
    return self._size

  def chunk(self, data: bytes) -> list[int]:
    """Appends a chunk and returns [size in bytes, checksum]."""
    self._file.write(data)
    self._size += len(data)
    return [len(data), zlib.crc32(data)]

  def finish(self, index: object) -> None:
    """Writes the index, of JSON types, and the header; must be called last."""
    text = json.dumps(index, separators=(",", ":"), allow_nan=False).encode()
    data = zlib.compress(text, 9)
    size = HEADER_SIZE + self._size + len(data)
    if len(text) > _FREE_INDEX + _INDEX_RATIO * size:
      data = zlib.compress(text, 0)
    self._file.write(data)
    self._file.seek(0)
    self._file.write(_header(self._size, len(data), zlib.crc32(data)))


class Reader:
  """Reads and checks the header and the index, and chunks on demand.

  A context manager. Entering raises ArchiveError if the header or the index is
  damaged; `index` is what the JSON parser returned and not checked further.

  Attributes:
    path: of the file.
    size: of the file, in bytes.
    payload_size: of the payload, in bytes.
    version: of the format.
    index: the parsed JSON.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = os.fspath(path)
    self._lock = threading.Lock()

  def __enter__(self):
    mode = os.stat(self.path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # `open` names those.
      raise self.error("not a regular file")
    self._file = open(self.path, "rb")
    try:
      self._open()
    except BaseException:
      self._file.close()
      raise
    return self

  def __exit__(self, *exception):
    self._file.close()

  def error(self, message: str) -> ArchiveError:
    """An ArchiveError that names the file."""
    return ArchiveError(f"{self.path}: {message}")

  def chunk(self, offset: int, size: int, checksum: int) -> bytes:
    """The `size` bytes at `offset` of the payload.

    Raises:
      ArchiveError: if there are fewer, or their checksum is another one.
    """
    if offset + size > self.payload_size:
      raise self.error("a chunk lies beyond the end of the payload")
    with self._lock:
      self._file.seek(HEADER_SIZE + offset)
      data = self._file.read(size)
    if len(data) != size or zlib.crc32(data) != checksum:
      raise self.error(f"the chunk at byte {HEADER_SIZE + offset} is damaged")
    return data

  def _open(self):
    self.size = os.fstat(self._file.fileno()).st_size
    header = self._file.read(HEADER_SIZE)
    self.version, payload, index, checksum = _parse_header(self, header)
    if self.size != HEADER_SIZE + payload + index:
      raise self.error(
        f"the file has {self.size} bytes, its header says "
        f"{HEADER_SIZE + payload + index}: it is cut off or extended"
      )
    self.payload_size = payload
    self._file.seek(HEADER_SIZE + payload)
    data = self._file.read(index)
    if zlib.crc32(data) != checksum:
      raise self.error("the index is damaged: its checksum does not match")
    inflate = zlib.decompressobj()
    try:
      text = inflate.decompress(data, _FREE_INDEX + _INDEX_RATIO * self.size)
      if not inflate.eof or inflate.unused_data:
        raise self.error("the index does not end where its compression says")
      self.index = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
      raise self.error(f"the index cannot be read: {error}") from None


def _header(
  payload: int, index: int, checksum: int, version: int = VERSION
) -> bytes:
  """The first HEADER_SIZE bytes of the file: a length, JSON and spaces."""
  entries = {
    "__metadata__": {
      "backslash_jax": str(version),
      "index_crc32": f"{checksum:08x}",
    },
    "payload": _entry(0, payload),
    "index": _entry(payload, payload + index),
  }
  text = json.dumps(entries, separators=(",", ":")).encode()
  room = HEADER_SIZE - 8
  if len(text) > room:
    raise ValueError(f"a payload of {payload} bytes is too large for a file")
  return room.to_bytes(8, "little") + text.ljust(room)


def _entry(start: int, stop: int) -> dict:
  return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


def _parse_header(reader: Reader, header: bytes) -> tuple[int, int, int, int]:
  """The version, the sizes of payload and index, and the index's checksum."""
  try:
    fields = json.loads(header[8:])
    metadata = fields["__metadata__"]
    version = metadata["backslash_jax"]
    checksum = int(metadata["index_crc32"], 16)
    payload, index = (fields[k]["shape"][0] for k in ("payload", "index"))
  except (ValueError, LookupError, TypeError, RecursionError):
    raise reader.error(
      "not a coded model file of backslash_jax, or one with a damaged header"
    ) from None
  if version not in map(str, READABLE):
    raise reader.error(
      f"format version {version!r}, and this library reads versions up to"
      f" {VERSION}: update backslash_jax"
    )
  for size in (payload, index, checksum):
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
      raise reader.error("the header is damaged")
  if header != _header(payload, index, checksum, int(version)):
    raise reader.error("the header is damaged")
  return int(version), payload, index, checksum
